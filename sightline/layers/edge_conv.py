"""Edge convolution (EdgeConv): a learned map of every edge of a graph, and the maximum over the edges of a point.

`PlainEdgeConv` writes every edge feature out: the tested reference. `EdgeConv` has the same numbers and gradients
without edge features: W (x_j - x_i, x_i) = W_1 x_j + (W_2 - W_1) x_i is two linear maps of points; batch norm and
activation preserve the order of the values of a channel, or reverse it if the norm's weight is negative, so that the
extreme can be taken first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sightline.geometry.neighbours import gather_points
from sightline.layers.batch_norm import (
    ShiftedSums,
    batch_statistics_gradients,
    normalisation_statistics,
    uses_batch_statistics,
)
from sightline.layers.edge_kernels import edge_extremes_and_sums, edge_gradients
from sightline.layers.mlp import LinearNorm

__all__ = ["EdgeConv", "PlainEdgeConv", "graph_features"]


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
    linear maps alone are rounded to half precision; under torch.compile it is the plain form. If equal responses
    tie, or the norm's weight is exactly 0, the gradient goes to the neighbour that comes first in `index`. It has no
    second derivative: use `PlainEdgeConv` for one.
    Source: Wang et al. 2019, equations 5 to 8; Ioffe and Szegedy 2015, algorithm 1, for the statistics over all edges.
    """

    def forward(self, features: Tensor, index: Tensor) -> Tensor:
        """Map features (B, N, in_channels), index (B, N, K) -> (B, N, out_channels)."""
        if torch.compiler.is_compiling():  # it cannot look into a function with a backward of its own
            return super().forward(features, index)
        neighbour_weight, centre_weight = self.edge.linear.weight.chunk(2, dim=1)
        # Any origin gives the same edges. Near the middle of the cloud the two parts of an edge do not cancel.
        origin_B1C = features.detach().mean(dim=1, keepdim=True)
        pairs = F.linear(features - origin_B1C, torch.cat([neighbour_weight, centre_weight - neighbour_weight]))
        offset_B1C = F.linear(origin_B1C, torch.cat([torch.zeros_like(centre_weight), centre_weight]))
        pairs = _at_least_float(pairs) + _at_least_float(offset_B1C)
        norm = self.edge.norm
        normed = _NormedExtreme.apply(pairs, index, norm.weight, norm.bias, norm)
        return self.edge.activation(normed).to(features.dtype)


def _at_least_float(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


class _NormedExtreme(Function):
    """Maximum over j of batch_norm(u_j + v_i), (B, N, C), from `pairs` (B, N, 2C): u and v of every point."""

    @staticmethod
    def forward(ctx: Any, pairs: Tensor, index: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm1d) -> Tensor:
        near_mean = _mean_over_points(pairs)
        edges = edge_extremes_and_sums(pairs, index, sign=weight.sign().to(pairs.dtype), shift=near_mean)
        sums = ShiftedSums(near_mean.double(), edges.total, edges.total_of_squares, index.numel())
        count, mean, inverse_deviation = normalisation_statistics(
            norm, sums if uses_batch_statistics(norm) else None, pairs.dtype
        )
        centre_terms = pairs.chunk(2, dim=-1)[1]
        standard = edges.extreme.add_(centre_terms - mean).mul_(inverse_deviation)
        ctx.norm, ctx.count = norm, count
        ctx.save_for_backward(pairs, index, edges.position, standard, weight, inverse_deviation, mean)
        return torch.addcmul(bias, standard, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor, Tensor, None]:
        pairs, index, position, standard, weight, inverse_deviation, mean = ctx.saved_tensors
        to_bias = gradients[0].sum(dim=(0, 1))
        to_weight = (gradients[0] * standard).sum(dim=(0, 1))
        scale = weight * inverse_deviation
        constant, slope = batch_statistics_gradients(
            ctx.norm,
            ctx.count,
            grad_bias=to_bias,
            to_weight=to_weight,
            scale=scale,
            inverse_deviation=inverse_deviation,
        )
        chosen = gradients[0] * scale
        to_pairs = edge_gradients(pairs, index, position, chosen=chosen, constant=constant, slope=slope, shift=mean)
        return to_pairs, None, to_weight, to_bias, None


def _mean_over_points(pairs: Tensor) -> Tensor:
    """Return the mean (C,) of an edge of a point with itself: near the mean of all edges."""
    total = pairs.sum(dim=(0, 1)) / max(1, pairs.shape[0] * pairs.shape[1])
    return total[: len(total) // 2] + total[len(total) // 2 :]
