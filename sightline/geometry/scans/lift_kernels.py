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
    found: np.ndarray,
) -> None:
    """CPU kernel of `lift.lift_knn`: writes the label of the points first to last to `found` (P,).

    All float32 or int64.
    A neighbour is one number, the bits of its distance above the index of its pixel in the window: the lowest few of
    them are kept in order by minima and maxima, without a branch. Bits of floats that are not negative rise with them.
    """
    distance = np.zeros(_BLOCK, dtype=np.float32)
    bits = distance.view(np.int32)
    coming = np.empty(_BLOCK, dtype=np.int64)
    kept = np.empty((num_neighbours, _BLOCK), dtype=np.int64)
    labels = np.empty(num_neighbours, dtype=np.int64)
    for start in range(first, last, _BLOCK):
        count = min(_BLOCK, last - start)
        own, places = point_range[start : start + count], middle[start : start + count]
        kept[:] = _NEVER
        for step in range(len(steps)):
            if step == len(steps) // 2:
                distance[:] = 0
            else:
                _measure(distance, own, places, ranges, steps[step], weights[step])
            for point in range(_BLOCK):
                coming[point] = (np.int64(bits[point]) << 32) | step
            for rank in range(num_neighbours):
                _exchange(kept[rank], coming)
        for point in range(count):
            num_near = 0
            while num_near < num_neighbours and kept[num_near, point] >> 32 <= limit_bits:
                labels[num_near] = label[places[point] + steps[kept[num_near, point] & 0xFFFFFFFF]]
                num_near += 1
            found[start + point] = _elect(labels[:num_near], void, label[places[point]])


@numba_kernel
def _measure(
    distance: np.ndarray, own: np.ndarray, places: np.ndarray, ranges: np.ndarray, step: int, weight: float
) -> None:
    for point in range(len(own)):
        distance[point] = abs(ranges[places[point] + step] - own[point]) * weight


@numba_kernel
def _exchange(kept: np.ndarray, coming: np.ndarray) -> None:
    """Keep the smaller of each two numbers, and pass the larger on to the next rank."""
    for point in range(_BLOCK):
        one, other = kept[point], coming[point]
        kept[point] = min(one, other)
        coming[point] = max(one, other)


@numba_kernel
def _elect(labels: np.ndarray, void: int, otherwise: int) -> int:
    """Return the most frequent label except `void`, the lowest of a tie; `otherwise` if there is none."""
    elected, most = otherwise, 0
    for place in range(len(labels)):
        if labels[place] == void:
            continue
        votes = 0
        for other in range(len(labels)):
            votes += labels[other] == labels[place]
        if votes > most or (votes == most and labels[place] < elected):
            elected, most = labels[place], votes
        if 2 * votes > len(labels):
            break
    return elected
