"""Packed (ragged) clouds: concatenated rows and `offsets` of the segments. No operation crosses a segment.

`offsets` (S+1,) int64 starts at 0 and ends at the number of rows, as the collate step writes it. Indices are rows of
the packed tensor. Where a segment has fewer points than neighbours are asked for, the places left are marked, never
filled in silence.

Pyramid of packed clouds at several resolutions, with all neighbours, samples and weights that networks need.

Neighbours, samples and weights of interpolation depend on the points alone: a network of many layers takes them from
here, and searches nothing itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sightline.ops.farthest_points import farthest_point_sample
from sightline.ops.neighbours import (
    Weighting,
    ball_query,
    inverse_distance_weights,
    nearest_neighbours,
    weighted_mean,
)
from sightline.ops.waits import read_list, require, send_list


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

    (S, N, ...), and the mask (S, N) of actual rows. Raises ValueError for offsets that do not fit.
    """
    longest = max((segment.stop - segment.start for segment in _slices(rows, offsets, "offsets")), default=0)
    mask = torch.arange(longest, device=rows.device) < offsets.diff()[:, None]
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
    index = torch.zeros((queries.shape[0], num_neighbours), dtype=torch.int64, device=points.device)
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
    counts = read_list(num_samples)
    new_offsets = list(itertools.accumulate(counts, initial=0))
    chosen = [torch.empty(0, dtype=torch.int64, device=points.device)]
    point_slices, sample_slices = _slices(points, offsets, "offsets"), _pairs(new_offsets)
    for segment, (point_rows, sample_rows) in enumerate(zip(point_slices, sample_slices, strict=True)):
        if sample_rows.start > sample_rows.stop:
            raise ValueError(f"segment {segment}: {counts[segment]} samples asked for; num_samples is at least 0")
        if sample_rows.stop - sample_rows.start > point_rows.stop - point_rows.start:
            raise ValueError(
                f"segment {segment}: {sample_rows.stop - sample_rows.start} samples asked for in "
                f"{point_rows.stop - point_rows.start} points; lower num_samples"
            )
    assert_finite_rows(points, offsets=offsets, name="points")
    first = start
    if isinstance(start, Tensor):
        first = start.expand(len(counts))[send_list([i for i, count in enumerate(counts) if count > 0], start.device)]
    for point_rows, sample_rows, num_segments in _runs(
        pair for pair in zip(point_slices, sample_slices, strict=True) if pair[1].start < pair[1].stop
    ):
        stacked = points[point_rows].unflatten(0, (num_segments, -1))
        count = (sample_rows.stop - sample_rows.start) // num_segments
        now, first = (first[:num_segments], first[num_segments:]) if isinstance(first, Tensor) else (first, first)
        samples = farthest_point_sample(stacked, num_samples=count, start=now)
        chosen.append((samples + _starts(point_rows, num_segments, points.device)[:, None]).flatten())
    return PackedSample(torch.cat(chosen), send_list(new_offsets, points.device))


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
    """Raise ValueError naming the segment and point of `rows` (P, C) that is not finite."""
    is_finite = torch.isfinite(rows).all(dim=-1)

    def make_error() -> ValueError:
        row = int((~is_finite).nonzero()[0])
        segment = int((offsets <= row).sum()) - 1
        return ValueError(
            f"{name}[{segment}]: point {row - int(offsets[segment])} is {rows[row].tolist()[:6]}, neighbours need "
            "finite numbers; check the data with `sightline check`, or the weights if these are features"
        )

    require(is_finite, make_error)


def _slices(rows: Tensor, offsets: Tensor, name: str) -> list[slice]:
    """Return the slice of each segment: the sizes of segments decide what is run."""
    bounds = read_list(offsets)
    if bounds[:1] != [0] or bounds[-1] != rows.shape[0] or bounds != sorted(bounds):
        raise ValueError(
            f"{name} {bounds[:8]} of {rows.shape[0]} rows; they start at 0, never fall, and end at the number of rows "
            "(cumulative counts without the leading 0 are another convention)"
        )
    return _pairs(bounds)


def _pairs(bounds: list[int]) -> list[slice]:
    return [slice(*pair) for pair in itertools.pairwise(bounds)]


_NUM_INTERPOLATED = 3


@dataclass(frozen=True)
class Edges:
    """Neighbours of M queries among N points: `index` (M, K) int64, and `relative` (M, K, 3), neighbour - query.

    The first `count` (M,) slots of a query are valid, at least one. The others contain the first point of its cloud and
    the offset 0, and have to be masked. `is_whole` is True if all slots are valid.
    """

    index: Tensor
    relative: Tensor
    count: Tensor
    is_whole: bool

    @property
    def is_valid(self) -> Tensor:
        """Mask (M, K) bool of valid neighbours."""
        return torch.arange(self.index.shape[1], device=self.index.device) < self.count[:, None]

    @cached_property
    def num_edges(self) -> int:
        """Number of valid neighbours (cached). Waits for the device."""
        return self.index.numel() if self.is_whole else int(self.count.sum())

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (3,) of `relative` over the edges, and mean of its outer product (3, 3); both float64."""
        rows = self.relative.detach().double().flatten(0, 1)
        return rows.sum(dim=0) / self.num_edges, rows.mT @ rows / self.num_edges

    def select(self, rows: Tensor, num_neighbours: int, *, is_whole: bool) -> Edges:
        """Select the nearest `num_neighbours` of the queries `rows` (R,), `is_whole` if all have so many.

        The edges that a search for these alone would find.
        """
        count = self.count[rows].clamp(max=num_neighbours)
        return Edges(self.index[rows, :num_neighbours], self.relative[rows, :num_neighbours], count, is_whole)


@dataclass(frozen=True)
class InterpolationWeights:
    """Indices (M, K) int64 into N coarse points and weights (M, K) that interpolate features at M points."""

    index: Tensor
    weights: Tensor


@dataclass(frozen=True)
class PyramidLevel:
    """Clouds at one resolution: `points` (P, 3), `offsets` (S+1,), and `neighbours`, the edges of every point.

    `fine_points` are the points (N, 3) of the previous level, and `interpolation` upsamples features from this level to
    that one; None at the first. `downsampling` are the neighbours of every point among the finer ones, None if these
    are the same.
    """

    points: Tensor
    offsets: Tensor
    neighbours: Edges
    fine_points: Tensor | None = None
    downsampling: Edges | None = None
    interpolation: InterpolationWeights | None = None


def build_pyramid(
    points: Tensor, *, offsets: Tensor, strides: Sequence[int], num_neighbours: Sequence[int]
) -> list[PyramidLevel]:
    """Build levels by farthest-point sampling, each with one of `strides` points of each cloud of the previous level.

    A cloud keeps at least one point. Sampling starts at its first point, so that this is a point of every level. A
    stride of 1 keeps the points as they are; the first level has all `points` (P, 3), and its stride is 1. Gradients
    reach the points through `Edges.relative`.
    Raises ValueError for offsets that do not fit and for values that are not finite, naming the cloud.
    Source: Zhao et al. 2021 (Point Transformer), section 3.4; the weights 1 / (d + 1e-8) are those of their code.
    """
    assert strides[0] == 1, "the first level has all points"
    levels = [PyramidLevel(points, offsets, _find_edges(points, offsets, num_neighbours[0]))]
    for stride, wanted in zip(strides[1:], num_neighbours[1:], strict=True):
        levels.append(_build_coarser_level(levels[-1], stride, wanted))
    return levels


def _build_coarser_level(fine: PyramidLevel, stride: int, num_neighbours: int) -> PyramidLevel:
    points, offsets, downsampling = fine.points, fine.offsets, None
    if stride > 1:
        sizes = _read_sizes(fine.offsets)
        num_samples = send_list([min(size, max(1, size // stride)) for size in sizes], points.device)
        chosen = packed_farthest_point_sample(fine.points.detach(), offsets=fine.offsets, num_samples=num_samples)
        points, offsets = fine.points[chosen.index], chosen.offsets
        num_found = fine.neighbours.index.shape[1]
        if num_found >= min(num_neighbours, max(sizes)):  # they have been found already
            is_whole = all(size >= min(num_neighbours, num_found) for size in sizes if size)
            downsampling = fine.neighbours.select(chosen.index, num_neighbours, is_whole=is_whole)
        else:
            downsampling = _find_edges(fine.points, fine.offsets, num_neighbours, points, offsets)
    neighbours = _find_edges(points, offsets, num_neighbours)
    return PyramidLevel(
        points, offsets, neighbours, fine.points, downsampling, _interpolation_weights(points, offsets, fine)
    )


def _find_edges(
    points: Tensor,
    offsets: Tensor,
    num_neighbours: int,
    queries: Tensor | None = None,
    query_offsets: Tensor | None = None,
) -> Edges:
    # No cloud has more neighbours than points: places that none could fill are not made.
    sizes = _read_sizes(offsets)
    count = max(1, min(num_neighbours, max(sizes, default=1)))
    neighbours = packed_nearest_neighbours(
        points.detach(),
        offsets=offsets,
        num_neighbours=count,
        queries=None if queries is None else queries.detach(),
        query_offsets=query_offsets,
    )
    is_whole = all(size >= count for size in sizes if size)  # an empty cloud has no queries
    relative = points[neighbours.index] - (points if queries is None else queries)[:, None]
    relative = relative if is_whole else relative * neighbours.is_valid[..., None]
    return Edges(neighbours.index, relative, neighbours.is_valid.sum(dim=1), is_whole)


def _read_sizes(offsets: Tensor) -> list[int]:
    return [last - first for first, last in itertools.pairwise(read_list(offsets))]


@torch.no_grad()
def _interpolation_weights(points: Tensor, offsets: Tensor, fine: PyramidLevel) -> InterpolationWeights:
    neighbours = packed_nearest_neighbours(
        points,
        offsets=offsets,
        num_neighbours=_NUM_INTERPOLATED,
        queries=fine.points,
        query_offsets=fine.offsets,
    )
    weights = inverse_distance_weights(
        points[None], fine.points[None], neighbours.index[None], "inverse", is_valid=neighbours.is_valid[None]
    )
    return InterpolationWeights(neighbours.index, weights[0])
