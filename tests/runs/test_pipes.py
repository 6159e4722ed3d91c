"""Pipes, devices and giants in the place of a run's documents: one line, exit code 2, and nobody waits."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.command import refuse, succeed
from tests.limits import limited
from tests.runs.small import TINY

RESUME = ("train", TINY, "--no-check", "--device", "cpu", "--resume", "auto", "--out", "RUN")
EVALUATE = ("evaluate", "RUN", "--device", "cpu")
PREDICT = ("predict", "RUN", "CLOUD", "--device", "cpu")


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    succeed("train", TINY, "--no-check", "--device", "cpu", "--out", out)
    return out


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """A command that waits fails, instead of the whole suite."""
    with limited():
        yield


@pytest.mark.parametrize(
    ("words", "name", "kinds"),
    [
        (EVALUATE, "config.yaml", "pipe giant"),
        (("show", "RUN"), "environment.json", "pipe"),
        (RESUME, "environment.json", "pipe device giant"),
        (EVALUATE, "facts.json", "pipe giant"),
        (PREDICT, "inputs.json", "pipe"),
        (RESUME, "metrics.jsonl", "pipe device giant"),
        (RESUME, "final.json", "pipe device giant"),
        (RESUME, "sessions.jsonl", "pipe device"),
        (RESUME, "train.log", "pipe device"),
        (RESUME, ".lock", "pipe device giant"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else value,
)
def test_a_document_that_is_none_is_named(
    words: tuple[str | Path, ...], name: str, kinds: str, finished_run: Path, tmp_path: Path
) -> None:
    for kind in kinds.split():
        folder = tmp_path / kind
        folder.mkdir()
        line = error_of(folder, finished_run, words, name, kind)
        assert line.startswith(f"error: {folder / 'run' / name}:"), kind


def error_of(folder: Path, finished: Path, words: tuple[str | Path, ...], name: str, kind: str) -> str:
    """The one line of a command on a copy of the run, one document of which is replaced."""
    run = folder / "run"
    shutil.copytree(finished, run, symlinks=True)
    np.save(folder / "cloud.npy", np.eye(32, 3, dtype=np.float32))
    if words is RESUME and name != "final.json":
        (run / "final.json").unlink()
    path = run / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(5 << 30)
    places = {"RUN": run, "CLOUD": folder / "cloud.npy", "OUT": folder / "out"}
    ended = refuse(*(places.get(str(word), word) for word in words))
    (line,) = [line for line in ended.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in ended
    return line


@pytest.mark.parametrize("option", ["--plugin", "config", "base"])
def test_what_a_user_names_may_not_be_a_pipe(option: str, tmp_path: Path) -> None:
    pipe, config = tmp_path / "pipe.py", tmp_path / "config.yaml"
    os.mkfifo(pipe)
    config.write_text("base: pipe.py\n")
    words = {"--plugin": (TINY, "--plugin", pipe), "config": (pipe,), "base": (config,)}[option]
    ended = refuse("show", *words)
    assert f"{pipe}: " in ended
    assert "is not a plain file" in ended
