"""LabelMe: images with a JSON file of shapes each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sightline.areas.detect.sets.label_table import BoxCorners, LabelFormat, LabelledBox, LabelledSet, parse_number
from sightline.areas.detect.sets.labelled_images import LabelledImages
from sightline.areas.detect.sets.tool_boxes import (
    BAD_BOX,
    MARKS,
    NO_BOX,
    find_bounds,
    make_box,
    parse_points,
    parse_size,
)
from sightline.areas.detect.sets.tool_folders import Tool, ToolFolder, ToolImage, ToolReport
from sightline.contract import registry
from sightline.store.files.input_files import parse_json_content, read_file
from sightline.store.prepared.prepared_data import SetSpec

_LABELME = Tool("labelme", ".json", "LabelMe has NAME.json with shapes and imagePath beside NAME.jpg")


def read_labelme(source: Path) -> LabelledSet:
    """Read LabelMe: a JSON file for each image, anywhere below a folder, whose folders state the splits.

    Raises DataError for a folder without such files.
    """
    return ToolFolder(source, _LABELME).read(_read_file, {})


def _find_circle_bounds(points: np.ndarray) -> BoxCorners:
    (x, y), radius = points[0].tolist(), float(np.hypot(*(points[1] - points[0])))
    return x - radius, y - radius, x + radius, y + radius


_SHAPES: Mapping[str, Callable[[np.ndarray], BoxCorners]] = {
    "rectangle": find_bounds,
    "polygon": find_bounds,
    "circle": _find_circle_bounds,
    "mask": lambda points: find_bounds(np.add(points, [[0, 0], [1, 1]])),
}
"""Type of shape of LabelMe → the box about its points; those of a mask are its first and last pixel."""


def _read_file(file: Path, report: ToolReport) -> Iterator[ToolImage]:
    """Yield the image of a LabelMe file: none for JSON of another kind.

    Rectangles, polygons, circles and masks become the boxes about them; those with a label and a `group_id` are one
    object. A flag of a shape that is called as one of `MARKS` is that mark. Raises DataError for damaged JSON,
    ValueError for an impossible size. Source: the files that LabelMe 5 writes.
    """
    document = parse_json_content(read_file(file), where=str(file), advice="save it again")
    if not (isinstance(document, dict) and isinstance(document.get("shapes"), list)):
        report.habits["JSON files are not of LabelMe and are passed over"].append(str(file))
        return
    size_px = parse_size(document.get("imageHeight"), document.get("imageWidth"))
    boxes = tuple(_read_shapes(document["shapes"], file, report))
    yield ToolImage(str(document.get("imagePath") or ""), size_px, boxes)


def _read_shapes(shapes: Sequence[Any], file: Path, report: ToolReport) -> Iterator[LabelledBox]:
    groups: dict[object, LabelledBox] = {}
    for number, shape in enumerate(shapes):
        where = f"{file}: shapes[{number}]"
        try:
            kind, group = shape.get("shape_type") or "polygon", shape.get("group_id")
            if not isinstance(kind, str) or kind not in _SHAPES:
                text = f"{where}: '{str(shape.get('label'))[:40]}' is a {str(kind)[:40]}"
                report.faults.add(NO_BOX, text)
                continue
            points = parse_points([[parse_number(value) for value in point] for point in shape["points"]])
            flags = dict(shape.get("flags") or {})
            box = make_box(shape["label"], _SHAPES[kind](points), {**flags, **shape}, line=number)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            report.faults.add(BAD_BOX, f"{where}: {str(shape)[:120]} ({error})")
            continue
        report.unread.update(f"flag {name}"[:80] for name in flags.keys() - {*MARKS} if flags[name])
        report.unread.update(["description"] if shape.get("description") else [])
        key = number if group is None else (box.class_name, str(group))
        if (first := groups.get(key)) is not None:
            report.habits["shapes are parts of an object by their group_id, in the box about all"].append(where)
            corners = find_bounds(np.reshape([box.box, first.box], (4, 2)))
            is_ignored, is_crowd = box.is_ignored and first.is_ignored, box.is_crowd and first.is_crowd
            marks = {"is_ignored": is_ignored, "is_head_ignored": is_ignored, "is_crowd": is_crowd}
            box = first._replace(box=corners, **marks)
        groups[key] = box
    yield from groups.values()


@registry.data.add("labelme")
class LabelMe(LabelledImages):
    """Images with boxes in LabelMe's JSON, prepared by `sightline data prepare labelme`.

    `classes` chooses some by name, in this order; boxes of the others are left out or ignored. Polygons, circles and
    masks become the boxes about them. Boxes narrower or lower than `ignore_below_px` pixels of the file are ignored.
    Where folders state no test part, `tested` are beginnings of names, or `test_share` is tested. Source: the user's
    files; the format is that of LabelMe (Wada).
    """

    spec, label_format = SetSpec(name="labelme"), LabelFormat(read=read_labelme)
