"""Inverse-distance interpolation of features from points to queries."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sightline.geometry.distances import paired_squared_distances, upcast_for_comparison
from sightline.geometry.neighbours import gather_points, nearest_neighbours

__all__ = ["Weighting", "interpolate"]

Weighting = Literal["inverse_square", "inverse"]
_SOFTENING = 1e-8


def interpolate(
    features: Tensor,
    *,
    points: Tensor,
    queries: Tensor,
    weighting: Weighting = "inverse_square",
    num_neighbours: int = 3,
) -> Tensor:
    """Interpolate features at the queries: the mean of the nearest points, weighted by 1/(d^2 + 1e-8) or 1/(d + 1e-8).

    `features` (B, N, F) at `points` (B, N, C), `queries` (B, M, C) -> (B, M, F). Differentiable in `features` alone.
    Where there are fewer than `num_neighbours` = K points, all of them are taken. Wherever the points stand, rounding
    moves a value by at most (C + K + 6) eps times the largest feature (C + 2 roundings in a squared distance, K + 3 in
    the weights' sum and quotient, twice, and K in the mean); of points that are equally far to rounding, either counts.
    Raises ValueError for values that are not finite, naming the sample.
    Source: Qi et al. 2017 (PointNet++), equation 2 with p = 2 and k = 3 (`inverse_square`); Zhao et al. 2021 (Point
    Transformer), in their code, weigh by the distance itself (`inverse`).
    """
    index = nearest_neighbours(points, num_neighbours=min(num_neighbours, points.shape[1]), queries=queries)
    weights = inverse_distance_weights(points, queries, index, weighting)
    return (gather_points(features, index) * weights[..., None].to(features.dtype)).sum(dim=2)


@torch.no_grad()
def inverse_distance_weights(
    points: Tensor, queries: Tensor, index: Tensor, weighting: Weighting, *, is_valid: Tensor | None = None
) -> Tensor:
    """Compute weights (B, M, K), with sum 1, of the points `index` (B, M, K) at the queries (B, M, C).

    0 if not `is_valid`.
    """
    points, queries = upcast_for_comparison(points), upcast_for_comparison(queries)
    distances = paired_squared_distances(queries[:, :, None], gather_points(points, index))
    if weighting == "inverse":
        distances = distances.sqrt()
    weights = 1 / (distances + _SOFTENING)
    if is_valid is not None:
        weights = weights * is_valid
    return weights / weights.sum(dim=-1, keepdim=True)
