"""Exact farthest-point sampling (FPS): the reference loop, and the choice of a faster form that agrees with it."""

from __future__ import annotations

import torch
from torch import Tensor

from sightline.geometry.distances import assert_finite, paired_squared_distances, upcast_for_comparison
from sightline.geometry.sampling_kernels import sample_by_trees
from sightline.numba_kernels import can_use_numba

__all__ = ["farthest_point_sample"]

_FAR = 1e10


@torch.no_grad()
def farthest_point_sample(
    points: Tensor, *, num_samples: int, start: int | Tensor = 0, min_squared_norm: float | None = None
) -> Tensor:
    """Farthest-point sampling: each chosen point is the farthest from those chosen before it.

    Ties go to the lower index.
    `points` (B, N, C) -> index (B, num_samples) int64, beginning with `start`: one index for all samples, or (B,).
    Distances above 1e5 count as 1e5, as in the published codes. With `min_squared_norm`, points whose squared norm is
    not above it are never chosen after the first; where no other is left, index 0 is (1e-3: the CUDA library that PCT
    and Point-BERT use).
    Raises ValueError for more samples than points, a start outside the cloud, and values that are not finite.
    Source: Gonzalez 1985; Eldar et al. 1997; its use here, Qi et al. 2017 (PointNet++), section 3.2.
    """
    num_points = points.shape[1]
    if num_samples > num_points:
        raise ValueError(
            f"{num_samples} samples asked for in clouds of {num_points} points; lower num_samples or give clouds of at "
            f"least {num_samples} points"
        )
    assert_finite(points, name="points")
    first, points = _first_index(start, points), upcast_for_comparison(points)
    nearest_BN = torch.full(points.shape[:2], _FAR, dtype=points.dtype, device=points.device)
    if min_squared_norm is not None:
        is_barred = paired_squared_distances(points, torch.zeros_like(points)) <= min_squared_norm
        nearest_BN[is_barred] = -1  # below every distance, and stays so
    sample = sample_by_trees if can_use_numba(points) and points.numel() else _sample_reference
    return sample(points, nearest=nearest_BN, first=first, num_samples=num_samples)


def _first_index(start: int | Tensor, points: Tensor) -> Tensor:
    """Return `start` as (B,) int64 on the points' device; raise ValueError if it is outside the clouds."""
    num_samples, num_points, _ = points.shape
    first = torch.as_tensor(start, dtype=torch.int64, device=points.device).expand(num_samples)
    is_outside = (first < 0) | (first >= num_points)
    if bool(is_outside.any()):
        sample = int(is_outside.nonzero()[0])
        raise ValueError(
            f"start[{sample}]: {int(first[sample])} is outside 0..{num_points - 1}; give an index of a point"
        )
    return first


def _sample_reference(points: Tensor, *, nearest: Tensor, first: Tensor, num_samples: int) -> Tensor:
    """Reference of farthest-point sampling, on any device: distances to all points for every chosen one."""
    rows = torch.arange(len(points), device=points.device)
    index = torch.empty((len(points), num_samples), dtype=torch.int64, device=points.device)
    for sample in range(num_samples):
        index[:, sample] = first
        distance_BN = paired_squared_distances(points, points[rows, first][:, None])
        nearest = torch.minimum(nearest, distance_BN)
        first = nearest.argmax(dim=1)  # the first of equal ones
    return index
