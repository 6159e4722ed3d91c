"""Balanced k-d trees of clouds, with the bounding box of each node: a search can skip most points.

Boxes bound distances exactly, rounding included. Rounding never reverses an order: for a point p in the box and a
query q beside it, the rounded differences, squares and sums towards the box are at most those towards p, one by one,
when they are taken in the same order. So a box whose bound is not below the largest distance of interest can be left
out, and the answer has the bits of the plain form.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from torch import Tensor

from sightline.ops.numba_kernels import inlined_kernel, numba_kernel, run_parallel

LEAF_SIZE = 32
"""Slots of a leaf: loops over a whole leaf have a known length, which the compiler vectorises."""


_SAMPLE = 16
"""Keys among which the pivot of a partition is chosen."""
_SAMPLE_OF_AXES = 32
"""Points of a node, or up to twice as many, whose extents decide along which axis it is divided."""


class Trees(NamedTuple):
    """One tree per cloud; all of a batch have the same shape.

    Node 1 holds all points, the children of node n are 2n and 2n + 1, the leaves are the last `num_leaves` nodes.
    `blocks` (B, leaves, C, LEAF): the leaves' points, infinity in empty slots. `order` (B, N) int64: the points'
    indices, leaf after leaf. `starts` (leaves + 1,): where in `order` the leaves start, and N at the end. `boxes`
    (B, 2 * leaves, 2, C): the lowest and highest coordinates in each node; node 0 is not used.
    """

    blocks: np.ndarray
    order: np.ndarray
    starts: np.ndarray
    boxes: np.ndarray


@lru_cache(maxsize=64)
def _divide_evenly(num_points: int) -> np.ndarray:
    """Return where the leaves of a tree start, and the number of points."""
    num_leaves = 1
    while num_leaves * LEAF_SIZE < num_points:
        num_leaves *= 2
    return num_points * np.arange(num_leaves + 1) // num_leaves


def build_trees(points: Tensor) -> Trees:
    """Build the k-d trees of `points` (B, N, C), float32 or float64 on the CPU, N at least 1.

    The points of each node lie one after another in `order`.
    """
    values = points.contiguous().numpy()
    num_clouds, num_points, num_channels = values.shape
    starts = _divide_evenly(num_points)
    num_leaves = len(starts) - 1
    trees = Trees(
        blocks=np.empty((num_clouds, num_leaves, num_channels, LEAF_SIZE), values.dtype),
        order=np.empty((num_clouds, num_points), np.int64),
        starts=starts,
        boxes=np.empty((num_clouds, 2 * num_leaves, 2, num_channels), values.dtype),
    )
    run_parallel(_build, num_clouds, values, *trees)
    return trees


@numba_kernel
def _build(
    first: int,
    last: int,
    points: np.ndarray,
    blocks: np.ndarray,
    order: np.ndarray,
    starts: np.ndarray,
    boxes: np.ndarray,
) -> None:
    num_leaves, num_points, num_channels = blocks.shape[1], points.shape[1], points.shape[2]
    keys, spare_keys = np.empty(num_points, dtype=points.dtype), np.empty(num_points, dtype=points.dtype)
    spare_order = np.empty(num_points, dtype=np.int64)
    sample = np.empty(_SAMPLE, dtype=points.dtype)
    for cloud in range(first, last):
        values, own_order, level, width = points[cloud], order[cloud], 1, num_leaves
        for rank in range(num_points):
            own_order[rank] = rank
        for node in range(1, num_leaves):
            if node == 2 * level:
                level, width = node, width // 2
            begin, end = starts[(node - level) * width], starts[(node - level + 1) * width]
            axis = _widest_axis(values, own_order, begin, end)
            for rank in range(begin, end):
                keys[rank] = values[own_order[rank], axis]
            middle = starts[(node - level) * width + width // 2]
            _divide(keys, own_order, spare_keys, spare_order, begin, end, middle, sample)
        for leaf in range(num_leaves):
            _fill(
                values, own_order, starts[leaf], starts[leaf + 1], blocks[cloud, leaf], boxes[cloud, num_leaves + leaf]
            )
        for node in range(num_leaves - 1, 0, -1):
            box, left, right = boxes[cloud, node], boxes[cloud, 2 * node], boxes[cloud, 2 * node + 1]
            for channel in range(num_channels):
                box[0, channel] = min(left[0, channel], right[0, channel])
                box[1, channel] = max(left[1, channel], right[1, channel])


@numba_kernel
def _fill(points: np.ndarray, order: np.ndarray, begin: int, end: int, block: np.ndarray, box: np.ndarray) -> None:
    """Write the points of a leaf, and the lowest and highest coordinates."""
    for channel in range(points.shape[1]):
        smallest = largest = points[order[begin], channel]
        for rank in range(begin, end):
            value = points[order[rank], channel]
            block[channel, rank - begin] = value
            smallest, largest = min(smallest, value), max(largest, value)
        for slot in range(end - begin, LEAF_SIZE):
            block[channel, slot] = np.inf
        box[0, channel], box[1, channel] = smallest, largest


@numba_kernel
def _widest_axis(points: np.ndarray, order: np.ndarray, begin: int, end: int) -> int:
    """Return the channel in which some points of a node differ most."""
    widest, extent = 0, points.dtype.type(-1)
    step = max(1, (end - begin) // _SAMPLE_OF_AXES)
    for channel in range(points.shape[1]):
        smallest = largest = points[order[begin], channel]
        for rank in range(begin, end, step):
            value = points[order[rank], channel]
            smallest, largest = min(smallest, value), max(largest, value)
        if largest - smallest > extent:
            widest, extent = channel, largest - smallest
    return widest


@numba_kernel
def _divide(
    keys: np.ndarray,
    order: np.ndarray,
    spare_keys: np.ndarray,
    spare_order: np.ndarray,
    begin: int,
    end: int,
    middle: int,
    sample: np.ndarray,
) -> None:
    """Partition keys and order in [begin, end) so that no key before `middle` is greater than any from it on.

    No element is a branch that the processor has to guess. The spare arrays and `sample` are scratch memory.
    Source: Hoare 1961, algorithm 65 (Find); Floyd and Rivest 1975, algorithm 489 (Select), for the pivot.
    """
    low, high = begin, end
    while high - low > _SAMPLE:
        pivot = _choose_pivot(keys, low, high, middle, sample)
        left = _partition(keys, order, spare_keys, spare_order, low, high, pivot, False)
        if left == low:  # no key is smaller: those that equal the pivot are the first
            left = _partition(keys, order, spare_keys, spare_order, low, high, pivot, True)
            if middle < left:
                return
        if left == middle:
            return
        if middle < left:
            high = left
        else:
            low = left
    for slot in range(low, high):
        sample[slot - low], spare_order[slot - low] = keys[slot], order[slot]
    for slot in range(high - low):
        order[low + _rank(sample, slot, high - low)] = spare_order[slot]


@inlined_kernel
def _partition(
    keys: np.ndarray,
    order: np.ndarray,
    spare_keys: np.ndarray,
    spare_order: np.ndarray,
    low: int,
    high: int,
    pivot: float,
    takes_equal: bool,
) -> int:
    """Bring the keys below the pivot to the front of [low, high), or those up to it; return where the others begin."""
    left, right = low, 0
    for rank in range(low, high):
        key, point = keys[rank], order[rank]
        keys[left], order[left] = key, point
        spare_keys[right], spare_order[right] = key, point
        is_left = int((key < pivot) | (takes_equal & (key == pivot)))
        left += is_left
        right += 1 - is_left
    for rank in range(right):
        keys[left + rank], order[left + rank] = spare_keys[rank], spare_order[rank]
    return left


@inlined_kernel
def _choose_pivot(keys: np.ndarray, low: int, high: int, middle: int, sample: np.ndarray) -> float:
    """Return a key of [low, high) that is near the one at `middle` if all were sorted, on the farther end's side."""
    for slot in range(_SAMPLE):
        sample[slot] = keys[low + (high - low) * slot // _SAMPLE]
    position = _SAMPLE * (middle - low) // (high - low)
    position += 1 if 2 * position < _SAMPLE else -1
    pivot = sample[0]
    for slot in range(1, _SAMPLE):
        pivot = sample[slot] if _rank(sample, slot, _SAMPLE) == position else pivot
    return pivot


@inlined_kernel
def _rank(sample: np.ndarray, slot: int, count: int) -> int:
    """Return the place of a key among `count` if all were sorted, equal ones as they are."""
    key, rank = sample[slot], np.int32(0)
    for other in range(slot):
        rank = np.int32(rank + np.int32(sample[other] <= key))
    for other in range(slot + 1, count):
        rank = np.int32(rank + np.int32(sample[other] < key))
    return int(rank)
