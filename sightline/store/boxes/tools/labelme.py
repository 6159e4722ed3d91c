"""LabelMe: images with a JSON file of shapes each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sightline.store.boxes.label_table import BoxCorners, Files, LabelFormat, LabelledBox, LabelledSet, parse_number
from sightline.store.boxes.label_writing import json_bytes, plain
from sightline.store.boxes.tools.boxes import (
    BAD_BOX,
    MARKS,
    NO_BOX,
    find_bounds,
    fit_label,
    is_upright,
    make_box,
    parse_points,
    parse_size,
    state_marks,
)
from sightline.store.boxes.tools.folders import LabelReport, StatedImage, label_reader, path_in_split
from sightline.store.files.input_files import parse_json_content, read_file

_VERSION = "5.2.1"
"""Version of LabelMe whose files are written."""


def _find_circle_bounds(points: np.ndarray) -> BoxCorners:
    (x, y), radius = points[0].tolist(), float(np.hypot(*(points[1] - points[0])))
    return x - radius, y - radius, x + radius, y + radius


_SHAPES: Mapping[str, Callable[[np.ndarray], BoxCorners]] = {
    "rectangle": find_bounds,
    "polygon": find_bounds,
    "rotation": find_bounds,
    "quadrilateral": find_bounds,
    "circle": _find_circle_bounds,
    "mask": lambda points: find_bounds(np.add(points, [[0, 0], [1, 1]])),
}
"""Type of shape of LabelMe → the box about its points; those of a mask are its first and last pixel.

A `rotation` of X-AnyLabeling has the four corners of a turned box.
"""


@label_reader(
    layout="labelme", suffixes=(".json",), needs="LabelMe has NAME.json with shapes and imagePath beside NAME.jpg"
)
def read_labelme(file: Path, report: LabelReport) -> Iterator[StatedImage]:
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
    flags = document.get("flags")
    if isinstance(flags, dict):
        report.unread.update(f"flag {name} of an image"[:80] for name, is_set in flags.items() if is_set)
    yield StatedImage(str(document.get("imagePath") or ""), size_px, boxes)


def _read_shapes(shapes: Sequence[Any], file: Path, report: LabelReport) -> Iterator[LabelledBox]:
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
            is_turned = kind == "rotation" and not is_upright(points)
            marks = {**flags, **shape}
            box = make_box(shape["label"], _SHAPES[kind](points), marks, line=number, is_turned=is_turned)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            report.faults.add(BAD_BOX, f"{where}: {str(shape)[:120]} ({error})")
            continue
        report.unread.update(f"flag {name}"[:80] for name in flags.keys() - {*MARKS} if flags[name])
        report.unread.update(["description"] if shape.get("description") else [])
        report.unread.update([] if kind in ("rectangle", "rotation") else [f"{kind}s, but the boxes about them"])
        key = number if group is None else (box.class_name, str(group))
        if (first := groups.get(key)) is not None:
            report.habits["shapes are parts of an object by their group_id, in the box about all"].append(where)
            corners = find_bounds(np.reshape([box.box, first.box], (4, 2)))
            is_ignored, is_crowd = box.is_ignored and first.is_ignored, box.is_crowd and first.is_crowd
            is_turned = box.is_turned or first.is_turned
            box = first._replace(box=corners, is_ignored=is_ignored, is_crowd=is_crowd, is_turned=is_turned)
        groups[key] = box
    yield from groups.values()


def write_labelme(labels: LabelledSet) -> Files:
    """Yield a JSON file beside each image, whose rectangles have flags where they are ignored, or crowds."""
    for image in labels.images:
        assert image.size_px is not None
        height, width = image.size_px
        document: dict[str, Any] = {
            "version": _VERSION,
            "flags": {},
            "shapes": [_state_shape(box) for box in image.boxes],
            "imagePath": PurePosixPath(image.name).name,
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        yield f"{os.path.splitext(image.name)[0]}.json", json_bytes(document)


def _state_shape(box: LabelledBox) -> dict[str, Any]:
    assert box.box is not None
    left, top, right, bottom = map(plain, box.box)
    flags = {name: True for name, is_set in state_marks(box).items() if is_set}
    points = [[left, top], [right, bottom]]
    return {"label": box.class_name, "points": points, "group_id": None, "shape_type": "rectangle", "flags": flags}


LABELME = LabelFormat(
    read=read_labelme,
    turns=True,
    write=write_labelme,
    image_path=lambda image: path_in_split(image.name, image.split),
    holds=frozenset({"is_ignored", "is_crowd", "size", "undivided"}),
    fit=lambda box, _: fit_label(box),
    known_by={".json": rb'"shapes"\s*:'},
)
