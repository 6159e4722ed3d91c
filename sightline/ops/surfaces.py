"""Triangle meshes: areas, normals, and points sampled uniformly over them.

Surfels: points as small discs that together cover the surface.

Surface normals estimated from points alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.ops.distances import assert_clouds
from sightline.ops.grouping import gather_points
from sightline.ops.neighbours import nearest_neighbours
from sightline.ops.operator import operator
from sightline.ops.waits import is_recording, require


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
    assert_clouds(points, name="points")
    return _estimate_normals(points.detach(), num_neighbours)


@operator()
def _estimate_normals(points: Tensor, num_neighbours: int) -> Tensor:
    index = nearest_neighbours(points, num_neighbours=num_neighbours)
    wide = points.double()
    chunk = max(1, _ENTRIES_AT_ONCE // max(1, len(points) * num_neighbours * 3))
    parts = [_smallest_axis(wide, part, first * chunk) for first, part in enumerate(index.split(chunk, dim=1))]
    normals = torch.cat(parts, dim=1)
    oriented = _orient_outwards(normals, wide - wide.mean(dim=1, keepdim=True))
    return oriented.to(points.dtype) if points.is_floating_point() else oriented


@_estimate_normals.fake
def _(points: Tensor, num_neighbours: int) -> Tensor:
    return points.new_empty(points.shape, dtype=points.dtype if points.is_floating_point() else torch.float64)


def _smallest_axis(points: Tensor, index: Tensor, first: int) -> Tensor:
    """Return the eigenvector (B, M, 3) of the smallest eigenvalue of each neighbourhood's covariance."""
    near_BMK3 = gather_points(points, index)
    near_BMK3 = near_BMK3 - near_BMK3.mean(dim=2, keepdim=True)
    covariances = near_BMK3.mT @ near_BMK3
    if not (is_recording() or bool(covariances.isfinite().all())):  # `eigh` would not end, or name a matrix of its own
        raise ValueError(f"points: found coordinates up to {points.abs().max():.4g}, their squares are beyond float64")
    values, vectors = torch.linalg.eigh(covariances)
    has_none = values[..., 1] <= _FLAT * values[..., 2]

    def make_error() -> ValueError:
        sample, point = has_none.nonzero()[0].tolist()
        return ValueError(
            f"points[{sample}]: the {index.shape[2]} points nearest to point {first + point} lie on one line or in "
            "one place and have no normal; raise num_neighbours, or drop duplicate points"
        )

    require(~has_none, make_error)
    return vectors[..., 0]


def _orient_outwards(normals: Tensor, outwards: Tensor) -> Tensor:
    along = (normals * outwards).sum(dim=-1)
    is_square = along.abs() <= _FLAT * outwards.norm(dim=-1)
    by_axis = torch.where(normals.abs() > _FLAT, normals.sign(), 0)
    leading = by_axis[..., 2]
    for axis in (1, 0):
        leading = torch.where(leading == 0, by_axis[..., axis], leading)
    return normals * torch.where(is_square, leading, along.sign())[..., None]
