"""Points on surfaces: hand-worked areas and normals, draws that follow the area, normals that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest
from torch import Tensor

from sightline.ops.points.meshes import areas_and_normals, sample_surface, vertex_normals
from sightline.ops.points.normals import estimate_normals
from sightline.ops.points.rotations import euler_matrix, rotate_points
from tests.cases import run_each

# A step: a 3 by 4 floor of two triangles and a right triangle of legs 3 and 2 standing on its edge y = 0.
VERTICES = np.array([[0, 0, 0], [3, 0, 0], [3, 4, 0], [0, 4, 0], [3, 0, 2]], dtype=np.float64)
FACES = np.array([[0, 1, 2], [0, 2, 3], [0, 1, 4]])
AREAS = np.array([6.0, 6.0, 3.0])
NORMALS = np.array([[0, 0, 1], [0, 0, 1], [0, -1, 0]], dtype=np.float64)


def _draw(vertices: np.ndarray = VERTICES, faces: np.ndarray = FACES, num_points: int = 30_000, seed: int = 1):
    return sample_surface(vertices, faces, num_points=num_points, generator=np.random.default_rng(seed))


def test_areas_and_normals_by_hand() -> None:
    areas, normals = areas_and_normals(VERTICES, FACES)
    np.testing.assert_array_equal(areas, AREAS)
    np.testing.assert_array_equal(normals, NORMALS)


def test_normals_of_vertices_by_hand() -> None:
    """At (0, 0, 0) the floor has the area 12 and the wall 3: the normal leans by a quarter, and not by a half."""
    isolated = np.vstack([VERTICES, [[9, 9, 9]]])
    normals = vertex_normals(isolated, FACES)
    expected = [[0, -3, 12], [0, -3, 6], [0, 0, 1], [0, 0, 1], [0, -1, 0], [0, 0, 0]]
    lengths = [math.sqrt(153), math.sqrt(45), 1, 1, 1, 1]
    np.testing.assert_allclose(normals, np.array(expected) / np.array(lengths)[:, None], rtol=0, atol=1e-15)


def test_faces_that_cancel_leave_no_normal() -> None:
    """A sheet with two sides, turned so that its sums are not exactly 0; and a mesh without a face."""
    sheet = VERTICES @ np.array([[0.6, 0.48, 0.64], [-0.8, 0.36, 0.48], [0, -0.8, 0.6]])
    both = np.vstack([FACES, FACES[:, [1, 0, 2]]])
    assert not vertex_normals(sheet, both).any()
    assert not vertex_normals(sheet, FACES[:0]).any()


def test_faces_are_drawn_by_their_area() -> None:
    counts = np.bincount(_draw().face_index, minlength=3)
    expected = AREAS / AREAS.sum() * 30_000
    # The seed is fixed; a right sampler falls below 0.001 at one seed in a thousand.
    assert chisquare(counts, expected).pvalue > 1e-3
    assert chisquare(counts, np.full(3, 10_000)).pvalue < 1e-9


def test_points_lie_on_their_faces_and_carry_their_normals() -> None:
    drawn = _draw()
    corner = VERTICES[FACES[drawn.face_index, 0]]
    height = ((drawn.points - corner) * NORMALS[drawn.face_index]).sum(axis=1)
    assert np.abs(height).max() <= 8 * np.finfo(np.float64).eps * 4  # a few roundings of coordinates up to 4
    np.testing.assert_array_equal(drawn.normals, NORMALS[drawn.face_index])
    floor = drawn.points[drawn.face_index < 2]
    assert floor.min() >= 0
    assert (floor.max(axis=0) <= [3, 4, 0]).all()
    wall = drawn.points[drawn.face_index == 2]
    assert (wall[:, 2] <= wall[:, 0] * 2 / 3 + 1e-12).all()


def test_points_are_even_within_a_face() -> None:
    """On the floor x / 3 is uniform on [0, 1] (two congruent triangles make the rectangle), and y / 4 likewise."""
    drawn = _draw()
    floor = drawn.points[drawn.face_index < 2]
    assert kstest(floor[:, 0] / 3, "uniform").pvalue > 1e-3
    assert kstest(floor[:, 1] / 4, "uniform").pvalue > 1e-3


def test_faces_without_area_are_never_drawn() -> None:
    flat = np.array([[0, 0, 0], [1, 1, 1], [0, 1, 2], [0, 1, 0], [3, 3, 2]])  # first, second, fourth, fifth: none
    drawn = _draw(faces=np.vstack([flat[:2], [[0, 1, 2]], flat[3:]]), num_points=5000)
    assert set(drawn.face_index) == {2}


def test_a_mesh_without_area_is_refused() -> None:
    with pytest.raises(ValueError, match="none of the 2 faces has an area"):
        _draw(faces=np.array([[0, 0, 1], [2, 2, 2]]))


@run_each(
    "vertices, faces, message",
    [
        ([[0, 0, 0], [1, 0, 0], [0, 1, math.nan], [0, 0, 1]], [[0, 1, 3], [1, 2, 3]], r"vertices\[2\]: found .*nan"),
        ([[0, 0, -math.inf], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]], r"vertices\[0\]: found .*expected finite"),
        ([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2], [0, 1, -1]], r"faces\[1\]: found \[0, 1, -1\], there are 3"),
        (
            [[0, 0, 0], [1, 0, 0], [0, 1, 0]],
            [[0, 1, 3]],
            r"faces\[0\]: found \[0, 1, 3\], there are 3 vertices \(0 .. 2\)",
        ),
        (
            [[0, 0, 0], [1e200, 0, 0], [0, 1e200, 0]],
            [[0, 1, 2]],
            r"faces\[0\]: found \[0, 1, 2\], its area is too large",
        ),
    ],
)
def test_meshes_that_have_no_areas_to_draw_by_are_refused(
    vertices: list[list[float]], faces: list[list[int]], message: str
) -> None:
    """Each drew all of its points from the other faces, or from others' vertices, or from one face without a normal."""
    for function in (areas_and_normals, vertex_normals, _draw):
        with pytest.raises(ValueError, match=message):
            function(np.array(vertices), np.array(faces))


def test_the_generator_alone_decides() -> None:
    np.testing.assert_array_equal(_draw(seed=3).points, _draw(seed=3).points)
    assert (_draw(seed=3).points != _draw(seed=4).points).any()


# --- Estimated normals of surfaces whose normals are known ---


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
