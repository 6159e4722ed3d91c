"""Every shipped recipe of procedural data gives the numbers of one process on two and on three, in float64."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sightline.engine.distributed import World
from tests.processes import run_ranks
from tests.runs.recipe_traces import NUM_STEPS, RECIPES, trace

pytestmark = pytest.mark.processes

# Batch norms over five samples amplify the rounding of sums in another order. A bias ahead of a batch norm has nothing
# but such rounding for a gradient, up to 1e-13; Adam divides it by its eps of 1e-8 and moves the bias by 1e-5 of the
# learning rate. Gradients in a wrong order in memory move weights by twice the learning rate, at least 4e-4.
LOSS_BOUND, WEIGHT_BOUND = 1e-9, 1e-7


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    folder = tmp_path_factory.mktemp("traces")
    for size in (2, 3):
        run_ranks(["-m", "tests.runs.recipe_traces", str(folder / f"{size}.json")], size)
    return {size: json.loads((folder / f"{size}.json").read_text()) for size in (2, 3)}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_give_the_numbers_of_one_process(several: dict[int, Any], recipe: str) -> None:
    alone = trace(recipe, World())
    assert len(alone) == NUM_STEPS + 1
    for size, traces in several.items():
        for part, numbers in alone.items():
            bound = WEIGHT_BOUND if part == "weights" else LOSS_BOUND
            assert traces[recipe][part] == pytest.approx(numbers, rel=bound, abs=bound), f"{part} on {size} processes"
