"""Final layer of a point network's encoder: linear map, batch norm, activation, then pooling over the points."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp import custom_bwd, custom_fwd
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from sightline.layers.batch_norm import (
    ShiftedSums,
    batch_statistics_gradients,
    normalisation_statistics,
    uses_batch_statistics,
)
from sightline.layers.mlp import LinearNorm
from sightline.ops.numba_kernels import can_use_numba, cpu_autocast_dtype, numba_kernel, run_parallel
from sightline.ops.products import linear_map, linear_map_gradients

_ENTRIES_AT_ONCE = 2**21
"""Products of a chunk in `linear_extremes`: 8 MB in float32."""
_CHUNK_SIZE = 8


class LinearExtremes(NamedTuple):
    """Per sample, the extreme entry (B, C) and its first point (B, C) int64.

    Sums of entries and squares (C,) float64; the entries, some samples' at a time (b * N, C), where they are kept.
    """

    extreme: Tensor
    argmax: Tensor
    total: Tensor
    total_of_squares: Tensor
    entries: list[Tensor]


def linear_extremes(values: Tensor, weight: Tensor, *, sign: Tensor, keeps_entries: bool = False) -> LinearExtremes:
    """Find the largest entry (B, C) over N of values (B, N, D) times weight (C, D), without storing the product.

    `values` may be bfloat16 with a weight in float32: products are then rounded to bfloat16, and sums are of those
    values. The smallest where `sign` (C,) is -1, the first where it is 0; NaN wins.
    """
    num_samples, num_points, _ = values.shape
    extreme = weight.new_empty((num_samples, len(weight)))
    argmax = torch.empty(extreme.shape, dtype=torch.int64)
    sums, entries, lowered = np.zeros((num_samples, 2, len(weight))), [], weight.to(values.dtype)
    for chunk in _cut(num_samples, num_points * len(weight)):
        mapped = linear_map(values[chunk].flatten(0, 1), lowered)
        entries += [mapped] if keeps_entries else []
        arrays = [tensor.numpy() for tensor in (mapped.to(weight.dtype), sign, extreme[chunk], argmax[chunk])]
        run_parallel(_find_extremes, chunk.stop - chunk.start, num_points, *arrays, sums[chunk])
    total, total_of_squares = torch.from_numpy(sums.sum(axis=0))
    return LinearExtremes(extreme, argmax, total, total_of_squares, entries)


def _cut(num_samples: int, num_entries: int) -> Iterator[slice]:
    """Yield parts of the samples, of `num_entries` each, that stay in the cache."""
    at_once = max(1, _ENTRIES_AT_ONCE // num_entries)
    return (slice(start, min(start + at_once, num_samples)) for start in range(0, num_samples, at_once))


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


class _Activation(NamedTuple):
    """Leaky activation of a batch norm: of (entry + offset) * scale + bias, all (C,), with the slope `leak` below 0."""

    offset: Tensor
    scale: Tensor
    bias: Tensor
    leak: float

    def arrays(self) -> list[Any]:
        """List the slope and the three rows as the kernels take them, in their precision."""
        rows = [self.offset.numpy(), self.scale.numpy(), self.bias.numpy()]
        return [rows[0].dtype.type(self.leak), *rows]


def mean_slopes(entries: list[Tensor], activation: _Activation, *, num_points: int) -> Tensor:
    """Compute sums over a sample's points (2, B, C): of the activation's derivative, and of it times the deviation.

    `entries` are those of `linear_extremes`; the deviation is from the norm's mean, entry + offset.
    """
    slopes = [np.zeros((2, 0, len(activation.scale)))]
    for mapped in entries:
        slopes.append(np.zeros((2, len(mapped) // num_points, mapped.shape[1])))
        wide = mapped.to(activation.scale.dtype).numpy()
        run_parallel(_sum_slopes, slopes[-1].shape[1], num_points, *activation.arrays(), wide, slopes[-1])
    return torch.from_numpy(np.concatenate(slopes, axis=1)).to(activation.scale.dtype)


def mean_gradients(
    entries: list[Tensor],
    values: Tensor,
    weight: Tensor,
    activation: _Activation,
    *,
    to_mean: Tensor,
    constant: Tensor,
    slope: Tensor,
    chosen: Tensor,
    argmax: Tensor,
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of values (B, N, D) and weight (C, D), whose products are `entries`.

    That of an entry is `to_mean` (B, C) times the activation's derivative, less `constant` + `slope` times its
    deviation (C,), and `chosen` (B, C) more at point `argmax`. It is made and used a part at a time.
    """
    to_values, to_weight, lowered = torch.empty_like(values), torch.zeros_like(weight), weight.to(values.dtype)
    for chunk, mapped in zip(_cut(len(values), values.shape[1] * len(weight)), entries, strict=True):
        wide = mapped.to(weight.dtype)
        result = torch.empty_like(wide)
        tensors = (wide, to_mean[chunk], constant, slope, chosen[chunk], argmax[chunk], result)
        arrays = [tensor.contiguous().numpy() for tensor in tensors]
        run_parallel(_spread_mean, chunk.stop - chunk.start, values.shape[1], *activation.arrays(), *arrays)
        rows = values[chunk].flatten(0, 1)
        to_rows, to_weight_here = linear_map_gradients(result.to(values.dtype), rows, lowered)
        to_values[chunk] = to_rows.view(-1, *values.shape[1:])
        to_weight += to_weight_here
    return to_values, to_weight


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


@numba_kernel
def _sum_slopes(first, last, num_points, leak, offset, scale, bias, mapped, slopes):  # type: ignore[no-untyped-def]
    """Write the sums over a sample's points of the activation's derivative, and of derivative times deviation."""
    width = mapped.shape[1]
    one = mapped.dtype.type(1)
    derivative, weighted = np.empty(width, mapped.dtype), np.empty(width, mapped.dtype)
    for sample in range(first, last):
        for start in range(0, num_points, 64):
            derivative[:] = 0
            weighted[:] = 0
            for point in range(start, min(start + 64, num_points)):
                row = mapped[sample * num_points + point]
                for channel in range(width):
                    moved = row[channel] + offset[channel]
                    factor = one if moved * scale[channel] + bias[channel] > 0 else leak
                    derivative[channel] += factor
                    weighted[channel] += factor * moved
            for channel in range(width):
                slopes[0, sample, channel] += derivative[channel]
                slopes[1, sample, channel] += weighted[channel]


@numba_kernel
def _spread_mean(  # type: ignore[no-untyped-def]
    first, last, num_points, leak, offset, scale, bias, mapped, to_mean, constant, slope, chosen, argmax, result
):
    """Write the gradient of each entry: that of the activation's mean, the batch's statistics, and the extremes."""
    width = mapped.shape[1]
    one = mapped.dtype.type(1)
    for sample in range(first, last):
        begin = sample * num_points
        for row in range(begin, begin + num_points):
            for channel in range(width):
                moved = mapped[row, channel] + offset[channel]
                factor = one if moved * scale[channel] + bias[channel] > 0 else leak
                result[row, channel] = to_mean[sample, channel] * factor - constant[channel] - slope[channel] * moved
        for channel in range(width):
            result[begin + argmax[sample, channel], channel] += chosen[sample, channel]


class LinearNormMax(LinearNorm):
    """`LinearNorm` with a monotone activation, and max pooling over the points.

    (B, N, in_channels) -> (B, out_channels). The plain form (`fused=False`, the tested reference) stores several arrays
    of B*N*out_channels and multiplies by the weight three times a step. Here, on the CPU, W x is computed once, in
    chunks; the gradient of the batch statistics in x, slopes times W x, is one matrix of in_channels squared; all else
    that backward needs is one row per maximum. Numbers, gradients and running statistics are the same. Of equal maxima,
    and if the norm's weight is exactly 0, the first point gets the gradient. Under bf16 autocast x less its mean is
    stored, and multiplied, in bfloat16; sums, norm and maxima (the result too) are float32.
    """

    negative_slope: float | None = None
    """Slope below 0 of the activation whose mean over the points is a result, too; None for none."""

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
        """Map values (B, N, in_channels) -> (B, out_channels), with means (B, 2 * out_channels)."""
        lowered, norm = cpu_autocast_dtype(values), self.norm
        if (
            not self.fused
            or lowered == torch.float16
            or not can_use_numba(values, self.linear.weight, extra_dtype=lowered)
        ):
            active = super().forward(values)
            maximum, means = active.max(dim=1).values, [] if self.negative_slope is None else [active.mean(dim=1)]
        else:
            inputs = (values, self.linear.weight, self.linear.bias, norm.weight, norm.bias)
            with torch.autocast("cpu", enabled=False):
                normed, *means = _LinearNormedPool.apply(*inputs, norm, lowered, self.negative_slope)
            maximum = self.activation(normed)
        return torch.cat([maximum, *means], dim=-1)


class LinearNormPool(LinearNormMax):
    """`LinearNormMax` with a leaky activation and mean pooling, too: (B, N, in_channels) -> (B, 2 * out_channels).

    The maxima come first. Of arrays of B*N*out_channels, W x alone is stored.
    """

    def __init__(self, *, in_channels: int, out_channels: int, negative_slope: float, fused: bool = True) -> None:
        activation = nn.LeakyReLU(negative_slope=negative_slope)
        super().__init__(in_channels=in_channels, out_channels=out_channels, activation=activation, fused=fused)
        self.negative_slope = negative_slope


class _LinearNormedPool(Function):
    """Maximum over N of batch_norm(x W^T + b), (B, C), from x (B, N, D), W (C, D), b (C,) or None.

    With a `negative_slope` also the mean over N of its leaky activation. Backward uses the autocast of forward,
    wherever it is called.
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
        negative_slope: float | None,
    ) -> tuple[Tensor, ...]:
        num_values = values.shape[0] * values.shape[1]
        centre_D = values.new_zeros(values.shape[2], dtype=weight.dtype)
        if uses_batch_statistics(norm):  # otherwise a sample's numbers would depend on those of its batch
            centre_D = values.sum(dim=(0, 1), dtype=weight.dtype) / max(1, num_values)
        centred = (values - centre_D).to(lowered or values.dtype)
        origin = linear_map(centre_D.double(), weight.double(), None if bias is None else bias.double())
        extremes = linear_extremes(centred, weight, sign=norm_weight.sign(), keeps_entries=negative_slope is not None)
        sums = ShiftedSums(origin, extremes.total, extremes.total_of_squares, num_values)
        count, mean, inverse_deviation = normalisation_statistics(
            norm, sums if uses_batch_statistics(norm) else None, weight.dtype
        )
        offset = (origin - mean).to(weight.dtype)
        standard = (extremes.extreme + offset) * inverse_deviation
        ctx.norm, ctx.count, ctx.dtype, ctx.activation, ctx.slopes = norm, count, values.dtype, None, None
        pooled = [torch.addcmul(norm_bias, standard, norm_weight)]
        if negative_slope is not None:
            # Not of the norm's parameters themselves: they may change before the backward pass.
            ctx.activation = _Activation(offset, norm_weight * inverse_deviation, norm_bias.clone(), negative_slope)
            ctx.slopes = mean_slopes(extremes.entries, ctx.activation, num_points=values.shape[1])
            derivative, weighted = ctx.slopes / values.shape[1]
            pooled.append(torch.addcmul(norm_bias * derivative, ctx.activation.scale, weighted))
        ctx.save_for_backward(
            centred,
            weight,
            bias,
            norm_weight,
            inverse_deviation,
            offset,
            extremes.argmax,
            standard,
            centre_D,
            *extremes.entries,
        )
        return tuple(pooled)

    @staticmethod
    @once_differentiable
    @custom_bwd(device_type="cpu")
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        centred, weight, bias, norm_weight, inverse_deviation, offset, argmax, standard, centre_D, *entries = (
            ctx.saved_tensors
        )
        num_values, scale = centred.shape[0] * centred.shape[1], norm_weight * inverse_deviation
        to_norm_bias = gradients[0].sum(dim=0)
        to_norm_weight = (gradients[0] * standard).sum(dim=0)
        if ctx.activation is not None:
            share = gradients[1] / centred.shape[1]
            to_norm_bias += (share * ctx.slopes[0]).sum(dim=0)
            to_norm_weight += (share * ctx.slopes[1]).sum(dim=0) * inverse_deviation
        constant, slope = batch_statistics_gradients(
            ctx.norm,
            ctx.count,
            grad_bias=to_norm_bias,
            to_weight=to_norm_weight,
            scale=scale,
            inverse_deviation=inverse_deviation,
        )
        everywhere = constant + slope * offset  # what the row at the centre loses
        chosen = gradients[0] * scale
        if ctx.activation is None:
            to_values, to_weight = linear_extremes_gradient(centred, weight, argmax, chosen=chosen)
            to_bias = chosen.sum(dim=0)
            if ctx.count is not None:
                sloped = slope[:, None] * weight
                to_values -= everywhere @ weight
                to_values -= linear_map(centred, (sloped.mT @ weight).to(centred.dtype))
                rows = centred.flatten(0, 1)
                to_weight -= sloped @ (rows.mT @ rows).to(weight.dtype)
        else:
            to_bias = to_norm_bias * scale
            to_values, to_weight = mean_gradients(
                entries,
                centred,
                weight,
                ctx.activation,
                to_mean=share * scale,
                constant=constant,
                slope=slope,
                chosen=chosen,
                argmax=argmax,
            )
        to_bias = to_bias - num_values * everywhere
        to_weight += torch.outer(to_bias, centre_D)
        norm_grads = (to_norm_weight, to_norm_bias, None, None, None)
        return to_values.to(ctx.dtype), to_weight, None if bias is None else to_bias, *norm_grads
