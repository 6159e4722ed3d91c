"""Runs made before the rooms of the package were rebuilt: evaluated, they give their figures; they can be resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.command import run_here
from tests.old_runs.make import HERE, RUNS, plugin_words
from tools.before_after_worker import break_off


def assert_close(found: Any, expected: Any, place: str) -> None:
    """Numbers to 1e-6, counts and names exactly; what an old run does not hold may be there beside it."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            assert_close(found[key], value, f"{place}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), place
        for number, pair in enumerate(zip(found, expected, strict=True)):
            assert_close(*pair, f"{place}.{number}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-6, rel=1e-6), place
    else:
        assert found == expected, place


@pytest.fixture(params=RUNS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def run(name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(HERE / name, tmp_path / "run", symlinks=True))


def test_they_give_their_figures(name: str, run: Path, tmp_path: Path) -> None:
    words = (*plugin_words(name), "--device", "cpu")
    done = run_here("evaluate", run, *words, "--json", tmp_path / "again.json")
    assert done.code == 0, done.err
    assert_close(json.loads((tmp_path / "again.json").read_text()), json.loads((run / "final.json").read_text()), "")


def test_they_are_resumed(name: str, run: Path) -> None:
    """From the first of their two checkpoints, to losses that differ by what other kernels and threads round."""
    expected = last_loss(run)
    break_off(run)
    words = (*plugin_words(name), "--device", "cpu", "--no-check")
    done = run_here("train", run / "config.yaml", *words, "--out", run, "--resume", "auto")
    assert done.code == 0, done.err
    assert last_loss(run) == pytest.approx(expected, rel=1e-3)


def last_loss(run: Path) -> float:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return float([line for line in lines if line["split"] == "train"][-1]["loss/total"])
