"""Edge convolution without edges: extremes and sums over the edges of a graph of points, and their gradients.

Every edge i -> j of a cloud carries u_j + v_i. `pairs` (B, N, 2C) contains u and v, `index` (B, N, K) the neighbours j
of each i. Nothing of size (B, N, K, C) is kept: kernels go through the neighbours of a point, or through the points of
which it is a neighbour.
Source: Wang et al. 2019, equations 5 to 8, whose linear map of an edge is a sum of two maps of points.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.ops.gpu_kernels import clamp_index, gpu_kernel, next_power_of_2, tl
from sightline.ops.numba_kernels import numba_kernel, run_parallel, widen_in_parts
from sightline.ops.operator import operator
from sightline.ops.points.grouping import assert_rows, gather_points
from sightline.ops.waits import is_recording

_ENTRIES_AT_ONCE = 2**22
"""Numbers of the edges that the plain form has in memory."""

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


def edge_extremes(
    pairs: Tensor, index: Tensor, *, sign: Tensor, shift: Tensor, offset: Tensor | None = None
) -> EdgeSums:
    """Find the largest u_j (B, N, C) of each point where `sign` is 1, the smallest where -1, the first where 0.

    `pairs` (B, N, 2C), `index` (B, N, K) int64. `sign` and `shift` are (C,) in the dtype of the computation, that of
    `pairs` or float32 for bfloat16. An `offset` (B, 1, 2C) is added to the pairs in that dtype. NaN wins; of equal
    values, the neighbour that comes first in `index`. Extremes and slots are the same on every device. Gradients reach
    pairs and offset. Raises ValueError for an index of another shape, or outside the clouds.
    """
    _assert_pairs(pairs, index, shift, offset)
    extreme, position, sums = _edge_extremes(pairs, index, sign, shift, offset)
    return EdgeSums(extreme, position, sums[0], sums[1])


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
    dtype of `pairs`; `offset` as in `edge_extremes`, whose `position` and rows of `index` these are. No sum depends on
    the order in which threads end.
    """
    _assert_pairs(pairs, index, shift, offset)
    return _edge_gradients(pairs, index, position, chosen, constant, slope, shift, offset)


def _assert_pairs(pairs: Tensor, index: Tensor, shift: Tensor, offset: Tensor | None) -> None:
    if pairs.ndim != 3 or pairs.shape[2] != 2 * shift.shape[0]:
        raise ValueError(
            f"pairs: found the shape {tuple(pairs.shape)}, expected (clouds, points, {2 * len(shift)}), both terms of "
            f"the {len(shift)} channels of shift"
        )
    if offset is not None and offset.shape != (pairs.shape[0], 1, pairs.shape[2]):
        expected = pairs.shape[0], 1, pairs.shape[2]  # not len, which makes a number of a free size
        raise ValueError(f"offset: found the shape {tuple(offset.shape)}, expected {expected}")
    if index.shape[:-1] != pairs.shape[:2] or index.shape[-1] == 0 or index.dtype != torch.int64:
        raise ValueError(
            f"index: found the shape {tuple(index.shape)} {index.dtype}, expected ({len(pairs)}, {pairs.shape[1]}, K) "
            "torch.int64 with K >= 1; give the neighbours of every point in every cloud"
        )


def _check(pairs: Tensor, index: Tensor, *_: object) -> None:
    assert_rows(index, pairs, num_queries=pairs.shape[1])


@operator(launches=2, check=_check, extra_dtype=torch.bfloat16)
def _edge_extremes(
    pairs: Tensor, index: Tensor, sign: Tensor, shift: Tensor, offset: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    ahead, behind = _widen(pairs, shift.dtype, offset)
    sign, shift = sign.detach(), shift.detach()
    extremes, positions, sums = [], [], torch.zeros((2, len(shift)), dtype=torch.float64, device=pairs.device)
    for part in _cut(index, ahead):
        values = gather_points(ahead, index[:, part])
        position = (sign * values).argmax(dim=2)  # the first of equal ones; NaN wins
        extremes.append(values.gather(2, position[:, :, None]).squeeze(2))
        positions.append(position.to(_position_dtype(index)))
        edges = values + (behind[:, part] - shift)[:, :, None]
        sums = sums + torch.stack([power.sum((0, 1, 2), dtype=torch.float64) for power in (edges, edges.square())])
    return torch.cat(extremes, dim=1), torch.cat(positions, dim=1), sums


@operator(launches=3, extra_dtype=torch.bfloat16)
def _edge_gradients(
    pairs: Tensor,
    index: Tensor,
    position: Tensor,
    chosen: Tensor,
    constant: Tensor,
    slope: Tensor,
    shift: Tensor,
    offset: Tensor | None,
) -> Tensor:
    ahead, behind = _widen(pairs, shift.dtype, offset)
    to_ahead, to_behind = torch.zeros_like(ahead), []
    for part in _cut(index, ahead):
        neighbours = index[:, part]
        edges = gather_points(ahead, neighbours) + (behind[:, part] - shift)[:, :, None]
        slots = torch.arange(index.shape[2], device=index.device)[:, None]
        to_edges = torch.where(position[:, part, None] == slots, chosen[:, part, None], 0) - (constant + slope * edges)
        rows = neighbours.flatten(1)[..., None].expand(-1, -1, len(shift))
        to_ahead = to_ahead.scatter_add(1, rows, to_edges.flatten(1, 2))
        to_behind.append(to_edges.sum(dim=2))
    return torch.cat([to_ahead, torch.cat(to_behind, dim=1)], dim=-1).to(pairs.dtype)


def _widen(pairs: Tensor, dtype: torch.dtype, offset: Tensor | None) -> tuple[Tensor, ...]:
    wide = pairs.to(dtype)
    return (wide if offset is None else wide + offset).chunk(2, dim=-1)


def _cut(index: Tensor, values: Tensor) -> Iterator[slice]:
    """Yield parts of the points such that the edges of a part are few; at least one, in a recorded graph one."""
    if is_recording():
        return iter([slice(None)])
    num_points = index.shape[1]
    at_once = max(1, _ENTRIES_AT_ONCE // max(1, len(index) * index.shape[2] * values.shape[2]))
    return (slice(start, start + at_once) for start in range(0, max(1, num_points), at_once))


def _position_dtype(index: Tensor) -> torch.dtype:
    return torch.uint8 if index.shape[-1] <= 256 else torch.int32


@_edge_extremes.fake
def _(
    pairs: Tensor, index: Tensor, sign: Tensor, shift: Tensor, offset: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (*pairs.shape[:2], len(shift))
    position = pairs.new_empty(shape, dtype=_position_dtype(index))
    return shift.new_empty(shape), position, shift.new_empty((2, len(shift)), dtype=torch.float64)


@_edge_gradients.fake
def _(pairs: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(pairs, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    pairs, index, _, shift, offset = inputs
    ctx.save_for_backward(pairs, index, output[1], shift, offset)


@_edge_extremes.gradient(_save)
def _(ctx: Any, to_extreme: Tensor, _: Any, to_sums: Tensor) -> tuple[Tensor | None, ...]:
    pairs, index, position, shift, offset = ctx.saved_tensors
    to_sums = to_sums.to(shift.dtype)
    to_pairs = _edge_gradients(pairs, index, position, to_extreme, -to_sums[0], -2 * to_sums[1], shift, offset)
    to_pairs = to_pairs - torch.cat([torch.zeros_like(to_extreme), to_extreme], dim=-1).to(pairs.dtype)
    to_offset = None if offset is None else to_pairs.sum(dim=1, keepdim=True).to(offset.dtype)
    return to_pairs, None, None, None, to_offset


# --- CPU --------------------------------------------------------------------------------------------------------------


@_edge_extremes.cpu_kernel
def _(
    pairs: Tensor, index: Tensor, sign: Tensor, shift: Tensor, offset: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    blocks_of_a_cloud = -(-pairs.shape[1] // _POINTS_AT_ONCE)
    extreme = shift.new_empty((*pairs.shape[:2], len(shift)))
    position = torch.empty(extreme.shape, dtype=_position_dtype(index))
    sums = []
    for part, wide in widen_in_parts(pairs.contiguous(), shift.dtype, offset):
        sums.append(np.zeros((2, len(wide) * blocks_of_a_cloud, len(shift))))
        arrays = [tensor.contiguous().numpy() for tensor in (wide, index[part], sign, shift)]
        run_parallel(_reduce_edges, sums[-1].shape[1], *arrays, extreme[part].numpy(), position[part].numpy(), sums[-1])
    return extreme, position, torch.from_numpy(np.concatenate(sums, axis=1).sum(axis=1))


@_edge_gradients.cpu_kernel
def _(
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
    num_points, width, kind = index.shape[1], extreme.shape[2], pairs.dtype.type
    moved, total, squares = np.empty(width, pairs.dtype), np.empty(width, pairs.dtype), np.empty(width, pairs.dtype)
    best, slots = np.empty(width, pairs.dtype), np.empty(width, pairs.dtype)
    blocks_of_a_cloud = -(-num_points // _POINTS_AT_ONCE)
    for block in range(first, last):
        sample = block // blocks_of_a_cloud
        start = (block % blocks_of_a_cloud) * _POINTS_AT_ONCE
        for point in range(start, min(start + _POINTS_AT_ONCE, num_points)):
            neighbours, chosen, point_terms = index[sample, point], extreme[sample, point], pairs[sample, point]
            other = pairs[sample, neighbours[0]]
            for channel in range(width):
                moved[channel] = point_terms[width + channel] - shift[channel]
                edge = other[channel] + moved[channel]
                total[channel], squares[channel] = edge, edge * edge
                chosen[channel], best[channel], slots[channel] = other[channel], other[channel] * sign[channel], 0
            for slot in range(1, len(neighbours)):
                other, candidate = pairs[sample, neighbours[slot]], kind(slot)
                for channel in range(width):
                    edge = other[channel] + moved[channel]
                    total[channel] += edge
                    squares[channel] += edge * edge
                for channel in range(width):  # choices, not branches: lanes of a vector
                    signed, lowest = other[channel] * sign[channel], best[channel]
                    is_better = (signed > lowest) | ((signed != signed) & (lowest == lowest))
                    best[channel] = signed if is_better else lowest
                    chosen[channel] = other[channel] if is_better else chosen[channel]
                    slots[channel] = candidate if is_better else slots[channel]
            for channel in range(width):
                sums[0, block, channel] += total[channel]
                sums[1, block, channel] += squares[channel]
                position[sample, point, channel] = slots[channel]


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


# --- GPU --------------------------------------------------------------------------------------------------------------


@_edge_extremes.gpu_kernel()
def _(
    pairs: Tensor, index: Tensor, sign: Tensor, shift: Tensor, offset: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    num_clouds, num_points, num_neighbours = index.shape
    extreme = shift.new_empty((num_clouds, num_points, len(shift)))
    position = torch.empty(extreme.shape, dtype=_position_dtype(index), device=index.device)
    block, columns = 16, min(64, next_power_of_2(max(len(shift), 16)))
    num_blocks, num_parts = -(-num_points // block), -(-len(shift) // columns)
    partial = shift.new_empty((2, num_clouds * num_blocks, len(shift)), dtype=torch.float64)
    inputs = (pairs, index, sign, shift, offset)
    _reduce_block.launch(
        num_clouds * num_blocks * num_parts,
        *(None if tensor is None else tensor.contiguous() for tensor in inputs),
        *(extreme, position, partial, num_clouds * num_blocks, num_points, num_neighbours, len(shift)),
        BLOCK=block,
        COLUMNS=columns,
        num_warps=shift.itemsize,
    )
    return extreme, position, partial.sum(dim=1)


@_edge_gradients.gpu_kernel()
def _(
    pairs: Tensor,
    index: Tensor,
    position: Tensor,
    chosen: Tensor,
    constant: Tensor,
    slope: Tensor,
    shift: Tensor,
    offset: Tensor | None,
) -> Tensor:
    num_clouds, num_points, num_neighbours = index.shape
    index, columns = index.contiguous(), min(128, next_power_of_2(max(len(shift), 16)))
    wide = torch.int32 if num_clouds * num_points < 2**31 else torch.int64
    rows, number = torch.empty(index.numel(), dtype=wide, device=index.device), -(-index.numel() // 1024)
    _number_rows.launch(number, index, rows, num_points, num_points * num_neighbours, index.numel(), BLOCK=1024)
    rows, edges = rows.sort(stable=True)  # the edges of each row, in order
    result = torch.empty_like(pairs, memory_format=torch.contiguous_format)
    inputs = (pairs, index, position, chosen, constant, slope, shift, offset)
    _gather_gradients.launch(
        num_clouds * num_points * -(-len(shift) // columns),
        *(None if tensor is None else tensor.contiguous() for tensor in inputs),
        *(rows, edges, result, num_points, num_neighbours, len(shift), index.numel()),
        COLUMNS=columns,
        num_warps=1,
    )
    return result


@gpu_kernel
def _reduce_block(  # type: ignore[no-untyped-def]
    pairs,
    index,
    sign,
    shift,
    offset,
    extreme,
    position,
    partial,
    num_blocks: tl.int64,
    num_points: tl.int64,
    num_neighbours: tl.int32,
    width: tl.int32,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    kind = shift.dtype.element_ty
    num_parts = tl.cdiv(width, COLUMNS)
    block, own_blocks = (tl.program_id(0) // num_parts).to(tl.int64), tl.cdiv(num_points, BLOCK)
    cloud, first_channel = block // own_blocks, (tl.program_id(0) % num_parts) * COLUMNS
    point = (block % own_blocks) * BLOCK + tl.arange(0, BLOCK)
    channel = first_channel + tl.arange(0, COLUMNS)
    is_point, is_channel = point < num_points, channel < width
    is_inside, row = is_point[:, None] & is_channel[None, :], cloud * num_points + point
    columns = pairs + cloud * num_points * 2 * width + channel[None, :]
    point_terms = tl.load(columns + (point[:, None] * 2 + 1) * width, mask=is_inside, other=0.0).to(kind)
    if offset is not None:
        offset += cloud * 2 * width + channel
        ahead = tl.load(offset, mask=is_channel, other=0.0)[None, :]
        point_terms += tl.load(offset + width, mask=is_channel, other=0.0)[None, :]
    moved = point_terms - tl.load(shift + channel, mask=is_channel, other=0.0)[None, :]
    signs = tl.load(sign + channel, mask=is_channel, other=0.0)[None, :]
    total, squares = tl.zeros((BLOCK, COLUMNS), kind), tl.zeros((BLOCK, COLUMNS), kind)
    chosen, best = tl.zeros((BLOCK, COLUMNS), kind), tl.zeros((BLOCK, COLUMNS), kind)
    best_slot = tl.zeros((BLOCK, COLUMNS), tl.int32)
    for slot in range(num_neighbours):
        neighbour = clamp_index(tl.load(index + row * num_neighbours + slot, mask=is_point, other=0), num_points)
        value = tl.load(columns + neighbour[:, None] * 2 * width, mask=is_inside, other=0.0).to(kind)
        if offset is not None:
            value += ahead
        edge, signed = value + moved, value * signs
        total += edge
        squares += edge * edge
        is_better = (slot == 0) | (signed > best) | ((signed != signed) & (best == best))
        best_slot = tl.where(is_better, slot, best_slot)
        chosen = tl.where(is_better, value, chosen)
        best = tl.where(is_better, signed, best)
    target = row[:, None] * width + channel[None, :]
    tl.store(extreme + target, chosen, mask=is_inside)
    tl.store(position + target, best_slot, mask=is_inside)
    total = tl.sum(tl.where(is_inside, total, 0.0).to(tl.float64), axis=0)
    squares = tl.sum(tl.where(is_inside, squares, 0.0).to(tl.float64), axis=0)
    tl.store(partial + block * width + channel, total, mask=is_channel)
    tl.store(partial + (num_blocks + block) * width + channel, squares, mask=is_channel)


@gpu_kernel
def _number_rows(  # type: ignore[no-untyped-def]
    index, rows, num_points: tl.int64, edges_of_a_cloud: tl.int64, num_edges: tl.int64, BLOCK: tl.constexpr
):
    """Write the row of every edge's neighbour among the points of all clouds."""
    edge = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    neighbour = clamp_index(tl.load(index + edge, mask=edge < num_edges, other=0), num_points)
    row = neighbour + edge // edges_of_a_cloud * num_points
    tl.store(rows + edge, row.to(rows.dtype.element_ty), mask=edge < num_edges)


@gpu_kernel
def _find_first(rows, row, num_edges):  # type: ignore[no-untyped-def]
    """Return the first place of sorted `rows` that is not below `row`."""
    low, high = row * 0, row * 0 + num_edges
    while low < high:
        middle = (low + high) // 2
        is_below = tl.load(rows + middle) < row
        low, high = tl.where(is_below, middle + 1, low), tl.where(is_below, high, middle)
    return low


@gpu_kernel
def _gather_gradients(  # type: ignore[no-untyped-def]
    pairs,
    index,
    position,
    chosen,
    constant,
    slope,
    shift,
    offset,
    rows,
    edges,
    result,
    num_points: tl.int64,
    num_neighbours: tl.int32,
    width: tl.int32,
    num_edges: tl.int64,
    COLUMNS: tl.constexpr,
):
    kind = shift.dtype.element_ty
    num_parts = tl.cdiv(width, COLUMNS)
    row = (tl.program_id(0) // num_parts).to(tl.int64)
    channel = (tl.program_id(0) % num_parts) * COLUMNS + tl.arange(0, COLUMNS)
    cloud, is_channel = row // num_points, channel < width
    columns = pairs + cloud * num_points * 2 * width + channel
    point_address = pairs + row * 2 * width + channel
    moved_by = 0.0 - tl.load(shift + channel, mask=is_channel, other=0.0)
    near = tl.load(point_address, mask=is_channel, other=0.0).to(kind)
    behind = tl.load(point_address + width, mask=is_channel, other=0.0).to(kind)
    if offset is not None:
        ahead = tl.load(offset + cloud * 2 * width + channel, mask=is_channel, other=0.0)
        added = tl.load(offset + (cloud * 2 + 1) * width + channel, mask=is_channel, other=0.0)
        near, behind = near + ahead, behind + added
    neighbour_sums, received = tl.zeros((COLUMNS,), kind), tl.zeros((COLUMNS,), kind)
    reached = tl.zeros((COLUMNS,), kind)
    for slot in range(num_neighbours):
        neighbour = clamp_index(tl.load(index + row * num_neighbours + slot), num_points)
        value = tl.load(columns + neighbour * 2 * width, mask=is_channel, other=0.0).to(kind)
        neighbour_sums += value if offset is None else value + ahead
    first, last = _find_first(rows, row, num_edges), _find_first(rows, row + 1, num_edges)
    for position_of_edge in range(first, last):
        edge = tl.load(edges + position_of_edge)
        source = edge // num_neighbours
        value = tl.load(pairs + (source * 2 + 1) * width + channel, mask=is_channel, other=0.0).to(kind)
        received += (value if offset is None else value + added) + moved_by
        is_chosen = tl.load(position + source * width + channel, mask=is_channel, other=0) == edge % num_neighbours
        reached += tl.load(chosen + source * width + channel, mask=is_channel & is_chosen, other=0.0)
    constants = tl.load(constant + channel, mask=is_channel, other=0.0)
    slopes = tl.load(slope + channel, mask=is_channel, other=0.0)
    degree = (last - first).to(kind)
    tl.store(
        result + row * 2 * width + channel,
        reached - (degree * constants + slopes * (degree * near + received)),
        mask=is_channel,
    )
    own_chosen = tl.load(chosen + row * width + channel, mask=is_channel, other=0.0)
    statistics = num_neighbours * constants + slopes * (neighbour_sums + num_neighbours * (behind + moved_by))
    tl.store(result + (row * 2 + 1) * width + channel, own_chosen - statistics, mask=is_channel)
