"""Every shipped recipe of procedural data gives the numbers of one process on two and on three, in float64."""

from __future__ import annotations

from typing import Any

import pytest

from tests.runs.recipe_traces import RECIPES
from tests.runs.test_recipe_traces import assert_numbers_of_one_process, traces_of


@pytest.fixture(scope="module", params=[2, 3])
def on_many(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Five samples are dealt 3 + 2, or 2 + 2 + 1."""
    return traces_of(request.param, tmp_path_factory.mktemp("traces"), RECIPES)


@pytest.mark.processes
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_give_the_numbers_of_one_process(on_many: dict[str, Any], recipe: str) -> None:
    assert_numbers_of_one_process(on_many, recipe)
