"""Boxes of COCO annotations as columns by image."""

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


class CocoBoxes:
    """Boxes of the annotations of a file in columns that grow, and faults, which wait for the names of their images."""

    def __init__(self) -> None:
        self.annotation_ids = array("q")
        self.categories: set[int] = set()
        self._ids = array("q")  # of each box: ids of its image and category, index among annotations, is ignored
        self._numbers = array("d")  # of each box: left, top, right, bottom and area
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
            box = _read_box(stated)
            is_ignored, area = is_marked(stated), stated.get("area")
            area = (box[2] - box[0]) * (box[3] - box[1]) if area is None else parse_number(area)
            if not (is_valid_box(box, is_ignored=is_ignored) and abs(area) <= MAX_PX**2):
                raise ValueError(f"width and height above 0, and numbers of pixels up to {MAX_PX:,}, are needed")
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            text = f"{self._name(index)}: bbox is {str(stated.get('bbox', 'missing'))[:160]} ({error})"
            self._faults.append((index, image_id, _IMPOSSIBLE, text))
            return
        self._ids.extend((image_id, category, index, is_ignored))
        self._numbers.extend((*box, area))

    def _name(self, index: int) -> str:
        number = self.annotation_ids[index]
        return f"annotations[{index}]" if number < 0 else f"annotation {number}"

    def assign(
        self,
        names: Mapping[int, str],
        classes: CategoryIds,
        faults: AnnotationFaults,
    ) -> dict[int, Values]:
        """Return the columns of the boxes of every image by its id, in the order of the file; add faults.

        `names` are those of images by id.
        """
        ids = np.array(self._ids, dtype=np.int64).reshape(-1, 4)
        image, is_placed = _find_in([*names], ids[:, 0])
        label, is_known = _find_in(classes.ids, ids[:, 1])
        for row, (image_id, category, index, _) in zip(*_rows_where(~(is_placed & is_known), ids), strict=True):
            text = f"has the category {category}" if is_placed[row] else f"has the image_id {image_id}"
            kind = _UNKNOWN if is_placed[row] else _UNPLACED
            self._faults.append((index, image_id, kind, f"{self._name(index)} {text}"))
        for _, image_id, kind, text in sorted(self._faults):
            where = f"{names[image_id]}: " if image_id in names else ""
            faults.add(kind if where else _UNPLACED, where + text)
        order = np.flatnonzero(is_placed & is_known)
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


def _read_box(annotation: Mapping[str, Any]) -> BoxCorners:
    """Return left, top, right, bottom of the bbox.

    Raises LookupError, ValueError, TypeError without one, and for a box that CVAT states as turned.
    """
    turn = attributes.get("rotation") if isinstance(attributes := annotation.get("attributes"), dict) else None
    if turn and parse_number(turn) % 360:
        raise ValueError(f"it is turned by {turn} degrees, which is not read")
    if not annotation.get("bbox"):
        raise ValueError("there is no bbox; export boxes beside masks and polygons")
    return xywh_to_xyxy(annotation["bbox"])


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
