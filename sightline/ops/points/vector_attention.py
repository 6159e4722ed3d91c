"""CPU kernels of fused vector attention, per edge and channel; all tensors are float32 or all float64.

Point i has the neighbours `index` (P, K), of which the first `count` (P,) are valid. Edge (i, j) carries
neighbour_terms_j + point_terms_i + C h_ij: both terms are (P, C), `code` (3, C) is the matrix, `position` (P, K, 3) is
h. Weights (P, K, G) are shared: channel c has weight c modulo G, and the C / G channels of a weight are G apart. Rows
of work are either points, or shares: the G channels from t G on. Every sum over edges is added by the one thread that
has the share, edge by edge: the bits do not depend on the number of threads.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.ops.lanes import add_lanes, load, rectify, store, where_positive, widen, zeros_like
from sightline.ops.numba_kernels import LANES, numba_kernel, run_parallel

_EDGES_OF_A_SUM = 64
"""Edges added in the input's dtype before the sum goes on in float64: exact enough for any number of edges."""

_SUMS_OF_CHANNELS = 32
"""Sums of a row that are added up side by side, where they divide its channels, and one after the other at the end."""

SHARE_PLANES = LANES
"""Channels that share a weight: channel c has the weight c modulo the number of weights."""


def edge_sums(
    neighbour_terms: Tensor, point_terms: Tensor, code: Tensor, position: Tensor, index: Tensor, count: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the sums of the values of valid edges, and of their squares: (C,) and (C,), float64."""
    sums = np.zeros((2, neighbour_terms.shape[1]))
    inputs = (neighbour_terms, point_terms, code, position, index, count)
    run_parallel(_add_up, neighbour_terms.shape[1] // LANES, *_arrays(*inputs), sums)
    return torch.from_numpy(sums[0]), torch.from_numpy(sums[1])


def relu_edges(
    points: slice,
    neighbour_terms: Tensor,
    point_terms: Tensor,
    code: Tensor,
    position: Tensor,
    index: Tensor,
    count: Tensor,
    *,
    out: Tensor,
) -> None:
    """Write the ReLU of the edge values of some points into `out` (points, K, C); 0 in invalid slots."""
    inputs = (neighbour_terms, point_terms[points], code, position[points], index[points], count[points])
    run_parallel(_rectify, len(inputs[1]), *_arrays(*inputs), out.numpy())


class EdgeGradients(NamedTuple):
    """Accumulated gradients of edges: of neighbours and points (P, C), and of the code (3, C).

    For the statistics, also the sums of edge values per neighbour and per point (P, C).
    """

    grad_neighbours: Tensor
    grad_points: Tensor
    grad_code: Tensor
    neighbour_sums: Tensor
    point_sums: Tensor

    @classmethod
    def zeros(cls, neighbour_terms: Tensor, code: Tensor) -> EdgeGradients:
        """Allocate zeros for `neighbour_terms` (P, C) and `code` (3, C)."""
        return cls(
            grad_neighbours=torch.zeros_like(neighbour_terms),
            grad_points=torch.zeros_like(neighbour_terms),
            grad_code=torch.zeros_like(code),
            neighbour_sums=torch.zeros_like(neighbour_terms),
            point_sums=torch.zeros_like(neighbour_terms),
        )


def rectified_gradients(
    points: slice,
    neighbour_terms: Tensor,
    point_terms: Tensor,
    code: Tensor,
    position: Tensor,
    index: Tensor,
    count: Tensor,
    *,
    gradient: Tensor,
    rectified: Tensor,
    into: EdgeGradients,
    reading: Tensor,
    to_position: Tensor,
) -> None:
    """Backward of `relu_edges` for some points: `gradient` (points, K, C) is replaced by that of the edge values.

    Also writes `rectified` again, adds to `into`, and adds `reading` (3, C) times the gradient to `to_position`.
    """
    inputs = _arrays(neighbour_terms, point_terms[points], code, position[points], index[points], count[points])
    room = (gradient.numpy(), rectified.numpy())
    of_points = (into.grad_points[points].numpy(), into.point_sums[points].numpy())
    of_neighbours = (into.grad_neighbours.numpy(), into.neighbour_sums.numpy(), into.grad_code.numpy())
    run_parallel(_rectify_back, neighbour_terms.shape[1] // LANES, *inputs, *room, *of_neighbours, *of_points)
    read = _arrays(gradient, reading, count[points])
    run_parallel(
        _read_positions,
        len(gradient),
        math.gcd(neighbour_terms.shape[1], _SUMS_OF_CHANNELS),
        *read,
        to_position[points].numpy(),
    )


def rectified_positions(relative: Tensor, matrix: Tensor, shift: Tensor, count: Tensor) -> Tensor:
    """Compute max(A d + b, 0) of the position d of every edge, (P, K, 3), with A (3, 3) and b (3,).

    0 for invalid edges.
    """
    result = torch.empty_like(relative)
    run_parallel(_rectify_positions, len(relative), *_arrays(relative, matrix, shift, count), result.numpy())
    return result


class PositionMoments(NamedTuple):
    """Sums over edges: of positions h per neighbour and per point (P, 3), of h h^T (3, 3), and degree (P, 1)."""

    neighbour_sums: Tensor
    point_sums: Tensor
    squares: Tensor
    degree: Tensor


def position_moments(position: Tensor, index: Tensor, count: Tensor) -> PositionMoments:
    """Compute the `PositionMoments` of positions (P, K, 3) with index (P, K) and count (P,)."""
    num_points = len(position)
    neighbour_sums, point_sums = position.new_zeros(num_points, 3), position.new_zeros(num_points, 3)
    squares, degree = np.zeros((3, 3)), position.new_zeros(num_points, 1)
    run_parallel(
        _gather_positions,
        1,
        *_arrays(position, index, count),
        neighbour_sums.numpy(),
        point_sums.numpy(),
        squares,
        degree.numpy(),
    )
    return PositionMoments(neighbour_sums, point_sums, torch.from_numpy(squares).to(position.dtype), degree)


def norm_sums(
    neighbour_terms: Tensor, point_terms: Tensor, gradients: EdgeGradients, moments: PositionMoments, *, num_shares: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over edges both terms times the gradient (C,) and times the position (C, 3), and the gradient alone (C,).

    `neighbour_terms` and `point_terms` (P, C) add up to the edge values without the code.
    """
    sums = np.zeros((5, neighbour_terms.shape[1]))
    terms = (neighbour_terms, point_terms, gradients.grad_neighbours, gradients.grad_points)
    inputs = _arrays(*terms, moments.neighbour_sums, moments.point_sums)
    run_parallel(_sum_over_points, num_shares, num_shares, *inputs, sums)
    totals = torch.from_numpy(sums).to(neighbour_terms.dtype)
    return totals[0], totals[2:].mT, totals[1]


def position_gradient_sums(
    to_position: Tensor,
    position: Tensor,
    relative: Tensor,
    index: Tensor,
    count: Tensor,
    *,
    of_neighbour: Tensor,
    of_point: Tensor,
    of_position: Tensor,
) -> Tensor:
    """Sum over edges a gradient where the position is above zero: times the relative position, and times 1: (3, 4).

    The gradient of an edge is `to_position` (P, K, 3) less `of_neighbour` (P, 3) of its neighbour, `of_point` (P, 3)
    of its point and `of_position` (3, 3) times its position.
    """
    sums = np.zeros((3, 4))
    inputs = (to_position, position, relative, index, count, of_neighbour, of_point, of_position)
    run_parallel(_sum_position_gradients, 3, *_arrays(*inputs), sums)
    return torch.from_numpy(sums)


def weighted_messages(
    value: Tensor, code: Tensor, position: Tensor, weight: Tensor, index: Tensor, count: Tensor
) -> Tensor:
    """Compute the sum over the edges of a point of weight times (value_j + C h_ij): (P, C)."""
    result = value.new_empty((len(value), weight.shape[2], LANES))
    inputs = (_by_weight(value), _by_weight(code), position, weight, index, count)
    run_parallel(_weigh, len(value), *_arrays(*inputs), result.numpy())
    return _by_channel(result)


def weighted_messages_backward(
    gradient: Tensor, value: Tensor, code: Tensor, position: Tensor, weight: Tensor, index: Tensor, count: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Backward of `weighted_messages`: gradients of values, code, positions and weights from `gradient` (P, C).

    0 for invalid slots.
    """
    to_weight, to_position = torch.empty_like(weight), torch.empty_like(position)
    incoming, *inputs = _arrays(*map(_by_weight, (gradient, value, code)), position, weight, index, count)
    run_parallel(_weigh_back, len(value), incoming, *inputs, to_weight.numpy(), to_position.numpy())
    to_value, to_code = (value.new_zeros(array.shape) for array in inputs[:2])
    run_parallel(_spread_values, weight.shape[2], incoming, *inputs[2:], to_value.numpy(), to_code.numpy())
    return _by_channel(to_value), _by_channel(to_code), to_position, to_weight


def _by_weight(rows: Tensor) -> Tensor:
    """Put the channels of a weight side by side: (M, C) -> (M, G, 8)."""
    result = rows.new_empty((len(rows), rows.shape[1] // LANES, LANES))
    run_parallel(_swap, len(rows), *_arrays(rows.unflatten(1, (LANES, -1))), result.numpy())
    return result


def _by_channel(rows: Tensor) -> Tensor:
    """Undo `_by_weight`: (M, G, 8) -> (M, C)."""
    result = rows.new_empty((len(rows), LANES, rows.shape[1]))
    run_parallel(_swap_back, len(rows), *_arrays(rows), result.numpy())
    return result.flatten(1)


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


# Points, then blocks of eight channels, then neighbours: what belongs to the point stays in registers.


@numba_kernel
def _carry(neighbour_terms, point_terms, x_code, y_code, z_code, x, y, z):  # type: ignore[no-untyped-def]
    return neighbour_terms + point_terms + (x_code * x + y_code * y + z_code * z)


@numba_kernel
def _add_up(first, last, neighbour_terms, point_terms, code, position, index, count, sums):  # type: ignore[no-untyped-def]
    num_points, width = index.shape[0], neighbour_terms.shape[1]
    rows = np.zeros((2, width), neighbour_terms.dtype)
    num_added = 0
    for point in range(num_points):
        for block in range(first, last):
            channel = block * LANES
            point_term = load(point_terms, (point, channel))
            x_code, y_code, z_code = load(code, (0, channel)), load(code, (1, channel)), load(code, (2, channel))
            total, squares = load(rows, (0, channel)), load(rows, (1, channel))
            for slot in range(count[point]):
                x, y, z = position[point, slot, 0], position[point, slot, 1], position[point, slot, 2]
                near = load(neighbour_terms, (index[point, slot], channel))
                carried = _carry(near, point_term, x_code, y_code, z_code, x, y, z)
                total = total + carried
                squares = squares + carried * carried
            store(total, rows, (0, channel))
            store(squares, rows, (1, channel))
        num_added += count[point]
        if num_added >= _EDGES_OF_A_SUM or point == num_points - 1:
            for row in range(2):
                for block in range(first, last):
                    channel = block * LANES
                    store(load(sums, (row, channel)) + widen(load(rows, (row, channel))), sums, (row, channel))
                    store(zeros_like(rows), rows, (row, channel))
            num_added = 0


@numba_kernel
def _rectify(first, last, neighbour_terms, point_terms, code, position, index, count, result):  # type: ignore[no-untyped-def]
    for point in range(first, last):
        for channel in range(0, neighbour_terms.shape[1], LANES):
            point_term = load(point_terms, (point, channel))
            x_code, y_code, z_code = load(code, (0, channel)), load(code, (1, channel)), load(code, (2, channel))
            for slot in range(count[point]):
                x, y, z = position[point, slot, 0], position[point, slot, 1], position[point, slot, 2]
                near = load(neighbour_terms, (index[point, slot], channel))
                carried = _carry(near, point_term, x_code, y_code, z_code, x, y, z)
                store(rectify(carried), result, (point, slot, channel))
            for slot in range(count[point], index.shape[1]):
                store(zeros_like(result), result, (point, slot, channel))


@numba_kernel
def _rectify_back(  # type: ignore[no-untyped-def]
    first,
    last,
    neighbour_terms,
    point_terms,
    code,
    position,
    index,
    count,
    gradient,
    rectified,
    to_near,
    of_near,
    to_code,
    to_own,
    of_own,
):
    own_to_code = np.zeros(code.shape, code.dtype)
    for point in range(len(index)):
        for block in range(first, last):
            channel = block * LANES
            point_term = load(point_terms, (point, channel))
            x_code, y_code, z_code = load(code, (0, channel)), load(code, (1, channel)), load(code, (2, channel))
            own_gradient, own_sum = load(to_own, (point, channel)), load(of_own, (point, channel))
            to_x, to_y = load(own_to_code, (0, channel)), load(own_to_code, (1, channel))
            to_z = load(own_to_code, (2, channel))
            for slot in range(count[point]):
                x, y, z = position[point, slot, 0], position[point, slot, 1], position[point, slot, 2]
                entry, edge = (index[point, slot], channel), (point, slot, channel)
                carried = _carry(load(neighbour_terms, entry), point_term, x_code, y_code, z_code, x, y, z)
                passed = where_positive(load(gradient, edge), carried)
                store(where_positive(carried, carried), rectified, edge)
                own_gradient, own_sum = own_gradient + passed, own_sum + carried
                store(load(to_near, entry) + passed, to_near, entry)
                store(load(of_near, entry) + carried, of_near, entry)
                store(passed, gradient, edge)
                to_x, to_y, to_z = to_x + passed * x, to_y + passed * y, to_z + passed * z
            for slot in range(count[point], index.shape[1]):
                store(zeros_like(gradient), gradient, (point, slot, channel))
                store(zeros_like(gradient), rectified, (point, slot, channel))
            store(own_gradient, to_own, (point, channel))
            store(own_sum, of_own, (point, channel))
            store(to_x, own_to_code, (0, channel))
            store(to_y, own_to_code, (1, channel))
            store(to_z, own_to_code, (2, channel))
    _add_rows(own_to_code[:, first * LANES : last * LANES], to_code[:, first * LANES : last * LANES])


@numba_kernel
def _add_rows(rows, sums):  # type: ignore[no-untyped-def]
    for row in range(len(rows)):
        for channel in range(rows.shape[1]):
            sums[row, channel] += rows[row, channel]


@numba_kernel
def _read_positions(first, last, num_sums, gradient, reading, count, to_position):  # type: ignore[no-untyped-def]
    for point in range(first, last):
        for slot in range(count[point]):
            x, y, z = to_position[point, slot, 0], to_position[point, slot, 1], to_position[point, slot, 2]
            for start in range(0, num_sums, LANES):
                x_sums, y_sums, z_sums = zeros_like(gradient), zeros_like(gradient), zeros_like(gradient)
                for channel in range(start, gradient.shape[2], num_sums):
                    values = load(gradient, (point, slot, channel))
                    x_sums = x_sums + values * load(reading, (0, channel))
                    y_sums = y_sums + values * load(reading, (1, channel))
                    z_sums = z_sums + values * load(reading, (2, channel))
                x, y, z = add_lanes(x, x_sums), add_lanes(y, y_sums), add_lanes(z, z_sums)
            to_position[point, slot, 0], to_position[point, slot, 1], to_position[point, slot, 2] = x, y, z


@numba_kernel
def _rectify_positions(first, last, relative, matrix, shift, count, result):  # type: ignore[no-untyped-def]
    zero = relative.dtype.type(0)
    for point in range(first, last):
        result[point, count[point] :] = 0
        for slot in range(count[point]):
            x, y, z = relative[point, slot, 0], relative[point, slot, 1], relative[point, slot, 2]
            for axis in range(3):
                value = shift[axis] + (matrix[axis, 0] * x + matrix[axis, 1] * y + matrix[axis, 2] * z)
                result[point, slot, axis] = zero if value < 0 else value


@numba_kernel
def _gather_positions(first, last, position, index, count, neighbour_sums, point_sums, squares, degree):  # type: ignore[no-untyped-def]
    if first == last:
        return
    for point in range(len(position)):
        for slot in range(count[point]):
            row, neighbour = position[point, slot], index[point, slot]
            degree[neighbour, 0] += 1
            for axis in range(3):
                neighbour_sums[neighbour, axis] += row[axis]
                point_sums[point, axis] += row[axis]
                for other in range(3):
                    squares[axis, other] += row[axis] * row[other]


@numba_kernel
def _sum_over_points(  # type: ignore[no-untyped-def]
    first, last, num_shares, neighbour_terms, point_terms, to_near, to_own, neighbour_sums, point_sums, sums
):
    width = neighbour_terms.shape[1]
    low, high = first * width // num_shares, last * width // num_shares
    total = np.zeros((5, high - low))
    for point in range(len(neighbour_terms)):
        near_row, own_row = neighbour_terms[point][low:high], point_terms[point][low:high]
        to_near_row, to_own_row = to_near[point][low:high], to_own[point][low:high]
        for channel in range(len(near_row)):
            total[0, channel] += near_row[channel] * to_near_row[channel] + own_row[channel] * to_own_row[channel]
            total[1, channel] += to_own_row[channel]
        for axis in range(3):
            of_near, of_own, row = neighbour_sums[point, axis], point_sums[point, axis], total[2 + axis]
            for channel in range(len(near_row)):
                row[channel] += near_row[channel] * of_near + own_row[channel] * of_own
    _add_rows(total, sums[:, low:high])


@numba_kernel
def _sum_position_gradients(  # type: ignore[no-untyped-def]
    first, last, to_position, position, relative, index, count, of_near, of_own, of_position, sums
):
    zero = to_position.dtype.type(0)
    for axis in range(first, last):
        x_factor, y_factor, z_factor = of_position[axis, 0], of_position[axis, 1], of_position[axis, 2]
        to_x, to_y, to_z, total = 0.0, 0.0, 0.0, 0.0  # float64: the sums of all edges
        for point in range(len(position)):
            point_part, heights, steps, gradients = (
                of_own[point, axis],
                position[point],
                relative[point],
                to_position[point],
            )
            for slot in range(count[point]):
                height, step = heights[slot], steps[slot]
                lowered = of_near[index[point, slot], axis] + point_part
                lowered = lowered + x_factor * height[0] + y_factor * height[1] + z_factor * height[2]
                # A choice, not a branch: which heights are above zero cannot be predicted.
                reached = gradients[slot, axis] - lowered
                reached = reached if height[axis] > 0 else zero
                total += reached
                to_x += reached * step[0]
                to_y += reached * step[1]
                to_z += reached * step[2]
        sums[axis, 0], sums[axis, 1], sums[axis, 2], sums[axis, 3] = to_x, to_y, to_z, total


# The channels of a weight side by side: (P, G, 8).


@numba_kernel
def _swap(first, last, rows, result):  # type: ignore[no-untyped-def]
    for row in range(first, last):
        for group in range(rows.shape[2]):
            for share in range(LANES):
                result[row, group, share] = rows[row, share, group]


@numba_kernel
def _swap_back(first, last, rows, result):  # type: ignore[no-untyped-def]
    for row in range(first, last):
        for group in range(rows.shape[1]):
            for share in range(LANES):
                result[row, share, group] = rows[row, group, share]


@numba_kernel
def _weigh(first, last, value, code, position, weight, index, count, result):  # type: ignore[no-untyped-def]
    for point in range(first, last):
        for group in range(weight.shape[2]):
            total, x, y, z = zeros_like(value), value.dtype.type(0), value.dtype.type(0), value.dtype.type(0)
            for slot in range(count[point]):
                share = weight[point, slot, group]
                total = total + load(value, (index[point, slot], group, 0)) * share
                x += position[point, slot, 0] * share
                y += position[point, slot, 1] * share
                z += position[point, slot, 2] * share
            total = total + load(code, (0, group, 0)) * x
            total = total + load(code, (1, group, 0)) * y
            store(total + load(code, (2, group, 0)) * z, result, (point, group, 0))


@numba_kernel
def _weigh_back(  # type: ignore[no-untyped-def]
    first, last, gradient, value, code, position, weight, index, count, to_weight, to_position
):
    zero = value.dtype.type(0)
    for point in range(first, last):
        to_weight[point, count[point] :] = 0
        to_position[point] = 0
        for group in range(weight.shape[2]):
            incoming = load(gradient, (point, group, 0))
            x_code = add_lanes(zero, load(code, (0, group, 0)) * incoming)
            y_code = add_lanes(zero, load(code, (1, group, 0)) * incoming)
            z_code = add_lanes(zero, load(code, (2, group, 0)) * incoming)
            for slot in range(count[point]):
                share, gradients = weight[point, slot, group], to_position[point, slot]
                x, y, z = position[point, slot, 0], position[point, slot, 1], position[point, slot, 2]
                coded = x_code * x + y_code * y + z_code * z
                products = load(value, (index[point, slot], group, 0)) * incoming
                to_weight[point, slot, group] = add_lanes(coded, products)
                gradients[0] += x_code * share
                gradients[1] += y_code * share
                gradients[2] += z_code * share


@numba_kernel
def _spread_values(  # type: ignore[no-untyped-def]
    first, last, gradient, position, weight, index, count, to_value, to_code
):
    zero = gradient.dtype.type(0)
    of_code = np.zeros(to_code.shape)  # in float64: the sums of all points
    for point in range(len(index)):
        for group in range(first, last):
            incoming, x, y, z = load(gradient, (point, group, 0)), zero, zero, zero
            for slot in range(count[point]):
                share, entry = weight[point, slot, group], (index[point, slot], group, 0)
                store(load(to_value, entry) + incoming * share, to_value, entry)
                x += position[point, slot, 0] * share
                y += position[point, slot, 1] * share
                z += position[point, slot, 2] * share
            store(load(of_code, (0, group, 0)) + widen(incoming * x), of_code, (0, group, 0))
            store(load(of_code, (1, group, 0)) + widen(incoming * y), of_code, (1, group, 0))
            store(load(of_code, (2, group, 0)) + widen(incoming * z), of_code, (2, group, 0))
    for axis in range(3):
        _add_rows(of_code[axis, first:last], to_code[axis, first:last])
