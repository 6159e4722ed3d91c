"""Pictures against what a sphere, planes and boxes must look like, and the compiled form against the plain one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sightline.ops import numba_kernels
from sightline.ops.points.meshes import sample_surface
from sightline.ops.views import rendering
from sightline.ops.views.cameras import Projection, ring_cameras
from sightline.ops.views.rendering import Style, on_background, render_cloud
from tests.ops.threads import with_one_and_three_threads

LIGHT = np.array([-0.3, 0.4, 0.85]) / np.linalg.norm([0.3, 0.4, 0.85])


def even_sphere(num_points: int) -> np.ndarray:
    """Points spread evenly over the unit sphere: a spiral with the golden angle."""
    place = np.arange(num_points) + 0.5
    height, turn = 1 - 2 * place / num_points, np.pi * (1 + 5**0.5) * place
    rim = np.sqrt(1 - height**2)
    return np.stack([rim * np.cos(turn), rim * np.sin(turn), height], axis=1)


def random_cloud(seed: int, num_points: int = 150) -> np.ndarray:
    generator = np.random.default_rng(seed)
    vertices = generator.uniform(-0.57, 0.57, size=(12, 3))
    faces = generator.permuted(np.tile(np.arange(12), (6, 1)), axis=1)[:, :3]
    points = sample_surface(vertices, faces, num_points=num_points, generator=generator).points
    return points.astype(np.float32)


def pixel_grid(size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """To the right and up of every pixel's centre, in units of the scene, in parallel projection."""
    offset = (np.arange(size_px) - (size_px - 1) / 2) / (0.95 * size_px / 2)
    return np.meshgrid(offset, -offset)


# --- the plain form and the fast one ---------------------------------------------------------------------------------


@pytest.mark.parametrize("projection", ["parallel", "pinhole"])
@pytest.mark.parametrize("style", ["shaded", "depth"])
def test_without_numba_the_bits_are_the_same(
    monkeypatch: pytest.MonkeyPatch, projection: Projection, style: Style
) -> None:
    cameras = ring_cameras(3, size_px=33, projection=projection, elevations_deg=(25,))
    compiled = render_cloud(random_cloud(0), cameras, style=style)
    monkeypatch.setattr(numba_kernels, "_has_numba", lambda: False)
    assert np.array_equal(render_cloud(random_cloud(0), cameras, style=style), compiled)


def test_the_number_of_threads_changes_no_bit() -> None:
    cloud, cameras = random_cloud(4), ring_cameras(7, size_px=32)
    assert np.array_equal(*with_one_and_three_threads(lambda: render_cloud(cloud, cameras)))


def test_a_view_has_the_same_bits_alone_and_among_others() -> None:
    cloud = random_cloud(3)
    ring = ring_cameras(6, size_px=32)
    whole = render_cloud(cloud, ring)
    for view in range(6):
        alone = rendering.Cameras(ring.rotations[view : view + 1], ring.size_px, ring.scale_px)
        assert np.array_equal(render_cloud(cloud, alone)[0], whole[view])


# --- clouds ----------------------------------------------------------------------------------------------------------


def test_a_sphere_of_points_is_a_filled_disc() -> None:
    """Every pixel within the outline is drawn, but for the last one and a half, and none far beyond it.

    Discs have radii of 0.16, 7.4 pixels: their rims are 0.6 pixels outside of the sphere that they touch; seen from the
    side they are turned by a cosine of 0.1, 0.7 pixels, and blurred by 0.75.
    """
    right, up = pixel_grid(96)
    radius = np.hypot(right, up)
    one_and_a_half_px, two_and_a_half_px = 1.5 / (0.95 * 48), 2.5 / (0.95 * 48)
    for view in render_cloud(even_sphere(1024), ring_cameras(4, size_px=96)):
        assert (view[radius < 1 - one_and_a_half_px] > 0).all()
        assert (view[radius > 1 + two_and_a_half_px] == 0).all()


def test_depth_is_that_of_the_sphere() -> None:
    """Discs touch the sphere from outside; half a disc's radius off its centre a plane is 0.8 % of the radius off it.

    Radii of discs: 1.3 deviations of 16 points, of which 4 pi / 1024 of the surface belongs to each.
    """
    right, up = pixel_grid(96)
    inside = np.hypot(right, up) < 0.8
    towards = np.sqrt(1 - right[inside] ** 2 - up[inside] ** 2)
    expected = 1 + 254 * (0.15 + 0.85 * (towards + 1) / 2)
    disc = 1.3 * math.sqrt(16 * 4 / 1024) / 2
    for view in render_cloud(even_sphere(1024), ring_cameras(4, size_px=96), style="depth"):
        # The plane of a disc is at most disc^2 / 2 above the sphere, and neighbourhoods lie as much below it.
        assert np.abs(view[inside] - expected).max() < 1 + 254 * 0.85 / 2 * disc**2


def test_shades_are_those_of_a_matt_sphere() -> None:
    right, up = pixel_grid(96)
    inside = np.hypot(right, up) < 0.7
    normal = np.stack([right, up, np.sqrt(np.clip(1 - right**2 - up**2, 0, 1))])[:, inside]
    light = 0.3 + 0.7 * (LIGHT[:, None] * normal).sum(axis=0).clip(0)
    expected = 1 + 254 * light * (0.5 + 0.5 * (normal[2] + 1) / 2)
    for view in render_cloud(even_sphere(1024), ring_cameras(4, size_px=96)):
        assert np.abs(view[inside] - expected).mean() < 3
        assert np.abs(view[inside] - expected).max() < 15  # a disc of 0.16 radii turns its normal by 0.16 at its rim


def test_what_is_in_front_hides_what_is_behind() -> None:
    """Two square plates facing the camera: the depth of the near one in the middle, of the larger far one around."""
    generator = np.random.default_rng(0)
    near = np.column_stack([np.full(300, 0.5), generator.uniform(-0.3, 0.3, (300, 2))])
    far = np.column_stack([np.full(1200, -0.5), generator.uniform(-0.6, 0.6, (1200, 2))])
    cameras = ring_cameras(1, size_px=64, elevations_deg=(0,))
    view = render_cloud(np.concatenate([far, near]), cameras, style="depth")[0]
    right, up = pixel_grid(64)
    reach = np.maximum(np.abs(right), np.abs(up))
    levels = {place: round(1 + 254 * (0.15 + 0.85 * (place + 1) / 2)) for place in (0.5, -0.5)}
    assert np.abs(view[reach < 0.25].astype(int) - levels[0.5]).max() <= 2
    around = view[(reach > 0.4) & (reach < 0.55)].astype(int)
    assert np.abs(around[around > 0] - levels[-0.5]).max() <= 2
    assert (around == 0).mean() < 0.01  # points at random leave a hole here and there: one place in 900, and at the rim


# --- colours and refusals --------------------------------------------------------------------------------------------


def test_background_is_coloured_and_nothing_else() -> None:
    levels = np.array([[0, 1], [128, 255]], dtype=np.uint8)
    assert np.array_equal(on_background(levels, "black"), np.repeat(levels[..., None], 3, axis=-1))
    white = on_background(levels, "white")
    assert white.dtype == np.uint8
    assert white[..., 0].tolist() == [[255, 1], [128, 255]]


@pytest.mark.parametrize("points", [np.zeros((0, 3)), np.zeros((5, 2)), np.full((20, 3), np.nan)])
def test_what_is_no_cloud_is_refused(points: np.ndarray) -> None:
    with pytest.raises(ValueError, match="points"):
        render_cloud(points, ring_cameras(1, size_px=16))
