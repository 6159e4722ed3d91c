"""CPU kernels of MLPs over groups of points.

Group m of a cloud has the members `index` (B, M, K); its member j carries u_j + v_m, where `point_terms` (B, N, C) is
u and `of_centres` (B, M, C) is v. All tensors are float32 or float64, on the CPU. A cloud is one row of work, and
sums over the batch are added cloud by cloud: the bits do not depend on the number of threads.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.ops.numba_kernels import numba_kernel, run_parallel


def group_sums(point_terms: Tensor, of_centres: Tensor, index: Tensor, *, origin: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the sums of u_j + v_m - origin and of its square over all members of all groups.

    (C,) and (C,), float64.
    """
    sums = np.zeros((2, len(index), point_terms.shape[-1]))
    run_parallel(_add_up_groups, len(index), *_arrays(point_terms, of_centres, index, origin), sums)
    total, total_of_squares = torch.from_numpy(sums.sum(axis=1))
    return total, total_of_squares


def add_and_rectify(point_terms: Tensor, of_centres: Tensor, index: Tensor, *, negative_slope: float = 0.0) -> Tensor:
    """Compute the leaky ReLU of u_j + v_m of every member: (B, M, K, C). NaN stays NaN."""
    result = point_terms.new_empty((*index.shape, point_terms.shape[-1]))
    leak = result.numpy().dtype.type(negative_slope)
    run_parallel(_add_and_rectify, len(index), leak, *_arrays(point_terms, of_centres, index), result.numpy())
    return result


class GroupGradients(NamedTuple):
    """Gradients of points (B, N, C) and centres (B, M, C), and the sums that the batch statistics need.

    Per point, its number of memberships (B, N, 1) and the sum of their v (B, N, C); per centre, the sum of its u (B, M,
    C).
    """

    grad_points: Tensor
    to_centres: Tensor
    degree: Tensor
    centre_sums: Tensor
    point_sums: Tensor


def group_gradients(
    gradient: Tensor,
    rectified: Tensor,
    point_terms: Tensor,
    of_centres: Tensor,
    index: Tensor,
    *,
    negative_slope: float = 0.0,
) -> GroupGradients:
    """Backward of `add_and_rectify`: `gradient` and `rectified`, its result, are (B, M, K, C)."""
    to_points, to_centres = torch.empty_like(point_terms), torch.empty_like(of_centres)
    centre_sums, point_sums = torch.empty_like(point_terms), torch.empty_like(of_centres)
    degree = point_terms.new_empty((*point_terms.shape[:2], 1))
    inputs = _arrays(gradient, rectified, point_terms, of_centres, index)
    outputs = (array.numpy() for array in (to_points, to_centres, degree, centre_sums, point_sums))
    leak = to_points.numpy().dtype.type(negative_slope)
    run_parallel(_spread_groups, len(index), leak, *inputs, *outputs)
    return GroupGradients(to_points, to_centres, degree, centre_sums, point_sums)


class Extremes(NamedTuple):
    """Extremes of groups: values (B, M, C) and slots (B, M, C) int32.

    Sums of value - origin and its square (C,) float64.
    """

    extreme: Tensor
    argmax: Tensor
    total: Tensor
    total_of_squares: Tensor


def extremes_and_sums(values: Tensor, *, sign: Tensor, origin: Tensor) -> Extremes:
    """Find the maximum of each group of `values` (B, M, K, C) where `sign` (C,) is 1, the minimum where -1.

    The first member where `sign` is 0, and of equal values the first. A NaN is the extreme of its group.
    """
    num_samples, num_groups, _, width = values.shape
    extreme = values.new_empty((num_samples, num_groups, width))
    argmax = torch.empty(extreme.shape, dtype=torch.int32)
    sums = np.zeros((2, num_samples, width))
    run_parallel(_reduce_groups, num_samples, *_arrays(values, sign, origin), extreme.numpy(), argmax.numpy(), sums)
    return Extremes(extreme, argmax, *torch.from_numpy(sums.sum(axis=1)))


def extremes_gradient(
    values: Tensor, argmax: Tensor, *, chosen: Tensor, constant: Tensor, slope: Tensor, mean: Tensor
) -> Tensor:
    """Backward of a group extreme and batch norm: (B, M, K, C).

    It is `chosen` (B, M, C) at the member `argmax`, less `constant` + `slope` (value - `mean`) everywhere.
    """
    result = torch.empty_like(values)
    inputs = _arrays(values, argmax, chosen, constant, slope, mean)
    run_parallel(_spread_extremes, len(values), *inputs, result.numpy())
    return result


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


@numba_kernel
def _add_up_groups(first, last, point_terms, of_centres, index, origin, sums):  # type: ignore[no-untyped-def]
    num_groups, num_members = index.shape[1], index.shape[2]
    width = point_terms.shape[2]
    moved = np.empty(width, point_terms.dtype)
    total = np.empty(width, point_terms.dtype)
    squares = np.empty(width, point_terms.dtype)
    for sample in range(first, last):
        for group in range(num_groups):
            centre = of_centres[sample, group]
            for channel in range(width):
                moved[channel] = centre[channel] - origin[channel]
                total[channel] = 0
                squares[channel] = 0
            for member in range(num_members):
                point = point_terms[sample, index[sample, group, member]]
                for channel in range(width):
                    value = point[channel] + moved[channel]
                    total[channel] += value
                    squares[channel] += value * value
            for channel in range(width):
                sums[0, sample, channel] += total[channel]
                sums[1, sample, channel] += squares[channel]


@numba_kernel
def _add_and_rectify(first, last, leak, point_terms, of_centres, index, result):  # type: ignore[no-untyped-def]
    num_groups, num_members = index.shape[1], index.shape[2]
    width = point_terms.shape[2]
    zero = point_terms.dtype.type(0)
    is_leaky = leak != 0  # minus infinity times a slope of zero would be no number
    for sample in range(first, last):
        for group in range(num_groups):
            centre = of_centres[sample, group]
            for member in range(num_members):
                point = point_terms[sample, index[sample, group, member]]
                row = result[sample, group, member]
                for channel in range(width):
                    value = point[channel] + centre[channel]
                    below = value * leak if is_leaky else zero
                    row[channel] = below if value < 0 else value


@numba_kernel
def _spread_groups(  # type: ignore[no-untyped-def]
    first,
    last,
    leak,
    gradient,
    rectified,
    point_terms,
    of_centres,
    index,
    to_points,
    to_centres,
    degree,
    centre_sums,
    point_sums,
):
    num_groups, num_members = index.shape[1], index.shape[2]
    width = point_terms.shape[2]
    own_gradient = np.empty(width, point_terms.dtype)
    own_sums = np.empty(width, point_terms.dtype)
    for sample in range(first, last):
        to_points[sample] = 0
        centre_sums[sample] = 0
        degree[sample] = 0
        for group in range(num_groups):
            own_gradient[:] = 0
            own_sums[:] = 0
            centre = of_centres[sample, group]
            for member in range(num_members):
                index_of_point = index[sample, group, member]
                degree[sample, index_of_point, 0] += 1
                point = point_terms[sample, index_of_point]
                to_point = to_points[sample, index_of_point]
                received_there = centre_sums[sample, index_of_point]
                incoming = gradient[sample, group, member]
                height = rectified[sample, group, member]
                for channel in range(width):
                    passed = incoming[channel] if height[channel] > 0 else incoming[channel] * leak
                    own_gradient[channel] += passed
                    to_point[channel] += passed
                for channel in range(width):
                    own_sums[channel] += point[channel]
                    received_there[channel] += centre[channel]
            for channel in range(width):
                to_centres[sample, group, channel] = own_gradient[channel]
                point_sums[sample, group, channel] = own_sums[channel]


@numba_kernel
def _reduce_groups(first, last, values, sign, origin, extreme, argmax, sums):  # type: ignore[no-untyped-def]
    num_groups, num_members, width = values.shape[1], values.shape[2], values.shape[3]
    best = np.empty(width, values.dtype)
    member_of_best = np.empty(width, np.int32)
    total = np.empty(width, values.dtype)
    squares = np.empty(width, values.dtype)
    for sample in range(first, last):
        for group in range(num_groups):
            row = values[sample, group, 0]
            for channel in range(width):
                best[channel] = row[channel] * sign[channel]
                member_of_best[channel] = 0
                moved = row[channel] - origin[channel]
                total[channel] = moved
                squares[channel] = moved * moved
            for member in range(1, num_members):
                row = values[sample, group, member]
                for channel in range(width):
                    moved = row[channel] - origin[channel]
                    total[channel] += moved
                    squares[channel] += moved * moved
                    signed = row[channel] * sign[channel]
                    is_better = (signed > best[channel]) | (signed != signed)
                    best[channel] = signed if is_better else best[channel]
                    member_of_best[channel] = member if is_better else member_of_best[channel]
            for channel in range(width):
                sums[0, sample, channel] += total[channel]
                sums[1, sample, channel] += squares[channel]
                argmax[sample, group, channel] = member_of_best[channel]
                extreme[sample, group, channel] = values[sample, group, member_of_best[channel], channel]


@numba_kernel
def _spread_extremes(first, last, values, argmax, chosen, constant, slope, mean, result):  # type: ignore[no-untyped-def]
    num_groups, num_members, width = values.shape[1], values.shape[2], values.shape[3]
    for sample in range(first, last):
        for group in range(num_groups):
            for member in range(num_members):
                row = values[sample, group, member]
                target = result[sample, group, member]
                for channel in range(width):
                    target[channel] = -(constant[channel] + slope[channel] * (row[channel] - mean[channel]))
            for channel in range(width):
                result[sample, group, argmax[sample, group, channel], channel] += chosen[sample, group, channel]
