"""Inverse-distance interpolation of features from points to queries.

Source: Qi et al. 2017 (PointNet++), equation 2 with p = 2 and k = 3 (`inverse_square`); Zhao et al. 2021 (Point
Transformer), in their code, weigh by the distance itself (`inverse`).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sightline.ops.gpu_kernels import clamp_index, divide_exactly, gpu_kernel, next_power_of_2, tl
from sightline.ops.operator import operator
from sightline.ops.points.distances import paired_squared_distances, strides_of_clouds, upcast_for_comparison
from sightline.ops.points.grouping import take_points
from sightline.ops.points.neighbours import nearest_neighbours, packed_nearest_neighbours

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

    `features` (B, N, F) at `points` (B, N, C), `queries` (B, M, C) -> (B, M, F). Differentiable in `features` alone;
    the mean of whole numbers has the precision of the points.
    Where there are fewer than `num_neighbours` = K points, all of them are taken. Wherever the points stand, rounding
    moves a value by at most (C + K + 6) eps times the largest feature (C + 2 roundings in a squared distance, K + 3 in
    the weights' sum and quotient, twice, and K in the mean); of points that are equally far to rounding, either counts.
    Raises ValueError for features of other points, and for values that are not finite, naming the sample.
    """
    if features.shape[:-1] != points.shape[:-1]:
        raise ValueError(
            f"features {tuple(features.shape)} do not go with points {tuple(points.shape)}; give a row for each point"
        )
    index = nearest_neighbours(points, num_neighbours=min(num_neighbours, points.shape[1]), queries=queries)
    return weighted_mean(features, index, inverse_distance_weights(points, queries, index, weighting))


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

    Offsets are read, unless the host sent them. Raises ValueError as `packed_nearest_neighbours` and `interpolate`.
    """
    if features.shape[0] != points.shape[0]:
        raise ValueError(
            f"features {tuple(features.shape)} do not go with points {tuple(points.shape)}; give a row for each point"
        )
    near = packed_nearest_neighbours(
        points, offsets=offsets, num_neighbours=num_neighbours, queries=queries, query_offsets=query_offsets
    )
    weights = inverse_distance_weights(
        points[None], queries[None], near.index[None], weighting, is_valid=near.is_valid[None]
    )
    return weighted_mean(features[None], near.index[None], weights)[0]


def weighted_mean(features: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Sum the rows `index` (B, M, K) of `features` (B, N, F) times `weights` (B, M, K): (B, M, F)."""
    if features.is_floating_point():
        weights = weights.to(features.dtype)
    return (take_points(features, index) * weights[..., None]).sum(dim=2)


@torch.no_grad()
def inverse_distance_weights(
    points: Tensor, queries: Tensor, index: Tensor, weighting: Weighting, *, is_valid: Tensor | None = None
) -> Tensor:
    """Compute weights (B, M, K), with sum 1, of the points `index` (B, M, K) at the queries (B, M, C).

    0 if not `is_valid`. Raises ValueError for an index outside of the points on a CPU; on a GPU, the weights of its
    query are NaN.
    """
    points, queries = upcast_for_comparison(points), upcast_for_comparison(queries)
    return _inverse_distance_weights(points, queries, index, is_valid, weighting)


@operator(launches=1, stacked=True)
def _inverse_distance_weights(
    points: Tensor, queries: Tensor, index: Tensor, is_valid: Tensor | None, weighting: str
) -> Tensor:
    return _shares(_distances(points, queries, index, weighting), _SOFTENING, is_valid)


def _distances(points: Tensor, queries: Tensor, index: Tensor, weighting: str) -> Tensor:
    squared = paired_squared_distances(queries[:, :, None], take_points(points, index))
    return squared.sqrt() if weighting == "inverse" else squared


def _shares(distances: Tensor, softening: float, is_valid: Tensor | None) -> Tensor:
    weights = 1 / (distances + softening)
    if is_valid is not None:
        weights = weights * is_valid
    return weights / weights.sum(dim=-1, keepdim=True)


_SCALE = 2.0**26


def _weigh_in_graph(points: Tensor, queries: Tensor, index: Tensor, is_valid: Tensor | None, weighting: str) -> Tensor:
    """Weigh distances times a power of 2: the same shares, and no addend so small that an exporter to ONNX drops it."""
    return _shares(_distances(points, queries, index, weighting) * _SCALE, _SOFTENING * _SCALE, is_valid)


_inverse_distance_weights.graph = _weigh_in_graph


@_inverse_distance_weights.fake
def _(points: Tensor, queries: Tensor, index: Tensor, is_valid: Tensor | None, weighting: str) -> Tensor:
    return points.new_empty(index.shape)


@_inverse_distance_weights.gpu_kernel(lambda points, queries, index, *_: index.shape[-1] <= _MOST_SLOTS)
def _(points: Tensor, queries: Tensor, index: Tensor, is_valid: Tensor | None, weighting: str) -> Tensor:
    weights, num_neighbours = points.new_empty(index.shape), index.shape[-1]
    num_queries, slots = index[..., 0].numel(), next_power_of_2(num_neighbours)
    of_a_warp = _BYTES_OF_A_WARP // points.itemsize
    in_block = max(1, min(32, of_a_warp // slots))
    _weigh.launch(
        -(-num_queries // in_block),
        points,
        queries,
        index.contiguous(),
        is_valid if is_valid is None else is_valid.contiguous(),
        weights,
        num_queries,
        index.shape[1],
        points.shape[-2],
        num_neighbours,
        *strides_of_clouds(points),
        *strides_of_clouds(queries),
        SOFTENING=_SOFTENING,
        IS_SQUARE=weighting != "inverse",
        CHANNELS=points.shape[-1],
        SLOTS=slots,
        QUERIES=in_block,
        num_warps=max(1, slots // of_a_warp),
    )
    return weights


_BYTES_OF_A_WARP = 1024
"""Bytes of the distances that a warp holds, of all its queries."""
_MOST_SLOTS = 1024
"""Neighbours of a query; with more, the plain form takes a launch for each of its operations."""


@gpu_kernel
def _weigh(  # type: ignore[no-untyped-def]
    points,
    queries,
    index,
    is_valid,
    weights,
    num_queries: tl.int64,
    num_of_cloud: tl.int64,
    num_points: tl.int64,
    num_neighbours: tl.int32,
    cloud_step: tl.int64,
    point_step: tl.int64,
    channel_step: tl.int64,
    query_cloud_step: tl.int64,
    query_step: tl.int64,
    query_channel_step: tl.int64,
    SOFTENING: tl.constexpr,
    IS_SQUARE: tl.constexpr,
    CHANNELS: tl.constexpr,
    SLOTS: tl.constexpr,
    QUERIES: tl.constexpr,
):
    """Write the weights; those of a query with an index outside of the points are NaN."""
    query = tl.program_id(0).to(tl.int64) * QUERIES + tl.arange(0, QUERIES)[:, None]
    slot = tl.arange(0, SLOTS)[None, :]
    is_query = query < num_queries
    is_slot = is_query & (slot < num_neighbours)
    offset, cloud, row = query * num_neighbours + slot, query // num_of_cloud, query % num_of_cloud
    point = tl.load(index + offset, mask=is_slot, other=0)
    is_inside = (point >= 0) & (point < num_points)
    to_points = points + cloud * cloud_step + clamp_index(point, num_points) * point_step
    to_queries = queries + cloud * query_cloud_step + row * query_step
    distances = tl.zeros([QUERIES, SLOTS], points.dtype.element_ty)
    for _ in range(CHANNELS):
        difference = tl.load(to_queries, mask=is_query, other=0.0) - tl.load(to_points, mask=is_slot, other=0.0)
        distances += difference * difference
        to_points += channel_step
        to_queries += query_channel_step
    if not IS_SQUARE:
        distances = tl.sqrt(distances) if distances.dtype == tl.float64 else tl.sqrt_rn(distances)
    shares = tl.where(is_slot, divide_exactly(tl.zeros_like(distances) + 1.0, distances + SOFTENING), 0.0)
    if is_valid is not None:
        shares = tl.where(tl.load(is_valid + offset, mask=is_slot, other=0) != 0, shares, 0.0)
    shares = tl.where(is_inside, shares, float("nan"))
    total = tl.sum(shares, axis=1)[:, None] + tl.zeros_like(shares)
    tl.store(weights + offset, divide_exactly(shares, total), mask=is_slot)
