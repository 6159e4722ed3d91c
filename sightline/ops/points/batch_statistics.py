"""Statistics of a batch norm from sums that a layer knows without its values, and the gradient of the statistics.

Source: Ioffe and Szegedy 2015, algorithm 1, and section 3 for the chain rule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sightline.ops.gpu_kernels import as_type, gpu_kernel, tl
from sightline.ops.operator import operator

_CHANNELS_AT_ONCE = 128


def moments_from_sums(
    origin: Tensor,
    total: Tensor,
    total_of_squares: Tensor,
    num_values: int,
    reduce: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute count (), mean and biased variance (C,), float64, from the sums of (x - origin) and of its square.

    `reduce` adds tensors over the parts of a batch. An origin near the mean keeps the variance exact.
    """
    origin = origin.double()
    totals = reduce(torch.cat([total + num_values * origin, total.new_full((1,), num_values)]))
    count = totals[-1]
    mean = totals[:-1] / count
    moved = mean - origin
    about_mean = total_of_squares - moved * (2 * total - num_values * moved)
    return count, mean, reduce(about_mean).clamp_min(0) / count


@operator(launches=1, extra_dtype=torch.float64)
def _batch_statistics(
    origin: Tensor,
    total: Tensor,
    total_of_squares: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    num_values: int,
    momentum: float,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    count, mean, variance = moments_from_sums(origin, total, total_of_squares, num_values)
    unbiased = variance * (count / (count - 1))
    new_mean = running_mean * (1 - momentum) + mean.to(running_mean.dtype) * momentum
    new_var = running_var * (1 - momentum) + unbiased.to(running_var.dtype) * momentum
    return mean.to(dtype), (variance + eps).rsqrt().to(dtype), new_mean, new_var


@operator(launches=1)
def _statistics_gradients(
    to_bias: Tensor, to_weight: Tensor, scale: Tensor, inverse_deviation: Tensor, num_values: int
) -> tuple[Tensor, Tensor]:
    share_of_bias, share_of_weight = (
        (gradient.double() / num_values).to(scale.dtype) for gradient in (to_bias, to_weight)
    )
    return scale * share_of_bias, scale * inverse_deviation * share_of_weight


def batch_statistics(
    origin: Tensor,
    total: Tensor,
    total_of_squares: Tensor,
    *,
    running_mean: Tensor,
    running_var: Tensor,
    num_values: int,
    momentum: float,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute mean and inverse deviation (C,), in `dtype`, of `num_values` values, and new running mean and variance.

    `total` and `total_of_squares` (C,) float64 are the sums of (x - origin) and of its square; an origin near the mean
    keeps the variance exact. The new running variance is unbiased, as torch's.
    """
    sums = (origin, total, total_of_squares)
    return _batch_statistics(*sums, running_mean, running_var, num_values, momentum, eps, dtype)


def statistics_gradients(
    to_bias: Tensor, to_weight: Tensor, scale: Tensor, inverse_deviation: Tensor, num_values: int
) -> tuple[Tensor, Tensor]:
    """Compute `constant` and `slope` (C,), by which statistics lower a gradient: dx -= constant + slope * (x - mean).

    `to_bias` and `to_weight` (C,) are gradients of the norm's parameters; `scale` is its weight times
    `inverse_deviation`.
    """
    return _statistics_gradients(to_bias, to_weight, scale, inverse_deviation, num_values)


@_batch_statistics.fake
def _(
    origin: Tensor,
    total: Tensor,
    total_of_squares: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    num_values: int,
    momentum: float,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean, inverse_deviation = torch.empty_like(origin, dtype=dtype), torch.empty_like(origin, dtype=dtype)
    return mean, inverse_deviation, torch.empty_like(running_mean), torch.empty_like(running_var)


@_statistics_gradients.fake
def _(to_bias: Tensor, to_weight: Tensor, scale: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(scale), torch.empty_like(scale)


# --- GPU: the same float64, in one kernel -----------------------------------------------------------------------------


@_batch_statistics.gpu_kernel()
def _(
    origin: Tensor,
    total: Tensor,
    total_of_squares: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    num_values: int,
    momentum: float,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    results = [torch.empty_like(origin, dtype=dtype), torch.empty_like(origin, dtype=dtype)]
    results += [torch.empty_like(running_mean), torch.empty_like(running_var)]
    inputs = [tensor.contiguous() for tensor in (origin, total, total_of_squares, running_mean, running_var)]
    numbers = (num_values, momentum, eps, len(origin))
    _finish.launch(-(-len(origin) // _CHANNELS_AT_ONCE), *inputs, *results, *numbers, BLOCK=_CHANNELS_AT_ONCE)
    return results[0], results[1], results[2], results[3]


@_statistics_gradients.gpu_kernel()
def _(
    to_bias: Tensor, to_weight: Tensor, scale: Tensor, inverse_deviation: Tensor, num_values: int
) -> tuple[Tensor, Tensor]:
    constant, slope = torch.empty_like(scale), torch.empty_like(scale)
    inputs = [tensor.contiguous() for tensor in (to_bias, to_weight, scale, inverse_deviation)]
    num_programs = -(-len(scale) // _CHANNELS_AT_ONCE)
    _share.launch(num_programs, *inputs, constant, slope, num_values, len(scale), BLOCK=_CHANNELS_AT_ONCE)
    return constant, slope


@gpu_kernel
def _finish(  # type: ignore[no-untyped-def]
    origin,
    total,
    total_of_squares,
    running_mean,
    running_var,
    mean,
    inverse_deviation,
    new_mean,
    new_var,
    num_values: tl.int64,
    momentum: tl.float64,
    eps: tl.float64,
    width: tl.int32,
    BLOCK: tl.constexpr,
):
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_inside = channel < width
    start = tl.load(origin + channel, mask=is_inside, other=0.0).to(tl.float64)
    kind = new_mean.dtype.element_ty
    sums = tl.load(total + channel, mask=is_inside, other=0.0)
    squares = tl.load(total_of_squares + channel, mask=is_inside, other=0.0)
    count = tl.zeros((BLOCK,), tl.float64) + num_values
    middle = (sums + count * start) / count
    moved = middle - start
    about_mean = squares - moved * (2 * sums - count * moved)
    variance = tl.where(about_mean < 0, 0.0, about_mean) / count
    tl.store(mean + channel, middle, mask=is_inside)
    deviation = tl.sqrt(variance + as_type(eps, tl.float64))
    tl.store(inverse_deviation + channel, 1 / deviation, mask=is_inside)
    unbiased = variance * (count / (count - 1))
    old_mean = tl.load(running_mean + channel, mask=is_inside, other=0.0)
    old_var = tl.load(running_var + channel, mask=is_inside, other=0.0)
    old_share, share = as_type(1 - momentum, kind), as_type(momentum, kind)
    tl.store(new_mean + channel, old_mean * old_share + middle.to(kind) * share, mask=is_inside)
    tl.store(new_var + channel, old_var * old_share + unbiased.to(kind) * share, mask=is_inside)


@gpu_kernel
def _share(  # type: ignore[no-untyped-def]
    to_bias,
    to_weight,
    scale,
    inverse_deviation,
    constant,
    slope,
    num_values: tl.int64,
    width: tl.int32,
    BLOCK: tl.constexpr,
):
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_inside = channel < width
    factor = tl.load(scale + channel, mask=is_inside, other=0.0)
    of_bias = tl.load(to_bias + channel, mask=is_inside, other=0.0).to(tl.float64) / num_values
    of_weight = tl.load(to_weight + channel, mask=is_inside, other=0.0).to(tl.float64) / num_values
    tl.store(constant + channel, factor * of_bias.to(factor.dtype), mask=is_inside)
    deviation = tl.load(inverse_deviation + channel, mask=is_inside, other=0.0)
    tl.store(slope + channel, factor * deviation * of_weight.to(factor.dtype), mask=is_inside)
