"""The passes of a fused norm, leaky activation and pooling over the points of a cloud, compiled.

`values` (B, N, C) are what comes before the norm; the norm is `(values - mean) * scale + offset` per channel. Sums
go through blocks of points in the given type and on in float64: exact enough whatever the number of points.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sightline.compiled import compiled, in_threads

__all__ = ["pool", "pool_gradient", "sums_about"]


def sums_about(values: Tensor, shift: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Sums over all points of values - shift and of its square, (C,) float64."""
    sums = np.zeros((2, len(values), values.shape[2]))
    in_threads(_sum_about, len(values), values.numpy(), shift.numpy(), sums)
    return sums[0].sum(axis=0), sums[1].sum(axis=0)


def pool(
    values: Tensor, *, mean: Tensor, scale: Tensor, offset: Tensor, negative_slope: float
) -> tuple[Tensor, Tensor, Tensor, np.ndarray]:
    """Maximum (B, C), its first point (B, C) int64, mean (B, C); and what gradients need, (2, B, C) float64: the sums
    over the points of the activation's derivative, and of derivative times (value - mean). NaN wins the maximum."""
    shape = (len(values), values.shape[2])
    best, place, average = values.new_empty(shape), torch.empty(shape, dtype=torch.int64), values.new_empty(shape)
    slopes = np.zeros((2, *shape))
    leak = values.numpy().dtype.type(negative_slope)
    arrays = [tensor.numpy() for tensor in (values, mean, scale, offset, best, place, average)]
    in_threads(_pool, len(values), leak, *arrays, slopes)
    return best, place, average, slopes


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
    """The gradient of `values`: activation, norm and the answer of the batch's statistics, in one pass.

    `to_average` (B, C) reaches every point, `to_best` (B, C) the point `place`; `constant` and `slope` (C,) are the two
    terms of batch statistics, - constant - slope * (values - mean).
    """
    result = values.new_empty(values.shape)
    leak = values.numpy().dtype.type(negative_slope)
    given = (values, mean, scale, offset, to_average, to_best, place, constant, slope)
    in_threads(_spread, len(values), leak, *(t.contiguous().numpy() for t in given), result.numpy())
    return result


@compiled
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


@compiled
def _pool(first, last, leak, values, mean, scale, offset, best, place, average, slopes):  # type: ignore[no-untyped-def]
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
            place[sample, channel] = where[channel]


@compiled
def _spread(  # type: ignore[no-untyped-def]
    first, last, leak, values, mean, scale, offset, to_average, to_best, place, constant, slope, result
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
            point = place[sample, channel]
            normed = (values[sample, point, channel] - mean[channel]) * scale[channel] + offset[channel]
            factor = one if normed > 0 else leak
            result[sample, point, channel] += to_best[sample, channel] * scale[channel] * factor
