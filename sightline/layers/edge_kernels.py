"""Kernels of fused edge convolution: sums, extremes and their gradients per edge, in numba and in torch.

Every edge i -> j of a cloud carries u_j + v_i. `pairs` (B, N, 2C) contains u and v, `index` (B, N, K) the neighbours j
of each i. Nothing of size (B, N, K, C) is allocated: the kernels process the edges point by point, the torch forms
neighbour by neighbour.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.ops.grouping import assert_rows
from sightline.ops.lanes import LANES, load, store, store_whole, where_better, widen, zeros_like
from sightline.ops.numba_kernels import can_use_numba, numba_kernel, run_parallel, widen_in_parts

_POINTS_AT_ONCE = 1024
"""Points of one block of partial sums: fixed, so that the order of adding does not depend on the threads."""


class EdgeSums(NamedTuple):
    """Extremes of the edges per point, and sums over all edges per channel.

    `extreme` u_j (B, N, C), `position` (B, N, C) uint8 or int32, the neighbour's slot; the sum and the sum of squares
    of u_j + v_i - shift over all edges (C,) float64.
    """

    extreme: Tensor
    position: Tensor
    total: Tensor
    total_of_squares: Tensor


def edge_extremes_and_sums(
    pairs: Tensor, index: Tensor, *, sign: Tensor, shift: Tensor, offset: Tensor | None = None
) -> EdgeSums:
    """Find the largest u_j (B, N, C) of each point where `sign` is 1, the smallest where -1, the first where 0.

    `pairs` (B, N, 2C), `index` (B, N, K). NaN wins. `sign` and `shift` are (C,) in the dtype of the computation, that
    of `pairs` or float32 for bfloat16. An `offset` (B, 1, 2C) is added to the pairs in that dtype. Of equal values, the
    neighbour that comes first in `index`.
    """
    if can_use_numba(pairs, shift, extra_dtype=torch.bfloat16):
        return _compiled_extremes_and_sums(pairs, index, sign, shift, offset)
    return _plain_extremes_and_sums(_move(pairs, shift.dtype, offset), index, sign, shift)


def edge_gradients(
    pairs: Tensor,
    index: Tensor,
    position: Tensor,
    *,
    chosen: Tensor,
    constant: Tensor,
    slope: Tensor,
    shift: Tensor,
    offset: Tensor | None = None,
) -> Tensor:
    """Compute the gradients of u and v, (B, N, 2C), from that of edge values y = u_j + v_i through a batch norm.

    The gradient of edge (i, j) is `chosen` (B, N, C) at the slot `position`, and at every edge
    - `constant` - `slope` * (y - `shift`), all (C,): the terms of the batch's mean and variance. The result has the
    dtype of `pairs`; `offset` as above.
    """
    if can_use_numba(pairs, shift, extra_dtype=torch.bfloat16):
        return _compiled_gradients(pairs, index, position, chosen, constant, slope, shift, offset)
    moved = _move(pairs, shift.dtype, offset)
    return _plain_gradients(moved, index, position, chosen, constant, slope, shift).to(pairs.dtype)


def _move(pairs: Tensor, dtype: torch.dtype, offset: Tensor | None) -> Tensor:
    return pairs.to(dtype) if offset is None else pairs.to(dtype) + offset


def _position_dtype(num_neighbours: int) -> torch.dtype:
    return torch.uint8 if num_neighbours <= 256 else torch.int32


# --- torch: the fallback of a GPU, of half precision, and of a machine without numba -----------------------------


def _plain_extremes_and_sums(pairs: Tensor, index: Tensor, sign: Tensor, shift: Tensor) -> EdgeSums:
    ahead, behind = pairs.chunk(2, dim=-1)
    moved = behind - shift
    extreme = _rows(ahead, index[..., 0])
    position = torch.zeros(extreme.shape, dtype=_position_dtype(index.shape[-1]), device=pairs.device)
    sums = [extreme.new_zeros(len(shift), dtype=torch.float64) for _ in range(2)]
    for slot in range(index.shape[-1]):
        values = _rows(ahead, index[..., slot])
        is_better = (sign * values > sign * extreme) | values.isnan()  # as torch's maximum: NaN wins
        extreme = torch.where(is_better, values, extreme)
        position.masked_fill_(is_better, slot)
        edges = values + moved
        sums[0] += edges.sum((0, 1), dtype=torch.float64)
        sums[1] += edges.square().sum((0, 1), dtype=torch.float64)
    return EdgeSums(extreme, position, *sums)


def _plain_gradients(
    pairs: Tensor, index: Tensor, position: Tensor, chosen: Tensor, constant: Tensor, slope: Tensor, shift: Tensor
) -> Tensor:
    ahead, behind = pairs.chunk(2, dim=-1)
    num_neighbours = index.shape[-1]
    moved = behind - shift
    to_ahead, received = torch.zeros_like(ahead), torch.zeros_like(ahead)
    neighbour_sums = torch.zeros_like(behind)
    degree = ahead.new_zeros(ahead.shape[:2])
    for slot in range(num_neighbours):
        neighbour = index[..., slot]
        rows = neighbour[..., None].expand_as(behind)
        received.scatter_add_(1, rows, moved)
        to_ahead.scatter_add_(1, rows, torch.where(position == slot, chosen, 0))
        degree.scatter_add_(1, neighbour, torch.ones_like(degree))
        neighbour_sums += _rows(ahead, neighbour)
    to_ahead -= degree[..., None] * constant + slope * (degree[..., None] * ahead + received)
    to_behind = chosen - num_neighbours * constant - slope * (neighbour_sums + num_neighbours * moved)
    return torch.cat([to_ahead, to_behind], dim=-1)


def _rows(values: Tensor, index_BN: Tensor) -> Tensor:
    return values.gather(1, index_BN[..., None].expand(-1, -1, values.shape[-1]))


# --- numba ------------------------------------------------------------------------------------------------------


def _compiled_extremes_and_sums(
    pairs: Tensor, index: Tensor, sign: Tensor, shift: Tensor, offset: Tensor | None
) -> EdgeSums:
    assert_rows(index, pairs, num_queries=pairs.shape[1])
    num_samples, num_points, width = pairs.shape
    missing = -(width // 2) % LANES
    if missing:
        wider, moved = _pad_halves(pairs, missing), None if offset is None else _pad_halves(offset, missing)
        signs, shifts = F.pad(sign, (0, missing)), F.pad(shift, (0, missing))
        found = _compiled_extremes_and_sums(wider, index, signs, shifts, moved)
        return EdgeSums(*(each[..., : width // 2].contiguous() for each in found))
    blocks_of_a_cloud = -(-num_points // _POINTS_AT_ONCE)
    extreme = shift.new_empty((num_samples, num_points, width // 2))
    position = torch.empty(extreme.shape, dtype=_position_dtype(index.shape[-1]))
    sums = []
    for part, wide in widen_in_parts(pairs.contiguous(), shift.dtype, offset):
        sums.append(np.zeros((2, len(wide) * blocks_of_a_cloud, width // 2)))
        arrays = [tensor.contiguous().numpy() for tensor in (wide, index[part], sign, shift)]
        run_parallel(_reduce_edges, sums[-1].shape[1], *arrays, extreme[part].numpy(), position[part].numpy(), sums[-1])
    return EdgeSums(extreme, position, *torch.from_numpy(np.concatenate(sums, axis=1).sum(axis=1)))


def _pad_halves(pairs: Tensor, missing: int) -> Tensor:
    """Add channels of zeros to both halves of (B, N, 2C)."""
    return F.pad(pairs.unflatten(2, (2, -1)), (0, missing)).flatten(2)


def _compiled_gradients(
    pairs: Tensor,
    index: Tensor,
    position: Tensor,
    chosen: Tensor,
    constant: Tensor,
    slope: Tensor,
    shift: Tensor,
    offset: Tensor | None,
) -> Tensor:
    pairs = pairs.contiguous()
    result, scratch = torch.empty_like(pairs), None
    for part, wide in widen_in_parts(pairs, shift.dtype, offset):
        if scratch is None:
            scratch = result if wide is pairs else torch.empty_like(wide)
        target = scratch[: len(wide)]
        inputs = (wide, index[part], position[part], chosen[part], constant, slope, shift)
        run_parallel(_spread_gradients, len(wide), *(tensor.contiguous().numpy() for tensor in inputs), target.numpy())
        if wide is not pairs:
            result[part] = target
    return result


@numba_kernel
def _reduce_edges(first, last, pairs, index, sign, shift, extreme, position, sums):  # type: ignore[no-untyped-def]
    num_points, width = index.shape[1], extreme.shape[2]
    blocks_of_a_cloud = -(-num_points // _POINTS_AT_ONCE)
    for block in range(first, last):
        sample = block // blocks_of_a_cloud
        start = (block % blocks_of_a_cloud) * _POINTS_AT_ONCE
        for point in range(start, min(start + _POINTS_AT_ONCE, num_points)):
            for channel in range(0, width, LANES):
                _reduce_point(sample, point, channel, block, pairs, index, sign, shift, extreme, position, sums)


@numba_kernel
def _reduce_point(  # type: ignore[no-untyped-def]
    sample, point, channel, block, pairs, index, sign, shift, extreme, position, sums
):
    signs, neighbours, kind = load(sign, (channel,)), index[sample, point], pairs.dtype.type
    moved = load(pairs, (sample, point, extreme.shape[2] + channel)) - load(shift, (channel,))
    chosen = load(pairs, (sample, neighbours[0], channel))
    total = chosen + moved
    squares, best, slot_of_best = total * total, chosen * signs, zeros_like(pairs)
    for slot in range(1, len(neighbours)):
        other = load(pairs, (sample, neighbours[slot], channel))
        edge, signed = other + moved, other * signs
        total, squares = total + edge, squares + edge * edge
        # As torch's maximum: NaN wins.
        slot_of_best = where_better(signed, best, zeros_like(pairs) + kind(slot), slot_of_best)
        chosen = where_better(signed, best, other, chosen)
        best = where_better(signed, best, signed, best)
    store(load(sums, (0, block, channel)) + widen(total), sums, (0, block, channel))
    store(load(sums, (1, block, channel)) + widen(squares), sums, (1, block, channel))
    store_whole(slot_of_best, position, (sample, point, channel))
    store(chosen, extreme, (sample, point, channel))


@numba_kernel
def _spread_gradients(  # type: ignore[no-untyped-def]
    first, last, pairs, index, position, chosen, constant, slope, shift, result
):
    num_points, num_neighbours = index.shape[1], index.shape[2]
    width = chosen.shape[2]
    moved = np.empty(width, pairs.dtype)
    neighbour_sums = np.empty(width, pairs.dtype)
    degree = np.empty(num_points, np.int64)
    for sample in range(first, last):
        degree[:] = 0
        result[sample] = 0
        for point in range(num_points):
            terms = pairs[sample, point]
            for channel in range(width):
                moved[channel] = terms[width + channel] - shift[channel]
                neighbour_sums[channel] = 0
            for slot in range(num_neighbours):
                neighbour = index[sample, point, slot]
                degree[neighbour] += 1
                other = pairs[sample, neighbour]
                target = result[sample, neighbour]
                for channel in range(width):
                    neighbour_sums[channel] += other[channel]
                for channel in range(width):
                    target[channel] += moved[channel]
            grad_centre = result[sample, point]
            for channel in range(width):
                grad_centre[width + channel] = (
                    chosen[sample, point, channel]
                    - num_neighbours * constant[channel]
                    - slope[channel] * (neighbour_sums[channel] + num_neighbours * moved[channel])
                )
        for point in range(num_points):
            terms = pairs[sample, point]
            target = result[sample, point]
            count = degree[point]
            for channel in range(width):
                target[channel] = -count * constant[channel] - slope[channel] * (
                    count * terms[channel] + target[channel]
                )
        for point in range(num_points):
            for channel in range(width):
                neighbour = index[sample, point, position[sample, point, channel]]
                result[sample, neighbour, channel] += chosen[sample, point, channel]
