"""Neighbours in many channels in plain torch: ranked by a matrix product, where that is proven, else measured."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from sightline.ops.points.distances import DistanceScores, distance_scores, first_by_distance_and_index
from sightline.ops.products import linear_map

_SPARE = 16
"""Candidates beyond the requested neighbours: enough that rounding rarely reaches past them."""
_QUERIES_AT_ONCE = 512


def neighbours_by_proof(
    points: Tensor, queries: Tensor, num_neighbours: int, measure_all: Callable[[Tensor, Tensor, int], Tensor]
) -> Tensor | None:
    """Find the neighbours that `measure_all` finds: points (B, N, C), queries (B, M, C) on a CPU -> index (B, M, K).

    Scores further apart than their error prove the order of two distances. Queries with near scores are ranked by the
    distances of `_SPARE` candidates more, and by `measure_all` where even the last of these is near. None where no
    bound is known, and where there are hardly more points than candidates.
    """
    count = num_neighbours + _SPARE
    scores = distance_scores(points, queries) if 4 * count <= points.shape[1] else None
    if scores is None:
        return None
    index = torch.empty((*queries.shape[:2], num_neighbours), dtype=torch.int64)
    for cloud, begin in itertools.product(range(len(queries)), range(0, queries.shape[1], _QUERIES_AT_ONCE)):
        part = slice(begin, begin + _QUERIES_AT_ONCE)
        part_index = index[cloud, part]
        ranked, columns = _rank(scores, cloud, part, count)
        limits = ranked + scores.slack[cloud, part, None]
        part_index.copy_(columns[:, :num_neighbours])
        rows = (ranked[:, 1 : num_neighbours + 1] <= limits[:, :num_neighbours]).any(dim=1).nonzero().flatten()
        if not len(rows):
            continue
        asking = queries[cloud, part][rows]
        part_index[rows] = _measure(points[cloud], asking, columns[rows], num_neighbours)
        is_unproven = ranked[rows, -1] <= limits[rows, num_neighbours - 1]
        if is_unproven.any():
            part_index[rows[is_unproven]] = measure_all(points[cloud, None], asking[None, is_unproven], num_neighbours)[
                0
            ]
    return index


def _rank(scores: DistanceScores, cloud: int, part: slice, count: int) -> tuple[Tensor, Tensor]:
    """Return the lowest scores (M, count) of some queries, in rising order, and the points that have them."""
    with torch.autocast("cpu", enabled=False):
        values = linear_map(scores.queries[cloud, part] * -2, scores.points[cloud], scores.squared_norms[cloud])
    return values.topk(count, largest=False, sorted=True)


def _measure(points: Tensor, queries: Tensor, columns: Tensor, num_neighbours: int) -> Tensor:
    """Return the nearest of each query's candidates, in order of (distance, index), by the definition of distance."""
    columns = columns.sort(dim=-1).values  # equal distances stay in the order of the points
    squared = queries.new_zeros(columns.shape)
    for query, point in zip(queries.T.contiguous(), points.T.contiguous(), strict=True):
        difference = query[:, None] - point[columns]
        squared += difference.mul_(difference)
    return columns.gather(-1, first_by_distance_and_index(squared, num_neighbours))
