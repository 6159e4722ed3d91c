"""Shipped recipes of every task, cut down, are fitted by their own optimiser."""

from __future__ import annotations

from pathlib import Path

import pytest

from sightline.config import read_config
from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.workbench.fit.fit_one import FitOptions, fit_one
from tests.marks import long_but

ROOT = Path(__file__).resolve().parents[3]
SIZES = ("data.train_size=60", "data.test_size=24")
CASES = {
    "classify/synthetic_shapes_dgcnn": ("data.num_points=64", "model.num_neighbours=6", "model.embedding=64"),
    "classify/synthetic_shapes_point_bert": (
        "data.num_points=64",
        "model={width: 32, depth: 2, num_groups: 8, group_size: 8}",
    ),
    "contrast/synthetic_shapes_intrapoint_parts": (
        "data.num_points=64",
        "model.points={name: dgcnn_parts, num_neighbours: 6, embedding: 64}",
    ),
    "classify/synthetic_shapes_pct": ("data.num_points=64", "model={num_centres: [32, 16], num_neighbours: 8}"),
    "classify/synthetic_shapes_pointnet2": (
        "data.num_points=64",
        "model={num_centres: [32, 8], num_neighbours: [8, 8]}",
    ),
}
"""Larger ones: tests/long/test_larger_recipes.py."""


def assert_fitted(name: str, overrides: tuple[str, ...]) -> None:
    built = build(read_config(ROOT / "configs" / f"{name}.yaml", [*SIZES, *overrides]), World())
    result = fit_one(built, FitOptions(steps=40), lambda line: None)
    assert result.is_fitted, result.findings
    assert [finding for finding in result.findings if finding.severity != "note"] == []


@pytest.mark.parametrize(
    "name", long_but(["classify/synthetic_shapes_pct", "contrast/synthetic_shapes_intrapoint_parts"], CASES)
)
def test_a_recipe_is_fitted(name: str) -> None:
    assert_fitted(name, CASES[name])
