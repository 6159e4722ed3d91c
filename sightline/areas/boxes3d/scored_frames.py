"""Frames of a set with 3D boxes as scores take them: ids, tables of labels, cameras; and rows that metrics read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from sightline.contract.dataset import Dataset
from sightline.contract.errors import DataError
from sightline.contract.types import SampleKey
from sightline.engine.run_data import DataSubset
from sightline.store.boxes3d.box_sample import read_table
from sightline.store.boxes3d.box_table import BoxTable
from sightline.store.boxes3d.conversions import FLAT_CAMERA
from sightline.store.boxes3d.image_boxes import add_image_boxes
from sightline.store.boxes3d.kitti_objects import Calibration

__all__ = ["NEIGHBOURS", "LabelledFrames", "ScoredFrame", "detection_rows", "list_frames", "make_batch", "truth_rows"]

NEIGHBOURS: Mapping[str, str] = {"Van": "Car", "Person_sitting": "Pedestrian"}
"""Names of KITTI that are no class of its metric, and the class of which such a label is ignored."""
REGION = "DontCare"


@runtime_checkable
class LabelledFrames(Protocol):
    """A set that states the boxes of a frame without reading its cloud, with what KITTI's rows state of its image."""

    def box_table(self, index: int) -> BoxTable: ...

    def calibration(self, index: int) -> Calibration | None: ...


class ScoredFrame(NamedTuple):
    """Frame of a set: its number among the samples, its id, the table of its labels, and its camera, if it has one."""

    number: int
    id: str
    table: BoxTable
    calibration: Calibration | None


def list_frames(part: DataSubset) -> list[ScoredFrame]:
    """List the frames of a part. Raises DataError for two frames of one id."""
    names = tuple(part.dataset.info.facts["class_names"])
    frames: dict[str, ScoredFrame] = {}
    for index in map(int, part.indices):
        name = part.sample_name(index)
        if name in frames:
            raise DataError(
                f"two frames are called '{name}', by which results are matched; rename one, and prepare again"
            )
        frames[name] = ScoredFrame(index, name, *_read_labels(part.dataset, index, names))
    return [*frames.values()]


def _read_labels(dataset: Dataset, index: int, names: tuple[str, ...]) -> tuple[BoxTable, Calibration | None]:
    if isinstance(dataset, LabelledFrames):
        return dataset.box_table(index), dataset.calibration(index)
    return read_table(dataset[SampleKey(index, 0, 0)], names), None


def truth_rows(table: BoxTable, class_names: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows of `truth3d` (T, 9) of a frame's labels, what images state of them (T, 7), and `num_points` (T,).

    Labels of other classes are left out, but for neighbours of one, which are ignored labels of it. A region of no
    class has the class -1.
    """
    names = [table.class_names[label] if label >= 0 else REGION for label in table.label.tolist()]
    numbers = {name: number for number, name in enumerate(class_names)}
    near = {name: numbers[other] for name, other in NEIGHBOURS.items() if name not in numbers and other in numbers}
    classes = np.array([numbers.get(name, near.get(name, -1)) for name in names], dtype=np.float64)
    is_region = np.array([name == REGION for name in names], dtype=bool)
    is_near = np.array([name in near for name in names], dtype=bool)
    chosen = np.flatnonzero((classes >= 0) | is_region)
    rows = np.column_stack([table.boxes, classes, table.is_ignored | is_region | is_near])
    image = np.full((len(table), 7), np.nan)
    if table.image is not None:
        occluded = np.where(table.image.occluded < 0, np.nan, table.image.occluded)
        angle = np.where(table.image.alpha == -10, np.nan, table.image.alpha)
        image = np.column_stack([table.image.corners_px, angle, table.image.truncated, occluded])
    return rows[chosen], image[chosen], table.num_points[chosen]


def detection_rows(
    table: BoxTable, class_names: Sequence[str], calibration: Calibration | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of `detections3d` (D, 9) and `detections3d_image` (D, 5) of a frame's detections.

    One of another class has the class -1. Where a table states nothing of images, the camera of the frame gives image
    boxes and angles, if it has one.
    """
    numbers = {name: number for number, name in enumerate(class_names)}
    classes = [numbers.get(table.class_names[label], -1) if label >= 0 else -1 for label in table.label.tolist()]
    rows = np.column_stack([table.boxes, table.score, np.array(classes, dtype=np.float64)])
    stated = add_image_boxes(table, calibration).image
    if stated is None:
        return rows, np.full((len(table), 5), np.nan)
    return rows, np.column_stack([stated.corners_px, np.where(stated.alpha == -10, np.nan, stated.alpha)])


def make_batch(
    frames: Sequence[ScoredFrame], results: Mapping[str, BoxTable], class_names: Sequence[str]
) -> dict[str, Any]:
    """Make one batch of all frames and their detections, as metrics read it."""
    truths = [truth_rows(frame.table, class_names) for frame in frames]
    found = [detection_rows(results[frame.id], class_names, frame.calibration) for frame in frames]
    cameras = [FLAT_CAMERA if f.calibration is None else f.calibration.camera_of_velodyne for f in frames]
    batch: dict[str, Tensor] = {
        "sample_index": torch.tensor([frame.number for frame in frames]),
        "to_camera": torch.from_numpy(np.stack(cameras)[:, :3].copy()),
        "num_points": torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *(counts for _, _, counts in truths)])),
    }
    of_frames: dict[str, tuple[int, list[np.ndarray]]] = {
        "detections3d": (9, [boxes for boxes, _ in found]),
        "detections3d_image": (5, [image for _, image in found]),
        "truth3d": (9, [boxes for boxes, *_ in truths]),
        "kitti_truth": (16, [np.column_stack([boxes, image]) for boxes, image, _ in truths]),
    }
    for name, (width, rows) in of_frames.items():
        batch[f"{name}_offsets"] = torch.tensor([*accumulate(map(len, rows), initial=0)])
        batch[name] = torch.from_numpy(np.concatenate([np.zeros((0, width)), *rows]))
    return batch
