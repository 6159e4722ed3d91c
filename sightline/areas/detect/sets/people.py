"""WiderPerson, CityPersons and EuroCity Persons: images with boxes of people of several kinds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from sightline.areas.detect.sets.annotations import LabelledBox, LabelledSet
from sightline.areas.detect.sets.image_listing import (
    AnnotationFaults,
    CategoryIds,
    ListedImage,
    ListedImageSet,
    Values,
    box_column,
    xywh_to_xyxy,
)
from sightline.areas.detect.sets.labelled_images import BoxColumns, ListedLabels, SplitRule
from sightline.areas.detect.sets.people_files import (
    CITYPERSONS,
    ECP,
    WIDERPERSON,
    PersonCategories,
    ecp_visible_share,
    read_citypersons,
    read_ecp,
    read_widerperson,
)
from sightline.areas.detect.sets.records import BoxForm, box_facts
from sightline.contract import registry
from sightline.contract.arguments import FractionBelowOne, NonNegativeFloat, Seed
from sightline.contract.errors import ConfigError
from sightline.store.prepared.prepared_data import SetSpec
from sightline.store.prepared.prepared_set import PreparedSet

_UNKNOWN = -1.0
"""Stored value of an unknown visible share: prepared columns must be finite."""


class _People(ListedLabels):
    """Base of data sets of people: boxes of the chosen kinds are people, all other kinds are ignored."""

    kinds: ClassVar[PersonCategories]
    read_labels: ClassVar[staticmethod[[Path], LabelledSet]]
    has_visible: ClassVar[bool] = False
    form: ClassVar[BoxForm] = "two corners"
    usual: ClassVar[tuple[str, ...]] = ("pedestrian",)

    def __init__(
        self,
        *,
        split: str,
        root: str | None = None,
        people: tuple[str, ...] = (),
        apart: bool = False,
        clip: bool = False,
        ignore_below_px: NonNegativeFloat = 0.0,
        validation_share: FractionBelowOne = 0.1,
        split_rule: SplitRule = "seeded",
        split_seed: Seed = 0,
    ) -> None:
        self._clip = clip
        if ignored := self.kinds.ignored & {*people}:
            raise ConfigError(f"people: {self.set_name} marks '{min(ignored)}' as not to be found; leave it out")
        super().__init__(
            split=split,
            root=root,
            classes=people or self.usual,
            other_classes="ignored",
            ignore_below_px=ignore_below_px,
            validation_share=validation_share,
            split_rule=split_rule,
            split_seed=split_seed,
        )
        if not apart:  # one class, as CrowdHuman has it: the sets can then be mixed
            self.classes = CategoryIds(("person",), (1,))
            self._class_of = np.minimum(self._class_of, 0)
            facts = box_facts(self.classes.names, self._columns.box_type)
            self.info = dataclasses.replace(self.info, facts=facts)

    def _columns_in(self, prepared: PreparedSet) -> BoxColumns:
        return BoxColumns("full", "full", area=None, clip=self._clip)

    def _visible(self, index: int) -> np.ndarray:
        share = self._read_column(index, "visible_share")
        return np.where(share < 0, np.nan, share)

    @classmethod
    def list_images(cls, source: Path) -> ListedImageSet:
        labelled = cls.read_labels(source)
        columns = {name: box_column((4,), "float64") for name in ("full", "visible")[: 1 + cls.has_visible]}
        columns |= {"label": box_column((), "int64"), "is_ignored": box_column((), "bool")}
        columns["visible_share"] = box_column((), "float64")
        images = [
            ListedImage(e.split, e.name, e.path, partial(cls._make_columns, e.boxes), e.image_id, e.size_px, e.files)
            for e in labelled.images
            if e.path is not None
        ]
        ids = [
            code if isinstance(code, int) else position
            for position, code in enumerate(cls.kinds.codes.values(), start=1)
        ]
        classes = CategoryIds(tuple(cls.kinds.codes), tuple(ids))
        return ListedImageSet(
            labelled.root, cls.set_name, classes, images, columns, "full", labelled.faults, labelled.notes, cls.form
        )

    @classmethod
    def _make_columns(cls, boxes: Sequence[LabelledBox], size_px: tuple[int, int], faults: AnnotationFaults) -> Values:
        label_by_kind = {kind: label for label, kind in enumerate(cls.kinds.codes)}
        corners = np.array([xywh_to_xyxy(box.boxes["full"]) for box in boxes], dtype=np.float64).reshape(-1, 4)
        shares = [cls._visible_share(box) for box in boxes]
        values = {
            "label": np.array([label_by_kind[str(box.kind)] for box in boxes], dtype=np.int64),
            "is_ignored": np.array([box.is_ignored for box in boxes], dtype=bool),
            "visible_share": np.nan_to_num(np.array(shares, dtype=np.float64), nan=_UNKNOWN),
            "full": corners,
        }
        if not cls.has_visible:
            return values
        visible = [xywh_to_xyxy(box.boxes.get("visible", box.boxes["full"])) for box in boxes]
        return {**values, "visible": np.array(visible, dtype=np.float64).reshape(-1, 4)}

    @classmethod
    def _visible_share(cls, box: LabelledBox) -> float:
        """Return the visible share of a person; NaN for ignored boxes, and if the set does not state it."""
        return np.nan if box.is_ignored else box.visible_share


@registry.data.add("widerperson")
class WiderPerson(_People):
    """Images of people in many places, prepared by `sightline data prepare widerperson`.

    `people` are the kinds to be found (left out: `pedestrian`, `rider`, `partially_visible`), as one class `person`, or
    `apart`, each a class of its own; the others are ignored. Boxes narrower or lower than `ignore_below_px` pixels are
    ignored, too. The published validation images are the test part. Source: Zhang et al. 2019, WiderPerson.
    """

    spec = SetSpec(name="widerperson")
    kinds, read_labels = WIDERPERSON, staticmethod(read_widerperson)
    usual = ("pedestrian", "rider", "partially_visible")


@registry.data.add("ecp")
class EuroCityPersons(_People):
    """Images of 31 cities by day and by night, prepared by `sightline data prepare ecp`.

    `people` are the kinds to be found (left out: `pedestrian`; `rider`), as one class `person`, or `apart`, each a
    class of its own; the others are ignored, as are pedestrians who sit, lie or are behind glass, and boxes narrower or
    lower than `ignore_below_px` pixels. The share that is visible comes from the tags. The published validation images
    are the test part. Source: Braun et al. 2019, EuroCity Persons.
    """

    spec = SetSpec(name="ecp")
    kinds, read_labels = ECP, staticmethod(read_ecp)

    @classmethod
    def _visible_share(cls, box: LabelledBox) -> float:
        return np.nan if box.is_ignored else ecp_visible_share(box.extra.get("tags"))


@registry.data.add("citypersons")
class CityPersons(_People):
    """People in the images of Cityscapes, prepared by `sightline data prepare citypersons`.

    `people` are the kinds to be found (left out: `pedestrian`; `rider`, `sitting`, `other`), as one class `person`, or
    `apart`, each a class of its own; the others are ignored. `box` are trained on, `scored_box` are scored. Boxes
    narrower or lower than `ignore_below_px` pixels are ignored, too. The published validation images are the test part.
    Source: Zhang et al. 2017, CityPersons.
    """

    spec = SetSpec(name="citypersons")
    kinds, read_labels, has_visible = CITYPERSONS, staticmethod(read_citypersons), True
    form = "corner, size"

    def __init__(
        self,
        *,
        split: str,
        root: str | None = None,
        people: tuple[str, ...] = (),
        apart: bool = False,
        box: Literal["full", "visible"] = "full",
        scored_box: Literal["full", "visible"] = "full",
        clip: bool = False,
        ignore_below_px: NonNegativeFloat = 0.0,
        validation_share: FractionBelowOne = 0.1,
        split_rule: SplitRule = "seeded",
        split_seed: Seed = 0,
    ) -> None:
        self._kinds = (box, scored_box)
        super().__init__(
            split=split,
            root=root,
            people=people,
            apart=apart,
            clip=clip,
            ignore_below_px=ignore_below_px,
            validation_share=validation_share,
            split_rule=split_rule,
            split_seed=split_seed,
        )

    def _columns_in(self, prepared: PreparedSet) -> BoxColumns:
        return BoxColumns(*self._kinds, area=None, clip=self._clip)
