"""Base of the prepared data sets of LiDAR clouds with 3D boxes: clouds are read in place, boxes are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sightline.contract.errors import ConfigError, DataError, join_some
from sightline.contract.types import DataInfo, Field, Sample, SampleKey, ScanInputSpec
from sightline.store.boxes3d.box_sample import BOX3D_FIELDS, make_sample3d
from sightline.store.boxes3d.box_table import BoxTable, ImageBoxes, make_box_table
from sightline.store.boxes3d.count_test import count_inside
from sightline.store.boxes3d.kitti_objects import Calibration
from sightline.store.boxes3d.survey import FramePoints
from sightline.store.files.cloud_files import Withheld
from sightline.store.files.scan_reading import read_scan
from sightline.store.prepared.columns import ColumnSpec
from sightline.store.prepared.copies import digest_arrays
from sightline.store.prepared.prepared_data import SplitFigure, Summary
from sightline.store.prepared.prepared_rows import PreparedRows
from sightline.store.prepared.prepared_set import PreparedSet
from sightline.store.prepared.prepared_writer import SampleRow
from sightline.store.prepared.splits import SplitRows, check_part
from sightline.store.remarks import CountRemark

_REMISSION_NAMES = ("remission", "intensity", "reflectance", "reflectivity", "i")
FEATURE = "remission"
COLUMNS: Mapping[str, ColumnSpec] = {
    "boxes": ColumnSpec((7,), "float64", is_ragged=True, can_be_empty=True),
    "label": ColumnSpec((), "int64", is_ragged=True, can_be_empty=True),
    "is_ignored": ColumnSpec((), "bool", is_ragged=True, can_be_empty=True),
    "points_inside": ColumnSpec((), "int64", is_ragged=True, can_be_empty=True),
    "track": ColumnSpec((), "int64", is_ragged=True, can_be_empty=True),
    "num_points": ColumnSpec((), "int64"),
    "reach_m": ColumnSpec((), "float64"),
    "remission_high": ColumnSpec((), "float64"),
}
"""Stored columns of a frame: its boxes as `BoxTable` has them, and the number, reach and remission of its points."""
IMAGE_COLUMN = ("image", ColumnSpec((7,), "float64", is_ragged=True, can_be_empty=True))
"""Left, top, right, bottom, truncated, occluded, alpha of each box, of sets whose files state them."""


@dataclass(frozen=True)
class CloudReader:
    """Reader of the points of a frame and their remission, by the options of a preparation.

    With `azimuth_deg` it keeps the directions from the first to the second, counter-clockwise from the front.
    """

    columns: tuple[str, ...] | None = None
    withheld: Withheld = "drop"
    azimuth_deg: tuple[float, float] | None = None

    def read(self, path: Path) -> tuple[FramePoints, tuple[str, ...]]:
        """Read a cloud, without points that are not finite, and remarks. Raises DataError with the file."""
        cloud = read_scan(path, columns=self.columns, used=_REMISSION_NAMES, withheld=self.withheld).without_withheld()
        name = next((name for name in _REMISSION_NAMES if name in cloud.channels), None)
        remission = None if name is None else np.asarray(cloud.channels[name], dtype=np.float64)
        is_finite = np.isfinite(cloud.points).all(axis=1)
        if remission is not None:
            is_finite &= np.isfinite(remission)
            remission = remission[is_finite]
        notes = cloud.notes
        if num_lost := int((~is_finite).sum()):
            notes = (*notes, CountRemark.make(num_lost, len(is_finite), "are not finite and are left out"))
        frame = FramePoints(cloud.points[is_finite], remission)
        return (frame if self.azimuth_deg is None else _cut_directions(frame, *self.azimuth_deg)), notes


def _cut_directions(frame: FramePoints, first_deg: float, last_deg: float) -> FramePoints:
    azimuth_deg = np.rad2deg(np.arctan2(frame.points[:, 1], frame.points[:, 0]))
    is_kept = (azimuth_deg - first_deg) % 360 <= (last_deg - first_deg)
    return FramePoints(frame.points[is_kept], None if frame.remission is None else frame.remission[is_kept])


@dataclass(frozen=True)
class PlannedFrame:
    """Frame to be prepared: split, name, files, of which the first is the cloud, and its boxes."""

    split: str
    name: str
    files: tuple[Path, ...]
    table: BoxTable
    values: Mapping[str, Any]


def make_row(frame: PlannedFrame, *, reader: CloudReader, has_images: bool = False) -> SampleRow:
    """Read the cloud of a frame and make the row that is stored. Raises DataError for a cloud without points."""
    where = str(frame.files[0])
    read, notes = reader.read(frame.files[0])
    points, table = read.points, frame.table
    if not len(points):
        raise DataError(f"{where}: has no finite point; leave the frame out, or get the file again")
    remission = np.zeros(1) if read.remission is None else read.remission
    values: dict[str, Any] = {
        "boxes": table.boxes,
        "label": table.label,
        "is_ignored": table.is_ignored,
        "points_inside": np.where(table.label >= 0, count_inside(points, table.boxes), -1),
        "track": table.track,
        "num_points": len(points),
        "reach_m": np.abs(points).max(),
        "remission_high": remission.max(initial=0.0),
        **frame.values,
    }
    if has_images:
        image = table.image or ImageBoxes(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), np.zeros(0))
        values["image"] = np.column_stack([image.corners_px, image.truncated, image.occluded, image.alpha])
    content = digest_arrays(points.astype(np.float32), remission.astype(np.float32))
    return SampleRow(frame.name, where, values, frame.files, tuple(notes), content)


class LabelledBoxes3d(PreparedRows):
    """Base of sets of clouds with 3D boxes, whose files of clouds stay in place and are read whole.

    `classes` chooses some by name, in this order; boxes of others are left out of samples. `remission` adds the stored
    one to the model's input, divided by `remission_max` of the preparation. Pure: the same key gives the same sample.
    """

    summary: ClassVar[Summary] = {
        "frames": SplitFigure("num_rows"),
        "boxes": SplitFigure("num_boxes"),
        "points": SplitFigure("num_points"),
    }
    printed = (
        "layout",
        "frame",
        "reading",
        "classes",
        "range_m",
        "pillar_m",
        "remission",
        "pillars",
        "split",
        "differences",
    )
    neighbours: ClassVar[Mapping[str, str]] = {}
    """Classes of which a box is neither a target nor background of another class."""

    def __init__(
        self, *, prepared: PreparedSet, split: str, parts: SplitRows, classes: tuple[str, ...], remission: bool
    ) -> None:
        check_part(parts, split, root=prepared.root, what="frame")
        manifest = prepared.manifest
        stored = tuple(manifest["class_names"])
        unknown = [name for name in classes if name not in stored]
        if unknown or len({*classes}) < len(classes):
            fault = f"'{unknown[0]}' is not stored" if unknown else "one is named twice"
            raise ConfigError(f"classes: {fault}; {prepared.root} holds {', '.join(stored)}")
        if remission and manifest["remission_max"] is None:
            raise ConfigError(f"remission: {prepared.root} has none in all of its files; set it to false")
        self._prepared = prepared
        self._rows = parts.rows[split]
        self._stored_names = stored
        self._classes = classes or stored
        self._has_remission = remission
        self._reader = CloudReader(**self._read_options(manifest))
        self.info = self._describe(parts)

    def __getitem__(self, key: SampleKey) -> Sample:
        """Read one frame as new tensors.

        Raises IndexError for an index out of range, and DataError with a file that is missing or was changed.
        """
        stored, row = self._locate(key.index)
        frame = self._read_frame(self._prepared.listing(stored).paths(row), stored, row)
        features = {}
        if self._has_remission and frame.remission is not None:
            features[FEATURE] = frame.remission / self._prepared.manifest["remission_max"]
        return make_sample3d(frame.points, features, self._choose(self.box_table(key.index)))

    def box_table(self, index: int) -> BoxTable:
        """Return the boxes of a frame, of all stored classes, without reading its cloud."""
        stored, row = self._locate(index)
        columns = self._prepared.manifest["columns"]
        names = ("boxes", "label", "is_ignored", "points_inside", "track")
        boxes, label, is_ignored, inside, track = (np.array(self._prepared.row(stored, name, row)) for name in names)
        image = None
        if "image" in columns:
            values = np.array(self._prepared.row(stored, "image", row)).reshape(-1, 7)
            image = ImageBoxes(values[:, :4], values[:, 4], values[:, 5].astype(np.int64), values[:, 6])
        known: dict[str, Any] = {"is_ignored": is_ignored.astype(bool), "num_points": inside, "track": track}
        return make_box_table(boxes, label, self._stored_names, **known, frame=self.sample_name(index), image=image)

    def calibration(self, index: int) -> Calibration | None:
        """Return the calibration of a frame, None for a set without cameras."""
        return None

    def _read_frame(self, files: Sequence[Path], stored: str, row: int) -> FramePoints:
        """Read the points of a frame that a sample has."""
        return self._reader.read(files[0])[0]

    @classmethod
    def _read_options(cls, manifest: Mapping[str, Any]) -> dict[str, Any]:
        options = manifest["options"]
        columns = options.get("columns")
        azimuth = options.get("azimuth_deg")
        return {
            "columns": None if columns is None else tuple(columns),
            "withheld": options.get("withheld", "drop"),
            "azimuth_deg": None if azimuth is None else tuple(azimuth),
        }

    def _choose(self, table: BoxTable) -> BoxTable:
        """Return the boxes of the chosen classes, with labels among these; those of neighbours are ignored."""
        numbers = {name: number for number, name in enumerate(self._classes)}
        near = {name: numbers[of] for name, of in self.neighbours.items() if name not in numbers and of in numbers}
        new_label = np.array([*({**numbers, **near}.get(name, -1) for name in self._stored_names), -1], dtype=np.int64)
        is_near = np.array([*(name in near for name in self._stored_names), False])
        label = new_label[table.label]
        table = replace(table, label=label, is_ignored=table.is_ignored | is_near[table.label])
        return replace(table.select(label >= 0), class_names=self._classes)

    def _describe(self, parts: SplitRows) -> DataInfo:
        manifest = self._prepared.manifest
        train = parts.rows["train"] or tuple(row for rows in parts.rows.values() for row in rows)
        counts = np.zeros(len(self._stored_names) + 1, dtype=np.int64)
        for stored, row in train:
            np.add.at(counts, np.array(self._prepared.row(stored, "label", row)), 1)
        facts = {
            "num_classes": len(self._classes),
            "class_names": self._classes,
            "class_counts": tuple(int(counts[self._stored_names.index(name)]) for name in self._classes),
            "in_channels": 3 + self._has_remission,
            "range_m": tuple(manifest["range_m"]),
            "up_axis": "z",
        }
        reach = 2 * max(float(self._prepared.array(split, "reach_m").max()) for split in self._prepared.splits)
        fields = {"points": replace(BOX3D_FIELDS["points"], low=-reach, high=reach)}
        if self._has_remission:
            unit = "share of what was sent"
            fields[FEATURE] = Field("points 1", "float32", unit, "", 0.0, 1.0, "concatenate")
        fields |= {name: field for name, field in BOX3D_FIELDS.items() if name not in fields}
        sizes = {name: len(rows) for name, rows in parts.rows.items() if rows}
        features = (FEATURE,) if self._has_remission else ()
        return DataInfo(facts, fields, sizes, features=features, folds=parts.folds, scans=self._input_spec())

    def _input_spec(self) -> ScanInputSpec:
        """Return how `predict` reads a scan: with the columns and the scale of the preparation."""
        manifest = self._prepared.manifest
        columns = manifest["options"].get("columns")
        return ScanInputSpec(
            ids_of_classes=(),
            columns=("x", "y", "z", "remission") if columns is None else tuple(columns),
            remission_max=manifest["remission_max"] or 1.0,
            has_remission=self._has_remission,
            withheld=manifest["options"].get("withheld", "drop"),
        )


def summarise_frames(prepared: PreparedSet, *, notes: Sequence[str], doubts: Sequence[str]) -> dict[str, Any]:
    """Return manifest entries computed from the written arrays, with notes and remarks of the survey."""
    splits = {}
    for split in prepared.splits:
        label = prepared.array(split, "label")
        splits[split] = {
            **prepared.manifest["splits"][split],
            "num_boxes": int((label >= 0).sum()),
            "num_points": int(prepared.array(split, "num_points").sum()),
        }
    empty = [
        prepared.names(split)[row]
        for split in prepared.splits
        for row in range(splits[split]["num_rows"])
        if not len(prepared.row(split, "label", row))
    ]
    kept = [f"{len(empty)} frames have no boxes and are kept: {join_some(empty, most=3)}"] if empty else []
    return {"splits": splits, "doubts": [*doubts], "differences": [*notes, *kept, *doubts]}
