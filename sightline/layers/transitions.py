"""Transitions between resolutions of packed clouds: transition down, transition up, and global context.

CPU kernels of transition down: the maximum per channel over the edges of packed clouds.

Query m has the neighbours `index` (M, K), of which the first `count` (M,) are valid, at least one. Edge (m, j) carries
u_j + v_m, where `near` (N, C) is u and `own` (M, C) is v; all float32 or all float64. Rows of work are shares of the
channels: every sum is added by one thread, edge by edge, and has the same bits for any number of threads.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sightline.layers.batch_norm import (
    ShiftedSums,
    batch_statistics_gradients,
    normalisation_statistics,
    uses_batch_statistics,
)
from sightline.layers.mlp import LinearNorm
from sightline.layers.pyramid import Edges, PyramidLevel
from sightline.ops.grouping import assert_rows
from sightline.ops.numba_kernels import can_use_numba, cpu_autocast_dtype, numba_kernel, run_parallel
from sightline.ops.waits import is_recording

_NUM_SHARES = 8
_EDGES_OF_A_SUM = 64
"""Edges added in the input's dtype before the sum goes on in float64: exact enough for any number of edges."""


class EdgeExtremes(NamedTuple):
    """Extremes (M, C) of the queries' edges and their slots (M, C) int32.

    Sums of edge values and squares (C,) float64.
    """

    extreme: Tensor
    place: Tensor
    total: Tensor
    total_of_squares: Tensor


def edge_extremes(near: Tensor, own: Tensor, index: Tensor, count: Tensor, *, sign: Tensor) -> EdgeExtremes:
    """Find the largest edge value (M, C) of each query where `sign` is 1, the smallest where -1, the first where 0.

    NaN wins; ties go to the first.
    """
    extreme, argmax = torch.empty_like(own), torch.empty(own.shape, dtype=torch.int32)
    sums = np.zeros((2, own.shape[1]))
    arrays = _arrays(near, own, index, count, sign)
    run_parallel(_find, _NUM_SHARES, *arrays, extreme.numpy(), argmax.numpy(), sums)
    return EdgeExtremes(extreme, argmax, torch.from_numpy(sums[0]), torch.from_numpy(sums[1]))


def edge_extremes_gradient(
    near: Tensor,
    own: Tensor,
    index: Tensor,
    count: Tensor,
    place: Tensor,
    *,
    chosen: Tensor,
    constant: Tensor,
    slope: Tensor,
) -> tuple[Tensor, Tensor]:
    """Backward of `edge_extremes` and batch norm: gradients of near (N, C) and own (M, C).

    The gradient of an edge is `chosen` (M, C) at the slot `place`, and at every edge - `constant` - `slope` * its
    value, all (C,).
    """
    to_near, to_own = torch.zeros_like(near), torch.empty_like(own)
    arrays = _arrays(near, own, index, count, place, chosen, constant, slope)
    run_parallel(_spread, _NUM_SHARES, *arrays, to_near.numpy(), to_own.numpy())
    return to_near, to_own


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


# Loops run from 0 over rows cut out beforehand: numba would otherwise look for negative indices at every entry, and no
# vectors would be made.


@numba_kernel
def _find(first, last, neighbour_terms, query_terms, index, count, sign, extreme, argmax, sums):  # type: ignore[no-untyped-def]
    width = neighbour_terms.shape[1]
    low, high = first * width // _NUM_SHARES, last * width // _NUM_SHARES
    signs = sign[low:high].copy()
    best, where = np.empty(high - low, neighbour_terms.dtype), np.empty(high - low, np.int32)
    total, squares = np.zeros(high - low, neighbour_terms.dtype), np.zeros(high - low, neighbour_terms.dtype)
    num_added = 0
    for query in range(len(index)):
        own_row = query_terms[query][low:high]
        for slot in range(count[query]):
            near_row = neighbour_terms[index[query, slot]][low:high]
            _add_one(near_row, own_row, total, squares)
            if slot == 0:
                for channel in range(len(best)):
                    best[channel] = near_row[channel] * signs[channel]
                    where[channel] = 0
            else:
                for channel in range(len(best)):
                    signed = near_row[channel] * signs[channel]
                    is_better = (signed > best[channel]) | (signed != signed)
                    best[channel] = signed if is_better else best[channel]
                    where[channel] = slot if is_better else where[channel]
        for channel in range(len(best)):
            argmax[query, low + channel] = where[channel]
            extreme[query, low + channel] = (
                neighbour_terms[index[query, where[channel]], low + channel] + own_row[channel]
            )
        num_added += count[query]
        if num_added >= _EDGES_OF_A_SUM or query == len(index) - 1:
            for channel in range(len(best)):
                sums[0, low + channel] += total[channel]
                sums[1, low + channel] += squares[channel]
                total[channel] = 0
                squares[channel] = 0
            num_added = 0


@numba_kernel
def _add_one(neighbour_row, query_row, total, squares):  # type: ignore[no-untyped-def]
    for channel in range(len(neighbour_row)):
        carried = neighbour_row[channel] + query_row[channel]
        total[channel] += carried
        squares[channel] += carried * carried


@numba_kernel
def _spread(  # type: ignore[no-untyped-def]
    first, last, neighbour_terms, query_terms, index, count, argmax, chosen, constant, slope, to_near, to_own
):
    width = neighbour_terms.shape[1]
    low, high = first * width // _NUM_SHARES, last * width // _NUM_SHARES
    constants, slopes = constant[low:high].copy(), slope[low:high].copy()
    for query in range(len(index)):
        own_row, to_own_row = query_terms[query][low:high], to_own[query][low:high]
        for channel in range(len(to_own_row)):
            to_own_row[channel] = chosen[query, low + channel]
        for slot in range(count[query]):
            near_row, to_near_row = neighbour_terms[index[query, slot]][low:high], to_near[index[query, slot]][low:high]
            for channel in range(len(near_row)):
                lowered = constants[channel] + slopes[channel] * (near_row[channel] + own_row[channel])
                to_near_row[channel] -= lowered
                to_own_row[channel] -= lowered
        for channel in range(len(to_own_row)):
            to_near[index[query, argmax[query, low + channel]], low + channel] += chosen[query, low + channel]


class PlainTransitionDown(nn.Module):
    """Transition down: each sampled point is the maximum per channel of a learned map of its neighbours. Plain form.

    `forward(features (N, in_channels) of the finer level, level) -> (P, out_channels)`. A neighbour has its position
    relative to the point, then its features. A level with the points of the finer one has the map of each point alone.
    Source: Zhao et al. 2021 (Point Transformer), section 3.4, transition down.
    """

    def __init__(self, *, in_channels: int, out_channels: int, is_strided: bool) -> None:
        super().__init__()
        width = in_channels + 3 if is_strided else in_channels
        self.edge = LinearNorm(in_channels=width, out_channels=out_channels, activation=nn.ReLU())

    def forward(self, features: Tensor, level: PyramidLevel) -> Tensor:
        """Map features (N, in_channels) of the finer level -> (P, out_channels)."""
        if level.downsampling is None:
            return self.edge(features)
        edges = level.downsampling
        members_PKC = torch.cat([edges.relative.to(features.dtype), features[edges.index]], dim=-1)
        if edges.is_whole:
            return self.edge(members_PKC).max(dim=1).values
        # A response is never below zero: places that are not real add nothing to a maximum.
        response_EC = self.edge(members_PKC[edges.is_valid])
        padded = response_EC.new_zeros((*edges.index.shape, response_EC.shape[-1]))
        padded[edges.is_valid] = response_EC
        return padded.max(dim=1).values


class TransitionDown(PlainTransitionDown):
    """Fused `PlainTransitionDown` with its map applied to points.

    Same state, numbers, gradients and running statistics.
    W (p_j - p_m, f_j) is a map of point j plus a map of point m, and batch norm and ReLU preserve the order of the
    values of a channel, or reverse it if the norm's weight is negative: the extreme is taken first. Under
    bf16 autocast the map of features alone is rounded. On a GPU, with weights in half precision, under torch.compile
    and without numba it is the plain form. If equal responses tie, or the norm's weight is exactly 0, the gradient
    goes to the nearest neighbour among them.
    Source: as the plain form; Ioffe and Szegedy 2015, algorithm 1, for the statistics over all edges.
    """

    def forward(self, features: Tensor, level: PyramidLevel) -> Tensor:
        """Map features (N, in_channels) of the finer level -> (P, out_channels)."""
        linear, norm, lowered = self.edge.linear, self.edge.norm, cpu_autocast_dtype()
        is_kernels = lowered != torch.float16 and can_use_numba(
            features, level.points, linear.weight, extra_dtype=lowered
        )
        if level.downsampling is None or not is_kernels:
            return super().forward(features, level)
        assert level.fine_points is not None, "a level with edges down has a finer one"
        assert_rows(level.downsampling.index[None], features[None], num_queries=len(level.points))
        # Any origin gives the same differences. Near the middle of all clouds the two parts do not cancel.
        origin = level.points.detach().mean(dim=0)
        feature_terms = F.linear(features, linear.weight[:, 3:], linear.bias)
        with torch.autocast("cpu", enabled=False):
            position_weight = linear.weight[:, :3]
            neighbour_terms = F.linear(level.fine_points - origin, position_weight) + feature_terms
            query_terms = F.linear(origin - level.points, position_weight)
            normed = _NormedExtreme.apply(
                neighbour_terms, query_terms, level.downsampling, norm.weight, norm.bias, norm
            )
        return cast(Tensor, self.edge.activation(normed).to(feature_terms.dtype))


class _NormedExtreme(Function):
    """Maximum over the neighbours j of query m of batch_norm(u_j + v_m), (M, C), from u (N, C) and v (M, C)."""

    @staticmethod
    def forward(
        ctx: Any,
        neighbour_terms: Tensor,
        query_terms: Tensor,
        edges: Edges,
        weight: Tensor,
        bias: Tensor,
        norm: nn.BatchNorm1d,
    ) -> Tensor:
        sums, origin = None, torch.zeros_like(bias)
        if uses_batch_statistics(norm):
            origin = neighbour_terms.mean(dim=0) + query_terms.mean(dim=0)
        query_terms = query_terms - origin
        extremes = edge_extremes(neighbour_terms, query_terms, edges.index, edges.count, sign=weight.sign())
        if uses_batch_statistics(norm):
            sums = ShiftedSums(origin.double(), extremes.total, extremes.total_of_squares, edges.num_edges)
        count, mean, inverse_deviation = normalisation_statistics(norm, sums, neighbour_terms.dtype)
        offset = origin - mean
        standard = (extremes.extreme + offset) * inverse_deviation
        ctx.norm, ctx.count, ctx.edges = norm, count, edges
        ctx.save_for_backward(
            neighbour_terms, query_terms + offset, extremes.place, standard, weight, inverse_deviation
        )
        return torch.addcmul(bias, standard, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        neighbour_terms, query_terms, argmax, standard, weight, inverse_deviation = ctx.saved_tensors
        to_bias = gradients[0].sum(dim=0)
        to_weight = (gradients[0] * standard).sum(dim=0)
        scale = weight * inverse_deviation
        constant, slope = batch_statistics_gradients(
            ctx.norm,
            ctx.count,
            grad_bias=to_bias,
            to_weight=to_weight,
            scale=scale,
            inverse_deviation=inverse_deviation,
        )
        to_near, to_own = edge_extremes_gradient(
            *(neighbour_terms, query_terms, ctx.edges.index, ctx.edges.count, argmax),
            chosen=gradients[0] * scale,
            constant=constant,
            slope=slope,
        )
        return to_near, to_own, None, to_weight, to_bias, None


class TransitionUp(nn.Module):
    """Transition up: skip features of the finer level plus coarse features interpolated from three points.

    `forward(features (N, out_channels) of the finer level, coarse (P, in_channels), level) -> (N, out_channels)`,
    `level` being the coarser one. Source: Zhao et al. 2021 (Point Transformer), section 3.4, transition up.
    """

    def __init__(self, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.skip = _relu_layer(out_channels, out_channels)
        self.coarse = _relu_layer(in_channels, out_channels)

    def forward(self, features: Tensor, coarse: Tensor, level: PyramidLevel) -> Tensor:
        """Map features (N, out_channels), coarse (P, in_channels) -> (N, out_channels)."""
        assert level.interpolation is not None, "the first level is the finest"
        mapped = self.coarse(coarse)
        weights = level.interpolation.weights.to(mapped.dtype)
        if is_recording():  # ONNX has no bags of embeddings
            rows = mapped[level.interpolation.index]
            return self.skip(features) + (rows * weights[..., None]).sum(dim=1)
        # A weighted sum of rows: what a bag of embeddings is. The rows are never written out three times.
        carried = F.embedding_bag(level.interpolation.index, mapped, per_sample_weights=weights, mode="sum")
        return self.skip(features) + carried


class GlobalContext(nn.Module):
    """Global context: each point's features joined with a map of its cloud's mean.

    `forward(features (P, C), offsets (S+1,)) -> (P, C)`.
    Source: the authors' code of Zhao et al. 2021 (Point Transformer), the first step of its decoder.
    """

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        self.mean = nn.Linear(channels, channels)
        self.mix = _relu_layer(2 * channels, channels)

    def forward(self, features: Tensor, offsets: Tensor) -> Tensor:
        """Map features (P, C), offsets (S+1,) -> (P, C)."""
        of_cloud = self.mean(segment_mean(features, offsets)).relu()
        if is_recording():  # the clouds of a graph are of one size
            repeated = of_cloud[:, None].expand(-1, features.shape[0] // of_cloud.shape[0], -1)
            return self.mix(torch.cat([features, repeated.flatten(0, 1)], dim=-1))
        of_point = of_cloud.repeat_interleave(offsets.diff(), dim=0, output_size=len(features))
        return self.mix(torch.cat([features, of_point], dim=-1))


def segment_mean(features: Tensor, offsets: Tensor) -> Tensor:
    """Compute the mean of each cloud's rows: (P, C), offsets (S+1,) -> (S, C); zero for a cloud without points."""
    if is_recording():
        return features.unflatten(0, (offsets.shape[0] - 1, -1)).mean(dim=1)
    sizes = offsets.diff()
    cloud = torch.arange(len(sizes), device=features.device).repeat_interleave(sizes, output_size=len(features))
    total = features.new_zeros((len(sizes), features.shape[1])).index_add(0, cloud, features)
    return total / sizes.clamp(min=1)[:, None]


def _relu_layer(in_channels: int, out_channels: int) -> LinearNorm:
    return LinearNorm(in_channels=in_channels, out_channels=out_channels, has_bias=True, activation=nn.ReLU())
