"""CPU kernel of the kNN vote, for a block of points at a time, which fills the wide registers."""

from __future__ import annotations

import numpy as np

from sightline.numba_kernels import numba_kernel

__all__ = ["knn_vote_kernel"]

_BLOCK = 64
_NEVER = 2**63 - 1


@numba_kernel
def knn_vote_kernel(
    first: int,
    last: int,
    point_range: np.ndarray,
    ranges: np.ndarray,
    label: np.ndarray,
    middle: np.ndarray,
    steps: np.ndarray,
    weights: np.ndarray,
    num_neighbours: int,
    limit_bits: int,
    void: int,
    elected: np.ndarray,
) -> None:
    """CPU kernel of `lift.lift_knn`: writes the label of the points first to last to `elected` (P,).

    All float32 or int64.
    A neighbour is one number, the bits of its distance above the index of its pixel in the window: the lowest few of
    them are kept in order by minima and maxima, without a branch. Bits of floats that are not negative rise with them.
    """
    distance = np.zeros(_BLOCK, dtype=np.float32)
    bits = distance.view(np.int32)
    coming = np.empty(_BLOCK, dtype=np.int64)
    lowest = np.empty((num_neighbours, _BLOCK), dtype=np.int64)
    labels = np.empty(num_neighbours, dtype=np.int64)
    for start in range(first, last, _BLOCK):
        count = min(_BLOCK, last - start)
        own_range, pixels = point_range[start : start + count], middle[start : start + count]
        lowest[:] = _NEVER
        for step in range(len(steps)):
            if step == len(steps) // 2:
                distance[:] = 0
            else:
                _measure(distance, own_range, pixels, ranges, steps[step], weights[step])
            for point in range(_BLOCK):
                coming[point] = (np.int64(bits[point]) << 32) | step
            for rank in range(num_neighbours):
                _exchange(lowest[rank], coming)
        for point in range(count):
            num_near = 0
            while num_near < num_neighbours and lowest[num_near, point] >> 32 <= limit_bits:
                labels[num_near] = label[pixels[point] + steps[lowest[num_near, point] & 0xFFFFFFFF]]
                num_near += 1
            elected[start + point] = _elect(labels[:num_near], void, label[pixels[point]])


@numba_kernel
def _measure(
    distance: np.ndarray, own_range: np.ndarray, pixels: np.ndarray, ranges: np.ndarray, step: int, weight: float
) -> None:
    for point in range(len(own_range)):
        distance[point] = abs(ranges[pixels[point] + step] - own_range[point]) * weight


@numba_kernel
def _exchange(lowest: np.ndarray, coming: np.ndarray) -> None:
    """Keep the smaller of each two numbers, and pass the larger on to the next rank."""
    for point in range(_BLOCK):
        one, other = lowest[point], coming[point]
        lowest[point] = min(one, other)
        coming[point] = max(one, other)


@numba_kernel
def _elect(labels: np.ndarray, void: int, otherwise: int) -> int:
    """Return the most frequent label except `void`, the lowest of a tie; `otherwise` if there is none."""
    elected, most = otherwise, 0
    for rank in range(len(labels)):
        if labels[rank] == void:
            continue
        votes = 0
        for other in range(len(labels)):
            votes += labels[other] == labels[rank]
        if votes > most or (votes == most and labels[rank] < elected):
            elected, most = labels[rank], votes
        if 2 * votes > len(labels):
            break
    return elected
