"""Commands other than trainings, killed with -9 at random instants: the same words then leave what a whole call does.

`SIGHTLINE_KILLS` is another number of kills a command.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.boxes.test_convert import write_street
from tests.data.clouds.modelnet_writers import write_text
from tests.runs.broken_off import Bench, Forked, assert_all_end, in_session

pytestmark = pytest.mark.processes
NUM_KILLS = int(os.environ.get("SIGHTLINE_KILLS", "8"))
LIMIT_S = 300.0


def read_tree(root: Path) -> dict[str, bytes | str]:
    paths = sorted(path for path in root.rglob("*") if path.is_symlink() or path.is_file())
    return {
        str(path.relative_to(root)): os.readlink(path) if path.is_symlink() else path.read_bytes() for path in paths
    }


def write_clouds(folder: Path) -> Path:
    draw = np.random.default_rng(0)
    for name in ("ball", "cube"):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            np.savetxt(folder / name / f"{number}.xyz", draw.normal(size=(2000, 3)), fmt="%.5f")
    return folder


def prepare(name: str, write: Callable[[Path], Any], *options: str) -> Callable[[Path], list[str]]:
    def words(folder: Path) -> list[str]:
        source = folder / name
        if not source.exists():
            write(source)
        return ["data", "prepare", name, *options, "--from", str(source)]

    return words


def convert(folder: Path) -> list[str]:
    source = folder / "street"
    if not source.exists():
        write_street(source)
    return ["data", "convert", "coco", "--as", "yolo_txt", "--from", str(source)]


def sweep(folder: Path) -> list[str]:
    bench = Bench(folder)
    space = ("--space", "optimizer.lr={low: 1e-4, high: 1e-1, log: true}", "--trials", "3")
    return ["sweep", str(bench.config), "--plugin", str(bench.plugin), "--device", "cpu", *space, "train.epochs=2"]


def read_sweep(out: Path) -> Any:
    """Read the trials without their clocks and their folders: values, states and trained weights."""
    document = json.loads((out / "sweep.json").read_text())
    runs = sorted((out / "trials").iterdir())
    weights = [(run.name, (run / "checkpoints/last/model.safetensors").read_bytes()) for run in runs]
    rows = [{key: value for key, value in row.items() if key != "run"} for row in document["trials"]]
    return rows, document["best"]["trial"], weights


COMMANDS: dict[str, tuple[Callable[[Path], list[str]], str, Callable[[Path], Any]]] = {
    "sweep": (sweep, "--out", read_sweep),
    "cloud_folder": (prepare("cloud_folder", write_clouds, "up_axis=z"), "--to", read_tree),
    "modelnet40": (prepare("modelnet40", write_text), "--to", read_tree),
    "coco": (prepare("coco", write_street), "--to", read_tree),
    "convert": (convert, "--to", read_tree),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_same_words_after_a_kill_leave_what_an_unbroken_call_leaves(name: str, tmp_path: Path) -> None:
    make, option, read = COMMANDS[name]
    (tmp_path / "source").mkdir()
    words = make(tmp_path / "source")
    draw = random.Random(name)

    def start(place: Path) -> Forked:
        place.mkdir(exist_ok=True)
        return Forked([*words, option, str(place / "made")], place.with_suffix(".log"), slowed_s=0.02)

    def finish(place: Path) -> Any:
        code, text = start(place).wait(LIMIT_S)
        assert code == 0 or "made is there and not empty" in text, text  # it was killed when all was in place
        assert "Traceback" not in text
        assert [path.name for path in place.iterdir()] == ["made"], "nothing is left beside"
        return read(place / "made")

    begun = time.monotonic()
    unbroken = finish(tmp_path / "unbroken")
    whole_s = time.monotonic() - begun
    for number in range(NUM_KILLS):
        place = tmp_path / str(number)
        started = start(place)
        started.processes[0].join(draw.uniform(0.1, 1.0) * whole_s)
        if started.is_alive():
            started.kill()
        assert_all_end(in_session(started.pid), within_s=10.0)
        assert finish(place) == unbroken, f"kill {number}: {place.with_suffix('.log').read_text()[-2000:]}"
