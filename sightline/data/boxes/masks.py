"""Bounding boxes of COCO masks: polygons and run-length encodings (RLE)."""

from __future__ import annotations

from typing import Any

import numpy as np

from sightline.data.boxes.image_listing import MAX_PX

__all__ = ["mask_to_box"]

_MAX_SHIFT = 60
"""Maximum bit offset within one run length: no real file needs more, and unlimited text takes quadratic time."""


def mask_to_box(segmentation: Any) -> tuple[float, float, float, float]:
    """Compute the bounding box (xyxy) of polygons [[x, y, x, y, ...], ...] or of an RLE mask {size, counts}.

    Raises ValueError or TypeError for anything else, and for an empty mask. Source: pycocotools, maskApi.c.
    """
    if isinstance(segmentation, dict):
        height, width = _parse_integers(segmentation.get("size") or (0, 0))
        counts = segmentation.get("counts")
        if not (1 <= height <= MAX_PX and 1 <= width <= MAX_PX) or counts is None:
            raise ValueError("a mask needs size and counts")
        runs = _decode_rle(counts) if isinstance(counts, str) else _parse_integers(counts)
        if min(runs, default=0) < 0 or sum(runs) != height * width:
            raise ValueError(f"the counts of a mask of {height} x {width} pixels do not add up to these")
        return _rle_to_box(runs, height)
    tables = [np.array(polygon) for polygon in segmentation]
    if any(table.dtype.kind not in "iuf" for table in tables):
        raise TypeError("corners of polygons are numbers")
    points = np.concatenate([table.astype(np.float64).reshape(-1, 2) for table in tables])
    low, high = points.min(axis=0), points.max(axis=0)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _parse_integers(values: Any) -> list[int]:
    """Convert values to int. Raises ValueError, TypeError or OverflowError for anything but whole numbers."""
    numbers = [int(value) for value in values]
    if any(isinstance(value, str) or value != number for value, number in zip(values, numbers, strict=True)):
        raise ValueError("size and counts of a mask are whole numbers")
    return numbers


def _rle_to_box(counts: list[int], height: int) -> tuple[float, float, float, float]:
    """Compute the bounding box (xyxy) of an uncompressed COCO RLE mask (column-major)."""
    ends = np.cumsum(np.array(counts, dtype=np.int64))
    starts, stops = ends[:-1:2], ends[1::2]
    starts, stops = starts[stops > starts], stops[stops > starts]
    if not len(starts):
        raise ValueError("the mask is empty")
    left, right = starts // height, (stops - 1) // height
    is_long = right > left  # runs on in the next column, so it touches bottom and top
    top = np.where(is_long, 0, starts % height).min()
    bottom = np.where(is_long, height, (stops - 1) % height + 1).max()
    return float(left.min()), float(top), float(right.max() + 1), float(bottom)


def _decode_rle(text: str) -> list[int]:
    """Decode COCO's compressed RLE text: 5 bits per character; from the third count on, differences to counts[-2]."""
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64 or shift > _MAX_SHIFT:
            raise ValueError("the text of a mask's counts is damaged")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    return counts
