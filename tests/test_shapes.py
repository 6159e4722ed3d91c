"""Fixed shapes of the recipes' steps: as the table of docs/inside/gpu_counts.md states them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.marks import long_but
from tests.recipe_steps import RECIPES
from tests.shapes import count_shapes, read_table

DAILY = [
    "boxes3d/synthetic_streets_pointpillars",
    *("classify/modelnet40_dgcnn", "classify/modelnet40_point_transformer", "contrast/synthetic_shapes_crosspoint"),
    *("detect/synthetic_crowds_fcos", "pose/synthetic_hands_v2v_small", "segment/synthetic_lidar_squeezeseg"),
    *("segment/synthetic_rooms_point_transformer", "segment/synthetic_rooms_spunet"),
]


@pytest.mark.parametrize("recipe", long_but(DAILY, RECIPES))
def test_the_shapes_of_a_step_are_those_of_the_table(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of fixed shapes has the same operators each time, and gets the same numbers of the host."""
    shapes = count_shapes(recipe, tmp_path, monkeypatch)
    assert shapes.row == read_table()[recipe], shapes
    assert shapes.steps > 1 or not shapes.of_host
