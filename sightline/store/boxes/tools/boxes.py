"""Objects in the files of labelling tools: their shapes, marks and numbers, as boxes of the table of labels."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from sightline.store.boxes.label_table import MAX_PX, BoxCorners, LabelledBox, area_of, is_valid_box

BAD_BOX, NO_BOX = "impossible boxes", "shapes that are no boxes"
"""Kinds of faults: of a box, and of a shape that has none."""
_QUARTER_TURN = 90.0
_SAME_DEGREES = 5e-5
"""Largest difference of angles that are equal: files hold radians with six decimals."""
_CROWD_MARKS = ("iscrowd", "is_crowd")
MARKS = ("difficult", "ignore", *_CROWD_MARKS)
"""Names of a mark of an object that is neither a target nor background; those of crowds are among them."""


OTHER_PLACE = "boxes and their polygons are of different places; the boxes are read"
_SAME_PLACE, _ROUNDING_PX = 0.5, 2.0
"""Smallest IoU of a box and its polygons, and largest difference of their sides, which is rounding."""


def are_apart(box: BoxCorners, other: BoxCorners) -> bool:
    """Return True if boxes have little in common, and differ by more than rounding."""
    if max(map(abs, map(operator.sub, box, other))) <= _ROUNDING_PX:
        return False
    across, down = (min(box[i + 2], other[i + 2]) - max(box[i], other[i]) for i in (0, 1))
    common = max(across, 0.0) * max(down, 0.0)
    return common < _SAME_PLACE * (area_of(box) + area_of(other) - common)


class NoBoxError(ValueError):
    """Object that is no box; `kind` is that of the fault."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Turn:
    """Turn of a shape by an angle in degrees, clockwise where y points down; None is no turn.

    Quarter turns are exact: the sides of a box stay upright. Raises ValueError for anything but a number.
    """

    def __init__(self, degrees: Any) -> None:
        [stated] = parse_numbers({"rotation": degrees or 0})
        quarters = stated / _QUARTER_TURN
        is_quarter = math.isfinite(stated) and abs(quarters - round(quarters)) * _QUARTER_TURN <= _SAME_DEGREES
        radians = math.radians(stated) if math.isfinite(stated) else math.nan
        self._cosine, self._sine = math.cos(radians), math.sin(radians)
        if is_quarter:
            self._cosine, self._sine = [(1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0)][round(quarters) % 4]
        self.is_upright = is_quarter
        """Whether sides are upright after the turn."""

    def turn_box(self, box: BoxCorners) -> BoxCorners:
        """Return the box about the corners of a box that is turned about its middle."""
        left, top, right, bottom = box
        if abs(self._cosine) == 1:
            return box
        x, y, width, height = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
        across = (abs(width * self._cosine) + abs(height * self._sine)) / 2
        down = (abs(width * self._sine) + abs(height * self._cosine)) / 2
        return x - across, y - down, x + across, y + down

    def turn_ellipse(self, x: float, y: float, across: float, down: float) -> BoxCorners:
        """Return the box about an ellipse of these half axes that is turned about its middle."""
        if self.is_upright:
            return self.turn_box((x - across, y - down, x + across, y + down))
        half = (
            math.hypot(across * self._cosine, down * self._sine),
            math.hypot(across * self._sine, down * self._cosine),
        )
        return x - half[0], y - half[1], x + half[0], y + half[1]

    def turn_about_corner(self, left: float, top: float, width: float, height: float) -> BoxCorners:
        """Return the box about the corners of a box that is turned about its upper left one."""
        along, across = (width * self._cosine, width * self._sine), (-height * self._sine, height * self._cosine)
        (x, x_2), (y, y_2) = zip(along, across, strict=True)
        xs, ys = (0.0, x, x_2, x + x_2), (0.0, y, y_2, y + y_2)
        return left + min(xs), top + min(ys), left + max(xs), top + max(ys)


def is_upright(corners: np.ndarray) -> bool:
    """Return True if four corners (4, 2) are those of an upright box."""
    return all(len(np.unique(side)) <= 2 for side in corners.T)


def make_box(
    label: Any,
    corners: BoxCorners,
    marks: Mapping[str, Any] = MappingProxyType({}),
    *,
    line: int = 0,
    head: BoxCorners | None = None,
    is_turned: bool = False,
) -> LabelledBox:
    """Return a box of left, top, right and bottom; marks called ignore, difficult, iscrowd or is_crowd make it ignored.

    Raises ValueError without a label, for an impossible box, and for a mark but 0 and 1, false and true.
    """
    if not isinstance(label, str) or not label.strip():
        raise ValueError("it has no label")
    stated = {name: str(marks.get(name) or 0).strip().lower() for name in MARKS}
    if unknown := [name for name, mark in stated.items() if mark not in ("0", "1", "false", "true")]:
        raise ValueError(f"{unknown[0]} is '{stated[unknown[0]][:40]}'; it is 0 or 1, false or true")
    is_set = {name for name, mark in stated.items() if mark in ("1", "true")}
    is_ignored, is_crowd = bool(is_set), not is_set.isdisjoint(_CROWD_MARKS)
    for box in (corners, head or corners):
        if not is_valid_box(box, is_ignored=is_ignored):
            stated_corners = ", ".join(f"{corner:g}" for corner in box)
            needed = f"width and height above 0, and numbers of pixels up to {MAX_PX:,}, are needed"
            raise ValueError(f"its sides are at {stated_corners} (left, top, right, bottom); {needed}")
    marks_of_box = {"is_ignored": is_ignored, "is_crowd": is_crowd, "is_turned": is_turned}
    return LabelledBox(label.strip(), corners, None, head, line=line, **marks_of_box)


_BEYOND_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold."""


def fit_label(box: LabelledBox) -> LabelledBox | str:
    """Return a box whose class name is text in one line, as files of tools hold it; or why there is none."""
    name = " ".join(box.class_name.split())
    if not name or _BEYOND_XML.search(name):
        return "boxes of a class whose name is no text"
    return box._replace(class_name=name)


def state_marks(box: LabelledBox) -> dict[str, bool]:
    """Return the marks by which `make_box` reads whether a box is ignored or a crowd."""
    return {"ignore": box.is_ignored and not box.is_crowd, "iscrowd": box.is_crowd}


def find_bounds(points: np.ndarray) -> BoxCorners:
    """Return the box about points (P, 2)."""
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return left, top, right, bottom


def parse_points(points: Sequence[Sequence[Any]]) -> np.ndarray:
    """Return points (P, 2) float64. Raises ValueError for fewer than two, and for coordinates beyond `MAX_PX`."""
    parsed = np.array(points, dtype=np.float64)
    if parsed.ndim != 2 or parsed.shape[1] != 2 or len(parsed) < 2 or not (abs(parsed) <= MAX_PX).all():
        raise ValueError("two or more points of x and y are needed, in pixels")
    return parsed


def parse_size(height: Any, width: Any) -> tuple[int, int] | None:
    """Return the stated height and width; None if they are missing or 0. Raises ValueError for no whole numbers."""
    sides = parse_numbers({"height": height or 0, "width": width or 0})
    if not all(side.is_integer() and 0 <= side <= MAX_PX for side in sides):
        raise ValueError(f"the size {str(width)[:40]} x {str(height)[:40]} is not one of whole pixels")
    return (int(sides[0]), int(sides[1])) if min(sides) > 0 else None


def parse_numbers(values: Mapping[str, Any]) -> list[float]:
    """Parse numbers by their name. Raises ValueError with the name for anything else."""
    numbers = []
    for name, value in values.items():
        try:
            numbers.append(float(value))
        except (OverflowError, TypeError, ValueError):
            raise ValueError(f"{name} is '{str(value)[:40]}', a number is needed") from None
    return numbers
