"""Data set `boxes3d_folder`: the user's own clouds with 3D boxes of any tool that is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from sightline.areas.boxes3d.sets.box_conversion import check_words, convert_frames
from sightline.areas.boxes3d.sets.box_listing import Listing, list_frames
from sightline.areas.boxes3d.sets.box_planning import PlannedBoxes, plan_boxes, plan_frames
from sightline.areas.boxes3d.sets.labelled_boxes3d import (
    CloudReader,
    LabelledBoxes3d,
)
from sightline.contract import registry
from sightline.contract.arguments import FractionBelowOne, PositiveFloat
from sightline.contract.errors import ConfigError, DataError
from sightline.store.boxes3d.conversions import BoxCentre, BoxSize, YawSense, YawUnit, YawZero
from sightline.store.boxes3d.count_test import OPTION_OF
from sightline.store.boxes3d.label_formats import WRITTEN
from sightline.store.boxes3d.survey import list_overrides
from sightline.store.files.cloud_files import Withheld, check_columns
from sightline.store.files.scan_reading import SCAN_SUFFIXES
from sightline.store.prepared.config_bases import ConfigBase
from sightline.store.prepared.name_lists import describe_split
from sightline.store.prepared.prepared_data import SetSpec
from sightline.store.prepared.prepared_set import PreparedSet
from sightline.store.prepared.prepared_writer import PreparationPlan, Progress, digest_json
from sightline.store.prepared.splits import make_splits

Range = tuple[float, float, float, float, float, float]
"""x, y, z low, then x, y, z high, in metres."""
Directions = tuple[float, float]
"""Azimuths in degrees, counter-clockwise from the front: the right end of a view, and its left end."""
BoxForm = Literal[
    "kitti",
    "labelcloud_kitti",
    "labelcloud_kitti_untransformed",
    "labelcloud_absolute",
    "labelcloud_relative",
    "tracklets_kitti",
    "tracklets_cvat",
]
"""Forms of label files that other forms of the same format look like."""
Unlabelled = Literal["leave_out", "no_boxes"]


@registry.data.add("boxes3d_folder")
class Boxes3dFolder(LabelledBoxes3d):
    """The user's own clouds with 3D boxes, prepared by `sightline data prepare boxes3d_folder`.

    `classes` chooses some by name, in this order; boxes of others are left out. `remission` adds the remission of the
    files to the model's input, from 0 to 1. `tested` are beginnings of names; without them folders or lists of the
    source decide, or the last `test_share` of the frames in the order of their names.
    Source: the user's files.
    """

    written_forms: ClassVar[tuple[str, ...]] = tuple(WRITTEN)
    """Forms as which `data convert` writes boxes."""
    config_bases = (ConfigBase("boxes3d/own_boxes3d"),)
    spec = SetSpec(
        name="boxes3d_folder",
        what="clouds and labels of 3D boxes",
        is_own=True,
        entries=lambda: {"files": ", ".join(SCAN_SUFFIXES)},
    )

    def __init__(
        self,
        *,
        split: str,
        root: str | None = None,
        classes: tuple[str, ...] = (),
        remission: bool = False,
        tested: tuple[str, ...] = (),
        test_share: FractionBelowOne = 0.2,
        validation_share: FractionBelowOne = 0.1,
    ) -> None:
        prepared = self.open_root(root)
        parts = make_splits(
            prepared, test_names=tested, test_share=test_share, validation_share=validation_share, what="frame"
        )
        super().__init__(prepared=prepared, split=split, parts=parts, classes=classes, remission=remission)

    @classmethod
    def propose(cls, prepared: PreparedSet, base: Mapping[str, Any]) -> list[str]:
        """Return extent, pillars and anchors that suit the boxes of all parts, and remission where files have it."""
        columns = [
            np.concatenate([prepared.array(split, name) for split in prepared.splits])
            for name in ("boxes", "label", "is_ignored")
        ]
        boxes, label, is_ignored = columns
        is_named = (label >= 0) & ~is_ignored
        if not is_named.any():
            return []
        remission = [] if prepared.manifest["remission_max"] is None else ["data.remission=true"]
        return [*remission, *list_overrides(boxes[is_named], label[is_named], prepared.manifest["class_names"])]

    @classmethod
    def plan(
        cls,
        root: Path,
        *,
        columns: tuple[str, ...] | None = None,
        form: BoxForm | None = None,
        box_centre: BoxCentre | None = None,
        box_size: BoxSize | None = None,
        yaw_unit: YawUnit | None = None,
        yaw_sense: YawSense | None = None,
        yaw_zero: YawZero | None = None,
        unlabelled: Unlabelled = "leave_out",
        azimuth_deg: Directions | None = None,
        range_m: Range | None = None,
        remission_max: PositiveFloat | None = None,
        withheld: Withheld = "drop",
    ) -> PreparationPlan:
        """Plan to list the clouds of a folder in place, and to store their boxes in the product's form.

        What the labels' format or `box_centre`, `box_size`, `yaw_unit`, `yaw_sense` and `yaw_zero` state is taken as it
        is; of the rest the reading is taken that puts the most points into boxes, by the clouds of some frames. Raises
        DataError for a folder without frames, and with each file of labels that is damaged; ConfigError for a range
        without extent.
        """
        read = read_folder(
            root,
            columns=columns,
            form=form,
            box_centre=box_centre,
            box_size=box_size,
            yaw_unit=yaw_unit,
            yaw_sense=yaw_sense,
            yaw_zero=yaw_zero,
            unlabelled=unlabelled,
            azimuth_deg=azimuth_deg,
            range_m=range_m,
            remission_max=remission_max,
            withheld=withheld,
        )
        frames = read.listing.frames
        is_divided = any((root / name).is_dir() for name in ("test", "val", "validation"))
        split = describe_split([*dict.fromkeys(frame.split for frame in frames)], _SOURCES[is_divided])
        return plan_frames(
            cls,
            root=root,
            layout=next((frame.labels.format_name for frame in frames if frame.stated), "clouds"),
            frames=frames,
            planned=read.planned,
            reader=read.reader,
            about={"split": split},
            options=read.options,
            notes=read.listing.notes,
        )

    @classmethod
    def convert_labels(
        cls, source: Path, new_form: str, target: Path, *, progress: Progress, **options: Any
    ) -> dict[str, Any]:
        """Write the boxes of a folder, read by the options of its preparation, in another form; return what is lost."""
        check_words(new_form, target, source)
        read = read_folder(cls.spec.find(source), **options)
        _assert_told(read)
        return convert_frames(read.listing, read.planned, new_form, target, progress=progress)


def _assert_told(read: FolderBoxes) -> None:
    """Raise DataError if no cloud could be read that would tell what the labels' numbers mean."""
    choice, frames = read.planned.choice, read.listing.frames
    if choice.open_parts and not choice.num_boxes and any(frame.stated for frame in frames):
        read.reader.read(frames[0].files[0])  # says what is wrong with the first one
        raise DataError(
            f"{frames[0].files[0]}: no cloud with points could be read, and the labels do not state what their numbers "
            "mean; state box_centre, box_size, yaw_unit, yaw_sense and yaw_zero"
        )


_SOURCES = {True: "folders", False: "lists of names"}


class FolderBoxes(NamedTuple):
    """Frames of a folder, their boxes, the reader of their clouds, and the options for the manifest."""

    listing: Listing
    planned: PlannedBoxes
    reader: CloudReader
    options: dict[str, Any]


def read_folder(
    root: Path,
    *,
    columns: tuple[str, ...] | None = None,
    form: BoxForm | None = None,
    box_centre: BoxCentre | None = None,
    box_size: BoxSize | None = None,
    yaw_unit: YawUnit | None = None,
    yaw_sense: YawSense | None = None,
    yaw_zero: YawZero | None = None,
    unlabelled: Unlabelled = "leave_out",
    azimuth_deg: Directions | None = None,
    range_m: Range | None = None,
    remission_max: float | None = None,
    withheld: Withheld = "drop",
) -> FolderBoxes:
    """Read the frames and boxes of a folder by the options of its preparation."""
    given = {"centre": box_centre, "size": box_size, "unit": yaw_unit, "sense": yaw_sense, "zero": yaw_zero}
    stated: dict[str, str] = {part: value for part, value in given.items() if value is not None}
    _check_range(range_m)
    names = None if columns is None else check_columns(columns)
    if azimuth_deg is not None and not 0 < azimuth_deg[1] - azimuth_deg[0] < 360:
        raise ConfigError(
            f"azimuth_deg: {list(azimuth_deg)} are no directions; give the right and the left end, as [-45, 45]"
        )
    reader, listing = CloudReader(names, withheld, azimuth_deg), list_frames(root, unlabelled=unlabelled)
    planned = plan_boxes(listing.frames, reader, stated=stated, form=form, range_m=range_m, remission_max=remission_max)
    options = {
        "columns": None if names is None else list(names),
        "withheld": withheld,
        "form": form,
        **{OPTION_OF[part]: value for part, value in stated.items()},
        "unlabelled": unlabelled,
        "azimuth_deg": None if azimuth_deg is None else list(azimuth_deg),
        "range_m": None if range_m is None else list(range_m),
        "remission_max": remission_max,
        "frames": digest_json([[frame.split, frame.name, *map(str, frame.files)] for frame in listing.frames]),
    }
    return FolderBoxes(listing, planned, reader, options)


def _check_range(range_m: Range | None) -> None:
    if range_m is not None and not all(low < high for low, high in zip(range_m[:3], range_m[3:], strict=True)):
        raise ConfigError(f"range_m: {list(range_m)} has no extent; give x, y, z low, then x, y, z high, in metres")
