"""Supervisely: projects of data sets with `img/NAME.jpg` and `ann/NAME.jpg.json`, and their classes in `meta.json`."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sightline.store.boxes.label_table import BoxCorners, LabelFormat, LabelledBox, LabelledSet, parse_number
from sightline.store.boxes.label_writing import SPLIT_WORDS
from sightline.store.boxes.tools.boxes import (
    NO_BOX,
    NoBoxError,
    Turn,
    find_bounds,
    make_box,
    parse_numbers,
    parse_points,
    parse_size,
)
from sightline.store.boxes.tools.folders import LabelFolder, LabelReport, StatedImage
from sightline.store.files.input_files import parse_json_content, read_file

_PNG_SIZE_BYTES = 24
"""Bytes of a PNG to the end of its width and height."""
_ASSIGNED = {*SPLIT_WORDS, *SPLIT_WORDS.values()} - {"all", ""}
"""Tags of an image that state its split."""


def read_supervisely(source: Path) -> LabelledSet:
    """Read Supervisely's JSON: a file for each image anywhere below a folder; tags of images, or folders, state splits.

    Raises DataError for a folder without such files.
    """
    folder = LabelFolder(
        source, layout="supervisely", suffixes=(".json",), needs="Supervisely has img/NAME.jpg and ann/NAME.jpg.json"
    )
    folder.lists += [file for file in folder.files if file.name == "meta.json"]
    return folder.read(_read_file)


def _read_file(file: Path, report: LabelReport) -> Iterator[StatedImage]:
    """Yield the image of a file: none of `meta.json`, whose titles are classes, and for JSON of another kind.

    Polygons, bitmaps and turned boxes (by radians, about their middle) become the boxes about them. Raises DataError
    for damaged JSON, ValueError for an impossible size. Source: Supervisely's developer portal, Annotation JSON format.
    """
    document = parse_json_content(read_file(file), where=str(file), advice="export it again")
    stated: Mapping[str, Any] = document if isinstance(document, dict) else {}
    if isinstance(stated.get("classes"), list):
        titles = [
            str(entry.get("title") or "").strip() if isinstance(entry, dict) else "" for entry in stated["classes"]
        ]
        if not all(titles):
            raise ValueError("a class has no title; export the project again")
        report.class_names += titles
        return
    if not (isinstance(stated.get("objects"), list) and isinstance(stated.get("size"), dict)):
        report.habits["JSON files are not about images of Supervisely and are passed over"].append(str(file))
        return
    size_px = parse_size(stated["size"].get("height"), stated["size"].get("width"))
    stated_tags = stated["tags"] if isinstance(stated.get("tags"), list) else []
    tags = [str(tag.get("name", tag) if isinstance(tag, dict) else tag) for tag in stated_tags]
    subset = next((tag for tag in tags if tag.lower() in _ASSIGNED), "")
    report.unread.update(f"tag {tag} of an image"[:80] for tag in tags if tag != subset)
    entries = ((f"{file}: objects[{number}]", entry) for number, entry in enumerate(stated["objects"]))
    yield StatedImage("", size_px, report.collect_boxes(entries, partial(_read_object, report=report)), subset)


def _read_object(item: Mapping[str, Any], *, report: LabelReport) -> LabelledBox:
    label, has_mask = str(item["classTitle"]), isinstance(item.get("bitmap"), dict)
    kind = str(item.get("geometryType") or ("bitmap" if has_mask else "rectangle"))
    if kind not in ("rectangle", "oriented_bbox", "polygon", "bitmap", "alpha_mask"):
        raise NoBoxError(NO_BOX, f"'{label[:40]}' is a {kind[:40]}")
    is_mask = kind in ("bitmap", "alpha_mask")
    corners = _find_mask(item["bitmap"]) if is_mask else find_bounds(parse_points(_list_points(item["points"])))
    turn = Turn(np.rad2deg(parse_number(item.get("angle") or 0)) if kind == "oriented_bbox" else 0)
    corners = turn.turn_box(corners)
    is_box = kind in ("rectangle", "oriented_bbox")
    report.unread.update([] if is_box else [f"{kind}s, but the boxes about them"])
    report.unread.update(f"tag {tag['name']}"[:80] for tag in item.get("tags") or () if isinstance(tag, dict))
    return make_box(label, corners, {}, line=int(item.get("id") or 0), is_turned=not turn.is_upright)


def _list_points(points: Any) -> Any:
    """Return the outline of an object; those of turned boxes are no mapping, but the two corners themselves."""
    return points["exterior"] if isinstance(points, dict) else points


def _find_mask(bitmap: Mapping[str, Any]) -> BoxCorners:
    """Return the box of a mask, a PNG that is cut to it and lies at its `origin`. Raises ValueError for other bytes."""
    try:
        head = zlib.decompressobj().decompress(base64.b64decode(bitmap["data"], validate=True), _PNG_SIZE_BYTES)
        width, height = struct.unpack(">8x4x4xII", head)
    except (struct.error, zlib.error) as error:
        raise ValueError(f"its bitmap is no PNG: {error}") from None
    left, top = parse_numbers(dict(zip(("origin x", "origin y"), bitmap["origin"], strict=True)))
    return left, top, left + width, top + height


SUPERVISELY = LabelFormat(
    read=read_supervisely,
    turns=True,
    known_by={
        ".json": rb'"classTitle"\s*:|"size"\s*:\s*\{[^}]*\}\s*,\s*"objects"\s*:'
        rb'|"classes"\s*:\s*\[\s*\{[^}]*"title"\s*:',
    },
)
