"""Final layer of a point network's encoder: linear map, batch norm, leaky activation, then pooling over the points.

CPU kernels of fused batch norm, leaky activation and pooling over the points of a cloud.

`values` (B, N, C) are the inputs of the norm, which is `(values - mean) * scale + offset` per channel. Sums are taken
over blocks of points in the input's dtype and then in float64: exact enough for any number of points.
"""

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
from sightline.ops.numba_kernels import (
    can_use_numba,
    cpu_autocast_dtype,
    numba_kernel,
    run_parallel,
    widen_in_parts,
)

_ENTRIES_AT_ONCE = 2**21
"""Products of a chunk in `linear_extremes`: 8 MB in float32."""
_CHUNK_SIZE = 8


class LinearExtremes(NamedTuple):
    """Per sample, the extreme entry (B, C) and its first point (B, C) int64.

    Sums of entries and squares (C,) float64.
    """

    extreme: Tensor
    place: Tensor
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


def linear_extremes_gradient(values: Tensor, weight: Tensor, place: Tensor, *, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Backward of `linear_extremes`.

    Gradients of values (B, N, D) and weight (C, D) from `chosen` (B, C) at `place` (B, C).
    """
    values = values.to(weight.dtype)
    to_values = torch.zeros_like(values)
    # One part of the weight's gradient per few samples for any number of threads: the same order of adding.
    num_parts = -(-len(values) // _CHUNK_SIZE)
    parts = values.new_zeros((num_parts, *weight.shape))
    arrays = [tensor.contiguous().numpy() for tensor in (values, weight, place, chosen)]
    run_parallel(_spread_extremes, num_parts, _CHUNK_SIZE, *arrays, to_values.numpy(), parts.numpy())
    return to_values, parts.sum(dim=0)


def sums_about(values: Tensor, shift: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Compute the sums over all points (B, N, C) of values - shift and of its square, (C,) float64."""
    parts = []
    for _, wide in widen_in_parts(values, shift.dtype):
        parts.append(np.zeros((2, len(wide), values.shape[2])))
        run_parallel(_sum_about, len(wide), wide.numpy(), shift.numpy(), parts[-1])
    sums = np.concatenate(parts, axis=1)
    return sums[0].sum(axis=0), sums[1].sum(axis=0)


def pool(
    values: Tensor, *, mean: Tensor, scale: Tensor, offset: Tensor, negative_slope: float
) -> tuple[Tensor, Tensor, Tensor, np.ndarray]:
    """Compute maximum (B, C), its first point (B, C) int64, mean (B, C), and slopes (2, B, C) float64 for backward.

    The slopes are the sums over the points of the activation's derivative, and of derivative times (value - mean). NaN
    wins the maximum.
    """
    shape = (len(values), values.shape[2])
    best, argmax, average = mean.new_empty(shape), torch.empty(shape, dtype=torch.int64), mean.new_empty(shape)
    slopes = []
    leak = mean.numpy().dtype.type(negative_slope)
    for part, wide in widen_in_parts(values, mean.dtype):
        tensors = (wide, mean, scale, offset, best[part], argmax[part], average[part])
        slopes.append(np.zeros((2, len(wide), values.shape[2])))
        run_parallel(_pool, len(wide), leak, *(tensor.numpy() for tensor in tensors), slopes[-1])
    return best, argmax, average, np.concatenate(slopes, axis=1)


def pool_gradient(
    values: Tensor,
    *,
    mean: Tensor,
    scale: Tensor,
    offset: Tensor,
    negative_slope: float,
    to_average: Tensor,
    to_best: Tensor,
    place: Tensor,
    constant: Tensor,
    slope: Tensor,
) -> Tensor:
    """Compute the gradient of `values` (B, N, C): activation, norm and batch statistics, in one pass.

    `to_average` (B, C) is the gradient of the mean, `to_best` (B, C) that of the maximum at point `place`; `constant`
    and `slope` (C,) are the two terms of batch statistics, - constant - slope * (values - mean).
    """
    result, scratch = torch.empty_like(values), None
    leak = mean.numpy().dtype.type(negative_slope)
    for part, wide in widen_in_parts(values, mean.dtype):
        if scratch is None:
            scratch = result if wide is values else torch.empty_like(wide)
        target = scratch[: len(wide)]
        inputs = (wide, mean, scale, offset, to_average[part], to_best[part], place[part], constant, slope)
        run_parallel(_spread, len(wide), leak, *(t.contiguous().numpy() for t in inputs), target.numpy())
        if wide is not values:
            result[part] = target
    return result


@numba_kernel
def _sum_about(first, last, values, shift, sums):  # type: ignore[no-untyped-def]
    num_points, width = values.shape[1], values.shape[2]
    total, squares = np.empty(width, values.dtype), np.empty(width, values.dtype)
    for sample in range(first, last):
        for start in range(0, num_points, 64):
            total[:] = 0
            squares[:] = 0
            for point in range(start, min(start + 64, num_points)):
                row = values[sample, point]
                for channel in range(width):
                    moved = row[channel] - shift[channel]
                    total[channel] += moved
                    squares[channel] += moved * moved
            for channel in range(width):
                sums[0, sample, channel] += total[channel]
                sums[1, sample, channel] += squares[channel]


@numba_kernel
def _pool(first, last, leak, values, mean, scale, offset, best, argmax, average, slopes):  # type: ignore[no-untyped-def]
    num_points, width = values.shape[1], values.shape[2]
    one = values.dtype.type(1)
    total = np.empty(width, values.dtype)
    derivative, weighted = np.empty(width, values.dtype), np.empty(width, values.dtype)
    grand_total = np.empty(width, np.float64)
    where = np.empty(width, np.int32)
    for sample in range(first, last):
        grand_total[:] = 0
        where[:] = 0
        top = best[sample]
        top[:] = -np.inf
        for start in range(0, num_points, 64):
            total[:] = 0
            derivative[:] = 0
            weighted[:] = 0
            for point in range(start, min(start + 64, num_points)):
                row = values[sample, point]
                for channel in range(width):
                    moved = row[channel] - mean[channel]
                    normed = moved * scale[channel] + offset[channel]
                    factor = one if normed > 0 else leak
                    active = normed * factor
                    total[channel] += active
                    derivative[channel] += factor
                    weighted[channel] += factor * moved
                    is_better = active > top[channel] or active != active
                    top[channel] = active if is_better else top[channel]
                    where[channel] = point if is_better else where[channel]
            for channel in range(width):
                grand_total[channel] += total[channel]
                slopes[0, sample, channel] += derivative[channel]
                slopes[1, sample, channel] += weighted[channel]
        for channel in range(width):
            average[sample, channel] = grand_total[channel] / num_points
            argmax[sample, channel] = where[channel]


@numba_kernel
def _spread(  # type: ignore[no-untyped-def]
    first, last, leak, values, mean, scale, offset, to_average, to_best, argmax, constant, slope, result
):
    num_points, width = values.shape[1], values.shape[2]
    one = values.dtype.type(1)
    spread = np.empty(width, values.dtype)
    for sample in range(first, last):
        for channel in range(width):
            spread[channel] = to_average[sample, channel] * scale[channel] / num_points
        for point in range(num_points):
            row, target = values[sample, point], result[sample, point]
            for channel in range(width):
                moved = row[channel] - mean[channel]
                normed = moved * scale[channel] + offset[channel]
                factor = one if normed > 0 else leak
                target[channel] = spread[channel] * factor - constant[channel] - slope[channel] * moved
        for channel in range(width):
            point = argmax[sample, channel]
            normed = (values[sample, point, channel] - mean[channel]) * scale[channel] + offset[channel]
            factor = one if normed > 0 else leak
            result[sample, point, channel] += to_best[sample, channel] * scale[channel] * factor


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
        if self.fused and can_use_numba(mapped, self.norm.weight, self.norm.bias, extra_dtype=torch.bfloat16):
            pooled = _NormedPool.apply(mapped, self.norm.weight, self.norm.bias, self.norm, self.negative_slope)
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
        sums = _sums_near_their_mean(values, weight.dtype) if uses_batch_statistics(norm) else None
        count, mean, inverse_deviation = normalisation_statistics(norm, sums, weight.dtype)
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
        derivative, weighted = torch.from_numpy(ctx.slopes).to(mean.dtype)
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


def _sums_near_their_mean(values: Tensor, dtype: torch.dtype) -> ShiftedSums:
    """Return the sums of all points about the mean of some of them."""
    some = values[:, :: max(1, values.shape[1] // 16)].to(dtype)
    near_mean = some.mean(dim=(0, 1)).nan_to_num()  # NaN: a part without samples
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
