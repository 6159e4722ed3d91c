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

from sightline.ops.numba_kernels import numba_kernel, run_parallel

LEAF_SIZE = 32
"""Slots of a leaf: loops over a whole leaf have a known length, which the compiler vectorises."""


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
    sorted_BCN = points.numpy().transpose(0, 2, 1).copy()
    num_clouds, num_channels, num_points = sorted_BCN.shape
    starts, dtype = _divide_evenly(num_points), sorted_BCN.dtype
    num_leaves = len(starts) - 1
    trees = Trees(
        blocks=np.empty((num_clouds, num_leaves, num_channels, LEAF_SIZE), dtype),
        order=np.empty((num_clouds, num_points), np.int64),
        starts=starts,
        boxes=np.empty((num_clouds, 2 * num_leaves, 2, num_channels), dtype),
    )
    run_parallel(_build, num_clouds, sorted_BCN, *trees)
    return trees


@numba_kernel
def _build(
    first: int,
    last: int,
    sorted_BCN: np.ndarray,
    blocks: np.ndarray,
    order: np.ndarray,
    starts: np.ndarray,
    boxes: np.ndarray,
) -> None:
    num_leaves = blocks.shape[1]
    for cloud in range(first, last):
        values, level, width = sorted_BCN[cloud], 1, num_leaves
        for rank in range(order.shape[1]):
            order[cloud, rank] = rank
        for node in range(1, 2 * num_leaves):
            if node == 2 * level:
                level, width = node, width // 2
            begin, end = starts[(node - level) * width], starts[(node - level + 1) * width]
            axis = _enclose(values, begin, end, boxes[cloud, node])
            if width > 1:
                _divide(values, order[cloud], axis, begin, end, starts[(node - level) * width + width // 2])
            else:
                block = blocks[cloud, node - num_leaves]
                for channel in range(len(values)):
                    for rank in range(begin, end):
                        block[channel, rank - begin] = values[channel, rank]
                    for slot in range(end - begin, LEAF_SIZE):
                        block[channel, slot] = np.inf


@numba_kernel
def _enclose(values: np.ndarray, begin: int, end: int, box: np.ndarray) -> int:
    """Write the lowest and highest coordinates of [begin, end); return the channel in which they differ most."""
    widest = 0
    for channel in range(len(values)):
        smallest = largest = values[channel, begin]
        for rank in range(begin, end):
            smallest = min(smallest, values[channel, rank])
            largest = max(largest, values[channel, rank])
        box[0, channel], box[1, channel] = smallest, largest
        if largest - smallest > box[1, widest] - box[0, widest]:
            widest = channel
    return widest


@numba_kernel
def _divide(values: np.ndarray, order: np.ndarray, axis: int, begin: int, end: int, middle: int) -> None:
    """Partition [begin, end) so that nothing before `middle` is greater, along `axis`, than anything from it on.

    Source: Hoare 1961, algorithm 65 (Find).
    """
    low, high = begin, end - 1
    while low < high:
        pivot = values[axis, (low + high) // 2]
        left, right = low, high
        while left <= right:
            while values[axis, left] < pivot:
                left += 1
            while values[axis, right] > pivot:
                right -= 1
            if left <= right:
                _swap(values, order, left, right)
                left += 1
                right -= 1
        if middle <= right:
            high = right
        elif middle >= left:
            low = left
        else:
            return


@numba_kernel
def _swap(values: np.ndarray, order: np.ndarray, left: int, right: int) -> None:
    order[left], order[right] = order[right], order[left]
    for channel in range(len(values)):
        values[channel, left], values[channel, right] = values[channel, right], values[channel, left]
