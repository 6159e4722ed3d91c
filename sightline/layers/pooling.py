"""Final layer of a point network's encoder: linear map, batch norm, leaky activation, then pooling over the points."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import custom_bwd, custom_fwd
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
from sightline.layers.pool_kernels import linear_extremes, linear_extremes_gradient, pool, pool_gradient, sums_about
from sightline.numba_kernels import can_use_numba, cpu_autocast_dtype

__all__ = ["LinearNormMax", "LinearNormPool"]


class LinearNormMax(LinearNorm):
    """`LinearNorm` with a monotone activation, and max pooling over the points.

    (B, N, in_channels) -> (B, out_channels). The plain form (`fused=False`, the tested reference) stores several arrays
    of B*N*out_channels and multiplies by the weight three times a step. Here, on the CPU, W x is computed once, in
    chunks; the gradient of the batch statistics in x, slopes times W x, is one matrix of in_channels squared; all else
    that backward needs is one row per maximum. Numbers, gradients and running statistics are the same. Of equal maxima,
    and if the norm's weight is exactly 0, the first point gets the gradient. Under bf16 autocast x less its mean is
    stored, and multiplied, in bfloat16; sums, norm and maxima (the result too) are float32.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        has_bias: bool = False,
        activation: nn.Module | None = None,
        fused: bool = True,
    ) -> None:
        super().__init__(in_channels=in_channels, out_channels=out_channels, has_bias=has_bias, activation=activation)
        self.fused = fused

    def forward(self, values: Tensor) -> Tensor:
        """Map values (B, N, in_channels) -> (B, out_channels)."""
        lowered, norm = cpu_autocast_dtype(), self.norm
        if (
            not self.fused
            or lowered == torch.float16
            or not can_use_numba(values, self.linear.weight, extra_dtype=lowered)
        ):
            return super().forward(values).max(dim=1).values
        inputs = (values, self.linear.weight, self.linear.bias, norm.weight, norm.bias)
        with torch.autocast("cpu", enabled=False):
            normed = _LinearNormedMax.apply(*inputs, norm, lowered)
        return self.activation(normed)


class LinearNormPool(LinearNorm):
    """`LinearNorm` with a leaky activation, then max and mean pooling: (B, N, in_channels) -> (B, 2 * out_channels).

    The maxima come first. On the CPU only the linear map's values are stored, one of the five arrays of their size that
    the plain form (`fused=False`, the tested reference) stores; numbers, gradients and running statistics are the same.
    Of equal maxima the first point gets the gradient.
    """

    def __init__(self, *, in_channels: int, out_channels: int, negative_slope: float, fused: bool = True) -> None:
        super().__init__(
            in_channels=in_channels, out_channels=out_channels, activation=nn.LeakyReLU(negative_slope=negative_slope)
        )
        self.negative_slope = negative_slope
        self.fused = fused

    def forward(self, values: Tensor) -> Tensor:
        """Map values (B, N, in_channels) -> (B, 2 * out_channels)."""
        mapped = self.linear(values)
        wide = mapped.float() if mapped.dtype == torch.bfloat16 else mapped
        if self.fused and can_use_numba(wide, self.norm.weight, self.norm.bias):
            pooled = _NormedPool.apply(wide, self.norm.weight, self.norm.bias, self.norm, self.negative_slope)
            return torch.cat(pooled, dim=-1)
        active = self.normalise_and_activate(mapped)
        return torch.cat([active.max(dim=1).values, active.mean(dim=1)], dim=-1)


class _NormedPool(Function):
    """Maximum and mean over N of leaky(batch_norm(values)), from `values` (B, N, C)."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm1d, negative_slope: float
    ) -> tuple[Tensor, Tensor]:
        values = values.contiguous()
        sums = _sums_near_their_mean(values) if uses_batch_statistics(norm) else None
        count, mean, inverse_deviation = normalisation_statistics(norm, sums, values.dtype)
        scale = weight * inverse_deviation
        maximum, argmax, average, slopes = pool(
            values, mean=mean, scale=scale, offset=bias, negative_slope=negative_slope
        )
        ctx.norm, ctx.count, ctx.negative_slope, ctx.slopes = norm, count, negative_slope, slopes
        # `weight` is kept so that autograd sees it change between the passes, as the plain form does.
        ctx.save_for_backward(values, mean, scale, weight, bias, inverse_deviation, argmax)
        return maximum, average

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        values, mean, scale, _, bias, inverse_deviation, argmax = ctx.saved_tensors
        to_best, to_average = gradients
        best = values.gather(1, argmax[:, None]).squeeze(1) - mean
        factor = torch.where(best * scale + bias > 0, best.new_ones(()), best.new_tensor(ctx.negative_slope))
        derivative, weighted = torch.from_numpy(ctx.slopes).to(values.dtype)
        share = to_average / values.shape[1]
        to_bias = (share * derivative + to_best * factor).sum(dim=0)
        to_weight = inverse_deviation * (share * weighted + to_best * factor * best).sum(dim=0)
        constant, slope = batch_statistics_gradients(
            ctx.norm,
            ctx.count,
            grad_bias=to_bias,
            to_weight=to_weight,
            scale=scale,
            inverse_deviation=inverse_deviation,
        )
        to_values = pool_gradient(
            values,
            mean=mean,
            scale=scale,
            offset=bias,
            negative_slope=ctx.negative_slope,
            to_average=to_average,
            to_best=to_best,
            place=argmax,
            constant=constant,
            slope=slope,
        )
        return to_values, to_weight, to_bias, None, None


def _sums_near_their_mean(values: Tensor) -> ShiftedSums:
    """Return the sums of all points about the mean of some of them."""
    near_mean = values[:, :: max(1, values.shape[1] // 16)].mean(dim=(0, 1)).nan_to_num()  # NaN: a part without samples
    total, total_of_squares = (torch.from_numpy(array) for array in sums_about(values, near_mean))
    return ShiftedSums(near_mean.double(), total, total_of_squares, values.shape[0] * values.shape[1])


class _LinearNormedMax(Function):
    """Maximum over N of batch_norm(x W^T + b), (B, C), from x (B, N, D), W (C, D), b (C,) or None.

    Backward uses the autocast of forward, wherever it is called.
    """

    @staticmethod
    @custom_fwd(device_type="cpu")
    def forward(
        ctx: Any,
        values: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        norm_weight: Tensor,
        norm_bias: Tensor,
        norm: nn.BatchNorm1d,
        lowered: torch.dtype | None,
    ) -> Tensor:
        num_values = values.shape[0] * values.shape[1]
        centre_D = values.sum(dim=(0, 1), dtype=weight.dtype) / max(1, num_values)
        centred = (values - centre_D).to(lowered or values.dtype)
        origin = F.linear(centre_D.double(), weight.double(), None if bias is None else bias.double())
        extremes = linear_extremes(centred, weight, sign=norm_weight.sign())
        sums = ShiftedSums(origin, extremes.total, extremes.total_of_squares, num_values)
        count, mean, inverse_deviation = normalisation_statistics(
            norm, sums if uses_batch_statistics(norm) else None, weight.dtype
        )
        offset = (origin - mean).to(weight.dtype)
        standard = (extremes.extreme + offset) * inverse_deviation
        ctx.norm, ctx.count, ctx.dtype = norm, count, values.dtype
        ctx.save_for_backward(
            centred, weight, bias, norm_weight, inverse_deviation, offset, extremes.place, standard, centre_D
        )
        return torch.addcmul(norm_bias, standard, norm_weight)

    @staticmethod
    @once_differentiable
    @custom_bwd(device_type="cpu")
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        centred, weight, bias, norm_weight, inverse_deviation, offset, argmax, standard, centre_D = ctx.saved_tensors
        num_values = centred.shape[0] * centred.shape[1]
        to_norm_bias = gradients[0].sum(dim=0)
        to_norm_weight = (gradients[0] * standard).sum(dim=0)
        chosen = gradients[0] * (norm_weight * inverse_deviation)
        to_values, to_weight = linear_extremes_gradient(centred, weight, argmax, chosen=chosen)
        to_bias = chosen.sum(dim=0)
        to_weight += torch.outer(to_bias, centre_D)
        if ctx.count is not None:
            constant, slope = batch_statistics_gradients(
                ctx.norm,
                ctx.count,
                grad_bias=to_norm_bias,
                to_weight=to_norm_weight,
                scale=norm_weight * inverse_deviation,
                inverse_deviation=inverse_deviation,
            )
            everywhere = constant + slope * offset  # what the row at the centre loses
            sloped = slope[:, None] * weight
            to_values -= everywhere @ weight
            to_values -= centred @ (weight.mT @ sloped).to(centred.dtype)
            to_bias -= num_values * everywhere
            rows = centred.flatten(0, 1)
            to_weight -= num_values * torch.outer(everywhere, centre_D) + sloped @ (rows.mT @ rows).to(weight.dtype)
        norm_grads = (to_norm_weight, to_norm_bias, None, None)
        return to_values.to(ctx.dtype), to_weight, None if bias is None else to_bias, *norm_grads
