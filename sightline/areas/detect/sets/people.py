"""Base of the data sets of people: their kinds, of which some are to be found, and the others are ignored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from sightline.areas.detect.sets.label_table import (
    UNKNOWN_SHARE,
    BoxCorners,
    CategoryIds,
    LabelledBox,
    is_valid_box,
    xywh_to_xyxy,
)
from sightline.areas.detect.sets.labelled_images import LabelledImages, ignored_column
from sightline.areas.detect.sets.records import box_facts
from sightline.contract.arguments import FractionBelowOne, NonNegativeFloat, Seed
from sightline.contract.errors import ConfigError, DataError
from sightline.store.prepared.prepared_set import PreparedSet, describe_contents

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


class PeopleImages(LabelledImages):
    """Base of data sets of people: boxes of the chosen kinds are people, all other kinds are ignored.

    A set states its format, its kinds, and which of them are usually found.
    """

    kinds: ClassVar[PeopleKinds]
    usual: ClassVar[tuple[str, ...]] = ("pedestrian",)

    def __init__(
        self,
        *,
        split: str,
        root: str | None = None,
        people: tuple[str, ...] = (),
        box: BoxType = "full",
        scored_box: BoxType = "full",
        clip: bool = False,
        ignore_below_px: NonNegativeFloat = 0.0,
        validation_share: FractionBelowOne = 0.1,
        split_seed: Seed = 0,
    ) -> None:
        self._stored_boxes, self._clip = (box, scored_box), clip
        for kind in self._stored_boxes:
            if kind not in self.label_format.columns:
                stated = ", ".join(name for name in BOX_KEYS if name in self.label_format.columns)
                raise ConfigError(f"box, scored_box: {self.set_name} has no {kind} boxes; it has {stated}")
        if ignored := self.kinds.ignored & {*people}:
            raise ConfigError(f"people: {self.set_name} marks '{min(ignored)}' as not to be found; leave it out")
        super().__init__(
            split=split,
            root=root,
            classes=people or self.usual,
            other_classes="ignored",
            ignore_below_px=ignore_below_px,
            validation_share=validation_share,
            split_seed=split_seed,
        )
        for kind in (box, scored_box):
            _check_has_boxes(self._prepared, kind)
        self.classes = CategoryIds(("person",), (1,))  # one class in all of these sets, which can then be mixed
        self._class_of = np.minimum(self._class_of, 0)
        self.info = dataclasses.replace(self.info, facts=box_facts(self.classes.names, self.box_type))

    def _visible(self, index: int) -> np.ndarray:
        share = self._read_column(index, "visible_share")
        return np.where(share == UNKNOWN_SHARE, np.nan, share)


def _check_has_boxes(prepared: PreparedSet, box: BoxType) -> None:
    """Raise DataError if a person has no box of this kind and is not ignored."""
    for split in prepared.splits:
        is_lacking = ~(prepared.array(split, box).any(axis=1) | prepared.array(split, ignored_column(box)))
        if is_lacking.any():
            row = int(np.searchsorted(prepared.offsets(split), int(is_lacking.argmax()), side="right")) - 1
            raise DataError(
                f"{prepared.root}: {int(is_lacking.sum())} people have no {box} box ({BOX_KEYS[box]}), first in "
                f"'{prepared.names(split)[row]}'; set box and scored_box to another kind"
            )
