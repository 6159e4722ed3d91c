"""CrowdHuman: 19,370 labelled images of crowds, with a full, a visible and a head box of every person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sightline import registry
from sightline.arguments import Factor, Fraction
from sightline.data.boxes.image_listing import (
    Box,
    Classes,
    Faults,
    Faulty,
    FoundImage,
    FoundSet,
    Values,
    box_column,
    corners_of,
    image_plan,
    is_sound,
    split_of,
    survey_images,
)
from sightline.data.boxes.labelled_images import BoxColumns, LabelledImages
from sightline.data.boxes.odgt import BOX_KEYS, BoxType, is_ignored, read_odgt
from sightline.data.boxes.records import BOX_FIELDS, box_facts
from sightline.data.boxes.yolo_files import images_below
from sightline.data.store.native import Prepared, listing, prepare_command
from sightline.data.store.preparation import Progress, prepare_native
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
_LACKING: Box = (0.0, 0.0, 0.0, 0.0)
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
        ignore_below_px: Factor = 0.0,
        tested: tuple[str, ...] = (),
        test_share: Fraction = 0.2,
        validation_share: Fraction = 0.1,
    ) -> None:
        self._kinds, self._clip = (box, scored_box), clip
        super().__init__(
            split=split,
            root=root,
            ignore_below_px=ignore_below_px,
            tested=tested,
            test_share=test_share,
            validation_share=validation_share,
        )

    def _columns_in(self, prepared: Prepared) -> BoxColumns:
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
    def promise(cls, *, scored_box: BoxType = "full") -> DataInfo:
        """What `info` states before the set is there, sizes left out: one class."""
        return DataInfo(box_facts(("person",), scored_box), BOX_FIELDS)

    @classmethod
    def prepare(
        cls, *, source: Path, target: Path, name: str, progress: Progress, faulty: Faulty = "refuse"
    ) -> dict[str, Any]:
        """List the images that .odgt files of a folder name, and keep their boxes; returns the manifest.

        Raises DataError for a folder without such files, for one that is not as the format says, and for images and
        boxes that cannot be used unless `faulty` is `leave_out`.
        """
        assert name == cls.set_name, f"{cls.__name__} prepares '{cls.set_name}', not '{name}'"
        plan = image_plan(_find(source), set_name=name, faulty=faulty, options={}, progress=progress)
        return prepare_native(plan, target, progress=progress)

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


def _check_there(prepared: Prepared, box: BoxType) -> None:
    """Raises DataError where people have no box of this kind."""
    for split in prepared.splits:
        is_lacking = ~(prepared.array(split, box).any(axis=1) | prepared.array(split, _ignored_column(box)))
        if is_lacking.any():
            row = int(np.searchsorted(prepared.offsets(split), int(is_lacking.argmax()), side="right")) - 1
            raise DataError(
                f"{prepared.root}: {int(is_lacking.sum())} people have no {box} box ({BOX_KEYS[box]}), first in "
                f"'{prepared.names(split)[row]}'; set box and scored_box to another kind"
            )


def _find(source: Path) -> FoundSet:
    root = source.expanduser().resolve()
    files = [root] if root.is_file() else sorted([*root.glob("*.odgt"), *root.glob("annotations/*.odgt")])
    root = root.parent if root.is_file() else root
    if not files:
        held = f"holds {listing(root)}" if root.is_dir() else "there is no such folder"
        raise DataError(f"{root}: {held}, no .odgt file; give the folder with annotation_train.odgt")
    paths = images_below(root)
    counts = Counter(path.stem for path in paths)
    by_stem = {path.stem: path for path in reversed(paths)}
    faults = Faults()
    images = []
    for file in files:
        lines = sorted(read_odgt(file), key=lambda line: f"{line['ID']}.jpg")
        for number, line in enumerate(lines, start=1):
            name = str(line["ID"])
            if counts[name] > 1:
                twice = [str(path) for path in paths if path.stem == name]
                raise DataError(
                    f"{twice[0]}: {twice[1]} has the same name, and the boxes of '{name}' fit either; keep one"
                )
            if name not in by_stem:
                faults.add("images that are missing or damaged", f"there is no image '{name}' below {root}")
                continue
            read = partial(_values, tuple(line["gtboxes"]), name)
            split = split_of(file.relative_to(root))
            images.append(FoundImage(split, name, by_stem[name], read, number, None, (file,)))
    return FoundSet(root, "odgt", Classes(("person",), (1,)), images, _COLUMNS, "full", faults)


def _values(people: Sequence[Mapping[str, Any]], name: str, size_px: tuple[int, int], faults: Faults) -> Values:
    """The three boxes of everybody, as the file has them; a box that an ignored one lacks is another of its boxes."""
    kept: list[list[Box]] = []
    flags: list[tuple[bool, bool]] = []
    for place, person in enumerate(people):
        is_out, is_head_out = is_ignored(person, "full"), is_ignored(person, "head")
        try:
            boxes = {kind: corners_of(person[key]) for kind, key in BOX_KEYS.items() if person.get(key) is not None}
            if not boxes or not all(
                is_sound(box, is_ignored=is_head_out if kind == "head" else is_out) for kind, box in boxes.items()
            ):
                raise ValueError("a box of finite numbers, with width and height above 0, is needed")
        except (ArithmeticError, TypeError, ValueError) as error:
            faults.add("boxes that cannot be meant", f"{name}: box {place} is {str(dict(person))[:160]} ({error})")
            continue
        other = next(iter(boxes.values())) if is_out else _LACKING
        kept.append([boxes.get(kind, other) for kind in BOX_KEYS])
        flags.append((is_out, is_head_out))
    boxes_by_kind = np.array(kept, dtype=np.float64).reshape(-1, 3, 4)
    is_out_by_kind = np.array(flags, dtype=bool).reshape(-1, 2)
    return {
        **{kind: boxes_by_kind[:, place] for place, kind in enumerate(BOX_KEYS)},
        "label": np.zeros(len(kept), dtype=np.int64),
        "is_ignored": is_out_by_kind[:, 0],
        "is_head_ignored": is_out_by_kind[:, 1],
    }
