"""Two processes extract the features of one, bit for bit, and every verb says the figure of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.command import run_here
from tests.processes import ROOT
from tests.runs.broken_off import run_forked
from tests.trained import copy_run


def launched(words: list[object], file: Path) -> dict[str, Any]:
    """What a verb that starts two processes writes as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "sightline", *map(str, words), "--processes", "2", "--device", "cpu", "--json", file],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text())


def started(words: list[object], file: Path) -> dict[str, Any]:
    """The same by processes that a launcher has started."""
    given = [*map(str, words), "--device", "cpu", "--json", str(file)]
    code, text = run_forked(given, file.with_suffix(".log"), num_processes=2)
    assert code == 0, text
    return json.loads(file.read_text())


@pytest.mark.processes
def test_two_processes_give_the_features_and_figures_of_one(tmp_path: Path) -> None:
    """By `--processes`: tests/long/test_launched_processes.py."""
    assert_two_give_what_one_does(tmp_path, started)


def assert_two_give_what_one_does(tmp_path: Path, run_two: Callable[[list[object], Path], dict[str, Any]]) -> None:
    """The parts of 72 and 36 clouds are batches of 10: eight and four of them, the last ones shorter."""
    run = copy_run("contrast", tmp_path)
    words = ["evaluate", run, "--probe", "svm,few-shot", "ways=3", "shots=2", "queries=2"]
    assert run_here(*words, "--device", "cpu", "--json", tmp_path / "one.json").code == 0
    assert run_two(words, tmp_path / "two.json") == json.loads((tmp_path / "one.json").read_text())
    evaluated = run_two(["evaluate", run], tmp_path / "evaluated.json")
    assert evaluated["metrics"] == json.loads((run / "final.json").read_text())["metrics"]
