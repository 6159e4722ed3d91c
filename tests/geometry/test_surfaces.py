"""Points on surfaces: hand-worked areas and normals, and draws that follow the area."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chisquare, kstest

from sightline.geometry.surfaces import areas_and_normals, sample_surface

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


def test_reversed_winding_reverses_the_normal() -> None:
    _, normals = areas_and_normals(VERTICES, FACES[:, ::-1])
    np.testing.assert_array_equal(normals, -NORMALS)


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


def test_centre_of_mass() -> None:
    """That of the triangles' centroids by area: (6*(2, 4/3, 0) + 6*(1, 8/3, 0) + 3*(2, 0, 2/3)) / 15."""
    points = _draw().points
    expected = np.array([24 / 15, 24 / 15, 2 / 15])
    error = points.std(axis=0) / np.sqrt(len(points))
    assert (np.abs(points.mean(axis=0) - expected) < 4 * error).all()


def test_faces_without_area_are_never_drawn() -> None:
    flat = np.array([[0, 0, 0], [1, 1, 1], [0, 1, 2], [0, 1, 0], [3, 3, 2]])  # first, second, fourth, fifth: none
    drawn = _draw(faces=np.vstack([flat[:2], [[0, 1, 2]], flat[3:]]), num_points=5000)
    assert set(drawn.face_index) == {2}


def test_a_mesh_without_area_is_refused() -> None:
    with pytest.raises(ValueError, match="none of the 2 faces has an area"):
        _draw(faces=np.array([[0, 0, 1], [2, 2, 2]]))


def test_the_generator_alone_decides() -> None:
    np.testing.assert_array_equal(_draw(seed=3).points, _draw(seed=3).points)
    assert (_draw(seed=3).points != _draw(seed=4).points).any()


def test_turning_the_mesh_turns_the_points() -> None:
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    plain, turned = _draw(num_points=500), _draw(vertices=VERTICES @ turn.T, num_points=500)
    np.testing.assert_array_equal(plain.face_index, turned.face_index)
    np.testing.assert_allclose(plain.points @ turn.T, turned.points, atol=1e-14)
    np.testing.assert_allclose(np.abs((plain.normals @ turn.T * turned.normals).sum(1)), 1, atol=1e-14)
