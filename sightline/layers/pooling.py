"""The end of a point network's encoder: a linear map, batch norm, a leaky activation, then pooling over the points."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from sightline.compiled import suits
from sightline.layers.batch_norm import SumsAbout, all_reduce_sum, statistics
from sightline.layers.mlp import LinearNorm
from sightline.layers.pool_kernels import pool, pool_gradient, sums_about

__all__ = ["LinearNormPool"]


class LinearNormPool(LinearNorm):
    """`LinearNorm` with a leaky activation, then the maximum and the mean of its values over the points.

    (B, N, in_channels) -> (B, 2 * out_channels), the maxima first. On the CPU only the linear map's values are held,
    one of the five arrays of their size that the plain form (`fused=False`, the tested reference) keeps; numbers,
    gradients and running statistics are the same. Of equal maxima the first point takes the gradient.
    """

    def __init__(self, *, in_channels: int, out_channels: int, negative_slope: float, fused: bool = True) -> None:
        super().__init__(
            in_channels=in_channels, out_channels=out_channels, activation=nn.LeakyReLU(negative_slope=negative_slope)
        )
        self.negative_slope = negative_slope
        self.fused = fused

    def forward(self, values: Tensor) -> Tensor:
        mapped = self.linear(values)
        wide = mapped.float() if mapped.dtype == torch.bfloat16 else mapped
        if self.fused and suits(wide):
            pooled = _NormedPool.apply(wide, self.norm.weight, self.norm.bias, self.norm, self.negative_slope)
            return torch.cat(pooled, dim=-1)
        active = self.after_linear(mapped)
        return torch.cat([active.max(dim=1).values, active.mean(dim=1)], dim=-1)


class _NormedPool(Function):
    """Maximum and mean over N of leaky(batch_norm(values)), from `values` (B, N, C)."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm1d, negative_slope: float
    ) -> tuple[Tensor, Tensor]:
        values = values.contiguous()
        if norm.training or norm.running_mean is None or norm.running_var is None:
            near_mean = values[:, :: max(1, values.shape[1] // 16)].mean(dim=(0, 1)).nan_to_num()
            total, total_of_squares = (torch.from_numpy(array) for array in sums_about(values, near_mean))
            num_values = values.shape[0] * values.shape[1]
            count, mean, variance = statistics(norm, SumsAbout(near_mean.double(), total, total_of_squares, num_values))
        else:
            count, mean, variance = None, norm.running_mean.double(), norm.running_var.double()
        inverse_deviation = (variance + norm.eps).rsqrt().to(values.dtype)
        mean, scale = mean.to(values.dtype), weight * inverse_deviation
        maximum, place, average, slopes = pool(
            values, mean=mean, scale=scale, offset=bias, negative_slope=negative_slope
        )
        ctx.norm, ctx.count, ctx.negative_slope, ctx.slopes = norm, count, negative_slope, slopes
        ctx.save_for_backward(values, mean, scale, bias, inverse_deviation, place)
        return maximum, average

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        values, mean, scale, bias, inverse_deviation, place = ctx.saved_tensors
        to_best, to_average = gradients
        best = values.gather(1, place[:, None]).squeeze(1) - mean
        factor = torch.where(best * scale + bias > 0, best.new_ones(()), best.new_tensor(ctx.negative_slope))
        derivative, weighted = torch.from_numpy(ctx.slopes).to(values.dtype)
        share = to_average / values.shape[1]
        to_bias = (share * derivative + to_best * factor).sum(dim=0)
        to_weight = inverse_deviation * (share * weighted + to_best * factor * best).sum(dim=0)
        constant = slope = torch.zeros_like(scale)  # running statistics do not answer to the batch
        if ctx.count is not None:
            shares = all_reduce_sum(ctx.norm, torch.cat([to_bias, to_weight]).double()) / ctx.count
            share_of_bias, share_of_weight = shares.to(scale.dtype).chunk(2)
            constant, slope = scale * share_of_bias, scale * inverse_deviation * share_of_weight
        to_values = pool_gradient(
            values,
            mean=mean,
            scale=scale,
            offset=bias,
            negative_slope=ctx.negative_slope,
            to_average=to_average,
            to_best=to_best,
            place=place,
            constant=constant,
            slope=slope,
        )
        return to_values, to_weight, to_bias, None, None
