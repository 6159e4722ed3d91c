"""Packed (ragged) clouds: concatenated rows and `offsets` of the segments. No operation crosses a segment.

`offsets` (S+1,) int64 starts at 0 and ends at the number of rows, as the collate step writes it. Indices are rows of
the packed tensor. Where a segment has fewer points than neighbours are asked for, the places left are marked, never
filled in silence.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sightline.geometry.balls import ball_query
from sightline.geometry.interpolation import Weighting, inverse_distance_weights
from sightline.geometry.neighbours import gather_points, nearest_neighbours
from sightline.geometry.sampling import farthest_point_sample

__all__ = [
    "Neighbours",
    "PackedSample",
    "assert_finite_rows",
    "pack",
    "packed_ball_query",
    "packed_farthest_point_sample",
    "packed_interpolate",
    "packed_nearest_neighbours",
    "unpack",
]


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Neighbour indices (M, K) int64 into the packed points, and a mask (M, K) bool of the valid ones.

    An invalid slot contains the first row of the segment: it may be gathered, and has to be masked.
    """

    index: Tensor
    is_valid: Tensor


@dataclass(frozen=True, slots=True)
class PackedSample:
    """Indices of the sampled rows of the packed points, int64, and the offsets (S+1,) of the segments among them."""

    index: Tensor
    offsets: Tensor


def pack(padded: Tensor, *, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Pack the rows of `padded` (B, N, ...) selected by `mask` (B, N), in order; returns rows and offsets (B+1,)."""
    offsets = torch.nn.functional.pad(mask.sum(dim=1).cumsum(0), (1, 0))
    return padded[mask], offsets


def unpack(rows: Tensor, *, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Pad the segments of `rows` (P, ...) with zeros to the longest.

    (S, N, ...), and the mask (S, N) of actual rows.
    """
    counts = offsets.diff()
    mask = torch.arange(int(counts.max()), device=rows.device) < counts[:, None]
    padded = rows.new_zeros((*mask.shape, *rows.shape[1:]))
    padded[mask] = rows
    return padded, mask


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
    index = torch.zeros((len(queries), num_neighbours), dtype=torch.int64, device=points.device)
    is_valid = torch.zeros_like(index, dtype=torch.bool)
    assert_finite_rows(points, offsets=offsets, name="points")
    for point_rows, query_rows, num_segments in _runs(_segments(points, offsets, queries, query_offsets)):
        stacked = points[point_rows].unflatten(0, (num_segments, -1))
        count = min(num_neighbours, stacked.shape[1])
        stacked_queries = None if is_among_points else queries[query_rows].unflatten(0, (num_segments, -1))
        neighbours = nearest_neighbours(stacked, num_neighbours=count, queries=stacked_queries)
        rows = index[query_rows].unflatten(0, (num_segments, -1))
        rows += _starts(point_rows, num_segments, points.device)[:, None, None]
        rows[..., :count] += neighbours
        is_valid[query_rows, :count] = True
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
    for point_rows, query_rows in _segments(points, offsets, centres, centre_offsets):
        neighbours = ball_query(
            points[None, point_rows], centres=centres[None, query_rows], radius=radius, num_neighbours=num_neighbours
        )
        index[query_rows] = neighbours[0] + point_rows.start
    return index


@torch.no_grad()
def packed_farthest_point_sample(
    points: Tensor, *, offsets: Tensor, num_samples: Tensor, start: int | Tensor = 0
) -> PackedSample:
    """Farthest-point sampling of `num_samples` (S,) points of each segment of `points` (N, C).

    `start` counts within the segment: one for all, or (S,). An empty segment takes 0 samples.
    Raises ValueError for offsets that do not fit and for more samples than points, naming the segment.
    Source: as `farthest_point_sample`; `num_samples` of max(1, n // 4) is the transition of Zhao et al. 2021.
    """
    new_offsets = torch.nn.functional.pad(num_samples.cumsum(0), (1, 0))
    chosen = [torch.empty(0, dtype=torch.int64, device=points.device)]
    point_slices, sample_slices = _slices(points, offsets, "offsets"), _pairs(new_offsets.tolist())
    for segment, (point_rows, sample_rows) in enumerate(zip(point_slices, sample_slices, strict=True)):
        if sample_rows.stop - sample_rows.start > point_rows.stop - point_rows.start:
            raise ValueError(
                f"segment {segment}: {sample_rows.stop - sample_rows.start} samples asked for in "
                f"{point_rows.stop - point_rows.start} points; lower num_samples"
            )
    assert_finite_rows(points, offsets=offsets, name="points")
    first = torch.as_tensor(start).expand(len(num_samples))[num_samples.cpu() > 0]
    for point_rows, sample_rows, num_segments in _runs(
        pair for pair in zip(point_slices, sample_slices, strict=True) if pair[1].start < pair[1].stop
    ):
        stacked = points[point_rows].unflatten(0, (num_segments, -1))
        count = (sample_rows.stop - sample_rows.start) // num_segments
        samples = farthest_point_sample(stacked, num_samples=count, start=first[:num_segments])
        chosen.append((samples + _starts(point_rows, num_segments, points.device)[:, None]).flatten())
        first = first[num_segments:]
    return PackedSample(torch.cat(chosen), new_offsets)


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

    Raises ValueError as `packed_nearest_neighbours`. Source: as `interpolate`.
    """
    neighbours = packed_nearest_neighbours(
        points, offsets=offsets, num_neighbours=num_neighbours, queries=queries, query_offsets=query_offsets
    )
    weights = inverse_distance_weights(
        points[None], queries[None], neighbours.index[None], weighting, is_valid=neighbours.is_valid[None]
    )
    gathered = gather_points(features[None], neighbours.index[None])
    return (gathered * weights[..., None].to(features.dtype)).sum(dim=2)[0]


def _queries_or_points(
    points: Tensor, offsets: Tensor, queries: Tensor | None, query_offsets: Tensor | None
) -> tuple[Tensor, Tensor]:
    if queries is None and query_offsets is None:
        return points, offsets
    if queries is None or query_offsets is None:
        raise ValueError("queries and query_offsets belong together; give both, or neither for the points themselves")
    return queries, query_offsets


def _segments(points: Tensor, offsets: Tensor, queries: Tensor, query_offsets: Tensor) -> Iterator[tuple[slice, slice]]:
    """Iterate over the rows of points and of queries of each segment that has queries."""
    point_slices, query_slices = _slices(points, offsets, "offsets"), _slices(queries, query_offsets, "query offsets")
    if len(point_slices) != len(query_slices):
        raise ValueError(
            f"{len(point_slices)} segments of points, {len(query_slices)} of queries; give both the same segments"
        )
    for segment, (point_rows, query_rows) in enumerate(zip(point_slices, query_slices, strict=True)):
        if query_rows.start == query_rows.stop:
            continue
        if point_rows.start == point_rows.stop:
            raise ValueError(
                f"segment {segment}: {query_rows.stop - query_rows.start} queries and no points; drop the segment"
            )
        yield point_rows, query_rows


def _runs(pairs: Iterable[tuple[slice, slice]]) -> Iterator[tuple[slice, slice, int]]:
    """Merge consecutive segments of equal sizes: rows of points, rows of queries, and the number of segments.

    Equal clouds, such as a stacked batch, go through the dense functions at once.
    """
    run: tuple[slice, slice, int] | None = None
    for pair in pairs:
        if run is not None and all(_continues(*rows, run[2]) for rows in zip(run[:2], pair, strict=True)):
            point_rows, query_rows = (
                slice(previous.start, rows.stop) for previous, rows in zip(run[:2], pair, strict=True)
            )
            run = point_rows, query_rows, run[2] + 1
            continue
        if run is not None:
            yield run
        run = *pair, 1
    if run is not None:
        yield run


def _continues(run: slice, rows: slice, num_segments: int) -> bool:
    """Return True if `rows` follow the `num_segments` equal segments of a run and have their size."""
    return run.stop == rows.start and run.stop - run.start == num_segments * (rows.stop - rows.start)


def _starts(rows: slice, num_segments: int, device: torch.device) -> Tensor:
    """Return the first row (many,) of each of the equal segments of a run."""
    return rows.start + (rows.stop - rows.start) // num_segments * torch.arange(num_segments, device=device)


def assert_finite_rows(rows: Tensor, *, offsets: Tensor, name: str) -> None:
    """Raise ValueError naming the segment and point of `rows` (P, C) that is not finite. Waits for the device."""
    is_finite = torch.isfinite(rows).all(dim=-1)
    if bool(is_finite.all()):
        return
    row = int((~is_finite).nonzero()[0])
    segment = int((offsets <= row).sum()) - 1
    raise ValueError(
        f"{name}[{segment}]: point {row - int(offsets[segment])} is {rows[row].tolist()[:6]}, neighbours need finite "
        "numbers; check the data with `sightline check`, or the weights if these are features"
    )


def _slices(rows: Tensor, offsets: Tensor, name: str) -> list[slice]:
    """Return the slice of each segment. Waits for the device: the sizes of segments decide what is run."""
    bounds = offsets.tolist()
    if bounds[:1] != [0] or bounds[-1] != len(rows) or bounds != sorted(bounds):
        raise ValueError(
            f"{name} {bounds[:8]} of {len(rows)} rows; they start at 0, never fall, and end at the number of rows "
            "(cumulative counts without the leading 0 are another convention)"
        )
    return _pairs(bounds)


def _pairs(bounds: list[int]) -> list[slice]:
    return [slice(*pair) for pair in itertools.pairwise(bounds)]
