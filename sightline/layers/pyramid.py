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

from sightline.ops.farthest_points import packed_farthest_points
from sightline.ops.interpolation import inverse_distance_weights
from sightline.ops.neighbours import packed_nearest_neighbours
from sightline.ops.waits import read_list, send_list

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
        sample = packed_farthest_points(fine.points, num_samples, offsets=fine.offsets)
        points, offsets = fine.points[sample.index], sample.offsets
        num_found = fine.neighbours.index.shape[1]
        if num_found >= min(num_neighbours, max(sizes)):  # they have been found already
            is_whole = all(size >= min(num_neighbours, num_found) for size in sizes if size)
            downsampling = fine.neighbours.select(sample.index, num_neighbours, is_whole=is_whole)
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
