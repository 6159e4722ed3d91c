"""Final layer of a point network's encoder: linear map, batch norm, activation, then pooling over the points."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
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
from sightline.ops.numba_kernels import can_use_numba, cpu_autocast_dtype, numba_kernel, run_parallel

_ENTRIES_AT_ONCE = 2**21
"""Products of a chunk in `linear_extremes`: 8 MB in float32."""
_CHUNK_SIZE = 8


class LinearExtremes(NamedTuple):
    """Per sample, the extreme entry (B, C) and its first point (B, C) int64.

    Sums of entries and squares (C,) float64.
    """

    extreme: Tensor
    argmax: Tensor
    total: Tensor
    total_of_squares: Tensor


def linear_extremes(values: Tensor, weight: Tensor, *, sign: Tensor) -> LinearExtremes:
    """Find the largest entry (B, C) over N of values (B, N, D) times weight (C, D), without storing the product.

    `values` may be bfloat16 with a weight in float32: products are then rounded to bfloat16, and sums are of those
    values. The smallest where `sign` (C,) is -1, the first where it is 0; NaN wins.
    """
    num_samples, num_points, _ = values.shape
    extreme = weight.new_empty((num_samples, len(weight)))
    factor = weight.mT.to(values.dtype)
    argmax = torch.empty(extreme.shape, dtype=torch.int64)
    sums = np.zeros((num_samples, 2, len(weight)))
    at_once = max(1, _ENTRIES_AT_ONCE // (num_points * len(weight)))
    for start in range(0, num_samples, at_once):
        chunk = slice(start, min(start + at_once, num_samples))
        mapped = (values[chunk].flatten(0, 1) @ factor).to(weight.dtype)
        arrays = [tensor.numpy() for tensor in (mapped, sign, extreme[chunk], argmax[chunk])]
        run_parallel(_find_extremes, chunk.stop - chunk.start, num_points, *arrays, sums[chunk])
    return LinearExtremes(extreme, argmax, *torch.from_numpy(sums.sum(axis=0)))


def linear_extremes_gradient(
    values: Tensor, weight: Tensor, argmax: Tensor, *, chosen: Tensor
) -> tuple[Tensor, Tensor]:
    """Backward of `linear_extremes`.

    Gradients of values (B, N, D) and weight (C, D) from `chosen` (B, C) at `argmax` (B, C).
    """
    values = values.to(weight.dtype)
    to_values = torch.zeros_like(values)
    # One part of the weight's gradient per few samples for any number of threads: the same order of adding.
    num_parts = -(-len(values) // _CHUNK_SIZE)
    parts = values.new_zeros((num_parts, *weight.shape))
    arrays = [tensor.contiguous().numpy() for tensor in (values, weight, argmax, chosen)]
    run_parallel(_spread_extremes, num_parts, _CHUNK_SIZE, *arrays, to_values.numpy(), parts.numpy())
    return to_values, parts.sum(dim=0)


@numba_kernel
def _find_extremes(first, last, num_points, mapped, sign, extreme, argmax, sums):  # type: ignore[no-untyped-def]
    width = mapped.shape[1]
    best, where = np.empty(width, mapped.dtype), np.empty(width, np.int32)
    total, squares = np.empty(width, mapped.dtype), np.empty(width, mapped.dtype)
    for sample in range(first, last):
        where[:] = 0
        best[:] = -np.inf
        for start in range(0, num_points, 64):
            total[:] = 0
            squares[:] = 0
            for point in range(start, min(start + 64, num_points)):
                row = mapped[sample * num_points + point]
                for channel in range(width):
                    value = row[channel]
                    total[channel] += value
                    squares[channel] += value * value
                    signed = value * sign[channel]
                    is_better = signed > best[channel] or signed != signed  # as torch's maximum: NaN wins
                    best[channel] = signed if is_better else best[channel]
                    where[channel] = point if is_better else where[channel]
            for channel in range(width):
                sums[sample, 0, channel] += total[channel]
                sums[sample, 1, channel] += squares[channel]
        for channel in range(width):
            extreme[sample, channel] = mapped[sample * num_points + where[channel], channel]
            argmax[sample, channel] = where[channel]


@numba_kernel
def _spread_extremes(  # type: ignore[no-untyped-def]
    first, last, num_samples, values, weight, argmax, chosen, to_values, to_weight
):
    for part in range(first, last):
        for sample in range(part * num_samples, min((part + 1) * num_samples, len(values))):
            for channel in range(weight.shape[0]):
                gradient, point = chosen[sample, channel], argmax[sample, channel]
                source, target = values[sample, point], to_values[sample, point]
                row, to_row = weight[channel], to_weight[part, channel]
                for entry in range(weight.shape[1]):
                    target[entry] += gradient * row[entry]
                    to_row[entry] += gradient * source[entry]


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

    The maxima come first.
    """

    def __init__(self, *, in_channels: int, out_channels: int, negative_slope: float) -> None:
        super().__init__(
            in_channels=in_channels, out_channels=out_channels, activation=nn.LeakyReLU(negative_slope=negative_slope)
        )

    def forward(self, values: Tensor) -> Tensor:
        """Map values (B, N, in_channels) -> (B, 2 * out_channels)."""
        active = super().forward(values)
        return torch.cat([active.max(dim=1).values, active.mean(dim=1)], dim=-1)


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
        centre_D = values.new_zeros(values.shape[2], dtype=weight.dtype)
        if uses_batch_statistics(norm):  # otherwise a sample's numbers would depend on those of its batch
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
            centred, weight, bias, norm_weight, inverse_deviation, offset, extremes.argmax, standard, centre_D
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
