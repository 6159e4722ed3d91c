"""Levels of ragged clouds: what is found once is what a search for each would find."""

from __future__ import annotations

import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from sightline.geometry import farthest_point_sample, interpolate, packed_nearest_neighbours
from sightline.geometry.packed import build_pyramid

COUNTS = (70, 1, 0, 200, 5)
OFFSETS = torch.tensor([0, 70, 71, 71, 271, 276])


@pytest.fixture
def points() -> Tensor:
    return torch.randn(sum(COUNTS), 3, dtype=torch.float64)


def test_each_level_keeps_a_share_of_every_cloud_and_at_least_one_point(points: Tensor) -> None:
    levels = build_pyramid(points, offsets=OFFSETS, strides=(1, 4, 1, 4), num_neighbours=(4, 8, 8, 8))
    sizes = [level.offsets.diff().tolist() for level in levels]
    assert sizes == [[70, 1, 0, 200, 5], [17, 1, 0, 50, 1], [17, 1, 0, 50, 1], [4, 1, 0, 12, 1]]
    chosen = farthest_point_sample(points[None, 71:271], num_samples=50)[0]
    assert torch.equal(levels[1].points[18:68], points[71:271][chosen])
    assert levels[2].points is levels[1].points
    assert levels[2].downsampling is None


@pytest.mark.parametrize("num_neighbours", [(4, 8), (8, 4), (300, 300)])
def test_neighbours_down_are_those_of_a_search(points: Tensor, num_neighbours: tuple[int, int]) -> None:
    """Whether they are found anew or taken from those of the finer level."""
    fine, coarse = build_pyramid(points, offsets=OFFSETS, strides=(1, 4), num_neighbours=num_neighbours)
    assert coarse.downsampling is not None
    found = packed_nearest_neighbours(
        points, offsets=OFFSETS, num_neighbours=200, queries=coarse.points, query_offsets=coarse.offsets
    )
    is_valid = coarse.downsampling.is_valid
    width = coarse.downsampling.index.shape[1]
    assert width == min(num_neighbours[1], 200)
    assert torch.equal(is_valid, found.is_valid[:, :width])
    assert torch.equal(coarse.downsampling.index[is_valid], found.index[:, :width][is_valid])
    expected = points[coarse.downsampling.index] - coarse.points[:, None]
    assert torch.equal(coarse.downsampling.relative, torch.where(is_valid[..., None], expected, 0))
    assert fine.neighbours.is_whole == bool(fine.neighbours.is_valid.all())


def test_neighbours_agree_with_scipy(points: Tensor) -> None:
    near = build_pyramid(points, offsets=OFFSETS, strides=(1,), num_neighbours=(6,))[0].neighbours
    distance, index = cKDTree(points[71:271].numpy()).query(points[71:271].numpy(), k=6)
    assert torch.equal(near.index[71:271] - 71, torch.from_numpy(index))
    torch.testing.assert_close(near.relative[71:271].norm(dim=-1), torch.from_numpy(distance))
    assert near.count.tolist() == [6] * 70 + [1] + [6] * 200 + [5] * 5


def test_features_come_up_as_they_are_interpolated(points: Tensor) -> None:
    """A cloud with one or two coarse points takes what it has."""
    _, coarse = build_pyramid(points, offsets=OFFSETS, strides=(1, 4), num_neighbours=(4, 8))
    assert coarse.interpolation is not None
    features = torch.randn(len(coarse.points), 2, dtype=torch.float64)
    carried = (features[coarse.interpolation.index] * coarse.interpolation.weights[..., None]).sum(dim=1)
    expected = interpolate(
        features[None, 18:68], points=coarse.points[None, 18:68], queries=points[None, 71:271], weighting="inverse"
    )
    torch.testing.assert_close(carried[71:271], expected[0])
    assert torch.equal(carried[70], features[17])
    assert torch.equal(carried[271:], features[68:].expand(5, 2))


def test_moments_are_those_of_the_real_places(points: Tensor) -> None:
    near = build_pyramid(points, offsets=OFFSETS, strides=(1,), num_neighbours=(8,))[0].neighbours
    rows = near.relative[near.is_valid]
    mean, products = near.moments
    assert near.num_edges == len(rows) == 70 * 8 + 1 + 200 * 8 + 5 * 5
    torch.testing.assert_close(mean, rows.mean(dim=0))
    torch.testing.assert_close(products, torch.einsum("ea,eb->ab", rows, rows) / len(rows))


def test_a_cloud_with_nan_is_named(points: Tensor) -> None:
    points[73, 1] = torch.nan
    with pytest.raises(ValueError, match=r"points\[3\]: point 2 is \[.*nan"):
        build_pyramid(points, offsets=OFFSETS, strides=(1, 4), num_neighbours=(4, 4))
