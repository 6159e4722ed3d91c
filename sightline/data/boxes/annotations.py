"""Neutral form of box labels: sets are prepared from it, and `data convert` writes it in other layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sightline.data.boxes.image_listing import AnnotationFaults, CategoryIds
from sightline.data.boxes.odgt import BoxType

__all__ = ["BoxCorners", "LabelledBox", "LabelledImage", "LabelledSet"]

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
