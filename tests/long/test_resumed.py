"""Runs that are killed, and checkpoints that are damaged, at a hundred and a thousand places."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sightline.contract.errors import CheckpointError
from sightline.runs.checkpoint import load, newest_valid
from tests.long.kill_resume import main
from tests.runs.broken_off import Bench, run_forked

# --- 100 random kills, 25 in each of 1 and 2 processes with 0 and 2 workers: 100 resumed runs equal to the bit ---


def test_a_hundred_killed_runs_are_resumed_to_the_same_bits(tmp_path: Path) -> None:
    out = tmp_path / "kill_resume.json"
    code = main(["--kills-per-cell", "25", "--seed", "1", "--out", str(out), "--folder", str(tmp_path / "runs")])
    result = json.loads(out.read_text())
    assert [run for run in result["runs"] if run["differences"]] == []
    assert (code, result["num_runs"]) == (0, 100)
    assert result["num_kills"] >= 100
    assert result["slowest_end_s"] < 10


# --- A checkpoint of a real run with any byte flipped, or cut anywhere, is refused with the file named ---


NAMES = ("model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json", "manifest.json")
NUM_FLIPS, NUM_CUTS = 1000, 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of a run with an average of weights: every kind of file."""
    bench = Bench(tmp_path_factory.mktemp("flipped"))
    words = bench.words("run", "train.ema_decay=0.9", "train.epochs=1")
    code, text = run_forked(words, bench.folder / "log")
    assert code == 0, text
    shelf = bench.folder / "run" / "checkpoints"
    found = shelf / os.readlink(shelf / "last")
    assert sorted(path.name for path in found.iterdir()) == sorted(NAMES)
    return found


def assert_refused(folder: Path, name: str, what: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder / name}: "), f"{what}: {message}"
    assert "\n" not in message


@contextmanager
def flipped(path: Path, place: int, mask: int) -> Iterator[None]:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        for value in (byte ^ mask, byte):
            file.seek(place)
            file.write(bytes([value]))
            file.flush()
            if value != byte:
                yield


@contextmanager
def cut(path: Path, length: int) -> Iterator[None]:
    aside = path.parent.parent / "aside"
    os.rename(path, aside)
    try:
        with aside.open("rb") as file:
            path.write_bytes(file.read(length))
        yield
    finally:
        os.replace(aside, path)


def test_a_thousand_flipped_bytes_are_refused(folder: Path) -> None:
    """Every file gets its share, large or small; within it place and bits are uniform."""
    draw = random.Random(20)
    for number in range(NUM_FLIPS):
        path = folder / NAMES[number % len(NAMES)]
        place, mask = draw.randrange(path.stat().st_size), draw.randrange(1, 256)
        with flipped(path, place, mask):
            assert_refused(folder, path.name, f"byte {place} ^ {mask:#04x}")
            if number < len(NAMES):
                assert newest_valid(folder.parent)[0] != folder
    load(folder)  # every byte was put back: it was the flips that were refused


def test_a_hundred_cut_files_are_refused(folder: Path) -> None:
    draw = random.Random(21)
    for number in range(NUM_CUTS):
        path = folder / NAMES[number % len(NAMES)]
        size = path.stat().st_size
        length = {0: 0, 1: size - 1}.get(number // len(NAMES), draw.randrange(size))
        with cut(path, length):
            assert_refused(folder, path.name, f"cut to {length} of {size} bytes")
    load(folder)
