"""One form for the labels of every layout of images with boxes: sets are prepared from it, `convert` writes it."""

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
"""Left, top, width and height in pixels of the file, the numbers as the file has them, whole ones as int."""


@dataclass(frozen=True)
class LabelledBox:
    """A box with its class; `boxes` has `full`, or the only one that a layout has, and perhaps `visible` and `head`.

    `kind` is the finer class of sets of people (`pedestrian`, `rider`, `crowd`). `own` is whatever else a layout states
    of it, by the name that the layout uses.
    """

    label: str
    boxes: Mapping[BoxType, BoxCorners]
    is_ignored: bool = False
    kind: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def visible_share(self) -> float:
        """Area of the visible box over that of the full one, at most 1; NaN where one of them is not stated."""
        areas = [self.boxes[kind][2] * self.boxes[kind][3] for kind in ("visible", "full") if kind in self.boxes]
        return min(areas[0] / areas[1], 1.0) if len(areas) == 2 and min(areas) > 0 else np.nan


@dataclass(frozen=True)
class LabelledImage:
    """An image with its boxes; `name` is its path below the folder of the set, whether it is there or not.

    `size_px` is the height and width that the layout states. `files` are those that the boxes come from.
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
    """All images that the labels below `root` are about, in order; what cannot be used is among the faults."""

    root: Path
    images: Sequence[LabelledImage]
    faults: AnnotationFaults
    notes: Sequence[str] = ()
    classes: CategoryIds | None = None
