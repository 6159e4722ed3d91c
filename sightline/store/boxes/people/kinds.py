"""Base of the data sets of people: their kinds, of which some are to be found, and the others are ignored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from sightline.contract.errors import DataError
from sightline.store.boxes.label_table import (
    BoxCorners,
    CategoryIds,
    LabelledBox,
    is_valid_box,
    xywh_to_xyxy,
)
from sightline.store.prepared.prepared_set import describe_contents

BAD_BOX = "impossible boxes"
BAD_IMAGE, BAD_FILE = "images that are missing or damaged", "annotation files that are missing or damaged"
"""Kinds of faults."""
COLUMNS = ("full", "label", "is_ignored", "visible_share")
"""Stored columns of a person with one box."""
BoxType = Literal["full", "visible", "head"]
BOX_KEYS: Mapping[BoxType, str] = {"full": "fbox", "visible": "vbox", "head": "hbox"}
"""Kinds of boxes and their keys in .odgt files; each box is left, top, width, height."""


class PeopleKinds(NamedTuple):
    """Kinds of people and their codes in a set's files; those in `ignored` are not to be found, `crowds` are groups."""

    codes: Mapping[str, int | str]
    ignored: frozenset[str] = frozenset()
    crowds: frozenset[str] = frozenset()

    def name_of_code(self, code: Any) -> str | None:
        """Return the kind of a code, or None for another one."""
        return next((kind for kind, kind_code in self.codes.items() if kind_code == code), None)

    @property
    def classes(self) -> CategoryIds:
        """Kinds as classes; the ids are the codes, or count from 1 where these are words."""
        ids = tuple(code if isinstance(code, int) else n for n, code in enumerate(self.codes.values(), start=1))
        return CategoryIds(tuple(self.codes), ids)


_PEOPLE = {
    "people": "person",
    "cyclist": "rider",
    "bicyclist": "rider",
    "person_sitting": "sitting",
    **{name: name for name in ("person", "pedestrian", "rider", "sitting", "other", "partially_visible")},
}
"""Class name in lower case → kind of person; classes of other names are no people."""
_REGIONS = frozenset({"ignored_region", "crowd", "rider_crowd", "dontcare"})
"""Class names in lower case of ignored regions in which people may be."""


def fit_person(box: LabelledBox, kinds: PeopleKinds) -> LabelledBox | str:
    """Return an object as the nearest kind of person, or of ignored region; a text for one that is no person."""
    name = box.class_name.lower().replace(" ", "_")
    usual = next(kind for kind in kinds.codes if kind not in kinds.ignored)
    if name not in _PEOPLE and not (name in _REGIONS and box.is_ignored):
        return f"boxes of the class {box.class_name}"
    if box.is_ignored and kinds.ignored:
        regions = (kinds.crowds if box.is_crowd else kinds.ignored - kinds.crowds) or kinds.ignored
        kind = name if name in regions else next(kind for kind in kinds.codes if kind in regions)
        return box._replace(class_name=kind, is_crowd=kind in kinds.crowds)
    kind = _PEOPLE.get(name, usual)
    return box._replace(class_name=kind if kind in kinds.codes else usual)


def parse_finite(value: Any) -> float:
    """Parse a finite number. Raises ValueError, TypeError, OverflowError (too large)."""
    number = float(value)
    if not np.isfinite(number):
        raise ValueError(f"{value!r} is not finite")
    return number


def to_corners(box: BoxCorners, *, is_ignored: bool) -> BoxCorners:
    """Return left, top, right, bottom of left, top, width, height. Raises ValueError if out of range, or empty."""
    corners = xywh_to_xyxy(box)
    if not is_valid_box(corners, is_ignored=is_ignored):
        raise ValueError("width and height above 0 are needed")
    return corners


def layout_error(root: Path, needed: str, set_title: str) -> DataError:
    """Return the error of a folder in another layout."""
    return DataError(f"{root}: {describe_contents(root)}; {set_title} has {needed}: give the folder with them")
