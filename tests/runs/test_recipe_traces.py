"""Shipped recipes of procedural data give the numbers of one process on three, in float64.

`make test-long` asks the same of all recipes on two and on three; the contract tests do so for a task of each kind.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sightline.engine.distributed import World
from tests.processes import run_ranks
from tests.runs.recipe_traces import NUM_STEPS, trace

pytestmark = pytest.mark.processes

RECIPES = (
    *("detect/synthetic_crowds_fcos", "pose/synthetic_hands_scale_net"),
    *("segment/synthetic_lidar_frnet", "segment/synthetic_rooms_ptv3"),
)
"""Other tasks have two processes in test_processes, test_lidar and test_segmentation_runs."""

# Batch norms over five samples amplify the rounding of sums in another order. A bias ahead of a batch norm has nothing
# but such rounding for a gradient, up to 1e-13; Adam divides it by its eps of 1e-8 and moves the bias by 1e-5 of the
# learning rate. Gradients in a wrong order in memory move weights by twice the learning rate, at least 4e-4.
LOSS_BOUND, WEIGHT_BOUND = 1e-9, 1e-7


def traces_of(num_processes: int, folder: Path, recipes: Sequence[str]) -> dict[str, Any]:
    words = ["-m", "tests.runs.recipe_traces", str(folder / "traces.json"), *recipes]
    run_ranks(words, num_processes, timeout_s=400)
    traces: dict[str, Any] = json.loads((folder / "traces.json").read_text())
    return traces


def assert_numbers_of_one_process(traces: dict[str, Any], recipe: str) -> None:
    alone = trace(recipe, World())
    assert len(alone) == NUM_STEPS + 1
    for part, numbers in alone.items():
        bound = WEIGHT_BOUND if part == "weights" else LOSS_BOUND
        assert traces[recipe][part] == pytest.approx(numbers, rel=bound, abs=bound), part


@pytest.fixture(scope="module")
def traces_of_three_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Five samples are dealt 2 + 2 + 1."""
    return traces_of(3, tmp_path_factory.mktemp("traces"), RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_give_the_numbers_of_one_process(traces_of_three_processes: dict[str, Any], recipe: str) -> None:
    assert_numbers_of_one_process(traces_of_three_processes, recipe)
