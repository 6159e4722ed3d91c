"""CPU kernels of fused vector attention, per edge and channel.

Point i has the neighbours `index` (P, K), of which the first `count` (P,) are valid. Edge (i, j) carries
near_j + own_i + C h_ij: `near` and `own` are (P, C), `code` (3, C) is the matrix, `place` (P, K, 3) is h. Weights
(P, K, G) are shared: channel c has weight c modulo G, and the C / G channels of a weight are G apart. All tensors are
float32 or all float64.

Rows of work are either points, or shares: the G channels from t G on. Every sum over edges is added by the one thread
that has the share, edge by edge: the bits do not depend on the number of threads.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.compute.numba_kernels import numba_kernel, run_parallel

_EDGES_OF_A_SUM = 64
"""Edges added in the input's dtype before the sum goes on in float64: exact enough for any number of edges."""


def edge_sums(
    near: Tensor, own: Tensor, code: Tensor, place: Tensor, index: Tensor, count: Tensor, *, num_shares: int
) -> tuple[Tensor, Tensor]:
    """Compute the sums of the values of valid edges, and of their squares: (C,) and (C,), float64."""
    sums = np.zeros((2, near.shape[1]))
    run_parallel(_add_up, num_shares, num_shares, *_arrays(near, own, code, place, index, count), sums)
    return torch.from_numpy(sums[0]), torch.from_numpy(sums[1])


def relu_edges(
    points: slice, near: Tensor, own: Tensor, code: Tensor, place: Tensor, index: Tensor, count: Tensor, *, out: Tensor
) -> None:
    """Write the ReLU of the edge values of some points into `out` (points, K, C); 0 in invalid slots."""
    inputs = (near, own[points], code, place[points], index[points], count[points])
    run_parallel(_rectify, len(inputs[1]), *_arrays(*inputs), out.numpy())


class EdgeGradients(NamedTuple):
    """Accumulated gradients of edges: of neighbours and points (P, C), and of the code (3, C).

    For the statistics, also the sums of edge values per neighbour and per point (P, C).
    """

    grad_neighbours: Tensor
    to_own: Tensor
    to_code: Tensor
    of_near: Tensor
    of_own: Tensor

    @classmethod
    def zeros(cls, near: Tensor, code: Tensor) -> EdgeGradients:
        """Allocate zero gradients for `near` (P, C) and `code` (3, C)."""
        return cls(*(torch.zeros_like(tensor) for tensor in (near, near, code, near, near)))


def rectified_gradients(
    points: slice,
    near: Tensor,
    own: Tensor,
    code: Tensor,
    place: Tensor,
    index: Tensor,
    count: Tensor,
    *,
    gradient: Tensor,
    rectified: Tensor,
    into: EdgeGradients,
    reading: Tensor,
    to_place: Tensor,
    num_shares: int,
) -> None:
    """Backward of `relu_edges` for some points: `gradient` (points, K, C) is replaced by that of the edge values.

    Also writes `rectified` again, adds to `into`, and adds `reading` (3, C) times the gradient to `to_place`.
    """
    inputs = _arrays(near, own[points], code, place[points], index[points], count[points])
    room = (gradient.numpy(), rectified.numpy())
    point_sums = (into.to_own[points].numpy(), into.of_own[points].numpy())
    neighbour_sums = (into.grad_neighbours.numpy(), into.of_near.numpy(), into.to_code.numpy())
    run_parallel(_rectify_back, num_shares, num_shares, *inputs, *room, *neighbour_sums, *point_sums)
    lanes = (-1, _lanes(near.shape[1]))
    read = _arrays(gradient.unflatten(-1, lanes), reading.unflatten(-1, lanes), count[points])
    run_parallel(_read_places, len(gradient), *read, to_place[points].numpy())


def rectified_places(relative: Tensor, matrix: Tensor, shift: Tensor, count: Tensor) -> Tensor:
    """Compute max(A d + b, 0) of the position d of every edge, (P, K, 3), with A (3, 3) and b (3,).

    0 for invalid edges.
    """
    result = torch.empty_like(relative)
    run_parallel(_rectify_places, len(relative), *_arrays(relative, matrix, shift, count), result.numpy())
    return result


class PositionMoments(NamedTuple):
    """Sums over edges: of positions h per neighbour and per point (P, 3), of h h^T (3, 3), and degree (P, 1)."""

    received: Tensor
    given: Tensor
    squares: Tensor
    degree: Tensor


def place_moments(place: Tensor, index: Tensor, count: Tensor) -> PositionMoments:
    """Compute the `PositionMoments` of positions (P, K, 3) with index (P, K) and count (P,)."""
    num_points = len(place)
    neighbour_sums, point_sums = place.new_zeros(num_points, 3), place.new_zeros(num_points, 3)
    squares, degree = np.zeros((3, 3)), place.new_zeros(num_points, 1)
    run_parallel(
        _gather_places,
        1,
        *_arrays(place, index, count),
        neighbour_sums.numpy(),
        point_sums.numpy(),
        squares,
        degree.numpy(),
    )
    return PositionMoments(neighbour_sums, point_sums, torch.from_numpy(squares).to(place.dtype), degree)


def norm_sums(
    near: Tensor, own: Tensor, gradients: EdgeGradients, moments: PositionMoments, *, num_shares: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over edges near + own times the gradient (C,) and times the position (C, 3), and the gradient (C,).

    near + own are the edge values without the code, (P, C) each.
    """
    sums = np.zeros((5, near.shape[1]))
    inputs = (near, own, gradients.grad_neighbours, gradients.to_own, moments.received, moments.given)
    run_parallel(_sum_over_points, num_shares, num_shares, *_arrays(*inputs), sums)
    totals = torch.from_numpy(sums).to(near.dtype)
    return totals[0], totals[2:].mT, totals[1]


def place_gradient_sums(
    to_place: Tensor,
    place: Tensor,
    relative: Tensor,
    index: Tensor,
    count: Tensor,
    *,
    of_near: Tensor,
    of_own: Tensor,
    of_place: Tensor,
) -> Tensor:
    """Sum over edges a gradient where the position is above zero: times the relative position, and times 1: (3, 4).

    The gradient of an edge is `to_place` (P, K, 3) less `of_near` (P, 3) of its neighbour, `of_own` (P, 3) of its point
    and `of_place` (3, 3) times its position.
    """
    sums = np.zeros((3, 4))
    inputs = (to_place, place, relative, index, count, of_near, of_own, of_place)
    run_parallel(_sum_place_gradients, 1, *_arrays(*inputs), sums)
    return torch.from_numpy(sums)


def weighted_messages(
    value: Tensor, code: Tensor, place: Tensor, weight: Tensor, index: Tensor, count: Tensor
) -> Tensor:
    """Compute the sum over the edges of a point of weight times (value_j + C h_ij): (P, C)."""
    result = torch.empty_like(value)
    shares = (-1, weight.shape[2])
    inputs = (value.unflatten(1, shares), code.unflatten(1, shares), place, weight, index, count)
    run_parallel(_weigh, len(value), *_arrays(*inputs), result.unflatten(1, shares).numpy())
    return result


def weighted_messages_backward(
    gradient: Tensor, value: Tensor, code: Tensor, place: Tensor, weight: Tensor, index: Tensor, count: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Backward of `weighted_messages`: gradients of values, code, positions and weights from `gradient` (P, C).

    0 for invalid slots.
    """
    to_value, to_code = torch.zeros_like(value), torch.zeros_like(code)
    to_weight, to_place = torch.empty_like(weight), torch.empty_like(place)
    shares = (-1, weight.shape[2])
    arrays = _arrays(*(tensor.unflatten(1, shares) for tensor in (gradient, value, code)), place, weight, index, count)
    run_parallel(_weigh_back, len(value), *arrays, to_weight.numpy(), to_place.numpy())
    incoming, spread = arrays[0], (tensor.unflatten(1, shares).numpy() for tensor in (to_value, to_code))
    run_parallel(_spread_values, incoming.shape[1], incoming, *arrays[3:], *spread)
    return to_value, to_code, to_place, to_weight


def _lanes(width: int) -> int:
    """Return the number of parallel sums over channels that vectorises: 32, or the largest of 16 and 8 that divides."""
    return math.gcd(width, 32)


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


# Loops run from 0 over rows cut out beforehand: numba would otherwise look for negative indices at every entry, and no
# vectors would be made.


@numba_kernel
def _carry(neighbour_row, point_row, code, position, carried):  # type: ignore[no-untyped-def]
    x, y, z = position[0], position[1], position[2]
    first, second, third = code[0], code[1], code[2]
    for channel in range(len(carried)):
        carried[channel] = (
            neighbour_row[channel]
            + point_row[channel]
            + (first[channel] * x + second[channel] * y + third[channel] * z)
        )


@numba_kernel
def _add_up(first, last, num_shares, neighbour_terms, point_terms, code, position, index, count, sums):  # type: ignore[no-untyped-def]
    num_points, width = index.shape[0], neighbour_terms.shape[1]
    low, high = first * width // num_shares, last * width // num_shares
    own_code = code[:, low:high].copy()
    carried = np.empty(high - low, neighbour_terms.dtype)
    total, squares = np.zeros(high - low, neighbour_terms.dtype), np.zeros(high - low, neighbour_terms.dtype)
    num_added = 0
    for point in range(num_points):
        own_row = point_terms[point][low:high]
        for slot in range(count[point]):
            _carry(neighbour_terms[index[point, slot]][low:high], own_row, own_code, position[point, slot], carried)
            for channel in range(len(carried)):
                total[channel] += carried[channel]
                squares[channel] += carried[channel] * carried[channel]
        num_added += count[point]
        if num_added >= _EDGES_OF_A_SUM or point == num_points - 1:
            for channel in range(len(carried)):
                sums[0, low + channel] += total[channel]
                sums[1, low + channel] += squares[channel]
                total[channel] = 0
                squares[channel] = 0
            num_added = 0


@numba_kernel
def _rectify(first, last, neighbour_terms, point_terms, code, position, index, count, result):  # type: ignore[no-untyped-def]
    zero = neighbour_terms.dtype.type(0)
    carried = np.empty(neighbour_terms.shape[1], neighbour_terms.dtype)
    for point in range(first, last):
        result[point, count[point] :] = 0
        for slot in range(count[point]):
            _carry(neighbour_terms[index[point, slot]], point_terms[point], code, position[point, slot], carried)
            row = result[point, slot]
            for channel in range(len(carried)):
                row[channel] = zero if carried[channel] < 0 else carried[channel]


@numba_kernel
def _rectify_back(  # type: ignore[no-untyped-def]
    first,
    last,
    num_shares,
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
    width = neighbour_terms.shape[1]
    low, high = first * width // num_shares, last * width // num_shares
    own_code, own_to_code = code[:, low:high].copy(), np.zeros((3, high - low), neighbour_terms.dtype)
    carried = np.empty(high - low, neighbour_terms.dtype)
    for point in range(len(index)):
        gradient[point, count[point] :, low:high] = 0
        rectified[point, count[point] :, low:high] = 0
        own_row, own_gradient, own_sum = point_terms[point][low:high], to_own[point][low:high], of_own[point][low:high]
        for slot in range(count[point]):
            neighbour = index[point, slot]
            _carry(neighbour_terms[neighbour][low:high], own_row, own_code, position[point, slot], carried)
            passed = gradient[point, slot][low:high]
            _add_to_both(carried, own_sum, of_near[neighbour][low:high])
            _pass_on(carried, passed, rectified[point, slot][low:high])
            _add_to_both(passed, own_gradient, to_near[neighbour][low:high])
            _add_places(passed, position[point, slot], own_to_code)
    _add_rows(own_to_code, to_code[:, low:high])


@numba_kernel
def _add_rows(rows, sums):  # type: ignore[no-untyped-def]
    for row in range(len(rows)):
        for channel in range(rows.shape[1]):
            sums[row, channel] += rows[row, channel]


@numba_kernel
def _pass_on(carried, passed, height):  # type: ignore[no-untyped-def]
    zero = carried.dtype.type(0)
    for channel in range(len(carried)):
        value, gradient = carried[channel], passed[channel]
        passed[channel] = gradient if value > 0 else zero
        height[channel] = value if value > 0 else zero


@numba_kernel
def _add_to_both(values, first, second):  # type: ignore[no-untyped-def]
    for channel in range(len(values)):
        first[channel] += values[channel]
        second[channel] += values[channel]


@numba_kernel
def _add_places(values, position, sums):  # type: ignore[no-untyped-def]
    x, y, z = position[0], position[1], position[2]
    first, second, third = sums[0], sums[1], sums[2]
    for channel in range(len(values)):
        first[channel] += values[channel] * x
        second[channel] += values[channel] * y
        third[channel] += values[channel] * z


@numba_kernel
def _read_places(first, last, gradient, reading, count, to_place):  # type: ignore[no-untyped-def]
    num_blocks, num_lanes = gradient.shape[2], gradient.shape[3]
    lanes = np.empty((3, num_lanes), gradient.dtype)
    for point in range(first, last):
        for slot in range(count[point]):
            lanes[:] = 0
            for block in range(num_blocks):
                values = gradient[point, slot, block]
                for axis in range(3):
                    for lane in range(num_lanes):
                        lanes[axis, lane] += values[lane] * reading[axis, block, lane]
            for axis in range(3):
                total = to_place[point, slot, axis]
                for lane in range(num_lanes):
                    total += lanes[axis, lane]
                to_place[point, slot, axis] = total


@numba_kernel
def _rectify_places(first, last, relative, matrix, shift, count, result):  # type: ignore[no-untyped-def]
    zero = relative.dtype.type(0)
    for point in range(first, last):
        result[point, count[point] :] = 0
        for slot in range(count[point]):
            x, y, z = relative[point, slot, 0], relative[point, slot, 1], relative[point, slot, 2]
            for axis in range(3):
                value = shift[axis] + (matrix[axis, 0] * x + matrix[axis, 1] * y + matrix[axis, 2] * z)
                result[point, slot, axis] = zero if value < 0 else value


@numba_kernel
def _gather_places(first, last, position, index, count, neighbour_sums, point_sums, squares, degree):  # type: ignore[no-untyped-def]
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
def _sum_place_gradients(  # type: ignore[no-untyped-def]
    first, last, to_place, position, relative, index, count, of_near, of_own, of_place, sums
):
    if first == last:
        return
    for point in range(len(position)):
        for slot in range(count[point]):
            height, neighbour_term, step = position[point, slot], of_near[index[point, slot]], relative[point, slot]
            for axis in range(3):
                if height[axis] > 0:
                    lowered = neighbour_term[axis] + of_own[point, axis]
                    for other in range(3):
                        lowered += of_place[axis, other] * height[other]
                    reached = to_place[point, slot, axis] - lowered
                    sums[axis, 3] += reached
                    for other in range(3):
                        sums[axis, other] += reached * step[other]


@numba_kernel
def _weigh(first, last, value, code, position, weight, index, count, result):  # type: ignore[no-untyped-def]
    num_shares, num_weights = value.shape[1], value.shape[2]
    position_sums = np.empty((3, num_weights), value.dtype)
    for point in range(first, last):
        total = result[point]
        total[:] = 0
        position_sums[:] = 0
        for slot in range(count[point]):
            other, weights = value[index[point, slot]], weight[point, slot]
            for axis in range(3):
                moved = position[point, slot, axis]
                for index_in_share in range(num_weights):
                    position_sums[axis, index_in_share] += moved * weights[index_in_share]
            for share in range(num_shares):
                for index_in_share in range(num_weights):
                    total[share, index_in_share] += other[share, index_in_share] * weights[index_in_share]
        for axis in range(3):
            for share in range(num_shares):
                for index_in_share in range(num_weights):
                    total[share, index_in_share] += (
                        code[axis, share, index_in_share] * position_sums[axis, index_in_share]
                    )


@numba_kernel
def _weigh_back(  # type: ignore[no-untyped-def]
    first, last, gradient, value, code, position, weight, index, count, to_weight, to_place
):
    num_shares, num_weights = value.shape[1], value.shape[2]
    coded = np.empty((3, num_weights), value.dtype)
    for point in range(first, last):
        incoming = gradient[point]
        to_weight[point, count[point] :] = 0
        to_place[point, count[point] :] = 0
        coded[:] = 0
        for axis in range(3):
            for share in range(num_shares):
                for index_in_share in range(num_weights):
                    coded[axis, index_in_share] += code[axis, share, index_in_share] * incoming[share, index_in_share]
        for slot in range(count[point]):
            other, weights, reached = value[index[point, slot]], weight[point, slot], to_weight[point, slot]
            x, y, z = position[point, slot, 0], position[point, slot, 1], position[point, slot, 2]
            for index_in_share in range(num_weights):
                reached[index_in_share] = (
                    coded[0, index_in_share] * x + coded[1, index_in_share] * y + coded[2, index_in_share] * z
                )
            for share in range(num_shares):
                for index_in_share in range(num_weights):
                    reached[index_in_share] += other[share, index_in_share] * incoming[share, index_in_share]
            for axis in range(3):
                total = value.dtype.type(0)
                for index_in_share in range(num_weights):
                    total += coded[axis, index_in_share] * weights[index_in_share]
                to_place[point, slot, axis] = total


@numba_kernel
def _spread_values(  # type: ignore[no-untyped-def]
    first, last, gradient, position, weight, index, count, to_value, to_code
):
    num_shares, num_weights = last - first, weight.shape[2]
    position_sums = np.empty((3, num_weights), gradient.dtype)
    of_code = np.zeros((3, num_shares, num_weights))  # in float64: the sums of all points
    for point in range(len(index)):
        incoming = gradient[point][first:last]
        position_sums[:] = 0
        for slot in range(count[point]):
            target, weights = to_value[index[point, slot]][first:last], weight[point, slot]
            for axis in range(3):
                moved = position[point, slot, axis]
                for index_in_share in range(num_weights):
                    position_sums[axis, index_in_share] += moved * weights[index_in_share]
            for share in range(num_shares):
                for index_in_share in range(num_weights):
                    target[share, index_in_share] += incoming[share, index_in_share] * weights[index_in_share]
        for axis in range(3):
            for share in range(num_shares):
                for index_in_share in range(num_weights):
                    of_code[axis, share, index_in_share] += (
                        incoming[share, index_in_share] * position_sums[axis, index_in_share]
                    )
    for axis in range(3):
        _add_rows(of_code[axis], to_code[axis][first:last])
