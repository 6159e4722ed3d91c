"""Nearest neighbours against SciPy, a plain sort of exact integers, and the symmetries of distance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from sightline.geometry import neighbours
from sightline.geometry.neighbours import gather_points, nearest_neighbours


def by_exact_sort(points: Tensor, count: int) -> np.ndarray:
    """Order by (distance, index) of integer coordinates, in whole numbers: nothing to round."""
    grid = points.numpy().astype(np.int64)
    squared = ((grid[:, :, None] - grid[:, None]) ** 2).sum(-1)
    return squared.argsort(axis=-1, kind="stable")[..., :count]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("num_channels", "count"), [(3, 8), (7, 1), (3, 200)])
def test_agrees_with_scipy(num_channels: int, count: int, dtype: torch.dtype) -> None:
    points = torch.randn(3, 200, num_channels, dtype=dtype)
    found = nearest_neighbours(points, num_neighbours=count)
    for cloud, index in zip(points.double().numpy(), found, strict=True):
        distance, expected = cKDTree(cloud).query(cloud, k=count)
        ours = np.linalg.norm(cloud[index] - cloud[:, None], axis=-1)
        # Where the order differs from the exact one, two distances are equal to rounding: compare those, not places.
        np.testing.assert_allclose(ours, distance.reshape(ours.shape), rtol=10 * torch.finfo(dtype).eps)
        if dtype == torch.float64:
            np.testing.assert_array_equal(index, expected.reshape(index.shape))


@pytest.mark.parametrize("count", [1, 7, 26, 60])
def test_ties_go_to_the_lower_index(count: int) -> None:
    points = torch.randint(0, 3, (4, 60, 3)).float()  # 27 places for 60 points: ties and duplicates everywhere
    found = nearest_neighbours(points, num_neighbours=count)
    np.testing.assert_array_equal(found, by_exact_sort(points, count))


def test_far_from_the_origin_nothing_is_lost() -> None:
    """At 4096 m the squares of the expansion need 12 digits more than float32 has; the differences need none."""
    grid = torch.randint(0, 6, (2, 80, 3)).float()
    near, far = (nearest_neighbours(cloud, num_neighbours=9) for cloud in (grid / 8, grid / 8 + 4096))
    assert torch.equal(near, far)


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.randint(0, 5, (2, 50, 4)).float()
    whole = nearest_neighbours(points, num_neighbours=6)
    monkeypatch.setattr(neighbours, "_ENTRIES_AT_ONCE", 700)  # 7 queries at a time, and a last chunk of 1
    assert torch.equal(nearest_neighbours(points, num_neighbours=6), whole)


def test_half_precision_is_compared_in_float32() -> None:
    points = torch.randint(0, 9, (1, 40, 64)).to(torch.bfloat16)
    np.testing.assert_array_equal(nearest_neighbours(points, num_neighbours=5), by_exact_sort(points.float(), 5))


def test_single_point() -> None:
    assert nearest_neighbours(torch.zeros(2, 1, 3), num_neighbours=1).tolist() == [[[0]], [[0]]]


def test_more_neighbours_than_points_names_both() -> None:
    with pytest.raises(ValueError, match=r"9 neighbours asked for in clouds of 8 points"):
        nearest_neighbours(torch.zeros(1, 8, 3), num_neighbours=9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_not_finite_names_the_sample(bad: float) -> None:
    points = torch.zeros(4, 8, 3)
    points[2, 5, 1] = bad
    with pytest.raises(ValueError, match=r"points\[2\]: point 5 is \[0.0, -?(nan|inf), 0.0\]"):
        nearest_neighbours(points, num_neighbours=3)


def test_gather_takes_the_rows_named() -> None:
    values, index = torch.randn(2, 6, 4), torch.randint(0, 6, (2, 5, 3))
    expected = np.stack([values[b].numpy()[index[b].numpy()] for b in range(2)])
    np.testing.assert_array_equal(gather_points(values, index), expected)


def test_gather_passes_gradients_back() -> None:
    values = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    index = torch.randint(0, 4, (2, 5, 3))
    assert torch.autograd.gradcheck(lambda v: gather_points(v, index), (values,))
