"""GPU kernels of nearest neighbours: some threads a query keep its best (distance, index) in registers.

Of more neighbours than those hold, a program goes through the points once for each part of them, nearest part first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sightline.ops.gpu_kernels import gpu_kernel, next_power_of_2, tl
from sightline.ops.points.distances import (
    FEW_CHANNELS,
    by_channel,
    find_segment,
    is_far,
    strides_of_clouds,
    tile_of_distances,
    to_rows,
)

_SLOTS_OF_A_WARP = {torch.float32: 512, torch.float64: 256}
"""Best neighbours that a warp holds in registers, of all its queries: 8 bytes for each in float32, 12 in float64."""
_MOST_QUERIES = {torch.float32: 16, torch.float64: 4}
"""Queries of a warp."""


def launch_search(
    num_clouds: int,
    points: Tensor,
    offsets: Tensor | None,
    queries: Tensor | None,
    query_offsets: Tensor | None,
    index: Tensor,
    is_valid: Tensor | None,
    num_queries: int,
) -> None:
    """Write neighbours to `index` (..., K) and, of packed clouds, whether there are so many to `is_valid`."""
    if not index.numel():
        return
    most = _SLOTS_OF_A_WARP[points.dtype]
    slots = min(next_power_of_2(max(index.shape[-1], 16)), most)
    in_block = min(most // slots, _MOST_QUERIES[points.dtype])
    points = by_channel(points)
    queries = points if queries is None else by_channel(queries)
    num_blocks = -(-num_queries // in_block)
    _find_nearest.launch(
        num_clouds * num_blocks,
        points,
        offsets,
        queries,
        offsets if query_offsets is None else query_offsets,
        index,
        is_valid,
        num_blocks,
        points.shape[-2],
        num_queries,
        index.shape[-1],
        *strides_of_clouds(points),
        *strides_of_clouds(queries),
        CHANNELS=points.shape[-1],
        SLOTS=slots,
        QUERIES=in_block,
        BLOCK=16 if points.shape[-1] <= FEW_CHANNELS else 32,
        STEP=8,
        IS_IN_PARTS=slots < index.shape[-1],
        IS_FAR=is_far(points) or is_far(queries),
        num_warps=1,
    )


@gpu_kernel
def _find_nearest(  # type: ignore[no-untyped-def]
    points,
    offsets,
    queries,
    query_offsets,
    index,
    is_valid,
    num_blocks: tl.int32,
    num_points: tl.int32,
    num_queries: tl.int32,
    num_neighbours: tl.int32,
    cloud_step: tl.int64,
    point_step: tl.int64,
    channel_step: tl.int64,
    query_cloud_step: tl.int64,
    query_step: tl.int64,
    query_channel_step: tl.int64,
    CHANNELS: tl.constexpr,
    SLOTS: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
    IS_IN_PARTS: tl.constexpr,
    IS_FAR: tl.constexpr,
):
    """Find the neighbours of a block of queries, up to `SLOTS` of them at a time."""
    largest = 0x7FFFFFFFFFFFFFFF
    IS_WIDE: tl.constexpr = points.dtype.element_ty == tl.float64
    cloud = (tl.program_id(0) // num_blocks).to(tl.int64)
    first_point, count = find_segment(offsets, cloud, num_points)
    first_query, num_own = find_segment(query_offsets, cloud, num_queries)
    query = (tl.program_id(0) % num_blocks) * QUERIES + tl.arange(0, QUERIES)
    is_query = query < num_own
    base, query_base = points + cloud * cloud_step, queries + cloud * query_cloud_step
    if offsets is not None:
        base += first_point * point_step
        query_base += first_query * query_step
    to_query = to_rows(query_base, query, query_step, IS_FAR)
    first_slot = (first_query + query) * num_neighbours
    written, written_point = tl.full([QUERIES], -1, tl.int64), tl.full([QUERIES], -1, tl.int32)
    for first_rank in range(0, num_neighbours if IS_IN_PARTS else 1, SLOTS):
        num_ranks = tl.minimum(num_neighbours - first_rank, SLOTS) if IS_IN_PARTS else num_neighbours
        best, best_point = _find_best(
            base,
            count,
            point_step,
            channel_step,
            to_query,
            is_query,
            query_channel_step,
            num_ranks,
            written,
            written_point,
            CHANNELS,
            SLOTS,
            BLOCK,
            STEP,
            IS_IN_PARTS,
            IS_FAR,
            IS_WIDE,
        )
        for rank in range(first_rank, first_rank + num_ranks):
            written, written_point = _first_of(best, best_point, IS_WIDE)
            best = tl.where(_is_same(best, best_point, written, written_point, IS_WIDE), largest, best)
            nearest_point = written_point.to(tl.int64)
            if offsets is None:
                tl.store(index + first_slot + rank, nearest_point, mask=is_query)
            else:
                is_found = rank < count
                tl.store(index + first_slot + rank, first_point + tl.where(is_found, nearest_point, 0), mask=is_query)
                tl.store(is_valid + first_slot + rank, is_found, mask=is_query)


@gpu_kernel
def _find_best(  # type: ignore[no-untyped-def]
    base,
    count,
    point_step,
    channel_step,
    to_query,
    is_query,
    query_channel_step,
    num_ranks,
    written,
    written_point,
    CHANNELS: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
    IS_IN_PARTS: tl.constexpr,
    IS_FAR: tl.constexpr,
    IS_WIDE: tl.constexpr,
):
    """Return each query's best `num_ranks` keys after the one written last, in any order, and their points.

    A key is (distance, index) in 64 bits, and in float64 the distance, whose index is beside it. A nearer one replaces
    the last of them. A block of points is looked at as long as one of the queries finds a nearer one in it: seldom
    after the first ones. One of `STEP` blocks is taken at first: where near points follow one another, that halves
    these looks.
    """
    largest = 0x7FFFFFFFFFFFFFFF
    slot = tl.arange(0, SLOTS)[:, None]
    # Slots that are empty differ, so that one is replaced at a time; those beyond the neighbours never are.
    is_slot, order = (slot < num_ranks) & is_query[None, :], slot.to(tl.int64)
    best = tl.where(is_slot, largest if IS_WIDE else largest - order, -1)
    best_point = tl.where(is_slot, 0x7FFFFFFF - slot, -1)
    worst, worst_point = _last_of(best, best_point, IS_WIDE)
    begin, first = 0, 0
    for _ in range(tl.cdiv(count, BLOCK)):
        point = begin + tl.arange(0, BLOCK)
        is_point, address = point < count, to_rows(base, point, point_step, IS_FAR)
        distances = tile_of_distances(address, is_point, channel_step, to_query, is_query, query_channel_step, CHANNELS)
        if IS_WIDE:
            keys = distances.to(tl.int64, bitcast=True)
        else:
            keys = (distances.to(tl.int32, bitcast=True).to(tl.int64) << 32) | point[:, None].to(tl.int64)
        keys = tl.where(is_point[:, None], keys, largest)
        if IS_IN_PARTS:
            is_new = _is_before(written[None, :], written_point[None, :], keys, point[:, None], IS_WIDE)
            keys = tl.where(is_new, keys, largest)
        nearest, nearest_point = _first_of(keys, point[:, None], IS_WIDE)
        is_nearer = _is_before(nearest, nearest_point, worst, worst_point, IS_WIDE)
        while tl.max(is_nearer.to(tl.int32), axis=0) > 0:
            is_last = _is_same(best, best_point, worst, worst_point, IS_WIDE) & is_nearer[None, :]
            best = tl.where(is_last, nearest[None, :], best)
            if IS_WIDE:
                best_point = tl.where(is_last, nearest_point[None, :], best_point)
            worst, worst_point = _last_of(best, best_point, IS_WIDE)
            keys = tl.where(_is_same(keys, point[:, None], nearest, nearest_point, IS_WIDE), largest, keys)
            nearest, nearest_point = _first_of(keys, point[:, None], IS_WIDE)
            is_nearer = _is_before(nearest, nearest_point, worst, worst_point, IS_WIDE)
        begin += STEP * BLOCK
        is_over = begin >= count
        first = tl.where(is_over, first + BLOCK, first)
        begin = tl.where(is_over, first, begin)
    return tl.where(slot < num_ranks, best, largest), best_point


@gpu_kernel
def _is_before(key, point, other_key, other_point, IS_WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return whether keys, of points that are found, come before others."""
    is_before = key < other_key
    if IS_WIDE:
        is_before |= (key == other_key) & (point < other_point) & (key < 0x7FFFFFFFFFFFFFFF)
    return is_before


@gpu_kernel
def _is_same(keys, points, key, point, IS_WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return which of the keys of each column is its `key`."""
    is_same = keys == key[None, :]
    if IS_WIDE:
        is_same &= points == point[None, :]
    return is_same


@gpu_kernel
def _first_of(keys, points, IS_WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the smallest key of each column, and its point: in float64, of equal ones the lowest."""
    key = tl.min(keys, axis=0)
    if IS_WIDE:
        point = tl.min(tl.where(keys == key[None, :], points, 0x7FFFFFFF), axis=0)
    else:
        point = (key & 0x7FFFFFFF).to(tl.int32)
    return key, point


@gpu_kernel
def _last_of(keys, points, IS_WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the largest key of each column, and in float64 its point: of equal ones the highest."""
    key = tl.max(keys, axis=0)
    return key, tl.max(tl.where(keys == key[None, :], points, -1), axis=0) if IS_WIDE else -1
