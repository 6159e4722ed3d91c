"""CrowdHuman: 19,370 labelled images of crowds, with a full, a visible and a head box of every person."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sightline import registry
from sightline.arguments import FractionBelowOne, NonNegativeFloat, Seed
from sightline.data.boxes.annotations import BoxCorners, LabelledBox
from sightline.data.boxes.dealing import SplitRule
from sightline.data.boxes.image_listing import (
    AnnotationFaults,
    CategoryIds,
    FaultPolicy,
    ListedImage,
    ListedImageSet,
    Values,
    box_column,
    plan_image_set,
    survey_images,
    xywh_to_xyxy,
)
from sightline.data.boxes.labelled_images import BoxColumns, LabelledImages
from sightline.data.boxes.layout_reading import read_lines
from sightline.data.boxes.odgt import BOX_KEYS, BoxType, is_ignored
from sightline.data.boxes.records import BOX_FIELDS, box_facts
from sightline.data.store.prepared_set import PreparedSet, prepare_command
from sightline.data.store.prepared_writer import Progress, write_prepared_set
from sightline.errors import DataError
from sightline.types import DataInfo

__all__ = ["CrowdHuman"]

_COLUMNS = {
    "full": box_column((4,), "float64"),
    "visible": box_column((4,), "float64"),
    "head": box_column((4,), "float64"),
    "label": box_column((), "int64"),
    "is_ignored": box_column((), "bool"),
    "is_head_ignored": box_column((), "bool"),
}
"""What is kept of a person: left, top, right and bottom of three boxes."""
_LACKING: BoxCorners = (0.0, 0.0, 0.0, 0.0)
"""Stands for a box that the file does not have."""


@registry.data.add("crowdhuman")
class CrowdHuman(LabelledImages):
    """Images of crowds, prepared by `sightline data prepare crowdhuman`.

    `box` are the boxes that are trained on, `scored_box` those that are scored. What is not a person, or is marked so,
    is ignored; a head also by its own mark; boxes narrower or lower than `ignore_below_px` pixels, too. Full boxes
    reach beyond the image and may have negative corners: they are kept as they are, unless `clip` cuts those that are
    trained on. The published validation images are the test part; `tested` are beginnings of names to test on instead.
    Source: Shao et al. 2018, CrowdHuman.
    """

    set_name = "crowdhuman"

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
            _check_there(prepared, kind)
        is_ignored, is_scored_ignored = map(_ignored_column, self._kinds)
        return BoxColumns(*self._kinds, is_ignored, is_scored_ignored, area=None, clip=self._clip)

    def _visible(self, index: int) -> np.ndarray:
        """The visible box's share of the full one's area, at most 1."""
        boxes = (self._stored(index, name) for name in ("visible", "full"))
        visible, full = ((each[:, 2:] - each[:, :2]).prod(axis=1) for each in boxes)
        is_known = (visible > 0) & (full > 0) & ~self._stored(index, "is_ignored")
        return np.divide(visible, full, out=np.full(len(full), np.nan), where=is_known).clip(max=1)

    @classmethod
    def expected_info(cls, *, scored_box: BoxType = "full") -> DataInfo:
        """What `info` states before the set is there, sizes left out: one class."""
        return DataInfo(box_facts(("person",), scored_box), BOX_FIELDS)

    @classmethod
    def prepare(
        cls, *, source: Path, target: Path, name: str, progress: Progress, faulty: FaultPolicy = "refuse"
    ) -> dict[str, Any]:
        """List the images that .odgt files of a folder name, and keep their boxes; returns the manifest.

        Raises DataError for a folder without such files, for one that is not as the format says, and for images and
        boxes that cannot be used unless `faulty` is `leave_out`.
        """
        assert name == cls.set_name, f"{cls.__name__} prepares '{cls.set_name}', not '{name}'"
        plan = plan_image_set(_find(source), set_name=name, faulty=faulty, options={}, progress=progress, target=target)
        return write_prepared_set(plan, target, progress=progress)

    @classmethod
    def survey(cls, source: Path) -> dict[str, Any]:
        """Images, sizes, boxes and faults of files that are not prepared yet. Raises as `prepare`."""
        return survey_images(_find(source))

    @classmethod
    def card(cls) -> dict[str, Any]:
        """What the set is, what is read, and where to obtain it."""
        return {
            "set": cls.set_name,
            "classes": "person",
            "layouts": {
                "odgt": "annotation_train.odgt and annotation_val.odgt, and images ID.jpg in any folders beside them"
            },
            "home": "https://www.crowdhuman.org",
            "terms": "for non-commercial research; nothing is downloaded for you",
            "cite": "Shao et al. 2018, CrowdHuman: A Benchmark for Detecting Human in a Crowd",
            "prepare": prepare_command(cls.set_name, "DIR"),
        }


def _ignored_column(box: BoxType) -> str:
    return "is_head_ignored" if box == "head" else "is_ignored"


def _check_there(prepared: PreparedSet, box: BoxType) -> None:
    """Raises DataError where people have no box of this kind."""
    for split in prepared.splits:
        is_lacking = ~(prepared.array(split, box).any(axis=1) | prepared.array(split, _ignored_column(box)))
        if is_lacking.any():
            row = int(np.searchsorted(prepared.offsets(split), int(is_lacking.argmax()), side="right")) - 1
            raise DataError(
                f"{prepared.root}: {int(is_lacking.sum())} people have no {box} box ({BOX_KEYS[box]}), first in "
                f"'{prepared.names(split)[row]}'; set box and scored_box to another kind"
            )


def _find(source: Path) -> ListedImageSet:
    found = read_lines(source)
    images = []
    for each in found.images:
        name = Path(each.name).stem
        if each.path is None:
            found.faults.add("images that are missing or damaged", f"there is no image '{name}' below {found.root}")
        else:
            read = partial(_values, each.boxes)
            images.append(ListedImage(each.split, name, each.path, read, each.image_id, None, each.files))
    return ListedImageSet(found.root, "odgt", CategoryIds(("person",), (1,)), images, _COLUMNS, "full", found.faults)


def _values(people: Sequence[LabelledBox], size_px: tuple[int, int], faults: AnnotationFaults) -> Values:
    """The three boxes of everybody, as the file has them; a box that an ignored one lacks is another of its boxes."""
    kept = [
        [each.boxes.get(kind, next(iter(each.boxes.values())) if each.is_ignored else _LACKING) for kind in BOX_KEYS]
        for each in people
    ]
    boxes_by_kind = np.array([[xywh_to_xyxy(box) for box in boxes] for boxes in kept], dtype=np.float64)
    return {
        **{kind: boxes_by_kind.reshape(-1, 3, 4)[:, place] for place, kind in enumerate(BOX_KEYS)},
        "label": np.zeros(len(people), dtype=np.int64),
        "is_ignored": np.array([each.is_ignored for each in people], dtype=bool),
        "is_head_ignored": np.array([is_ignored(each.extra, "head") for each in people], dtype=bool),
    }
