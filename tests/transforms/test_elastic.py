"""Elastic distortion: SciPy's smoothing and interpolation, softness, purity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator
from scipy.ndimage import convolve

from sightline.errors import ConfigError, DataError
from sightline.transforms.points import Elastic, bend, smooth
from tests.transforms.scenes import draws_of, make_scene


def test_smoothing_is_scipys_convolution() -> None:
    grid = torch.randn(5, 4, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = grid.numpy()
    for axis in (0, 1, 2) * 2:
        kernel = np.ones([3 if i == axis else 1 for i in range(4)]) / 3
        expected = convolve(expected, kernel, mode="constant", cval=0)
    assert np.abs(smooth(grid).numpy() - expected).max() < 1e-14


def test_between_the_nodes_it_is_scipys_linear_interpolation() -> None:
    generator = torch.Generator().manual_seed(0)
    grid = torch.randn(5, 4, 7, 3, dtype=torch.float64, generator=generator)
    place = torch.rand(200, 3, dtype=torch.float64, generator=generator) * torch.tensor([4.0, 3.0, 6.0])
    place = torch.cat((place, torch.tensor([[0.0, 0, 0], [4, 3, 6]], dtype=torch.float64)))
    expected = RegularGridInterpolator([np.arange(n) for n in (5, 4, 7)], grid.numpy())(place.numpy())
    assert np.abs(bend(grid, place).numpy() - expected).max() < 1e-13


def test_a_cloud_gets_the_same_bits_alone_and_in_any_batch() -> None:
    points = make_scene(400, 4)["points"] * torch.tensor([1.0, 2.0, 0.5, 3.0]).view(4, 1, 1)  # grids of four sizes
    before = points.clone()
    transform = Elastic(probability=1.0)
    together = transform(draws_of(4), points=points)["points"]
    assert torch.equal(points, before)
    for row in range(4):
        alone = transform(draws_of(1, first=row), points=points[row : row + 1])["points"]
        assert torch.equal(alone[0], together[row])
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    assert torch.equal(transform(draws_of(4), points=points[:, order])["points"], together[:, order])


def test_neighbours_move_alike_and_the_share_is_kept() -> None:
    points = make_scene(2000)["points"]
    twin = points + 1e-3
    transform = Elastic(granularities=(0.8,), magnitudes=(0.4,), probability=1.0)
    both = transform(draws_of(), points=torch.cat((points, twin), dim=1))["points"]
    moved = both[:, :2000] - points
    assert moved.abs().max() > 0.02
    # between nodes 0.8 m apart values of a deviation below 1 change by at most a few per node, times the magnitude
    assert (both[:, 2000:] - twin - moved).abs().max() < 6 * 3 * 1e-3 / 0.8 * 0.4
    unmoved = Elastic(probability=0.0)(draws_of(), points=points)["points"]
    assert torch.equal(unmoved, points)
    share = (
        (
            Elastic(probability=0.4)(draws_of(1000), points=make_scene(5, 1000)["points"])["points"]
            != make_scene(5, 1000)["points"]
        )
        .flatten(1)
        .any(1)
        .double()
        .mean()
    )
    assert abs(share - 0.4) < 5 * np.sqrt(0.24 / 1000)


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="2 granularities and 1 magnitudes"):
        Elastic(magnitudes=(0.1,))
    with pytest.raises(DataError, match="is too fine; give a larger granularity"):
        Elastic(granularities=(1e-3,), magnitudes=(0.1,))(draws_of(), points=make_scene()["points"])
