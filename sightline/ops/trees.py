"""Balanced k-d trees of clouds, with the bounding box of each node: a search can skip most points.

A balanced k-d tree. Node 1 holds all points, the children of node n are 2n and 2n + 1, the leaves are the last
`num_leaves` nodes. The points of node n lie one after another in `order`.

Boxes bound distances exactly, rounding included. Rounding never reverses an order: for a point p in the box and a
query q beside it, the rounded differences, squares and sums towards the box are at most those towards p, one by one,
when they are taken in the same order. So a box whose bound is not below the largest distance of interest can be left
out, and the answer has the bits of the plain form.

Trees of clouds whose points are sorted along a Morton curve.

Built by counting sort, five times as fast as a k-d tree.
Their boxes are larger than those of `trees` and overlap. Farthest-point sampling, which looks at few boxes for each
point that it chooses, is faster with them; searches for neighbours are faster with a k-d tree.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from sightline.ops.numba_kernels import numba_kernel, run_parallel

LEAF_SIZE = 32
"""Slots of a leaf: loops over a whole leaf have a known length, which the compiler vectorises."""


class Trees(NamedTuple):
    """One tree per cloud; all of a batch have the same shape.

    `blocks` (B, leaves, C, LEAF): the leaves' points, infinity in empty slots. `order` (B, N) int64: the points'
    indices, leaf after leaf. `starts` (leaves + 1,): where in `order` the leaves start, and N at the end. `boxes`
    (B, 2 * leaves, 2, C): the lowest and highest coordinates in each node; node 0 is not used.
    """

    blocks: np.ndarray
    order: np.ndarray
    starts: np.ndarray
    boxes: np.ndarray


def allocate_trees(points: Tensor) -> Trees:
    """Allocate the trees of `points` (B, N, C), with `order` as in the input."""
    values = points.numpy()
    num_clouds, num_points, num_channels = values.shape
    num_leaves = 1
    while num_leaves * LEAF_SIZE < num_points:
        num_leaves *= 2
    return Trees(
        blocks=np.full((num_clouds, num_leaves, num_channels, LEAF_SIZE), np.inf, dtype=values.dtype),
        order=np.tile(np.arange(num_points), (num_clouds, 1)),
        starts=num_points * np.arange(num_leaves + 1) // num_leaves,
        boxes=np.zeros((num_clouds, 2 * num_leaves, 2, num_channels), dtype=values.dtype),
    )


def build_trees(points: Tensor) -> Trees:
    """Build the k-d trees of `points` (B, N, C), float32 or float64 on the CPU, N at least 1."""
    trees = allocate_trees(points)
    sorted_BCN = points.numpy().transpose(0, 2, 1).copy()
    run_parallel(_build, len(points), sorted_BCN, *trees)
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


_CODE_BITS = 30
_MAX_CELL_BITS = 15
_DIGIT_BITS = 10


def build_curve_trees(points: Tensor) -> Trees:
    """Build the trees of `points` (B, N, C), float32 or float64 on the CPU, N at least 1.

    A cube around a cloud is cut into small cells along its first three axes, and their points are taken in the order
    of a curve through all cells. Source: Morton 1966, A Computer Oriented Geodetic Data Base.
    """
    values_BNC = points.contiguous().numpy()
    num_axes = min(values_BNC.shape[2], 3)
    enough = -(-values_BNC.shape[1].bit_length() // num_axes) + 2
    num_bits = min(enough, _CODE_BITS // num_axes, _MAX_CELL_BITS)
    cells = np.arange(1 << num_bits)
    spread = np.zeros(len(cells), dtype=np.uint32)  # the bits of a cell, as far apart as there are axes
    for bit in range(num_bits):
        spread |= (((cells >> bit) & 1) << (bit * num_axes)).astype(np.uint32)
    trees = allocate_trees(points)
    run_parallel(
        _build_curve_tree, len(points), values_BNC, spread, num_axes, -(-num_bits * num_axes // _DIGIT_BITS), *trees
    )
    return trees


@numba_kernel
def _build_curve_tree(
    first: int,
    last: int,
    points: np.ndarray,
    spread: np.ndarray,
    num_axes: int,
    num_digits: int,
    blocks: np.ndarray,
    order: np.ndarray,
    starts: np.ndarray,
    boxes: np.ndarray,
) -> None:
    num_leaves, num_points = blocks.shape[1], points.shape[1]
    codes, others = np.empty(num_points, dtype=np.uint32), np.empty(num_points, dtype=np.uint32)
    sorted_order = np.empty(num_points, dtype=np.int64)
    for cloud in range(first, last):
        _encode(points[cloud], spread, num_axes, codes)
        for digit in range(num_digits):
            _sort_by_digit(codes, order[cloud], np.uint32(_DIGIT_BITS * digit), others, sorted_order)
            codes, others = others, codes
            for rank in range(num_points):
                order[cloud, rank] = sorted_order[rank]
        for leaf in range(num_leaves):
            _fill(points[cloud], order[cloud, starts[leaf] : starts[leaf + 1]], blocks[cloud, leaf], boxes[cloud], leaf)
        for node in range(num_leaves - 1, 0, -1):
            for channel in range(points.shape[2]):
                left, right = boxes[cloud, 2 * node, :, channel], boxes[cloud, 2 * node + 1, :, channel]
                boxes[cloud, node, 0, channel] = min(left[0], right[0])
                boxes[cloud, node, 1, channel] = max(left[1], right[1])


@numba_kernel
def _encode(points: np.ndarray, spread: np.ndarray, num_axes: int, codes: np.ndarray) -> None:
    """Write the Morton code (N,) of each point's cell."""
    widest = points.dtype.type(0)
    for axis in range(num_axes):
        smallest = largest = points[0, axis]
        for point in range(len(points)):
            smallest, largest = min(smallest, points[point, axis]), max(largest, points[point, axis])
        widest = max(widest, largest - smallest)
    codes[:] = 0
    for axis in range(num_axes):
        smallest = points[0, axis]
        for point in range(len(points)):
            smallest = min(smallest, points[point, axis])
        for point in range(len(points)):
            cell = len(spread) * ((points[point, axis] - smallest) / widest)
            inside = int(cell) if cell < len(spread) else len(spread) - 1  # of a cloud without extent it is NaN
            codes[point] |= spread[inside] << np.uint32(axis)


@numba_kernel
def _sort_by_digit(
    codes: np.ndarray, order: np.ndarray, shift: np.uint32, sorted_codes: np.ndarray, sorted_order: np.ndarray
) -> None:
    """Sort codes by ten of their bits, stably. Source: Knuth, vol. 3, 5.2.5."""
    mask = np.uint32((1 << _DIGIT_BITS) - 1)
    begins = np.zeros((1 << _DIGIT_BITS) + 1, dtype=np.int64)
    for code in codes:
        begins[((code >> shift) & mask) + np.uint32(1)] += 1
    for digit in range(1, len(begins)):
        begins[digit] += begins[digit - 1]
    for rank in range(len(codes)):
        digit = (codes[rank] >> shift) & mask
        sorted_codes[begins[digit]], sorted_order[begins[digit]] = codes[rank], order[rank]
        begins[digit] += 1


@numba_kernel
def _fill(points: np.ndarray, members: np.ndarray, block: np.ndarray, boxes: np.ndarray, leaf: int) -> None:
    """Write the points of a leaf and their bounding box."""
    node = len(boxes) // 2 + leaf
    for channel in range(points.shape[1]):
        smallest = largest = points[members[0], channel]
        for slot in range(len(members)):
            value = points[members[slot], channel]
            block[channel, slot] = value
            smallest, largest = min(smallest, value), max(largest, value)
        boxes[node, 0, channel], boxes[node, 1, channel] = smallest, largest
