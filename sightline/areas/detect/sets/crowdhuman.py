"""CrowdHuman: 19,370 labelled images of crowds, with a full, a visible and a head box of every person."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from sightline.areas.detect.sets.annotations import BOX_KEYS, BoxCorners, BoxType, LabelledBox, is_ignored
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
from sightline.areas.detect.sets.layout_reading import read_lines
from sightline.areas.detect.sets.records import box_facts
from sightline.contract import registry
from sightline.contract.arguments import FractionBelowOne, NonNegativeFloat, Seed
from sightline.contract.errors import DataError
from sightline.contract.types import DataInfo
from sightline.store.box_fields import BOX_FIELDS
from sightline.store.prepared.prepared_data import SetSpec
from sightline.store.prepared.prepared_set import PreparedSet

_COLUMNS = {
    "full": box_column((4,), "float64"),
    "visible": box_column((4,), "float64"),
    "head": box_column((4,), "float64"),
    "label": box_column((), "int64"),
    "is_ignored": box_column((), "bool"),
    "is_head_ignored": box_column((), "bool"),
}
"""Stored columns of a person: left, top, right, bottom of three boxes, class, and two ignore marks."""
_MISSING_BOX: BoxCorners = (0.0, 0.0, 0.0, 0.0)
"""Placeholder of a box that the file does not have."""


@registry.data.add("crowdhuman")
class CrowdHuman(ListedLabels):
    """Images of crowds, prepared by `sightline data prepare crowdhuman`.

    `box` are the boxes that are trained on, `scored_box` those that are scored. What is not a person, or is marked so,
    is ignored; a head also by its own mark; boxes narrower or lower than `ignore_below_px` pixels, too. Full boxes
    reach beyond the image and may have negative corners: they are kept as they are, unless `clip` cuts those that are
    trained on. The published validation images are the test part; `tested` are beginnings of names to test on instead.
    Source: Shao et al. 2018, CrowdHuman.
    """

    spec = SetSpec(name="crowdhuman")

    def __init__(
        self,
        *,
        split: str,
        root: str | None = None,
        box: BoxType = "full",
        scored_box: BoxType = "full",
        clip: bool = False,
        ignore_below_px: NonNegativeFloat = 0.0,
        tested: tuple[str, ...] = (),
        test_share: FractionBelowOne = 0.2,
        validation_share: FractionBelowOne = 0.1,
        split_rule: SplitRule = "seeded",
        split_seed: Seed = 0,
    ) -> None:
        self._kinds, self._clip = (box, scored_box), clip
        super().__init__(
            split=split,
            root=root,
            ignore_below_px=ignore_below_px,
            tested=tested,
            test_share=test_share,
            validation_share=validation_share,
            split_rule=split_rule,
            split_seed=split_seed,
        )

    def _columns_in(self, prepared: PreparedSet) -> BoxColumns:
        for kind in self._kinds:
            _check_has_boxes(prepared, kind)
        is_ignored, is_scored_ignored = map(_ignored_column, self._kinds)
        return BoxColumns(*self._kinds, is_ignored, is_scored_ignored, area=None, clip=self._clip)

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

    @classmethod
    def list_images(cls, source: Path) -> ListedImageSet:
        """List the images that .odgt files of a folder name. Raises DataError as `read_lines`."""
        labelled = read_lines(source)
        images = []
        for image in labelled.images:
            name = Path(image.name).stem
            if image.path is None:
                labelled.faults.add(
                    "images that are missing or damaged", f"there is no image '{name}' below {labelled.root}"
                )
            else:
                read = partial(_make_columns, image.boxes)
                images.append(ListedImage(image.split, name, image.path, read, image.image_id, None, image.files))
        return ListedImageSet(
            labelled.root, "odgt", CategoryIds(("person",), (1,)), images, _COLUMNS, "full", labelled.faults
        )


def _ignored_column(box: BoxType) -> str:
    return "is_head_ignored" if box == "head" else "is_ignored"


def _check_has_boxes(prepared: PreparedSet, box: BoxType) -> None:
    """Raise DataError if a person has no box of this kind and is not ignored."""
    for split in prepared.splits:
        is_lacking = ~(prepared.array(split, box).any(axis=1) | prepared.array(split, _ignored_column(box)))
        if is_lacking.any():
            row = int(np.searchsorted(prepared.offsets(split), int(is_lacking.argmax()), side="right")) - 1
            raise DataError(
                f"{prepared.root}: {int(is_lacking.sum())} people have no {box} box ({BOX_KEYS[box]}), first in "
                f"'{prepared.names(split)[row]}'; set box and scored_box to another kind"
            )


def _make_columns(people: Sequence[LabelledBox], size_px: tuple[int, int], faults: AnnotationFaults) -> Values:
    """Return the columns of the people of an image; an ignored person's missing box is another of its boxes."""
    boxes_xywh = [
        [
            person.boxes.get(kind, next(iter(person.boxes.values())) if person.is_ignored else _MISSING_BOX)
            for kind in BOX_KEYS
        ]
        for person in people
    ]
    boxes_by_kind = np.array([[xywh_to_xyxy(box) for box in boxes] for boxes in boxes_xywh], dtype=np.float64)
    return {
        **{kind: boxes_by_kind.reshape(-1, 3, 4)[:, column] for column, kind in enumerate(BOX_KEYS)},
        "label": np.zeros(len(people), dtype=np.int64),
        "is_ignored": np.array([person.is_ignored for person in people], dtype=bool),
        "is_head_ignored": np.array([is_ignored(person.extra, "head") for person in people], dtype=bool),
    }
