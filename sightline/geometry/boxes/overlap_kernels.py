"""Overlaps of all pairs of boxes compiled for the CPU, row by row, without a branch, so that registers are filled.

The second boxes come as columns (4, M). Sums and products are those of the torch forms, in their order: equal bits.
"""

from __future__ import annotations

import numpy as np

from sightline.compiled import compiled

__all__ = ["ioa_of_rows", "iou_of_rows"]


@compiled
def iou_of_rows(first: int, last: int, boxes: np.ndarray, columns: np.ndarray, found: np.ndarray) -> None:
    """See `overlaps.pairwise_iou`; `found` (N, M) is filled."""
    x1, y1, x2, y2 = columns
    zero, one, tiny = _constants(found)
    areas = np.empty(len(x1), dtype=found.dtype)
    for place in range(len(x1)):
        areas[place] = max(x2[place] - x1[place], zero) * max(y2[place] - y1[place], zero)
    for row in range(first, last):
        left, top, right, bottom = boxes[row]
        area, result = max(right - left, zero) * max(bottom - top, zero), found[row]
        for place in range(len(x1)):
            width = max(min(right, x2[place]) - max(left, x1[place]), zero)
            height = max(min(bottom, y2[place]) - max(top, y1[place]), zero)
            intersection = width * height
            union = area + areas[place] - intersection
            ratio = intersection / (union if union >= tiny else one)
            result[place] = ratio if union >= tiny else zero


@compiled
def ioa_of_rows(first: int, last: int, boxes: np.ndarray, columns: np.ndarray, found: np.ndarray) -> None:
    """See `overlaps.pairwise_ioa`; `found` (N, M) is filled."""
    x1, y1, x2, y2 = columns
    zero, one, tiny = _constants(found)
    for row in range(first, last):
        left, top, right, bottom = boxes[row]
        area, result = max(right - left, zero) * max(bottom - top, zero), found[row]
        is_some = area >= tiny
        whole = area if is_some else one
        for place in range(len(x1)):
            width = max(min(right, x2[place]) - max(left, x1[place]), zero)
            height = max(min(bottom, y2[place]) - max(top, y1[place]), zero)
            ratio = width * height / whole
            result[place] = ratio if is_some else zero


@compiled
def _constants(like: np.ndarray) -> tuple[float, float, float]:
    """Zero, one and the least normal number, of the type of `like`: a literal would make float32 float64."""
    values = np.zeros(3, dtype=like.dtype)
    values[1] = 1
    values[2] = 2.0**-126 if like.itemsize == 4 else 2.0**-1022
    return values[0], values[1], values[2]
