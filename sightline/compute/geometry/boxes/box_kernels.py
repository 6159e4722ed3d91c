"""CPU kernels of pairwise overlaps and of greedy and soft NMS.

Overlaps of all pairs go row by row, without a branch, so that registers are filled; the second boxes come as columns
(4, M). Sums and products are those of the torch forms, in their order: equal bits.
"""

from __future__ import annotations

import math

import numpy as np

from sightline.compute.numba_kernels import numba_kernel

_BLOCK = 32


@numba_kernel
def pairwise_iou_kernel(first: int, last: int, boxes: np.ndarray, columns: np.ndarray, ious: np.ndarray) -> None:
    """CPU kernel of `overlaps.pairwise_iou`: boxes (N, 4), columns (4, M); writes the IoU to `ious` (N, M)."""
    x1, y1, x2, y2 = columns
    zero, one, tiny = _constants(ious)
    areas = np.empty(len(x1), dtype=ious.dtype)
    for column in range(len(x1)):
        areas[column] = max(x2[column] - x1[column], zero) * max(y2[column] - y1[column], zero)
    for row in range(first, last):
        left, top, right, bottom = boxes[row]
        area, result = max(right - left, zero) * max(bottom - top, zero), ious[row]
        for column in range(len(x1)):
            width = max(min(right, x2[column]) - max(left, x1[column]), zero)
            height = max(min(bottom, y2[column]) - max(top, y1[column]), zero)
            intersection = width * height
            union = area + areas[column] - intersection
            ratio = intersection / (union if union >= tiny else one)
            result[column] = ratio if union >= tiny else zero


@numba_kernel
def pairwise_ioa_kernel(first: int, last: int, boxes: np.ndarray, columns: np.ndarray, ioas: np.ndarray) -> None:
    """CPU kernel of `overlaps.pairwise_ioa`: boxes (N, 4), columns (4, M); writes the IoA to `ioas` (N, M)."""
    x1, y1, x2, y2 = columns
    zero, one, tiny = _constants(ioas)
    for row in range(first, last):
        left, top, right, bottom = boxes[row]
        area, result = max(right - left, zero) * max(bottom - top, zero), ioas[row]
        is_some = area >= tiny
        divisor = area if is_some else one
        for column in range(len(x1)):
            width = max(min(right, x2[column]) - max(left, x1[column]), zero)
            height = max(min(bottom, y2[column]) - max(top, y1[column]), zero)
            ratio = width * height / divisor
            result[column] = ratio if is_some else zero


@numba_kernel
def greedy_nms_kernel(
    boxes: np.ndarray, labels: np.ndarray, proposals: np.ndarray, limits: np.ndarray, kept_indices: np.ndarray
) -> int:
    """CPU kernel of `suppression.greedy_nms`.

    Writes the indices of kept boxes to `kept_indices` (N,) and returns how many there are. `boxes` (N, 4) are sorted by
    label, then by falling score. Each box is compared with the boxes of its label kept so far, one block at a time: few
    of many boxes need many comparisons. Without `proposals` every box is a proposal of its own.
    """
    zero, one, tiny = _constants(limits)
    columns = np.empty((6, len(boxes)), dtype=boxes.dtype)
    x1, y1, x2, y2, areas, kept_limits = columns
    first = count = 0
    for index in range(len(boxes)):
        if index and labels[index] != labels[index - 1]:
            first = count
        left, top, right, bottom = boxes[index]
        area = max(right - left, zero) * max(bottom - top, zero)
        hits = 0
        for start in range(first, count, _BLOCK):
            for other in range(start, min(start + _BLOCK, count)):
                width = max(min(right, x2[other]) - max(left, x1[other]), zero)
                height = max(min(bottom, y2[other]) - max(top, y1[other]), zero)
                intersection = width * height
                union = area + areas[other] - intersection
                overlap = intersection / (union if union >= tiny else one)
                hits += (overlap > kept_limits[other]) & (union >= tiny)
            if hits and len(proposals):
                for other in kept_indices[start : min(start + _BLOCK, count)]:
                    is_own = proposals[other] == proposals[index]
                    hits -= is_own and _iou(boxes[index], boxes[other], tiny) > limits[other]
            if hits:
                break
        if not hits:
            x1[count], y1[count], x2[count], y2[count], areas[count] = left, top, right, bottom, area
            kept_limits[count], kept_indices[count] = limits[index], index
            count += 1
    return count


@numba_kernel
def soft_nms_kernel(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    limits: np.ndarray,
    min_score: np.ndarray,
    is_linear: bool,
    kept_indices: np.ndarray,
    kept_scores: np.ndarray,
) -> int:
    """CPU kernel of `suppression.soft_nms`: writes kept indices and scores (N,), label by label; returns their number.

    `boxes` (N, 4), `scores` and `labels` (N,) are sorted by label; `limits` (N,) are the lowest IoU or the width of the
    Gaussian of each box. `remaining` contains the remaining boxes of a label in order of their indices. `scores` is
    changed.
    """
    (zero, one, tiny), lowest_score = _constants(limits), min_score[0]
    remaining = np.empty(len(boxes), dtype=np.int64)
    start = count = 0
    while start < len(boxes):
        best, num_remaining = start, 0
        while start < len(boxes) and labels[start] == labels[best]:
            remaining[num_remaining] = start
            num_remaining += 1
            start += 1
        for index in remaining[:num_remaining]:
            if scores[index] > scores[best]:
                best = index
        while num_remaining and scores[best] >= lowest_score:
            kept_indices[count], kept_scores[count] = best, scores[best]
            count += 1
            picked, limit, num_still, next_best = best, limits[best], 0, -1
            x1, y1, x2, y2 = boxes[picked]
            area = max(x2 - x1, zero) * max(y2 - y1, zero)
            for rank in range(num_remaining):
                index = remaining[rank]
                if index == picked:
                    continue
                box = boxes[index]
                width = max(min(x2, box[2]) - max(x1, box[0]), zero)
                height = max(min(y2, box[3]) - max(y1, box[1]), zero)
                intersection = width * height
                union = area + max(box[2] - box[0], zero) * max(box[3] - box[1], zero) - intersection
                overlap = intersection / union if union >= tiny else zero
                if is_linear:
                    scores[index] *= one - overlap if overlap >= limit else one
                elif overlap > zero:
                    scores[index] *= math.exp(-(overlap * overlap) / limit)
                if scores[index] >= lowest_score:
                    remaining[num_still] = index
                    num_still += 1
                    if next_best < 0 or scores[index] > scores[next_best]:
                        next_best = index
            num_remaining, best = num_still, next_best
    return count


@numba_kernel
def _iou(one: np.ndarray, other: np.ndarray, tiny: float) -> float:
    """Compute the IoU of two boxes (4,), with the order of sums of the other kernels."""
    zero = tiny - tiny
    width = max(min(one[2], other[2]) - max(one[0], other[0]), zero)
    height = max(min(one[3], other[3]) - max(one[1], other[1]), zero)
    intersection = width * height
    area = max(one[2] - one[0], zero) * max(one[3] - one[1], zero)
    union = area + max(other[2] - other[0], zero) * max(other[3] - other[1], zero) - intersection
    return intersection / union if union >= tiny else zero


@numba_kernel
def _constants(like: np.ndarray) -> tuple[float, float, float]:
    """Return zero, one and the smallest normal number in the dtype of `like`: a literal would make float32 float64."""
    values = np.zeros(3, dtype=like.dtype)
    values[1] = 1
    values[2] = 2.0**-126 if like.itemsize == 4 else 2.0**-1022
    return values[0], values[1], values[2]
