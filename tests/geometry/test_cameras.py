"""Cameras on rings: where they stand, what they frame, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sightline.geometry.pinhole import Axis, Cameras, Projection, ring_cameras
from tests.cases import run_each

EPS = float(np.finfo(np.float64).eps)


def seen(cameras: Cameras, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows (V, N) by the textbook: x right, y up, divided by the distance where there is a pinhole."""
    x, y, z = np.einsum("vij,nj->ivn", cameras.rotations, points)
    depth = 1 if cameras.distance is None else cameras.distance - z
    return cameras.centre_px + cameras.scale_px * x / depth, cameras.centre_px - cameras.scale_px * y / depth


@pytest.mark.parametrize("up_axis", ["x", "y", "z"])
def test_views_turn_rightly_about_the_up_axis(up_axis: Axis) -> None:
    cameras = ring_cameras(12, size_px=64, up_axis=up_axis, elevations_deg=(10, 50))
    products = cameras.rotations @ cameras.rotations.swapaxes(1, 2)
    assert np.abs(products - np.eye(3)).max() < 8 * EPS  # sums of three products of numbers up to 1
    assert np.abs(np.linalg.det(cameras.rotations) - 1).max() < 16 * EPS
    up = np.eye(3)["xyz".index(up_axis)]
    assert np.abs(cameras.rotations[:, 0] @ up).max() == 0  # to the right is level
    assert (cameras.rotations[:, 1] @ up > 0).all()
    heights = np.degrees(np.arcsin(cameras.rotations[:, 2] @ up))
    assert np.allclose(heights, [10] * 6 + [50] * 6)


def test_the_first_view_of_things_upright_in_z_stands_on_x() -> None:
    """Seen from x with z up, y is to the right: the right-handed frame as a plan shows it."""
    first = ring_cameras(4, size_px=64, elevations_deg=(0,)).rotations[0]
    assert np.allclose(first, [[0, 1, 0], [0, 0, 1], [1, 0, 0]])


def test_rings_are_turned_by_half_a_step() -> None:
    towards = ring_cameras(8, size_px=64, elevations_deg=(0, 0)).rotations[:, 2]
    azimuths = np.degrees(np.arctan2(towards[:, 1], towards[:, 0])) % 360
    assert np.allclose(azimuths, [0, 90, 180, 270, 45, 135, 225, 315])


@pytest.mark.parametrize("projection", ["parallel", "pinhole"])
def test_the_unit_sphere_fills_95_hundredths_of_the_picture(projection: Projection) -> None:
    """The outline of a sphere is a circle, seen from a pinhole too, whose radius is that of the tangent cone."""
    cameras = ring_cameras(6, size_px=100, projection=projection)
    generator = np.random.default_rng(0)
    points = generator.normal(size=(200_000, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    columns, rows = seen(cameras, points)
    radii = np.hypot(columns - 49.5, rows - 49.5).max(axis=1)
    assert (radii <= 47.5 + 1e-9).all()
    assert (radii > 47.4).all()


def test_a_pinhole_shows_what_is_near_larger() -> None:
    cameras = ring_cameras(1, size_px=101, elevations_deg=(0,), projection="pinhole")
    columns, _ = seen(cameras, np.array([[0.5, 0.4, 0], [-0.5, 0.4, 0]]))
    scale = 0.95 * 50.5 * math.sqrt(8)
    assert np.allclose(columns[0], [50 + scale * 0.4 / 2.5, 50 + scale * 0.4 / 3.5])


@run_each(
    "num_views, elevations, told",
    [
        (7, (10.0, 20.0), "7 views on 2 elevations: as many on each"),
        (0, (10.0,), "0 views on 1 elevations"),
        (3, (), "3 views on 0 elevations"),
        (2, (10.0, -91.0), "an elevation of -91 degrees: it must lie within -90 and 90"),
        (1, (math.nan,), "an elevation of nan degrees"),
        (2, (30.0, math.nan), "an elevation of nan degrees"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(num_views: int, elevations: tuple[float, ...], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ring_cameras(num_views, size_px=8, elevations_deg=elevations)
