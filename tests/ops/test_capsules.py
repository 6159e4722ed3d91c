"""Surfaces of figures: depth of capsules against an independent ray marcher, patches with areas from textbooks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sightline.areas.clouds.sets.patches import (
    FACING,
    cone_patch,
    rectangle_patch,
    sample_patches,
    sphere_patch,
    torus_patch,
)
from sightline.areas.pose.sets.capsules import render_capsules
from sightline.areas.pose.sets.depth_frames import DepthCamera
from sightline.contract.draws import Draws
from sightline.contract.types import SampleKey
from tests.cases import run_each

CAMERA = np.array([200.0, -210.0, 40.0, 30.0])
HEIGHT, WIDTH = 60, 80
EPS = np.finfo(np.float64).eps


def seen(capsules: np.ndarray) -> np.ndarray:
    return render_capsules(np.asarray(capsules, dtype=np.float64), DepthCamera(*CAMERA.tolist(), WIDTH, HEIGHT))


def one(start: list[float], end: list[float], radius: float) -> np.ndarray:
    return np.array([[[*start, *end, radius]]], dtype=np.float64)


def random_capsules(seed: int, count: int = 12, frames: int = 2) -> np.ndarray:
    """Some spheres, some absent, some beyond the picture, in front of each other."""
    generator = np.random.default_rng(seed)
    middle = generator.uniform([-100, -80, 300], [100, 80, 500], (frames, count, 3))
    reach = generator.normal(scale=35, size=(frames, count, 3))
    reach[:, 0] = 0
    radius = generator.uniform(3, 25, (frames, count, 1))
    radius[:, 1] = 0
    return np.concatenate((middle - reach, middle + reach, radius), axis=2)


def rays(camera: np.ndarray = CAMERA) -> np.ndarray:
    """The directions (H, W, 3) of the pixels, written out here anew."""
    return np.array([[((u - camera[2]) / camera[0], (v - camera[3]) / camera[1], 1) for u in range(WIDTH)]
                     for v in range(HEIGHT)])  # fmt: skip


def distances(points: np.ndarray, capsules: np.ndarray) -> np.ndarray:
    """Of points (P, 3) from the surfaces of capsules (N, 7), negative inside: (P, N)."""
    columns = []
    for row in capsules:
        start, along = row[:3], row[3:6] - row[:3]
        square = float(along @ along)
        share = np.clip((points - start) @ along / square, 0, 1) if square > 0 else np.zeros(len(points))
        columns.append(np.linalg.norm(points - start - share[:, None] * along, axis=1) - row[6])
    return np.stack(columns, axis=1)


def test_a_frame_has_the_same_bits_alone_and_among_others() -> None:
    capsules = random_capsules(7, frames=5)
    together = seen(capsules)
    assert 0.1 < (together > 0).mean() < 0.9
    for frame in range(5):
        assert np.array_equal(seen(capsules[frame : frame + 1])[0], together[frame])


# --- worked by hand --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", [300.0, 600.0])
def test_a_sphere_before_the_camera_is_a_disc_of_the_right_size(distance: float) -> None:
    """The tangents from the pinhole have the slope r / sqrt(z^2 - r^2); the middle pixel sees the nearest point."""
    radius = 30.0
    depth = seen(one([0, 0, distance], [0, 0, distance], radius))[0]
    assert depth[30, 40] == pytest.approx(distance - radius, abs=4 * EPS * distance)
    slope = radius / math.sqrt(distance**2 - radius**2)
    assert (depth[30] > 0).sum() == 2 * math.floor(200 * slope) + 1
    assert (depth[:, 40] > 0).sum() == 2 * math.floor(210 * slope) + 1
    x, y, _ = np.moveaxis(rays(), -1, 0)
    assert np.array_equal(depth > 0, x**2 + y**2 <= slope**2)


# --- against what needs no formula ------------------------------------------------------------------------------------


def test_an_independent_ray_marcher_sees_the_same() -> None:
    """Steps along each ray as long as the nearest surface is away, which pass through none; 400 pixels.

    It stops 1e-7 away: where a ray grazes a surface of radius r, sqrt(2 r 1e-7) before the hit, 2.3e-3 for 25 mm.
    """
    capsules = np.delete(random_capsules(11, frames=1), 1, axis=1)
    depth = seen(capsules)[0].reshape(-1)
    chosen = np.random.default_rng(0).permutation(HEIGHT * WIDTH)[:400]
    directions = rays().reshape(-1, 3)[chosen]
    length = np.linalg.norm(directions, axis=1)
    along, nearest = np.zeros(len(chosen)), np.full(len(chosen), np.inf)
    going = np.arange(len(chosen))
    for _ in range(400):
        nearest[going] = distances(directions[going] * along[going, None], capsules[0]).min(axis=1)
        going = going[(nearest[going] > 1e-7) & (along[going] < 800)]
        along[going] += nearest[going] / length[going]
    is_hit, is_miss = nearest <= 1e-7, along >= 800
    assert (is_hit | is_miss).mean() > 0.99, "only rays that graze a surface take longer"
    assert is_hit.sum() > 100
    assert is_miss.sum() > 40
    assert (depth[chosen][is_miss] == 0).all()
    beyond = (depth[chosen] - along)[is_hit]
    assert beyond.min() > -1e-9
    assert beyond.max() < 2.3e-3
    assert np.median(beyond) < 1e-6


def test_nothing_to_see_is_background() -> None:
    for capsules in (np.zeros((2, 3, 7)), np.zeros((2, 0, 7))):
        assert not seen(capsules).any()


# --- patches of surfaces ----------------------------------------------------------------------------------------------


NUM = 20_000
UP = FACING["+z"]
AT = (0.3, -0.2, 0.7)
# coordinates below 4 in float64, a dozen roundings
BOUND = 64 * np.finfo(np.float64).eps
# Kolmogorov's distance between n uniform numbers and their law passes 1.95 / sqrt(n) once in 1,000 trials
UNIFORM = 1.95 / math.sqrt(NUM)


def words(num_solids: int, num_points: int, *, first: int = 0) -> np.ndarray:
    return Draws.for_samples([SampleKey(first + i, 0, 7) for i in range(num_solids)]).bits(num_points, 2)


def sample(row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points relative to `AT`, and normals, of one patch."""
    surface = sample_patches(row[:, None], words(1, NUM))
    assert np.abs(np.linalg.norm(surface.normals, axis=-1) - 1).max() < BOUND
    return surface.points[0] - AT, surface.normals[0]


def distance_to_uniform(values: np.ndarray, low: float, high: float) -> float:
    ordered = np.sort((values - low) / (high - low))
    return float(np.abs(ordered - (np.arange(len(ordered)) + 0.5) / len(ordered)).max())


def angle_of(points: np.ndarray) -> np.ndarray:
    return np.arctan2(points[:, 1], points[:, 0])


@run_each("name", FACING)
def test_frames_are_right_handed_and_face_their_way(name: str) -> None:
    frame = FACING[name]
    assert np.array_equal(np.cross(frame[0], frame[1]), frame[2])
    assert frame[2]["xyz".index(name[1])] == {"+": 1, "-": -1}[name[0]]


@pytest.mark.parametrize(
    ("start", "end", "rise"), [(1.0, 1.0, 2.0), (1.0, 0.0, 2.0), (0.4, 0.9, 0.3), (1.0, 0.2, 0.0), (0.8, 0.8, -1.5)]
)
def test_turned_segments_have_their_equation_and_even_spread(start: float, end: float, rise: float) -> None:
    points, normals = sample(cone_patch(start, end, rise, at=AT, frame=UP, num_solids=1))
    radius = np.linalg.norm(points[:, :2], axis=1)
    # the cross product of (end - start, rise) with (radius - start, height) is zero on the segment
    assert np.abs((end - start) * points[:, 2] - rise * (radius - start)).max() < BOUND
    outwards = (normals[:, :2] * points[:, :2]).sum(1) / radius
    length = math.hypot(end - start, rise)
    assert np.abs(outwards - rise / length).max() < BOUND
    assert np.abs(normals[:, 2] - (start - end) / length).max() < BOUND
    around = normals[:, 0] * points[:, 1] - normals[:, 1] * points[:, 0]
    assert np.abs(around).max() < BOUND, "no component around the axis"
    assert distance_to_uniform(angle_of(points), -math.pi, math.pi) < UNIFORM
    if start == end:
        assert distance_to_uniform(points[:, 2], 0, rise) < UNIFORM
    else:
        assert distance_to_uniform(radius**2, start**2, end**2) < UNIFORM


@pytest.mark.parametrize("sign", [1, -1])
def test_sphere_zones_have_their_equation_and_even_spread(sign: int) -> None:
    points, normals = sample(sphere_patch(sign * 1.5, -1.5, 0.6, at=AT, frame=UP, num_solids=1))
    assert np.abs(np.linalg.norm(points, axis=1) - 1.5).max() < BOUND
    assert np.abs(normals - sign * points / 1.5).max() < BOUND
    assert distance_to_uniform(points[:, 2], -1.5, 0.6) < UNIFORM, "Archimedes: equal heights, equal areas"
    assert distance_to_uniform(angle_of(points), -math.pi, math.pi) < UNIFORM


def test_torus_arcs_have_their_equation_and_even_spread() -> None:
    ring, tube = 1.0, 0.4
    points, normals = sample(torus_patch(ring, tube, math.pi, at=AT, frame=UP, num_solids=1))
    flat = points * [1, 1, 0]
    from_ring = points - ring * flat / np.linalg.norm(flat, axis=1, keepdims=True)
    assert np.abs(np.linalg.norm(from_ring, axis=1) - tube).max() < BOUND
    assert np.abs(normals - from_ring / tube).max() < 4 * BOUND, "the division by 0.4 enlarges the rounding"
    assert distance_to_uniform(angle_of(points), 0, math.pi) < UNIFORM
    # the share of area with tube angle below v is (v + e sin v) / 2 pi
    v = np.arctan2(from_ring[:, 2], np.linalg.norm(flat, axis=1) - ring)
    assert distance_to_uniform(v + tube / ring * np.sin(v), -math.pi, math.pi) < UNIFORM


def test_rectangles_are_flat_and_even() -> None:
    points, normals = sample(rectangle_patch(2.0, 0.5, at=AT, frame=FACING["+x"], num_solids=1))
    assert np.abs(points[:, 0]).max() < BOUND
    assert (normals == [1, 0, 0]).all()
    assert distance_to_uniform(points[:, 1], -1.0, 1.0) < UNIFORM
    assert distance_to_uniform(points[:, 2], -0.25, 0.25) < UNIFORM


def test_points_are_shared_out_by_textbook_areas() -> None:
    common = {"at": (0, 0, 0), "frame": UP, "num_solids": 1}
    areas = {
        "cylinder": (cone_patch(0.5, 0.5, 2.0, **common), 2 * math.pi * 0.5 * 2),
        "cone": (cone_patch(3.0, 0.0, 4.0, **common), math.pi * 3 * 5),
        "ring": (cone_patch(2.0, 1.0, 0.0, **common), math.pi * (4 - 1)),
        "hemisphere": (sphere_patch(-1.0, 0.0, 1.0, **common), 2 * math.pi),
        "torus": (torus_patch(2.0, 0.5, 2 * math.pi, **common), 4 * math.pi**2 * 2 * 0.5),
        "rectangle": (rectangle_patch(1.5, 4.0, **common), 6.0),
    }
    rows = np.stack([row for row, _ in areas.values()], axis=1)
    area = np.array([value for _, value in areas.values()])
    counts = np.bincount(sample_patches(rows, words(1, NUM)).patch[0], minlength=len(area))
    share = area / area.sum()
    assert (np.abs(counts - NUM * share) < 5 * np.sqrt(NUM * share * (1 - share))).all(), "5 standard deviations"


def test_a_solid_gets_the_same_bits_alone_and_in_any_batch() -> None:
    size = np.linspace(0.5, 1.5, 9)
    common = {"at": (size, 0, -size), "frame": FACING["-y"], "num_solids": 9}
    rows = np.stack(
        (
            cone_patch(size, 0.3, size, **common),
            torus_patch(size, 0.2, 2.0, **common),
            sphere_patch(-size, -size, 0.1, **common),
            rectangle_patch(size, 1.0, **common),
            np.zeros((9, rectangle_patch(1.0, 1.0, **common).shape[1])),
        ),
        axis=1,
    )
    together = sample_patches(rows, words(9, 333))
    for i in range(9):
        alone = sample_patches(rows[i : i + 1], words(1, 333, first=i))
        assert all(np.array_equal(a[0], t[i]) for a, t in zip(alone, together, strict=True))
    assert together.patch.max() == 3, "a row of zeros has no points"
