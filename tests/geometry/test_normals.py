"""Estimated normals of surfaces whose normals are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sightline.geometry.rotations import euler_matrix, rotate_points
from sightline.geometry.surfaces import estimate_normals


def sphere(num_points: int) -> Tensor:
    """Points spread evenly over the unit sphere, by the golden angle."""
    place = torch.arange(num_points, dtype=torch.float64) + 0.5
    z, angle = 1 - 2 * place / num_points, place * math.pi * (1 + math.sqrt(5))
    radius = (1 - z * z).sqrt()
    return torch.stack([radius * angle.cos(), radius * angle.sin(), z], dim=-1)[None]


def largest_angle_rad(found: Tensor, expected: Tensor) -> float:
    """The sine would lose nothing near 0, the cosine would; the sign of the normal counts."""
    return float(2 * ((found - expected).norm(dim=-1) / 2).clamp(max=1).asin().max())


def test_sphere() -> None:
    """Sixteen neighbours lie within h = sqrt(4 * 16 / N) of their point: a normal turns by less than h of a radian."""
    points = sphere(4000)
    angle = largest_angle_rad(estimate_normals(points), points)
    assert angle < math.sqrt(64 / 4000) / 4, "they lie evenly around: a quarter of the bound is ample"
    assert largest_angle_rad(estimate_normals(sphere(16_000)), sphere(16_000)) < angle, "finer points, finer normals"


def test_cylinder() -> None:
    """Three by three neighbours stand evenly around their point; at the rims they lean over by less than 2 steps."""
    turn, rise = torch.arange(120.0).double() * math.pi / 60, torch.arange(60.0).double() / 20
    angle, height = torch.meshgrid(turn, rise, indexing="ij")
    normal = torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], dim=-1)
    points = torch.stack([angle.cos(), angle.sin(), height], dim=-1).reshape(1, -1, 3)
    found = estimate_normals(points, num_neighbours=9).reshape(normal.shape)
    assert largest_angle_rad(found[:, 1:-1], normal[:, 1:-1]) < 1e-12
    assert largest_angle_rad(found, normal) < 2 * math.pi / 60


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_planes_are_exact_wherever_they_stand(dtype: torch.dtype) -> None:
    """On a grid of eighths z = 2 at 1e4 m nothing is rounded; all lies at right angles to the centroid: z is up."""
    grid = torch.cartesian_prod(torch.arange(20.0), torch.arange(20.0)) / 8 + 1e4
    points = torch.cat([grid, torch.full((400, 1), 2.0)], dim=1)[None].to(dtype)
    assert torch.equal(estimate_normals(points), torch.tensor([0, 0, 1], dtype=dtype).expand(1, 400, 3))
    side = points[..., [2, 0, 1]]
    assert torch.equal(estimate_normals(side), torch.tensor([1, 0, 0], dtype=dtype).expand(1, 400, 3))


def test_a_box_shows_outwards() -> None:
    grid = torch.cartesian_prod(torch.arange(11.0), torch.arange(11.0)) / 5 - 1
    inner = (grid.abs() < 0.7).all(dim=1)
    faces = [torch.full((121, 1), side).double() for side in (-1.0, 1.0)]
    points = torch.cat([torch.cat([grid, face], dim=1).roll(axis, dims=1) for face in faces for axis in range(3)])
    expected = torch.cat([torch.eye(3)[(2 + axis) % 3].expand(121, 3) * side for side in (-1, 1) for axis in range(3)])
    found = estimate_normals(points[None], num_neighbours=9)[0]
    chosen = inner.repeat(6)
    assert (found[chosen] - expected[chosen]).abs().max() < 1e-7


def test_turning_the_points_turns_the_normals_and_their_order_does_not_matter() -> None:
    points = torch.randn(1, 300, 3, dtype=torch.float64)
    turn = euler_matrix(torch.tensor([[0.3, -1.1, 2.0]], dtype=torch.float64))
    found = estimate_normals(points)
    turned = estimate_normals(rotate_points(points, turn))
    # a neighbourhood's axes are known to eps over the gap between its two smallest spreads
    assert (turned - rotate_points(found, turn)).abs().max() < 1e-9
    order = torch.randperm(300)
    assert (estimate_normals(points[:, order]) - found[:, order]).abs().max() < 1e-9


def test_points_on_a_line_have_no_normal() -> None:
    line = torch.arange(40.0)[:, None] * torch.tensor([1.0, 2.0, 3.0])
    points = torch.stack([torch.randn(40, 3), line])
    with pytest.raises(ValueError, match=r"points\[1\]: the 16 points nearest to point 0 lie on one line"):
        estimate_normals(points)
    with pytest.raises(
        ValueError, match=r"points\[0\]: the 8 points nearest to point 0 lie on one line or in one place"
    ):
        estimate_normals(torch.ones(1, 20, 3), num_neighbours=8)
    with pytest.raises(ValueError, match="16 neighbours asked for in clouds of 9 points"):
        estimate_normals(torch.randn(1, 9, 3))


def test_no_clouds_have_no_normals() -> None:
    assert estimate_normals(torch.zeros(0, 20, 3)).shape == (0, 20, 3)
