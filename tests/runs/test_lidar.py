"""Range images in whole runs: any split of a step, scans without points or labels, weights of another set, commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.engine.distributed import World
from tests.processes import run_ranks
from tests.runs.lidar_steps import run_steps

# As of the contract's toys: sums of float64 terms in another order, through six steps of AdamW.
BOUND = 1e-9


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return run_steps(World())


def assert_same(found: dict[str, Any], whole: dict[str, Any]) -> None:
    """The same counts of every point before the first step; every loss, gradient norm and weight thereafter."""
    assert found["confusion"] == whole["confusion"]
    assert found["first"] == pytest.approx(whole["first"], rel=BOUND)
    assert [step["samples"] for step in found["trace"]] == [7, 7, 4] * 2
    for ours, theirs in zip(found["trace"], whole["trace"], strict=True):
        assert ours == pytest.approx(theirs, rel=BOUND, abs=BOUND)
    for name, values in whole["weights"].items():
        np.testing.assert_allclose(found["weights"][name], values, rtol=0, atol=BOUND)
    assert found["last"] == pytest.approx(whole["last"], rel=1e-6)


def test_three_micro_batches_are_one_batch(whole: dict[str, Any]) -> None:
    assert np.array(whole["confusion"]).sum() > 5_000
    assert_same(run_steps(World(), micro_batches=3), whole)


@pytest.mark.processes
@pytest.mark.parametrize("num_processes", [2, 3])
def test_processes_with_uneven_scans_are_one(whole: dict[str, Any], num_processes: int, tmp_path: Path) -> None:
    run_ranks(["-m", "tests.runs.lidar_steps", str(tmp_path / "found.json")], num_processes)
    assert_same(json.loads((tmp_path / "found.json").read_text()), whole)
