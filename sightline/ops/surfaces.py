"""Triangle meshes: areas, normals, and points sampled uniformly over them.

Surfels: points as small discs that together cover the surface.

Surface patches with exact areas and normals, and points drawn uniformly from sets of patches.

A patch is a row of numbers (`ROW` of them): what it is, its measures, its area, and where it stands. Solids are sets of
patches, (B, S, ROW), so that the surfaces of a whole batch are sampled together. Choosing a patch uses only
+ - * / and square roots of float64, which every platform rounds alike: the choice is the same everywhere.

Surface normals estimated from points alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from sightline.ops.grouping import gather_points
from sightline.ops.neighbours import nearest_neighbours


class SurfacePoints(NamedTuple):
    """Points (N, 3) on a surface, unit normals (N, 3) of their faces, both float64, and face indices (N,)."""

    points: np.ndarray
    normals: np.ndarray
    face_index: np.ndarray


def areas_and_normals(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute area (F,) and unit normal (F, 3) of every triangle, float64; a triangle without area has the normal 0.

    `vertices` (V, 3), `faces` (F, 3) integer. The normal follows the winding: corners run anticlockwise seen from it.
    Raises ValueError naming a vertex that is not finite, a face with a corner that is none of the vertices, and one
    whose area is beyond float64.
    """
    corners = np.asarray(vertices, dtype=np.float64)
    _refuse(~np.isfinite(corners).all(axis=1), corners, "vertices", "expected finite coordinates")
    is_outside = ((faces < 0) | (faces >= len(corners))).any(axis=1)
    _refuse(is_outside, faces, "faces", f"there are {len(corners)} vertices (0 .. {len(corners) - 1})")
    corner_a, corner_b, corner_c = corners[faces].transpose(1, 0, 2)
    with np.errstate(over="ignore", invalid="ignore"):
        cross_F3 = np.cross(corner_b - corner_a, corner_c - corner_a)
        double_area_F = np.linalg.norm(cross_F3, axis=1)
    _refuse(~np.isfinite(double_area_F), faces, "faces", "its area is too large for float64; scale the vertices down")
    safe_F = np.where(double_area_F > 0, double_area_F, 1.0)
    return double_area_F / 2, cross_F3 / safe_F[:, None]


def _refuse(is_wrong: np.ndarray | np.bool, rows: np.ndarray, name: str, reason: str) -> None:
    """Raise ValueError naming the first of the `rows` (n, 3) that `is_wrong` (n,), if there is one."""
    if is_wrong.any():
        index = int(is_wrong.argmax())
        raise ValueError(f"{name}[{index}]: found {rows[index].tolist()}, {reason}")


def sample_surface(
    vertices: np.ndarray, faces: np.ndarray, *, num_points: int, generator: np.random.Generator
) -> SurfacePoints:
    """Sample (num_points, 3) points independently and uniformly by area; faces without area are never drawn.

    `vertices` (V, 3), `faces` (F, 3) integer.
    Raises ValueError if no face has an area, and as `areas_and_normals`.
    Source: Osada et al. 2002, "Shape distributions", eq. 1.
    """
    areas_F, normals_F3 = areas_and_normals(vertices, faces)
    solid = np.flatnonzero(areas_F > 0)
    if not len(solid):
        raise ValueError(f"none of the {len(faces)} faces has an area")
    upto = np.cumsum(areas_F[solid])
    spot, first, second = generator.random((3, num_points))
    # The last bound is left out: a draw that rounds up to the total still falls on the last face.
    face_index = solid[np.searchsorted(upto[:-1], spot * upto[-1], side="right")]
    root = np.sqrt(first)
    weights_N3 = np.stack([1 - root, root * (1 - second), root * second], axis=1)
    corners_N33 = np.asarray(vertices, dtype=np.float64)[faces[face_index]]
    return SurfacePoints(np.einsum("nk,nkd->nd", weights_N3, corners_N33), normals_F3[face_index], face_index)


_NUM_NEIGHBOURS = 16
_OVERLAP = 1.3
"""Radius of a disc in standard deviations of its neighbourhood along an axis.

Sixteen points drawn evenly from a disc of radius r have the deviation r / 2, so that seven discs on average cover a
position, and one position in 900 is covered by none.
"""
_MIN_AXIS_RATIO = 0.3
"""Lowest ratio of the shorter to the longer radius of a disc."""
_MIN_RADIUS = 1e-3
"""Lowest radius of a disc, in radii of the sphere: far below a pixel, and no division by zero."""
_SMOOTHINGS = 2
"""Number of times that normals are averaged with their neighbours: sixteen random points show a plane only roughly."""


class Surfels(NamedTuple):
    """Elliptic discs: centres and unit normals of either sign (N, 3), half axes (N, 2, 3), the longer first.

    Float64.
    """

    centres: np.ndarray
    normals: np.ndarray
    half_axes: np.ndarray


def fit_surfels(points: np.ndarray) -> Surfels:
    """Fit a disc to each of the points (N, 3), along its nearest points and as large as their scatter.

    Discs are long where points lie on a rod, and end where a surface ends. Points in one place or on one line get the
    smallest of discs, turned in some way that depends on them alone.
    Source: Pfister et al. 2000, "Surfels"; axes from the covariance, Hoppe et al. 1992, section 3.2.
    """
    num_neighbours = min(_NUM_NEIGHBOURS, len(points))
    cloud = torch.from_numpy(np.array(points, dtype=np.float32, order="C"))  # a copy: points may be read-only
    index = nearest_neighbours(cloud[None], num_neighbours=num_neighbours)[0].numpy()
    centres = cloud.numpy().astype(np.float64)
    near_NK3 = centres[index]
    near_NK3 -= near_NK3.mean(axis=1, keepdims=True)
    covariances = near_NK3.swapaxes(1, 2) @ near_NK3 / num_neighbours
    _, axes = np.linalg.eigh(covariances)
    normals = axes[:, :, 0]
    for _ in range(_SMOOTHINGS):
        normals = _smooth_normals(normals, index)
    return Surfels(centres, normals, _half_axes(covariances, normals, axes[:, :, 2]))


def _smooth_normals(normals: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Average each normal (N, 3) with its neighbours', turned to its side and weighted by their similarity."""
    near_NK3 = normals[index]
    alike_NK1 = near_NK3 @ normals[:, :, None]
    cube_NK1 = alike_NK1 * alike_NK1 * alike_NK1
    weight_NK1 = cube_NK1 * cube_NK1 * alike_NK1  # odd, so that either sign will do; high, so that edges stay
    mean_N3 = (weight_NK1.swapaxes(1, 2) @ near_NK3)[:, 0]
    return mean_N3 / np.sqrt((mean_N3 * mean_N3).sum(axis=1, keepdims=True))


def _half_axes(covariances: np.ndarray, normals: np.ndarray, longest: np.ndarray) -> np.ndarray:
    """Compute both half axes (N, 2, 3) of the discs at right angles to the normals."""
    along = longest - (longest * normals).sum(axis=1, keepdims=True) * normals
    norm = np.sqrt((along * along).sum(axis=1, keepdims=True))
    fallback = np.cross(normals, np.eye(3)[np.abs(normals).argmin(axis=1)])
    along = np.where(norm > 0.1, along / np.maximum(norm, 0.1), fallback)
    along /= np.sqrt((along * along).sum(axis=1, keepdims=True))
    axes = np.stack((along, np.cross(normals, along)), axis=1)
    variances = np.einsum("naj,njk,nak->na", axes, covariances, axes)
    radii = _OVERLAP * np.sqrt(variances.clip(min=0))
    radii = np.maximum(radii, _MIN_AXIS_RATIO * radii[:, ::-1])
    return axes * np.maximum(radii, _MIN_RADIUS)[:, :, None]


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


_FLAT = 1e-12
_ENTRIES_AT_ONCE = 2**20


@torch.no_grad()
def estimate_normals(points: Tensor, *, num_neighbours: int = 16) -> Tensor:
    """Estimate normals: the direction of least spread of a point's neighbours, pointing away from the cloud's centroid.

    `points` (B, N, 3) -> unit normals (B, N, 3) in the points' precision (float64 for whole numbers), computed in
    float64. Where the normal is at right angles to the way from the centroid, to rounding, the first of its components
    in z, y, x that is not 0 is positive. Points seen from inside (a room) get normals that point out of it.
    Raises ValueError naming the sample and the point where the nearest points lie on one line or in one place: they
    have no normal. Otherwise as `nearest_neighbours`.
    Source: Hoppe et al. 1992, section 3.2; the sign is a rule of this project.
    """
    index = nearest_neighbours(points, num_neighbours=num_neighbours)
    wide = points.double()
    chunk = max(1, _ENTRIES_AT_ONCE // max(1, len(points) * num_neighbours * 3))
    parts = [_smallest_axis(wide, part, first * chunk) for first, part in enumerate(index.split(chunk, dim=1))]
    normals = torch.cat(parts, dim=1)
    oriented = _orient_outwards(normals, wide - wide.mean(dim=1, keepdim=True))
    return oriented.to(points.dtype) if points.is_floating_point() else oriented


def _smallest_axis(points: Tensor, index: Tensor, first: int) -> Tensor:
    """Return the eigenvector (B, M, 3) of the smallest eigenvalue of each neighbourhood's covariance."""
    near_BMK3 = gather_points(points, index)
    near_BMK3 = near_BMK3 - near_BMK3.mean(dim=2, keepdim=True)
    covariances = near_BMK3.mT @ near_BMK3
    if not bool(covariances.isfinite().all()):  # `eigh` would not end, or name a matrix of its own
        raise ValueError(f"points: found coordinates up to {points.abs().max():.4g}, their squares are beyond float64")
    values, vectors = torch.linalg.eigh(covariances)
    has_none = values[..., 1] <= _FLAT * values[..., 2]
    if bool(has_none.any()):
        sample, point = has_none.nonzero()[0].tolist()
        raise ValueError(
            f"points[{sample}]: the {index.shape[2]} points nearest to point {first + point} lie on one line or in "
            "one place and have no normal; raise num_neighbours, or drop duplicate points"
        )
    return vectors[..., 0]


def _orient_outwards(normals: Tensor, outwards: Tensor) -> Tensor:
    along = (normals * outwards).sum(dim=-1)
    is_square = along.abs() <= _FLAT * outwards.norm(dim=-1)
    by_axis = torch.where(normals.abs() > _FLAT, normals.sign(), 0)
    leading = by_axis[..., 2]
    for axis in (1, 0):
        leading = torch.where(leading == 0, by_axis[..., axis], leading)
    return normals * torch.where(is_square, leading, along.sign())[..., None]
