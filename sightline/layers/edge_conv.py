"""Edge convolution (EdgeConv): a learned map of every edge of a graph, and the maximum over the edges of a point.

`PlainEdgeConv` writes every edge feature out: the tested reference. `EdgeConv` has the same numbers and gradients
without edge features: W (x_j - x_i, x_i) = W_1 x_j + (W_2 - W_1) x_i is two linear maps of points; batch norm and
activation preserve the order of the values of a channel, or reverse it if the norm's weight is negative, so that the
extreme can be taken first. `EdgeMLP` has several layers per edge, as in the segmentation form of DGCNN.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from sightline.layers.batch_norm import (
    ShiftedSums,
    batch_statistics_gradients,
    normalisation_statistics,
    uses_batch_statistics,
)
from sightline.layers.grouped_mlp import GroupedMLP, PlainGroupedMLP
from sightline.layers.mlp import LinearNorm
from sightline.ops.points.edge_convolution import edge_extremes, edge_gradients
from sightline.ops.points.grouping import gather_points
from sightline.ops.products import linear_map
from sightline.ops.waits import is_recording, is_transformed


def graph_features(features: Tensor, index: Tensor) -> Tensor:
    """Build the edge features (x_j - x_i, x_i), difference first.

    `features` (B, N, C), `index` (B, N, K) the neighbours j of each point i -> (B, N, K, 2C).
    Source: Wang et al. 2019, equation 7 (the order of the two halves is that of the authors' code).
    """
    neighbours_BNKC = gather_points(features, index)
    centres_BNKC = features[:, :, None, :].expand_as(neighbours_BNKC)
    return torch.cat([neighbours_BNKC - centres_BNKC, centres_BNKC], dim=-1)


class PlainEdgeConv(nn.Module):
    """EdgeConv, plain form: a learned map of every edge, and the maximum of each channel over the edges of a point.

    `forward(features (B, N, in_channels), index (B, N, K)) -> (B, N, out_channels)`. Stores B*N*K*2*in_channels numbers
    at once. Source: Wang et al. 2019, equations 5 to 8.
    """

    def __init__(self, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.edge = LinearNorm(
            in_channels=2 * in_channels, out_channels=out_channels, activation=nn.LeakyReLU(negative_slope=0.2)
        )

    def forward(self, features: Tensor, index: Tensor) -> Tensor:
        """Map features (B, N, in_channels), index (B, N, K) -> (B, N, out_channels)."""
        return self.edge(graph_features(features, index)).max(dim=2).values


class EdgeConv(PlainEdgeConv):
    """Fused `PlainEdgeConv` without edge features: same state, same numbers, same gradients, same running statistics.

    Stores B*N*3*out_channels numbers for backward, on any device, and with synchronised batch norm. Under autocast the
    linear maps alone are rounded to half precision; in recorded graphs it is the plain form. If equal responses
    tie, or the norm's weight is exactly 0, the gradient goes to the neighbour that comes first in `index`. It has no
    second derivative: use `PlainEdgeConv` for one.
    Source: Wang et al. 2019, equations 5 to 8; Ioffe and Szegedy 2015, algorithm 1, for the statistics over all edges.
    """

    def forward(self, features: Tensor, index: Tensor) -> Tensor:
        """Map features (B, N, in_channels), index (B, N, K) -> (B, N, out_channels)."""
        if is_recording() or is_transformed():  # neither looks into a function with a backward of its own
            return super().forward(features, index)
        neighbour_weight, centre_weight = self.edge.linear.weight.chunk(2, dim=1)
        # Any origin gives the same edges. Near the middle of the cloud the two parts of an edge do not cancel.
        origin_B1C = features.detach().mean(dim=1, keepdim=True)
        pairs = linear_map(features - origin_B1C, torch.cat([neighbour_weight, centre_weight - neighbour_weight]))
        offset_B1C = linear_map(origin_B1C, torch.cat([torch.zeros_like(centre_weight), centre_weight]))
        norm, offset = self.edge.norm, _at_least_float(offset_B1C)
        if pairs.dtype == torch.bfloat16 and norm.weight.dtype == torch.float32:
            normed = _normed_extreme(pairs, offset, index, norm)
        else:
            normed = _normed_extreme(_at_least_float(pairs) + offset, None, index, norm)
        return self.edge.activation(normed).to(features.dtype)


def _at_least_float(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _normed_extreme(pairs: Tensor, offset: Tensor | None, index: Tensor, norm: nn.BatchNorm1d) -> Tensor:
    """Compute the maximum over j of batch_norm(u_j + v_i), (B, N, C), from `pairs` (B, N, 2C): u and v of every point.

    Pairs in bfloat16 are stored as they are; kernels get them widened, plus `offset` (B, 1, 2C), part by part.
    """
    with torch.no_grad():
        dtype = pairs.dtype if offset is None else offset.dtype
        shift = _mean_over_points(pairs, offset)
        edges = edge_extremes(pairs, index, sign=norm.weight.sign().to(dtype), shift=shift, offset=offset)
        sums = ShiftedSums(shift, edges.total, edges.total_of_squares, index.numel())
        statistics = normalisation_statistics(norm, sums if uses_batch_statistics(norm) else None, dtype)
    normed: Tensor = _NormedExtreme.apply(
        pairs, offset, norm.weight, norm.bias, index, edges.extreme, edges.position, *statistics, norm
    )
    return normed


class _NormedExtreme(Function):
    """Batch norm of the extremes of edges, (B, N, C), with the statistics of all edges."""

    @staticmethod
    def forward(
        ctx: Any,
        pairs: Tensor,
        offset: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        index: Tensor,
        extreme: Tensor,
        position: Tensor,
        count: Tensor | int | None,
        mean: Tensor,
        inverse_deviation: Tensor,
        norm: nn.BatchNorm1d,
    ) -> Tensor:
        standard, normed = extreme, torch.empty_like(extreme)
        for part in _cut(standard):  # what is written is read again from the cache
            centre_terms = pairs[part].chunk(2, dim=-1)[1]
            if offset is not None:
                centre_terms = centre_terms + offset[part].chunk(2, dim=-1)[1]
            standard[part].add_(centre_terms - mean).mul_(inverse_deviation)
            torch.addcmul(bias, standard[part], weight, out=normed[part])
        ctx.norm, ctx.count = norm, count
        ctx.save_for_backward(pairs, offset, index, position, standard, weight, mean, inverse_deviation)
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        pairs, offset, index, position, standard, weight, mean, inverse_deviation = ctx.saved_tensors
        to_bias = gradients[0].sum(dim=(0, 1))
        product = gradients[0] * standard
        to_weight = product.sum(dim=(0, 1))
        scale = weight * inverse_deviation
        constant, slope = batch_statistics_gradients(
            ctx.norm,
            ctx.count,
            grad_bias=to_bias,
            to_weight=to_weight,
            scale=scale,
            inverse_deviation=inverse_deviation,
        )
        chosen = torch.mul(gradients[0], scale, out=product)
        to_pairs = edge_gradients(
            pairs, index, position, chosen=chosen, constant=constant, slope=slope, shift=mean, offset=offset
        )
        to_offset = None if offset is None else to_pairs.sum(dim=1, keepdim=True).to(offset.dtype)
        return to_pairs, to_offset, to_weight, to_bias, *[None] * 7


def _cut(values: Tensor) -> Iterator[slice]:
    """Yield parts of the samples of `values` (B, N, C): on the CPU such that a part stays in the cache."""
    at_once = max(1, len(values))
    if values.device.type == "cpu" and not torch.compiler.is_compiling():
        at_once = max(torch.get_num_threads(), _ENTRIES_AT_ONCE // max(1, values[:1].numel()))
    return (slice(start, start + at_once) for start in range(0, len(values), at_once))


_ENTRIES_AT_ONCE = 2**17
"""Numbers of a part that is normalised at a time: 512 KB in float32."""


def _mean_over_points(pairs: Tensor, offset: Tensor | None) -> Tensor:
    """Return the mean (C,) of an edge of a point with itself: near the mean of all edges."""
    if offset is not None:  # some points do, and widening all would write them out
        pairs = pairs[:, :: max(1, pairs.shape[1] // 16)].to(offset.dtype) + offset
    total = pairs.sum(dim=(0, 1)) / max(1, pairs.shape[0] * pairs.shape[1])
    return total[: len(total) // 2] + total[len(total) // 2 :]


class PlainEdgeMLP(nn.Module):
    """EdgeConv with an MLP over every edge (x_j - x_i, x_i), and the maximum over the edges of a point. Plain form.

    `forward(features (B, N, in_channels), index (B, N, K)) -> (B, N, widths[-1])`; at least two layers, without
    biases, LeakyReLU 0.2. One layer is `PlainEdgeConv`. Source: Wang et al. 2019, equations 5 to 8 and figure 3.
    """

    network_type: type[PlainGroupedMLP] = PlainGroupedMLP

    def __init__(self, *, in_channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.network = self.network_type(in_channels=2 * in_channels, widths=widths, has_bias=False, negative_slope=0.2)

    def forward(self, features: Tensor, index: Tensor) -> Tensor:
        """Map features (B, N, in_channels), index (B, N, K) -> (B, N, widths[-1])."""
        return self.network.over_edges(features, features, index)


class EdgeMLP(PlainEdgeMLP):
    """Fused `PlainEdgeMLP` with its first linear map applied to points: same state, same numbers, same gradients.

    Source: as the plain form.
    """

    network_type = GroupedMLP
