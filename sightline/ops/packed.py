"""Packed (ragged) clouds: concatenated rows and `offsets` of the segments. No operation crosses a segment.

`offsets` (S+1,) int64 starts at 0 and ends at the number of rows, as the collate step writes it. Indices are rows of
the packed tensor. Where a segment has fewer points than neighbours are asked for, the places left are marked, never
filled in silence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sightline.ops.distances import assert_finite_rows
from sightline.ops.neighbours import (
    Weighting,
    ball_query,
    inverse_distance_weights,
    nearest_neighbours,
    weighted_mean,
)
from sightline.ops.segments import first_rows, list_runs, locate_row, read_sizes


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Neighbour indices (M, K) int64 into the packed points, and a mask (M, K) bool of the valid ones.

    An invalid slot contains the first row of the segment: it may be gathered, and has to be masked.
    """

    index: Tensor
    is_valid: Tensor


@torch.no_grad()
def packed_nearest_neighbours(
    points: Tensor,
    *,
    offsets: Tensor,
    num_neighbours: int,
    queries: Tensor | None = None,
    query_offsets: Tensor | None = None,
) -> Neighbours:
    """Find neighbours within each segment; a segment with fewer points returns all it has, in the same order.

    `points` (N, C), `queries` (M, C) with their own offsets, by default the points -> rows and their truth, (M, K).
    Raises ValueError for offsets that do not fit, queries of a segment without points, and values not finite.
    Source: as `nearest_neighbours`.
    """
    is_among_points = queries is None
    queries, query_offsets = _queries_or_points(points, offsets, queries, query_offsets)
    index = torch.zeros((queries.shape[0], num_neighbours), dtype=torch.int64, device=points.device)
    is_valid = torch.zeros_like(index, dtype=torch.bool)
    sizes = _read_both(points, offsets, queries, query_offsets)
    assert_finite_rows(points, lambda row: locate_row(row, offsets), name="points")
    for run in list_runs(*sizes):
        stacked = points[run.rows].unflatten(0, (run.count, -1))
        count = min(num_neighbours, run.size)
        stacked_queries = None if is_among_points else queries[run.other_rows].unflatten(0, (run.count, -1))
        neighbours = nearest_neighbours(stacked, num_neighbours=count, queries=stacked_queries)
        rows = index[run.other_rows].unflatten(0, (run.count, -1))
        rows += first_rows(run, points.device)[:, None, None]
        rows[..., :count] += neighbours
        is_valid[run.other_rows, :count] = True
    return Neighbours(index, is_valid)


@torch.no_grad()
def packed_ball_query(
    points: Tensor,
    *,
    offsets: Tensor,
    centres: Tensor,
    centre_offsets: Tensor,
    radius: float,
    num_neighbours: int,
) -> Tensor:
    """Ball query within each segment: rows (M, num_neighbours) of `points` (N, C) for the `centres` (M, C).

    Raises ValueError as `ball_query`, the number of a centre being that within its segment.
    Source: as `ball_query`.
    """
    index = torch.empty((len(centres), num_neighbours), dtype=torch.int64, device=points.device)
    for run in list_runs(*_read_both(points, offsets, centres, centre_offsets)):
        neighbours = ball_query(
            points[run.rows].unflatten(0, (run.count, -1)),
            centres=centres[run.other_rows].unflatten(0, (run.count, -1)),
            radius=radius,
            num_neighbours=num_neighbours,
        )
        index[run.other_rows] = (neighbours + first_rows(run, points.device)[:, None, None]).flatten(0, 1)
    return index


def packed_interpolate(
    features: Tensor,
    *,
    points: Tensor,
    offsets: Tensor,
    queries: Tensor,
    query_offsets: Tensor,
    weighting: Weighting = "inverse_square",
    num_neighbours: int = 3,
) -> Tensor:
    """Interpolate within each segment: `features` (N, F) at `points` (N, C), `queries` (M, C) -> (M, F).

    Raises ValueError as `packed_nearest_neighbours` and `interpolate`. Source: as `interpolate`.
    """
    if features.shape[0] != points.shape[0]:
        raise ValueError(
            f"features {tuple(features.shape)} do not go with points {tuple(points.shape)}; give a row for each point"
        )
    neighbours = packed_nearest_neighbours(
        points, offsets=offsets, num_neighbours=num_neighbours, queries=queries, query_offsets=query_offsets
    )
    weights = inverse_distance_weights(
        points[None], queries[None], neighbours.index[None], weighting, is_valid=neighbours.is_valid[None]
    )
    return weighted_mean(features[None], neighbours.index[None], weights)[0]


def _queries_or_points(
    points: Tensor, offsets: Tensor, queries: Tensor | None, query_offsets: Tensor | None
) -> tuple[Tensor, Tensor]:
    if queries is None and query_offsets is None:
        return points, offsets
    if queries is None or query_offsets is None:
        raise ValueError("queries and query_offsets belong together; give both, or neither for the points themselves")
    return queries, query_offsets


def _read_both(points: Tensor, offsets: Tensor, queries: Tensor, query_offsets: Tensor) -> tuple[list[int], list[int]]:
    """Read the sizes of the segments of points and of queries; raise ValueError if they do not go together."""
    sizes, counts = (
        read_sizes(points, offsets, name="offsets"),
        read_sizes(queries, query_offsets, name="query offsets"),
    )
    if len(sizes) != len(counts):
        raise ValueError(f"{len(sizes)} segments of points, {len(counts)} of queries; give both the same segments")
    for segment, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        if count and not size:
            raise ValueError(f"segment {segment}: {count} queries and no points; drop the segment")
    return sizes, counts
