"""Shared MLP over the members of groups of points, with max pooling over each group.

`PlainGroupedMLP` is torch step by step: the tested reference. `GroupedMLP` has the same numbers and gradients. Its
first linear map is never applied to members: a member's value is a map of its point plus a map of its group's
centre. Its last batch norm and activation preserve the order of the values of a channel, or reverse it if the norm's
weight is negative, so that the extreme is taken first and they process one value per group.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

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
from sightline.layers.group_kernels import (
    add_and_rectify,
    extremes_and_sums,
    extremes_gradient,
    group_gradients,
    group_sums,
)
from sightline.layers.mlp import LinearNorm
from sightline.ops import gather_points
from sightline.ops.numba_kernels import can_use_numba
from sightline.ops.points.distances import assert_same_form
from sightline.ops.points.grouping import assert_rows
from sightline.ops.products import linear_map


class PlainGroupedMLP(nn.Module):
    """Shared MLP of linear map, batch norm and ReLU over every member, with max pooling over each group. Plain form.

    The first linear map is passed as its two parts: `forward(point_terms (B, N, C), of_centres (B, M, C), index (B, M,
    K)) -> (B, M, widths[-1])`, where member j of group m is point_terms[j] + of_centres[m] and C is widths[0]. Callers
    apply `first_linear` as suits their members; `over_edges` is one way. The ReLU leaks by `negative_slope`.
    Source: Qi et al. 2017 (PointNet++), equation 1.
    """

    def __init__(
        self, *, in_channels: int, widths: tuple[int, ...], has_bias: bool, negative_slope: float = 0.0
    ) -> None:
        super().__init__()
        assert len(widths) >= 2, "a network over groups has a first and a last layer"
        self.negative_slope = negative_slope
        self.layers = nn.ModuleList(
            LinearNorm(
                in_channels=width_in, out_channels=width_out, has_bias=has_bias, activation=_rectifier(negative_slope)
            )
            for width_in, width_out in pairwise((in_channels, *widths))
        )

    @property
    def first_linear(self) -> nn.Linear:
        """First linear map of members, (..., in_channels) -> (..., widths[0])."""
        return self._linear_norms[0].linear

    @property
    def _linear_norms(self) -> list[LinearNorm]:
        return [cast(LinearNorm, layer) for layer in self.layers]

    def forward(self, point_terms: Tensor, of_centres: Tensor, index: Tensor) -> Tensor:
        """Map point_terms (B, N, C), of_centres (B, M, C), index (B, M, K) -> (B, M, widths[-1])."""
        values = gather_points(point_terms, index) + of_centres[:, :, None]
        return self.after_first_linear(values)

    def over_edges(self, features: Tensor, centre_features: Tensor, index: Tensor) -> Tensor:
        """Apply the MLP to edges (f_j - f_m, f_m): `features` (B, N, C), `centre_features` (B, M, C) -> (B, M, D)."""
        members_BMKC = gather_points(features, index)
        own_BMKC = centre_features[:, :, None].expand_as(members_BMKC)
        edges = torch.cat([members_BMKC - own_BMKC, own_BMKC], dim=-1)
        return self.after_first_linear(self.first_linear(edges))

    def after_first_linear(self, values: Tensor) -> Tensor:
        """Apply the layers after the first linear map to members (B, M, K, widths[0]): (B, M, widths[-1])."""
        first, *rest = self._linear_norms
        values = first.normalise_and_activate(values)
        for layer in rest:
            values = layer(values)
        return values.max(dim=2).values


class GroupedMLP(PlainGroupedMLP):
    """Fused `PlainGroupedMLP` with fewer passes over its members.

    Same state, numbers, gradients and running statistics.
    On a GPU, in half precision, under torch.compile and without numba it is the plain form. If equal responses tie,
    or the last norm's weight is exactly 0, the gradient goes to the member that comes first in `index`.
    Source: as the plain form; Ioffe and Szegedy 2015, algorithm 1, for the statistics over all members.
    """

    def forward(self, point_terms: Tensor, of_centres: Tensor, index: Tensor) -> Tensor:
        """Map point_terms (B, N, C), of_centres (B, M, C), index (B, M, K) -> (B, M, widths[-1])."""
        if not can_use_numba(point_terms, of_centres):
            return super().forward(point_terms, of_centres, index)
        assert_same_form(point_terms, of_centres, name="of_centres")
        assert_rows(index, point_terms, num_queries=of_centres.shape[1])
        first, *between, last = self._linear_norms
        norm = first.norm
        values = _RectifiedGroups.apply(
            point_terms, of_centres, index, norm.weight, norm.bias, norm, self.negative_slope
        )
        for layer in between:
            values = layer(values)
        mapped, norm = last.linear(values), last.norm
        return cast(Tensor, last.activation(_NormedExtreme.apply(mapped, norm.weight, norm.bias, norm)))

    def over_edges(self, features: Tensor, centre_features: Tensor, index: Tensor) -> Tensor:
        """Apply the MLP to edges (f_j - f_m, f_m): `features` (B, N, C), `centre_features` (B, M, C) -> (B, M, D)."""
        difference_weight, centre_weight = self.first_linear.weight.chunk(2, dim=1)
        # Any origin gives the same differences. Near the middle of the cloud the two parts do not cancel.
        origin_B1C = features.detach().mean(dim=1, keepdim=True)
        point_terms = linear_map(features - origin_B1C, difference_weight, self.first_linear.bias)
        centre_terms = linear_map(centre_features - origin_B1C, centre_weight - difference_weight) + linear_map(
            origin_B1C, centre_weight
        )
        return self(point_terms, centre_terms, index)


class _RectifiedGroups(Function):
    """leaky_relu(batch_norm(u_j + v_m)), (B, M, K, C), of every member j of every group m."""

    @staticmethod
    def forward(
        ctx: Any,
        point_terms: Tensor,
        centre_terms: Tensor,
        index: Tensor,
        weight: Tensor,
        bias: Tensor,
        norm: nn.BatchNorm1d,
        negative_slope: float,
    ) -> Tensor:
        origin = _mean_of_rows(point_terms) + _mean_of_rows(centre_terms)
        sums = None
        if uses_batch_statistics(norm):
            totals = group_sums(point_terms, centre_terms, index, origin=origin)
            sums = ShiftedSums(origin.double(), *totals, index.numel())
        count, mean, inverse_deviation = normalisation_statistics(norm, sums, origin.dtype)
        scale = weight * inverse_deviation
        point_terms_scaled, centre_terms_scaled = point_terms * scale, torch.addcmul(bias, centre_terms - mean, scale)
        rectified = add_and_rectify(point_terms_scaled, centre_terms_scaled, index, negative_slope=negative_slope)
        ctx.norm, ctx.count, ctx.negative_slope = norm, count, negative_slope
        ctx.save_for_backward(point_terms, centre_terms, index, weight, inverse_deviation, mean, rectified)
        return rectified

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, Tensor, Tensor, None, None]:
        point_terms, centre_terms, index, weight, inverse_deviation, mean, rectified = ctx.saved_tensors
        centred_terms = centre_terms - mean
        grads = group_gradients(
            gradients[0], rectified, point_terms, centred_terms, index, negative_slope=ctx.negative_slope
        )
        to_bias = grads.to_centres.sum(dim=(0, 1))
        to_weight = (grads.grad_points * point_terms).sum(dim=(0, 1)) + (grads.to_centres * centred_terms).sum(
            dim=(0, 1)
        )
        to_weight *= inverse_deviation
        scale = weight * inverse_deviation
        to_points, to_centres = grads.grad_points * scale, grads.to_centres * scale
        if ctx.count is not None:
            constant, slope = batch_statistics_gradients(
                ctx.norm,
                ctx.count,
                grad_bias=to_bias,
                to_weight=to_weight,
                scale=scale,
                inverse_deviation=inverse_deviation,
            )
            num_members = index.shape[-1]
            to_points -= grads.degree * constant + slope * (grads.degree * point_terms + grads.centre_sums)
            to_centres -= num_members * constant + slope * (grads.point_sums + num_members * centred_terms)
        return to_points, to_centres, None, to_weight, to_bias, None, None


class _NormedExtreme(Function):
    """Maximum over k of batch_norm(values), (B, M, C), from `values` (B, M, K, C)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm1d) -> Tensor:
        origin = _mean_of_rows(values[:, :, 0])
        extremes = extremes_and_sums(values, sign=weight.sign(), origin=origin)
        sums = ShiftedSums(origin.double(), extremes.total, extremes.total_of_squares, values.shape[:-1].numel())
        count, mean, inverse_deviation = normalisation_statistics(
            norm, sums if uses_batch_statistics(norm) else None, origin.dtype
        )
        standard = (extremes.extreme - mean) * inverse_deviation
        ctx.norm, ctx.count = norm, count
        ctx.save_for_backward(values, extremes.argmax, standard, weight, inverse_deviation, mean)
        return torch.addcmul(bias, standard, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        values, argmax, standard, weight, inverse_deviation, mean = ctx.saved_tensors
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
        to_values = extremes_gradient(
            values, argmax, chosen=gradients[0] * scale, constant=constant, slope=slope, mean=mean
        )
        return to_values, to_weight, to_bias, None


def _rectifier(negative_slope: float) -> nn.Module:
    return nn.LeakyReLU(negative_slope=negative_slope) if negative_slope else nn.ReLU()


def _mean_of_rows(values: Tensor) -> Tensor:
    """Return the mean row: (B, M, C) -> (C,); zero if a process has no rows at all."""
    return values.sum(dim=(0, 1)) / max(1, values.shape[0] * values.shape[1])
