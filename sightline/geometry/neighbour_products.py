"""Nearest neighbours by matrix products in torch, for GPUs: the bits of the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from sightline.geometry.distances import distance_scores, paired_squared_distances

__all__ = ["neighbours_by_candidates"]

_SPARE = 16
"""Candidates beyond the requested neighbours: enough that rounding rarely reaches past them."""


def neighbours_by_candidates(
    points: Tensor, queries: Tensor, num_neighbours: int, *, entries_at_once: int
) -> tuple[Tensor, Tensor] | None:
    """Find neighbours among the lowest scores: index (B, M, K) int64, and is_proven (B, M) bool.

    `points` (B, N, C), `queries` (B, M, C). The points with the lowest `distance_scores` are measured as in the
    reference; a query is proven if its last candidate is above the bound for the nearest; the others have too many
    points at equal distances. None if there is no such bound.
    """
    parts = distance_scores(points, queries)
    if parts is None:
        return None
    num_clouds, num_queries, _ = queries.shape
    num_points = points.shape[1]
    count = min(num_points, num_neighbours + _SPARE)
    index = torch.empty((num_clouds, num_queries, num_neighbours), dtype=torch.int64, device=points.device)
    is_proven = torch.empty((num_clouds, num_queries), dtype=torch.bool, device=points.device)
    step = max(1, entries_at_once // max(1, num_clouds * num_points))
    for begin in range(0, num_queries, step):
        part = slice(begin, begin + step)
        with torch.autocast(points.device.type, enabled=False):
            scores = torch.baddbmm(parts.squared_norms[:, None], parts.queries[:, part], parts.points.mT, alpha=-2)
        least = scores.topk(count, dim=-1, largest=False)
        index[:, part] = _sort_candidates(points, queries[:, part], least.indices)[..., :num_neighbours]
        bound = least.values[..., num_neighbours - 1] + parts.slack[:, part]
        is_proven[:, part] = (least.values[..., -1] > bound) | (count == num_points)
    return index, is_proven


def _sort_candidates(points: Tensor, queries: Tensor, candidates: Tensor) -> Tensor:
    """Sort candidates (B, M, K) by (distance, index)."""
    candidates = candidates.sort(dim=-1).values
    sample = torch.arange(len(points), device=points.device)[:, None, None]
    distances = paired_squared_distances(queries[:, :, None], points[sample, candidates])
    return candidates.gather(-1, torch.sort(distances, dim=-1, stable=True).indices)
