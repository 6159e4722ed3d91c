"""Pyramid of packed clouds at several resolutions, with all neighbours, samples and weights that networks need.

Neighbours, samples and weights of interpolation depend on the points alone: a network of many layers takes them from
here, and searches nothing itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sightline.ops.points.farthest_points import packed_farthest_points
from sightline.ops.points.grouping import SortedIndex, can_add_up, gather_rows
from sightline.ops.points.interpolation import inverse_distance_weights
from sightline.ops.points.neighbours import packed_nearest_neighbours
from sightline.ops.waits import read_list, send_list

_NUM_INTERPOLATED = 3


@dataclass(frozen=True)
class Edges:
    """Neighbours of M queries among N points: `index` (M, K) int64, and `relative` (M, K, 3), neighbour - query.

    The first `count` (M,) slots of a query are valid, at least one. The others contain the first point of its cloud and
    the offset 0, and have to be masked. `rows` (E,) are the places of the valid ones among all M * K, None if all are.
    """

    index: Tensor
    relative: Tensor
    count: Tensor
    rows: Tensor | None = None

    @property
    def is_valid(self) -> Tensor:
        """Mask (M, K) bool of valid neighbours."""
        return torch.arange(self.index.shape[1], device=self.index.device) < self.count[:, None]

    @property
    def num_edges(self) -> int:
        """Number of valid neighbours."""
        return self.index.numel() if self.rows is None else len(self.rows)

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (3,) of `relative` over the edges, and mean of its outer product (3, 3); both float64."""
        rows = self.relative.detach().double().flatten(0, 1)
        return rows.sum(dim=0) / self.num_edges, rows.mT @ rows / self.num_edges

    @cached_property
    def _sorted_index(self) -> SortedIndex:
        return SortedIndex.from_index(self.list_valid(self.index))

    def gather(self, *values: Tensor) -> list[Tensor]:
        """Gather the neighbour's row of each tensor (N, C) for every valid edge: (E, C) each."""
        if can_add_up(*values):
            return gather_rows(self._sorted_index, *values)
        index = self.list_valid(self.index)
        return [rows[index] for rows in values]

    def repeat(self, values: Tensor) -> Tensor:
        """Repeat the row of each query (M, C) for every valid edge of it: (E, C)."""
        return self.list_valid(values[:, None].expand(-1, self.index.shape[1], -1))

    def list_valid(self, values: Tensor) -> Tensor:
        """Return the values (M, K, ...) of valid edges, query by query: (E, ...)."""
        return values.flatten(0, 1) if self.rows is None else values.flatten(0, 1)[self.rows]

    def pad(self, values: Tensor, filling: float) -> Tensor:
        """Return the values (E, C) of valid edges at their places (M, K, C), with `filling` in the others."""
        if self.rows is None:
            return values.unflatten(0, self.index.shape)
        padded = values.new_full((self.index.numel(), values.shape[1]), filling)
        return padded.index_copy(0, self.rows, values).unflatten(0, self.index.shape)

    def select(self, queries: Tensor, num_neighbours: int, *, num_edges: int) -> Edges:
        """Select the nearest `num_neighbours` of `queries` (R,), of which `num_edges` are valid.

        The edges that a search for these alone would find.
        """
        count = self.count[queries].clamp(max=num_neighbours)
        index = self.index[queries, :num_neighbours]
        return Edges(index, self.relative[queries, :num_neighbours], count, _valid_rows(index, count, num_edges))


def _valid_rows(index: Tensor, count: Tensor, num_edges: int) -> Tensor | None:
    """Return the places of valid edges, without waiting for the device: the host knows their number."""
    if num_edges == index.numel():
        return None
    first = torch.arange(len(count), device=count.device) * index.shape[1] - (count.cumsum(0) - count)
    return torch.arange(num_edges, device=count.device) + first.repeat_interleave(count, output_size=num_edges)


@dataclass(frozen=True)
class InterpolationWeights:
    """Indices (M, K) int64 into N coarse points and weights (M, K) that interpolate features at M points."""

    index: Tensor
    weights: Tensor


@dataclass(frozen=True)
class PyramidLevel:
    """Clouds at one resolution: `points` (P, 3), `offsets` (S+1,), and `neighbours`, the edges of every point.

    `interpolation` upsamples features from this level to the previous, finer one; None at the first. `downsampling` are
    the neighbours of every point among the finer ones, None if these are the same.
    """

    points: Tensor
    offsets: Tensor
    neighbours: Edges
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
    for stride, count in zip(strides[1:], num_neighbours[1:], strict=True):
        levels.append(_build_coarser_level(levels[-1], stride, count))
    return levels


def _build_coarser_level(fine: PyramidLevel, stride: int, num_neighbours: int) -> PyramidLevel:
    points, offsets, downsampling = fine.points, fine.offsets, None
    if stride > 1:
        sizes = _read_sizes(fine.offsets)
        counts = [min(size, max(1, size // stride)) for size in sizes]
        sample = packed_farthest_points(fine.points, send_list(counts, points.device), offsets=fine.offsets)
        points, offsets = fine.points[sample.index], sample.offsets
        count = min(num_neighbours, max(sizes))
        if fine.neighbours.index.shape[1] >= count:  # they have been found already
            num_edges = _count_edges(counts, sizes, count)
            downsampling = fine.neighbours.select(sample.index, count, num_edges=num_edges)
        else:
            downsampling = _find_edges(fine.points, fine.offsets, num_neighbours, points, offsets)
    neighbours = _find_edges(points, offsets, num_neighbours)
    return PyramidLevel(points, offsets, neighbours, downsampling, _interpolation_weights(points, offsets, fine))


def _count_edges(num_queries: list[int], sizes: list[int], num_neighbours: int) -> int:
    return sum(count * min(size, num_neighbours) for count, size in zip(num_queries, sizes, strict=True))


def _find_edges(
    points: Tensor,
    offsets: Tensor,
    num_neighbours: int,
    queries: Tensor | None = None,
    query_offsets: Tensor | None = None,
) -> Edges:
    # No cloud has more neighbours than points: places that none could fill are not made.
    sizes = _read_sizes(offsets)
    count = max(1, min(num_neighbours, max([1, *sizes])))
    neighbours = packed_nearest_neighbours(
        points.detach(),
        offsets=offsets,
        num_neighbours=count,
        queries=None if queries is None else queries.detach(),
        query_offsets=query_offsets,
    )
    num_edges = _count_edges(sizes if query_offsets is None else _read_sizes(query_offsets), sizes, count)
    counts = neighbours.is_valid.sum(dim=1)
    rows = _valid_rows(neighbours.index, counts, num_edges)
    relative = points[neighbours.index] - (points if queries is None else queries)[:, None]
    relative = relative if rows is None else relative * neighbours.is_valid[..., None]
    return Edges(neighbours.index, relative, counts, rows)


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
