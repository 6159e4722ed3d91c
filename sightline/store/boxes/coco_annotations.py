"""Annotations of COCO instances: their boxes, marks and areas, and what is wrong with them."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from sightline.store.boxes.label_table import (
    MAX_PX,
    AnnotationFaults,
    BoxCorners,
    CategoryIds,
    LabelledBox,
    area_of,
    is_valid_box,
    parse_number,
    xywh_to_xyxy,
)
from sightline.store.boxes.tools.boxes import OTHER_PLACE, Turn, are_apart

_PART_KEYS = frozenset({"vbox", "hbox", "vis_ratio", "head_attr"})
_ANNOTATION_KEYS = _PART_KEYS | {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "ignore", "fbox", "height"}
_MAX_DIGITS = 20
_SAME_SHARE = 1e-9
"""Largest difference of a visible share from that of the boxes, which are written with nine decimals."""
_UNPLACED = "annotations of images that are not in the file"
_UNKNOWN, _IMPOSSIBLE = "boxes of unknown categories", "impossible boxes"
_MAX_AREA, _MIN_AREA = 1.5, 0.01
"""Largest and smallest area of a mask, as a share of its box (of whole pixels), that does not contradict it."""
_OTHER_AREA = "areas contradict their boxes by far, and decide which boxes are small, medium and large"


class _Annotation(NamedTuple):
    """Annotation with a category, and an id or -1; the line of its box is its place in the list."""

    category: int
    number: int
    box: LabelledBox


class CocoBoxes:
    """Boxes of a file by the id of their image, and faults, which wait for the names of their images."""

    def __init__(self) -> None:
        self.categories: set[int] = set()
        self.unread = Counter[str]()
        self.num_text_ids = 0
        self._num_annotations = 0
        self._boxes: defaultdict[int, list[_Annotation]] = defaultdict(list)
        self._faults: list[tuple[int, int, str, str]] = []  # place, id of the image, kind, text
        self._doubts: list[tuple[int, int, str, str]] = []

    def add(self, annotation: Any) -> None:
        """Add the box of the next annotation, or what is wrong with it."""
        stated: Mapping[str, Any] = annotation if isinstance(annotation, dict) else {}
        self.num_text_ids += isinstance(stated.get("image_id"), str) or isinstance(stated.get("category_id"), str)
        image_id, category, number = _get_id(stated, "image_id"), _get_id(stated, "category_id"), _get_id(stated, "id")
        index, self._num_annotations = self._num_annotations, self._num_annotations + 1
        self.categories.add(category)
        if not stated.keys() <= _ANNOTATION_KEYS:
            for key in stated.keys() - _ANNOTATION_KEYS:
                self.unread[key] += bool(stated[key])
        if image_id < 0 or category < 0:
            key = "image_id" if image_id < 0 else "category_id"
            kind = _UNPLACED if image_id < 0 else _UNKNOWN
            text = f"{_describe_id(stated, key)}: {_name_annotation(index, number)} is {str(annotation)[:80]}"
            self._faults.append((index, image_id, kind, text))
            return
        try:
            corners, is_ignored, turn = _read_box(stated), _is_marked(stated), _read_turn(stated)
            turned = corners if turn is None else turn.turn_box(corners)
            area = area_of(turned) if stated.get("area") is None else _read_area(stated)
            _check_extent(turned, is_ignored=is_ignored)
        except (ArithmeticError, LookupError, TypeError, ValueError):
            text = f"{_name_annotation(index, number)}: {_find_fault(stated)}"
            self._faults.append((index, image_id, _IMPOSSIBLE, text))
            return
        is_crowd = is_ignored and bool(stated.get("iscrowd")) and not stated.get("ignore")
        stated_area = None if area == area_of(turned) else area
        is_turned = turn is not None and not turn.is_upright
        box = LabelledBox("", turned, None, None, is_ignored, False, is_crowd, None, stated_area, index, is_turned)
        box = box if stated.keys().isdisjoint(_PART_KEYS) else _add_parts(box, stated)
        self._boxes[image_id].append(_Annotation(category, number, box))
        segmentation = stated.get("segmentation")
        if not (is_ignored or is_turned) and (segmentation or stated_area is not None):
            for kind, text in _find_contradictions(corners, stated_area, segmentation):
                self._doubts.append((index, image_id, kind, f"{_name_annotation(index, number)}: {text}"))

    def assign(
        self, names: Mapping[int, str], classes: CategoryIds, faults: AnnotationFaults
    ) -> dict[int, list[LabelledBox]]:
        """Add faults, and return the boxes of every image by its id, in their order. `names` are those of images."""
        class_names = dict(zip(classes.ids, classes.names, strict=True))
        for image_id, rows in self._boxes.items():
            for annotation in rows:
                if image_id not in names or annotation.category not in class_names:
                    is_placed, index = image_id in names, annotation.box.line
                    text = f"has the category {annotation.category}" if is_placed else f"has the image_id {image_id}"
                    text = f"{_name_annotation(index, annotation.number)} {text}"
                    self._faults.append((index, image_id, _UNKNOWN if is_placed else _UNPLACED, text))
        for _, image_id, kind, text in sorted(self._faults):
            where = f"{names[image_id]}: " if image_id in names else ""
            faults.add(kind if where else _UNPLACED, where + text)
        return {
            image_id: [
                LabelledBox(class_names[annotation.category], *annotation.box[1:])
                for annotation in rows
                if annotation.category in class_names
            ]
            for image_id, rows in self._boxes.items()
        }

    def list_notes(self, names: Mapping[int, str], *, trusts_areas: bool) -> list[str]:
        """Return notes on annotations that contradict themselves, with their count and the first of each kind."""
        doubts: defaultdict[str, list[str]] = defaultdict(list)
        for _, image_id, kind, text in self._doubts:
            if trusts_areas or kind != _OTHER_AREA:
                doubts[kind].append(f"{names.get(image_id, image_id)}: {text}")
        advice = {_OTHER_AREA: "; areas=boxes takes the areas of the boxes", OTHER_PLACE: ""}
        return [f"{len(texts)} {kind}{advice[kind]}, first: {texts[0]}" for kind, texts in doubts.items()]


def _find_contradictions(box: BoxCorners, area: float | None, segmentation: Any) -> Iterator[tuple[str, str]]:
    """Yield kind and text of an area that no mask in the box has, and of polygons that lie elsewhere.

    `area` is None where it is that of the box.
    """
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    if area is not None and not _MIN_AREA * width * height <= area <= _MAX_AREA * (width + 1) * (height + 1):
        yield _OTHER_AREA, f"area is {area:g}, of a box of {width:g} x {height:g}"
    if segmentation and isinstance(segmentation, list):
        with contextlib.suppress(TypeError, ValueError):
            points = segmentation[0] if len(segmentation) == 1 else list(itertools.chain(*segmentation))
            columns, rows = points[::2], points[1::2]
            about = min(columns), min(rows), max(columns), max(rows)
            if are_apart(box, about):
                sides = ", ".join(f"{side:g}" for side in (left, top, width, height))
                yield OTHER_PLACE, f"bbox is {sides}, the box about the polygons {', '.join(f'{s:g}' for s in about)}"


def _add_parts(box: LabelledBox, stated: Mapping[str, Any]) -> LabelledBox:
    """Add the visible box, head and visible share that an annotation may state; what is no box is left out."""
    with contextlib.suppress(AttributeError, ArithmeticError, TypeError, ValueError):
        visible, head = (None if stated.get(key) is None else xywh_to_xyxy(stated[key]) for key in ("vbox", "hbox"))
        is_head_ignored = (stated.get("head_attr") or {}).get("ignore", 0) != 0
        box = box._replace(visible=visible, head=head, is_head_ignored=is_head_ignored)
        share = stated.get("vis_ratio")
        if share is not None and (box.share is None or abs(box.share - parse_number(share)) > _SAME_SHARE):
            box = box._replace(visible_share=min(max(parse_number(share), 0.0), 1.0))
    return box


def _name_annotation(index: int, number: int) -> str:
    return f"annotations[{index}]" if number < 0 else f"annotation {number}"


def _is_marked(annotation: Mapping[str, Any]) -> bool:
    """Return True if an annotation is marked as ignored (iscrowd, ignore). Raises TypeError for a mark that is text."""
    marks = annotation.get("iscrowd"), annotation.get("ignore")
    return any(marks) and any([mark is True or parse_number(mark) != 0 for mark in marks if mark])


def _read_box(annotation: Mapping[str, Any]) -> BoxCorners:
    """Return left, top, right, bottom of the bbox. Raises LookupError, ValueError, TypeError without one."""
    if not annotation.get("bbox"):
        raise ValueError("there is no bbox; export boxes beside masks and polygons")
    return xywh_to_xyxy(annotation["bbox"])


def _read_turn(annotation: Mapping[str, Any]) -> Turn | None:
    """Return the turn of a box that CVAT states, None without one. Raises ValueError for anything but a number."""
    attributes = annotation.get("attributes")
    turn = attributes.get("rotation") if isinstance(attributes, dict) else None
    return Turn(turn) if turn else None


def _read_area(annotation: Mapping[str, Any]) -> float:
    """Return the stated area. Raises ValueError, TypeError or OverflowError for anything but a number of pixels."""
    area = parse_number(annotation["area"])
    if not abs(area) <= MAX_PX**2:
        raise ValueError(f"a number of pixels up to {MAX_PX:,}, squared, is needed")
    return area


def _check_extent(box: BoxCorners, *, is_ignored: bool) -> None:
    if not is_valid_box(box, is_ignored=is_ignored):
        raise ValueError(f"width and height above 0, and numbers of pixels up to {MAX_PX:,}, are needed")


def _find_fault(annotation: Mapping[str, Any]) -> str:
    """Describe the first value of an annotation that cannot be read, by its key."""

    def check_box(stated: Mapping[str, Any]) -> None:
        _check_extent(_read_box(stated), is_ignored=_is_marked(stated))

    readers: dict[str, Callable[[Mapping[str, Any]], object]] = {
        "bbox": _read_box,
        "iscrowd": lambda stated: _is_marked({"iscrowd": stated.get("iscrowd")}),
        "ignore": lambda stated: _is_marked({"ignore": stated.get("ignore")}),
        "attributes": _read_turn,
        "area": lambda stated: _read_area(stated) if stated.get("area") is not None else None,
    }
    for key, read in [*readers.items(), ("bbox", check_box)]:
        try:
            read(annotation)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            return f"{key} is {str(annotation.get(key, 'missing'))[:160]} ({error})"
    return f"bbox is {str(annotation.get('bbox'))[:160]}, beyond {MAX_PX:,} pixels after its turn"


def _get_id(annotation: Mapping[str, Any], key: str) -> int:
    """Return the id under `key` as an integer, or -1, which is never an id, for anything else."""
    value = annotation.get(key)
    if type(value) is int and 0 <= value < 2**63:
        return value
    try:
        return parse_id(value)
    except (TypeError, ValueError):
        return -1


def _describe_id(annotation: Mapping[str, Any], key: str) -> str:
    """Describe an id that is none: that it is missing, with keys of similar names, or what it is."""
    if key not in annotation:
        similar = ", ".join(sorted(str(name)[:40] for name in annotation if str(name).endswith("_id")))
        return f"{key} is missing" + (f", there is {similar}" if similar else "")
    value = annotation[key]
    return f"{key} is null" if value is None else f"{key} is {str(value)[:40]!r}, no whole number"


def parse_id(value: Any) -> int:
    """Return an id as int; digits in text are the number.

    Raises ValueError for anything but a whole number from 0 to 2^63.
    """
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < _MAX_DIGITS:
        value = int(value)
    if isinstance(value, bool | str) or not 0 <= value < 2**63 or int(value) != value:
        raise ValueError(f"{value!r} is not a whole number")
    return int(value)
