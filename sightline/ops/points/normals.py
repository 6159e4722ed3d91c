"""Surface normals estimated from points alone."""

from __future__ import annotations

import torch
from torch import Tensor

from sightline.ops.operator import operator
from sightline.ops.points.distances import assert_clouds
from sightline.ops.points.grouping import gather_points
from sightline.ops.points.neighbours import nearest_neighbours
from sightline.ops.waits import is_recording, require

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


@operator(stacked=True)
def _estimate_normals(points: Tensor, num_neighbours: int) -> Tensor:
    index = nearest_neighbours(points, num_neighbours=num_neighbours)
    wide = points.double()
    entries = points.shape[0] * num_neighbours * 3
    chunk = index.shape[1] if is_recording() else max(1, _ENTRIES_AT_ONCE // max(1, entries))
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
    is_finite = covariances.isfinite()
    require(
        is_finite,
        lambda: ValueError(
            f"points: found coordinates up to {points.abs().max():.4g}, their squares are beyond float64"
        ),
    )
    values, vectors = torch.linalg.eigh(covariances.where(is_finite, 0))  # else it would not end
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
