"""Neutral form of box labels: sets are prepared from it, and `data convert` writes it in other layouts.

Reader of CrowdHuman annotation files (.odgt, one JSON object per line) and their ignore marks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from sightline.areas.detect.sets.image_listing import AnnotationFaults, CategoryIds
from sightline.contract.errors import DataError
from sightline.contract.regular_files import parse_json
from sightline.store.files.input_files import read_file

BoxType = Literal["full", "visible", "head"]
BOX_KEYS: Mapping[BoxType, str] = {"full": "fbox", "visible": "vbox", "head": "hbox"}
"""Kinds of boxes and their keys in the file; each box is left, top, width, height."""


def read_odgt(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a file. Raises DataError with the line for bad JSON, no ID or gtboxes, or a repeated ID."""
    lines: dict[str, dict[str, Any]] = {}
    for number, text in enumerate(read_file(path).decode("utf-8-sig", "replace").splitlines(), start=1):
        if not text.strip():
            continue
        try:
            line = parse_json(text)
            key, boxes = str(line["ID"]), line["gtboxes"]
            marks = [box.get(mark) or {} for box in boxes for mark in ("extra", "head_attr")]
            if key.startswith("/") or ".." in key.split("/"):
                raise ValueError(f"the ID '{key[:80]}' leads out of the folder")
            if not all(isinstance(mark, dict) and not isinstance(mark.get("ignore"), str) for mark in marks):
                raise TypeError("extra and head_attr must be objects, and their ignore a number")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}:{number}: is not a line of .odgt with ID and gtboxes ({error}); get it again"
            ) from error
        if key in lines:
            raise DataError(f"{path}:{number}: the image '{key}' appears twice; keep one of the lines")
        lines[key] = line
    if not lines:
        raise DataError(f"{path}: contains no lines; the file is empty or damaged")
    return list(lines.values())


def is_ignored(person: Mapping[str, Any], box: BoxType) -> bool:
    """Return True if a box is to be ignored: not a person, or marked `ignore`; head boxes have a mark of their own."""
    marks = [person.get("extra") or {}, (person.get("head_attr") or {}) if box == "head" else {}]
    return person.get("tag") != "person" or any(mark.get("ignore", 0) != 0 for mark in marks)


BoxCorners = tuple[float, float, float, float]
"""Left, top, width and height in pixels of the file; the file's own numbers, integers as int."""


@dataclass(frozen=True)
class LabelledBox:
    """Labelled object: class and up to three boxes (`full`, `visible`, `head`) in pixels of the file.

    `full` also contains the only box of a layout that has one. `kind` is the finer class of sets of people
    (`pedestrian`, `rider`, `crowd`). `extra` contains all other values of the object, by the layout's own names.
    """

    label: str
    boxes: Mapping[BoxType, BoxCorners]
    is_ignored: bool = False
    kind: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def visible_share(self) -> float:
        """Area of the visible box divided by that of the full box, at most 1; NaN if either box is missing."""
        areas = [self.boxes[kind][2] * self.boxes[kind][3] for kind in ("visible", "full") if kind in self.boxes]
        return min(areas[0] / areas[1], 1.0) if len(areas) == 2 and min(areas) > 0 else np.nan


@dataclass(frozen=True)
class LabelledImage:
    """Image with its boxes; `name` is its path relative to the folder of the set, even if the file is missing.

    `size_px` is the height and width that the layout states. `files` are the files that the boxes were read from.
    """

    name: str
    split: str
    boxes: Sequence[LabelledBox]
    path: Path | None
    image_id: int
    size_px: tuple[int, int] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()


class LabelledSet(NamedTuple):
    """Labelled images of a folder, in order; `faults` lists the images and boxes that cannot be used."""

    root: Path
    images: Sequence[LabelledImage]
    faults: AnnotationFaults
    notes: Sequence[str] = ()
    classes: CategoryIds | None = None
