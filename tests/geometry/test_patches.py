"""Surface patches: their equations, areas from textbooks, uniform spread, and one answer for any batch."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sightline.draws import Draws
from sightline.geometry.surfaces import (
    FACING,
    PatchSamples,
    cone_patch,
    rectangle_patch,
    sample_patches,
    sphere_patch,
    torus_patch,
)
from sightline.types import SampleKey
from tests.cases import run_each

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


def test_a_closed_surface_has_the_volume_of_its_solid() -> None:
    # Gauss: the integral of x . n over a closed surface is three times the volume, the integral of n is zero.
    common = {"frame": UP, "num_solids": 1}
    rows = np.stack(
        (
            cone_patch(1.0, 0.5, 2.0, at=AT, **common),
            cone_patch(0.5, 0.0, 0.0, at=(AT[0], AT[1], AT[2] + 2), **common),
            cone_patch(1.0, 0.0, 0.0, at=AT, frame=FACING["-z"], num_solids=1),
        ),
        axis=1,
    )
    surface: PatchSamples = sample_patches(rows, words(1, NUM))
    area = math.pi * (1.5 * math.hypot(0.5, 2.0) + 0.25 + 1.0)
    flux = (surface.points * surface.normals).sum(-1) * area
    volume = math.pi * 2 / 3 * (1 + 0.5 + 0.25)
    assert abs(flux.mean() - 3 * volume) < 5 * flux.std() / math.sqrt(NUM)
    assert (np.abs(surface.normals.mean(axis=(0, 1))) < 5 / math.sqrt(NUM)).all()
