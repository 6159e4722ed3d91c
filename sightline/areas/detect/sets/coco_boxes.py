"""Boxes of COCO annotations as columns by image, and bounding boxes of masks: polygons, run-length encodings (RLE)."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sightline.areas.detect.sets.image_listing import (
    MAX_PX,
    AnnotationFaults,
    BoxCorners,
    CategoryIds,
    Values,
    is_valid_box,
    parse_number,
    xywh_to_xyxy,
)

_UNPLACED = "annotations of images that are not in the file"
_UNKNOWN, _IMPOSSIBLE = "boxes of unknown categories", "impossible boxes"
_MAX_SHIFT = 60
"""Maximum bit offset within one run length: no real file needs more, and unlimited text takes quadratic time."""


class CocoBoxes:
    """Boxes of the annotations of a file in columns that grow, and faults, which wait for the names of their images."""

    def __init__(self) -> None:
        self.annotation_ids = array("q")
        self.categories: set[int] = set()
        self._ids = array("q")  # of each box: ids of its image and category, index among annotations, is ignored
        self._numbers = array("d")  # of each box: left, top, right, bottom and area
        self._masks: dict[int, tuple[int, int]] = {}  # index of a box that a mask gave → height and width of the mask
        self._faults: list[tuple[int, int, str, str]] = []  # index of an annotation, id of its image, kind, text

    def add(self, annotation: Any) -> None:
        """Add the box of the next annotation, or what is wrong with it."""
        index = len(self.annotation_ids)
        stated: Mapping[str, Any] = annotation if isinstance(annotation, dict) else {}
        image_id, category = _get_id(stated, "image_id"), _get_id(stated, "category_id")
        self.annotation_ids.append(_get_id(stated, "id"))
        self.categories.add(category)
        if image_id < 0 or category < 0:
            kind = _UNPLACED if image_id < 0 else _UNKNOWN
            self._faults.append((index, image_id, kind, f"{self._name(index)} is {str(annotation)[:80]}"))
            return
        try:
            box, mask_px = _read_box(stated)
            is_ignored, area = is_marked(stated), stated.get("area")
            area = (box[2] - box[0]) * (box[3] - box[1]) if area is None else parse_number(area)
            if not (is_valid_box(box, is_ignored=is_ignored) and abs(area) <= MAX_PX**2):
                raise ValueError(f"width and height above 0, and numbers of pixels up to {MAX_PX:,}, are needed")
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            text = f"{self._name(index)}: bbox is {str(stated.get('bbox', 'missing'))[:160]} ({error})"
            self._faults.append((index, image_id, _IMPOSSIBLE, text))
            return
        if mask_px is not None:
            self._masks[len(self._numbers) // 5] = mask_px
        self._ids.extend((image_id, category, index, is_ignored))
        self._numbers.extend((*box, area))

    def _name(self, index: int) -> str:
        number = self.annotation_ids[index]
        return f"annotations[{index}]" if number < 0 else f"annotation {number}"

    def assign(
        self,
        names: Mapping[int, str],
        sizes: dict[int, tuple[int, int] | None],
        classes: CategoryIds,
        faults: AnnotationFaults,
    ) -> dict[int, Values]:
        """Return the columns of the boxes of every image by its id, in the order of the file; add faults.

        `names` and `sizes` (height, width) are those of images by id. An image without a stated size has that of its
        first mask, which is added to `sizes`.
        """
        ids = np.array(self._ids, dtype=np.int64).reshape(-1, 4)
        image, is_placed = _find_in([*names], ids[:, 0])
        label, is_known = _find_in(classes.ids, ids[:, 1])
        for row, (image_id, category, index, _) in zip(*_rows_where(~(is_placed & is_known), ids), strict=True):
            text = f"has the category {category}" if is_placed[row] else f"has the image_id {image_id}"
            kind = _UNKNOWN if is_placed[row] else _UNPLACED
            self._faults.append((index, image_id, kind, f"{self._name(index)} {text}"))
        is_used = is_placed & is_known
        for row, mask_px in self._masks.items():
            image_id, index = ids[row, [0, 2]].tolist()
            stated = sizes.get(image_id) or mask_px
            if image_id in names and stated == mask_px:
                sizes[image_id] = mask_px
            elif is_used[row]:
                is_used[row] = False
                sides = [f"{height} x {width}" for height, width in (mask_px, stated)]
                text = f"{self._name(index)}: the mask has {sides[0]} pixels, its image {sides[1]}"
                self._faults.append((index, image_id, _IMPOSSIBLE, text))
        for _, image_id, kind, text in sorted(self._faults):
            where = f"{names[image_id]}: " if image_id in names else ""
            faults.add(kind if where else _UNPLACED, where + text)
        order = np.flatnonzero(is_used)
        order = order[np.argsort(image[order], kind="stable")]
        numbers = np.array(self._numbers).reshape(-1, 5)[order]
        columns = {
            "boxes": np.ascontiguousarray(numbers[:, :4]),
            "label": label[order],
            "area": np.ascontiguousarray(numbers[:, 4]),
            "is_ignored": ids[order, 3] != 0,
        }
        ends = np.searchsorted(image[order], np.arange(len(names) + 1)).tolist()
        return {
            image_id: {name: column[start:stop] for name, column in columns.items()}
            for image_id, start, stop in zip(names, ends[:-1], ends[1:], strict=True)
        }


def _rows_where(mask: np.ndarray, table: np.ndarray) -> tuple[list[int], list[list[int]]]:
    return np.flatnonzero(mask).tolist(), table[mask].tolist()


def _find_in(numbers: Sequence[int], wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the place in `numbers` of each wanted number, and whether it is there at all."""
    table = np.array(numbers, dtype=np.int64)
    order = table.argsort()
    if not len(order):
        return np.zeros_like(wanted), np.zeros(len(wanted), dtype=bool)
    place = order[np.searchsorted(table, wanted, sorter=order).clip(max=len(order) - 1)]
    return place, table[place] == wanted


def is_marked(annotation: Mapping[str, Any]) -> bool:
    """Return True if an annotation is marked as ignored (iscrowd, ignore). Raises TypeError for a mark that is text."""
    marks = (annotation.get("iscrowd"), annotation.get("ignore"))
    return any([mark is True or parse_number(mark) != 0 for mark in marks if mark])


def _read_box(annotation: Mapping[str, Any]) -> tuple[BoxCorners, tuple[int, int] | None]:
    """Return left, top, right, bottom of the bbox, else of the mask, and height and width of an RLE mask.

    Raises LookupError, ValueError, TypeError if both lack, for others, and for a box that CVAT states as turned.
    """
    turn = attributes.get("rotation") if isinstance(attributes := annotation.get("attributes"), dict) else None
    if turn and parse_number(turn) % 360:
        raise ValueError(f"it is turned by {turn} degrees, which is not read")
    if annotation.get("bbox"):
        return xywh_to_xyxy(annotation["bbox"]), None
    mask = annotation.get("segmentation")
    if not mask:
        raise ValueError("there is neither bbox nor segmentation")
    box = mask_to_box(mask)
    height, width = _parse_integers(mask["size"]) if isinstance(mask, dict) else (0, 0)
    return box, (height, width) if height else None


def _get_id(annotation: Mapping[str, Any], key: str) -> int:
    """Return the id under `key` as an integer, or -1, which is never an id, for anything else."""
    value = annotation.get(key)
    if type(value) is int and 0 <= value < 2**63:
        return value
    try:
        return parse_id(value)
    except (TypeError, ValueError):
        return -1


def parse_id(value: Any) -> int:
    """Return an id as int. Raises ValueError for anything but a whole number from 0 to 2^63."""
    if isinstance(value, bool | str) or not 0 <= value < 2**63 or int(value) != value:
        raise ValueError(f"{value!r} is not a whole number")
    return int(value)


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
