"""3D boxes of label files alone, without clouds: the truth that files of detections are scored by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sightline.areas.boxes3d.scored_frames import NEIGHBOURS
from sightline.contract import registry
from sightline.contract.dataset import Dataset
from sightline.contract.errors import ConfigError, DataError, join_some
from sightline.contract.types import DataInfo, Sample, SampleKey
from sightline.store.boxes3d.box_sample import BOX3D_FIELDS, make_sample3d
from sightline.store.boxes3d.box_table import BoxTable
from sightline.store.boxes3d.conversions import BoxCentre, BoxSize, YawSense, YawUnit, YawZero
from sightline.store.boxes3d.count_test import OPTION_OF, format_reading
from sightline.store.boxes3d.kitti_objects import Calibration, read_calibrations
from sightline.store.boxes3d.label_formats import LABEL_SUFFIXES, find_format, read_labels
from sightline.store.boxes3d.label_rows import list_classes, make_table
from sightline.store.boxes3d.results import join_names, read_results
from sightline.store.files.input_files import expand_home, list_files, natural_sort_key, read_file

__all__ = ["Labels3d"]


@registry.data.add("labels3d")
class Labels3d(Dataset):
    """3D boxes of a folder of label files, without clouds, for `sightline score` alone.

    `labels` is a folder of KITTI's rows, a file of each frame, of labels of another tool that states the frame's name
    or is called so, or a file of results in our own form. `calibrations` is a folder of KITTI's calibrations of the
    same names; without it boxes of a camera are those of one that stands in the scanner and looks ahead. `frames` is a
    text file of the frames that are scored, an id a line; without it all are. `classes` chooses some by name, in this
    order; by default all that are labelled, but for KITTI's neighbours of one (Van, Person_sitting). Without clouds
    nothing tells what the numbers of other tools mean: their likeliest reading is taken, unless `box_centre`,
    `box_size`, `yaw_unit`, `yaw_sense` and `yaw_zero` state it, as for `boxes3d_folder`; `reading` is what was taken,
    empty for forms that state it. Source: files of the user's own.
    """

    def __init__(
        self,
        *,
        split: str,
        labels: str,
        calibrations: str | None = None,
        frames: str | None = None,
        classes: tuple[str, ...] = (),
        box_centre: BoxCentre | None = None,
        box_size: BoxSize | None = None,
        yaw_unit: YawUnit | None = None,
        yaw_sense: YawSense | None = None,
        yaw_zero: YawZero | None = None,
    ) -> None:
        if split != "test":
            raise ConfigError(f"labels3d: there is no split '{split}'; labels without clouds are only scored by: test")
        root = expand_home(labels)
        self._cameras = {} if calibrations is None else read_calibrations(expand_home(calibrations))
        given = {"centre": box_centre, "size": box_size, "unit": yaw_unit, "sense": yaw_sense, "zero": yaw_zero}
        stated: dict[str, Any] = {part: value for part, value in given.items() if value is not None}
        cameras = {name: c.camera_of_velodyne for name, c in self._cameras.items()}
        self._tables, self.reading = _read_tables(root, cameras, stated)
        chosen = [*self._tables] if frames is None else _read_list(expand_home(frames))
        if missing := [name for name in chosen if name not in self._tables]:
            raise DataError(f"{frames}: {root} has no labels of {join_some(missing, most=5)}; correct the list")
        if lacking := [name for name in chosen if self._cameras and name not in self._cameras]:
            raise DataError(f"{calibrations}: has no calibration of {join_some(lacking, most=5)}; copy them there")
        self._frames = sorted(chosen, key=natural_sort_key)
        known = join_names(
            [table.class_names[label] for label in table.label[table.label >= 0]] for table in self._tables.values()
        )
        if unknown := [name for name in classes if name not in known]:
            raise ConfigError(f"data.classes: no label is called '{unknown[0]}', but {', '.join(known)}; correct it")
        names = tuple(classes or sorted(name for name in known if NEIGHBOURS.get(name) not in known))
        if not names:
            raise DataError(f"{root}: none of {len(self._tables)} frames has a box; give the folder of the labels")
        fields = {name: field for name, field in BOX3D_FIELDS.items() if name != "points"}
        facts = {"class_names": names, "num_classes": len(names)}
        self.info = DataInfo(facts, fields, split_sizes={"test": len(self._frames)})

    @classmethod
    def card(cls) -> dict[str, str]:
        """Return the description, accepted layouts and licence."""
        return {
            "layout": "label files of 3D boxes, with KITTI's calibrations beside them or not; nothing is prepared",
            "obtain": "your own files",
            "terms": "yours",
        }

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, key: SampleKey) -> Sample:
        """Return the boxes of a frame, of the classes that are chosen."""
        table, names = self.box_table(key.index), tuple(self.info.facts["class_names"])
        labelled = [table.class_names[label] if label >= 0 else "" for label in table.label]
        rows = np.array([name in names for name in labelled], dtype=bool)
        label = np.array([names.index(name) for name in labelled if name in names], dtype=np.int64)
        sample = make_sample3d(np.zeros((0, 3)), {}, replace(table.select(rows), label=label, class_names=names))
        return {name: sample[name] for name in self.info.fields}

    def sample_name(self, index: int) -> str:
        """Return the id of the frame."""
        return self._frames[index]

    def box_table(self, index: int) -> BoxTable:
        """Return all labels of a frame, of other classes, too."""
        return self._tables[self._frames[index]]

    def calibration(self, index: int) -> Calibration | None:
        """Return the calibration of a frame, None without a folder of them."""
        return self._cameras.get(self._frames[index])


def _read_list(path: Path) -> list[str]:
    names = [line.strip() for line in read_file(path).decode("utf-8", "replace").splitlines()]
    if twice := [name for name in dict.fromkeys(names) if name and names.count(name) > 1]:
        raise DataError(f"{path}: has the frame '{twice[0]}' twice; leave one out")
    return [name for name in names if name]


def _read_tables(
    root: Path, cameras: dict[str, np.ndarray], stated: Mapping[str, Any]
) -> tuple[dict[str, BoxTable], str]:
    """Read the labels of all frames, by their ids, and how their numbers were read, "" where the form states it.

    Raises DataError for files of several formats, and for none; ConfigError for a stated reading of KITTI's rows.
    """
    files = list_files(root, {*LABEL_SUFFIXES}) if root.is_dir() else []
    formats = dict.fromkeys(filter(None, (find_format(file) for file in files)))
    if not formats or set(formats) == {"kitti"}:
        if stated:
            raise ConfigError(
                f"{', '.join(OPTION_OF[part] for part in stated)}: {root} has rows of KITTI or of results, which have "
                "one reading; leave it out"
            )
        return read_results(root, cameras, are_labels=True), ""
    if len(formats) > 1:
        raise DataError(f"{root}: has labels of several formats, {', '.join(formats)}; give those of one")
    read = [read_labels(file, format_name=next(iter(formats))) for file in files]
    frames, readings = {}, dict[str, None]()
    for file, labels in zip(files, read, strict=True):
        form = next(iter(labels.forms.values()))
        reading = replace(form.reading, **stated)
        readings[format_reading(reading)] = None
        for name, boxes in labels.frames.items():
            frames[name or file.stem] = (boxes, reading.to_boxes(form.rows(boxes)))
    names = list_classes(boxes for boxes, _ in frames.values())
    tables = {name: make_table(boxes, rows, names, frame=name) for name, (boxes, rows) in frames.items()}
    return tables, " or ".join(readings)
