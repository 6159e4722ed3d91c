"""Every shipped recipe of procedural data gives the numbers of one process on two, in float64; the suite asks three."""

from __future__ import annotations

from typing import Any

import pytest

from tests.runs.recipe_traces import RECIPES
from tests.runs.test_recipe_traces import assert_numbers_of_one_process, traces_of


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Five samples are dealt 3 + 2."""
    return traces_of(2, tmp_path_factory.mktemp("traces"))


@pytest.mark.processes
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_give_the_numbers_of_one_process(on_two: dict[str, Any], recipe: str) -> None:
    assert_numbers_of_one_process(on_two, recipe)
