"""Surface patches with exact areas and normals, and points drawn uniformly from sets of patches.

A patch is a row of numbers (`ROW` of them): what it is, its measures, its area, and where it stands. Solids are sets of
patches, (B, S, ROW), so that the surfaces of a whole batch are sampled together. Choosing a patch uses only
+ - * / and square roots of float64, which every platform rounds alike: the choice is the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple, TypeAlias

import numpy as np

Measure: TypeAlias = np.ndarray | float
"""One number for all solids of a batch, or one for each: (B,)."""


class PatchKind(IntEnum):
    """Kind of a patch, which defines its three measures; local z is the axis of revolution or the facing direction."""

    RECTANGLE = 0  # width along local x, height along local y
    CONE = 1  # start radius, end radius, rise: the turned segment from (start, 0) to (end, rise)
    SPHERE = 2  # radius, negative if it faces inwards; the zone's lowest and highest local z
    TORUS = 3  # radius of the ring, radius of the tube, angle of the arc from local x towards local y


ROW = 17
_KIND, _MEASURES, _AREA, _ORIGIN, _FRAME = 0, slice(1, 4), 4, slice(5, 8), slice(8, 17)

_X, _Y, _Z = np.eye(3)
FACING = {
    "+x": np.stack((_Y, _Z, _X)),
    "-x": np.stack((_Y, -_Z, -_X)),
    "+y": np.stack((_Z, _X, _Y)),
    "-y": np.stack((_Z, -_X, -_Y)),
    "+z": np.stack((_X, _Y, _Z)),
    "-z": np.stack((_X, -_Y, -_Z)),
}
"""Right-handed frames, as rows local x, y, z, whose local z is the named direction."""
for _frame in FACING.values():
    _frame.flags.writeable = False


class PatchSamples(NamedTuple):
    """Sampled points and unit normals (B, N, 3) float64, and the patch index (B, N) int64 of each point."""

    points: np.ndarray
    normals: np.ndarray
    patch: np.ndarray


def rectangle_patch(
    width: Measure, height: Measure, *, at: Sequence[Measure], frame: np.ndarray, num_solids: int
) -> np.ndarray:
    """Build rows (B, ROW) of rectangles centred at `at`, normal along the frame's local z."""
    return _rows(PatchKind.RECTANGLE, (width, height, 0.0), width * height, at, frame, num_solids)


def cone_patch(
    start: Measure, end: Measure, rise: Measure, *, at: Sequence[Measure], frame: np.ndarray, num_solids: int
) -> np.ndarray:
    """Build rows (B, ROW) of surfaces of revolution of a segment: cylinders, cones, discs (`rise` 0) and rings.

    The segment starts at radius `start` at `at`. The normal is to the right of the segment's direction: outwards if it
    rises, inwards if it sinks; a disc faces along local z if it goes from the rim to the centre.
    """
    slope = np.sqrt((end - start) * (end - start) + rise * rise)
    return _rows(PatchKind.CONE, (start, end, rise), math.pi * (start + end) * slope, at, frame, num_solids)


def sphere_patch(
    radius: Measure,
    low: Measure,
    high: Measure,
    *,
    at: Sequence[Measure],
    frame: np.ndarray,
    num_solids: int,
) -> np.ndarray:
    """Build rows (B, ROW) of zones low <= local z <= high of spheres centred at `at`.

    A negative radius faces inwards.
    """
    return _rows(
        PatchKind.SPHERE, (radius, low, high), 2 * math.pi * np.abs(radius) * (high - low), at, frame, num_solids
    )


def torus_patch(
    ring: Measure, tube: Measure, arc_rad: float, *, at: Sequence[Measure], frame: np.ndarray, num_solids: int
) -> np.ndarray:
    """Build rows (B, ROW) of tori or arcs of tori, with the ring centred at `at` and revolved about local z."""
    return _rows(PatchKind.TORUS, (ring, tube, arc_rad), 2 * math.pi * arc_rad * (ring * tube), at, frame, num_solids)


def sample_patches(rows: np.ndarray, random_words: np.ndarray) -> PatchSamples:
    """Sample points uniformly and independently over the area of each solid, each from two random words of its own.

    `rows` (B, S, ROW); unused rows are zero. `random_words` (B, N, 2) uint64, uniform. Returns points and normals
    (B, N, 3).
    Source: inversion of the area's distribution function on surfaces of revolution; Archimedes for the sphere.
    """
    high, low = random_words >> np.uint64(32), random_words & np.uint64(0xFFFFFFFF)
    patch_BN = _choose_patch(rows[..., _AREA], high[..., 0])
    table = rows.reshape(-1, ROW)
    row = (patch_BN + np.arange(len(rows))[:, None] * rows.shape[1]).ravel()
    along, around, turn = (_open_unit(word).ravel() for word in (high[..., 1], low[..., 1], low[..., 0]))
    local = np.empty((6, len(row)))
    kind = table[:, _KIND].astype(np.int8)[row]
    for value, profile in _PROFILES.items():
        index = np.flatnonzero(kind == value)
        measures = table[row[index], _MEASURES].T
        local[:, index] = profile(measures, along[index], around[index], turn[index])
    frame = [np.ascontiguousarray(column)[row] for column in table[:, _FRAME].T]
    origin = [np.ascontiguousarray(column)[row] for column in table[:, _ORIGIN].T]
    shape = (*patch_BN.shape, 3)
    normals = _to_solid_axes(local[3:], frame)
    points = [start + moved for start, moved in zip(origin, _to_solid_axes(local[:3], frame), strict=True)]
    return PatchSamples(np.stack(points, -1).reshape(shape), np.stack(normals, -1).reshape(shape), patch_BN)


def _rows(
    kind: PatchKind,
    measures: tuple[Measure, Measure, Measure],
    area: Measure,
    at: Sequence[Measure],
    frame: np.ndarray,
    num_solids: int,
) -> np.ndarray:
    rows = np.empty((num_solids, ROW))
    for column, value in enumerate((kind, *measures, area, *at)):
        rows[:, column] = value
    rows[:, _FRAME] = frame.ravel()
    return rows


def _choose_patch(area_BS: np.ndarray, word_BN: np.ndarray) -> np.ndarray:
    """Choose the patch of each 32-bit word in proportion to area: int64 (B, N)."""
    upto = np.cumsum(area_BS, axis=1)
    limits = np.floor(upto / upto[:, -1:] * 2.0**32).astype(np.uint64)
    patch_BN = np.zeros(word_BN.shape, dtype=np.int64)
    for limit_B in limits.T:
        patch_BN += word_BN >= limit_B[:, None]
    return patch_BN


def _open_unit(word: np.ndarray) -> np.ndarray:
    """Convert 32-bit words to float64 strictly between 0 and 1."""
    return (word.astype(np.float64) + 0.5) * 2.0**-32


def _rectangle(measures: np.ndarray, along: np.ndarray, around: np.ndarray, turn: np.ndarray) -> np.ndarray:
    local = np.zeros((6, len(along)))
    local[0] = (along - 0.5) * measures[0]
    local[1] = (around - 0.5) * measures[1]
    local[5] = 1
    return local


def _cone(measures: np.ndarray, along: np.ndarray, around: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Sample a cone: area grows with the square of the radius, which `along` therefore divides evenly."""
    start, end, rise = measures
    radius = np.sqrt(start * start + along * (end * end - start * start))
    # (radius - start) / (end - start), in a form that does not divide by zero for a cylinder
    height = along * (start + end) / (radius + start) * rise
    slope = np.sqrt((end - start) * (end - start) + rise * rise)
    return _revolve(radius, height, rise / slope, (start - end) / slope, around * (2 * math.pi))


def _sphere(measures: np.ndarray, along: np.ndarray, around: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Sample a sphere: zones of equal height have equal area (Archimedes)."""
    size, low, high = measures
    height = low + along * (high - low)
    radius = np.sqrt(np.maximum(size * size - height * height, 0))
    return _revolve(radius, height, radius / size, height / size, around * (2 * math.pi))


def _torus(measures: np.ndarray, along: np.ndarray, around: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Sample a torus: the tube's angle v has density 1 + e cos v.

    A uniform v is kept with half of that, else reversed.
    """
    ring, tube, arc_rad = measures
    cosine, sine = np.cos(along * (2 * math.pi)), np.sin(along * (2 * math.pi))
    side = np.where(2 * turn < 1 + tube / ring * cosine, 1.0, -1.0)
    cosine, sine = side * cosine, side * sine
    return _revolve(ring + tube * cosine, tube * sine, cosine, sine, around * arc_rad)


_PROFILES = {PatchKind.RECTANGLE: _rectangle, PatchKind.CONE: _cone, PatchKind.SPHERE: _sphere, PatchKind.TORUS: _torus}


def _revolve(
    radius: np.ndarray, height: np.ndarray, normal_out: np.ndarray, normal_up: np.ndarray, angle_rad: np.ndarray
) -> np.ndarray:
    """Revolve a profile about local z: local x, y, z of points and normals (6, M)."""
    cosine, sine = np.cos(angle_rad), np.sin(angle_rad)
    return np.stack((radius * cosine, radius * sine, height, normal_out * cosine, normal_out * sine, normal_up))


def _to_solid_axes(local: np.ndarray, frame: list[np.ndarray]) -> list[np.ndarray]:
    """Convert local coordinates (3, M) to the axes of the solid."""
    return [local[0] * frame[i] + local[1] * frame[3 + i] + local[2] * frame[6 + i] for i in range(3)]
