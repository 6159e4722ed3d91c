"""Data sets of people: their kinds, of which some are to be found, and the others are ignored."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from sightline.contract import registry
from sightline.contract.arguments import FractionBelowOne, NonNegativeFloat, Seed
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.types import DataInfo
from sightline.store.box_fields import BOX_FIELDS
from sightline.store.boxes.label_table import UNKNOWN_SHARE, CategoryIds
from sightline.store.boxes.labelled_images import LabelledImages, ignored_column
from sightline.store.boxes.people import citypersons, crowdhuman, ecp, widerperson
from sightline.store.boxes.people.kinds import BOX_KEYS, BoxType, PeopleKinds
from sightline.store.boxes.records import box_facts
from sightline.store.prepared.prepared_data import SetSpec
from sightline.store.prepared.prepared_set import PreparedSet


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


@registry.data.add("citypersons")
class CityPersons(PeopleImages):
    """People in the images of Cityscapes, prepared by `sightline data prepare citypersons`.

    `people` are the kinds to be found (left out: `pedestrian`; `rider`, `sitting`, `other`), as one class `person`; the
    others are ignored. `box` are trained on, `scored_box` are scored. Boxes
    narrower or lower than `ignore_below_px` pixels are ignored, too. The published validation images are the test part.
    Source: Zhang et al. 2017, CityPersons.
    """

    spec = SetSpec(name="citypersons")
    label_format = citypersons.CITYPERSONS
    kinds = citypersons.KINDS


@registry.data.add("crowdhuman")
class CrowdHuman(PeopleImages):
    """Images of crowds, prepared by `sightline data prepare crowdhuman`.

    `box` are the boxes that are trained on, `scored_box` those that are scored. What is not a person, or is marked so,
    is ignored; a head also by its own mark; boxes narrower or lower than `ignore_below_px` pixels, too. Full boxes
    reach beyond the image and may have negative corners: they are kept as they are, unless `clip` cuts those that are
    trained on. The published validation images are the test part. Source: Shao et al. 2018, CrowdHuman.
    """

    spec = SetSpec(name="crowdhuman")
    label_format = crowdhuman.CROWDHUMAN
    kinds = crowdhuman.KINDS
    usual = ("person",)

    def _visible(self, index: int) -> np.ndarray:
        """Return the visible share (G,) float64 of each person: area of the visible over the full box, at most 1."""
        boxes = (self._read_column(index, name) for name in ("visible", "full"))
        visible, full = ((corners[:, 2:] - corners[:, :2]).prod(axis=1) for corners in boxes)
        has_share = (visible > 0) & (full > 0) & ~self._read_column(index, "is_ignored")
        return np.divide(visible, full, out=np.full(len(full), np.nan), where=has_share).clip(max=1)

    @classmethod
    def expected_info(cls, *, scored_box: BoxType = "full") -> DataInfo:
        """Return the DataInfo expected before preparation, without counts."""
        return DataInfo(box_facts(("person",), scored_box), BOX_FIELDS)


@registry.data.add("ecp")
class EuroCityPersons(PeopleImages):
    """Images of 31 cities by day and by night, prepared by `sightline data prepare ecp`.

    `people` are the kinds to be found (left out: `pedestrian`; `rider`), as one class `person`; the others are ignored,
    as are pedestrians who sit, lie or are behind glass, and boxes narrower or
    lower than `ignore_below_px` pixels. The share that is visible comes from the tags. The published validation images
    are the test part. Source: Braun et al. 2019, EuroCity Persons.
    """

    spec = SetSpec(name="ecp")
    label_format = ecp.ECP
    kinds = ecp.KINDS


@registry.data.add("widerperson")
class WiderPerson(PeopleImages):
    """Images of people in many places, prepared by `sightline data prepare widerperson`.

    `people` are the kinds to be found (left out: `pedestrian`, `rider`, `partially_visible`), as one class
    `person`; the others are ignored. Boxes narrower or lower than `ignore_below_px` pixels are ignored, too. The
    published validation images are the test part. Source: Zhang et al. 2019, WiderPerson.
    """

    spec = SetSpec(name="widerperson")
    label_format = widerperson.WIDERPERSON
    kinds = widerperson.KINDS
    usual = ("pedestrian", "rider", "partially_visible")
