"""Shipped recipes of larger networks are fitted by their own optimiser; the suite asks it of one of each family."""

from __future__ import annotations

import pytest

from tests.fit.test_fit import assert_fitted

CASES = {
    "segment/synthetic_shapes_point_transformer": (
        "data.num_points=64",
        "model={widths: [8, 16], strides: [1, 4], num_neighbours: [4, 4], num_blocks: [1, 1]}",
    ),
    "segment/synthetic_shapes_dgcnn": ("data.num_points=64", "model.num_neighbours=6", "model.embedding=64"),
    "classify/synthetic_shapes_pointnet": ("data.num_points=32",),
    "segment/synthetic_shapes_point_transformer_dense": ("data.num_points=128",),
    "contrast/synthetic_shapes_crosspoint": ("data.num_points=256",),
}


@pytest.mark.parametrize("name", CASES)
def test_a_larger_recipe_is_fitted(name: str) -> None:
    assert_fitted(name, CASES[name])
