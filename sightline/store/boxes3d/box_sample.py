"""Samples of a LiDAR frame with 3D boxes: their fields, and how one is made of arrays and a table of boxes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch

from sightline.contract.types import Batch, Field, Sample
from sightline.store.boxes3d.box_table import BoxTable, make_box_table
from sightline.store.boxes3d.kitti_objects import Calibration

__all__ = [
    "BOX3D_FIELDS",
    "BOX_OFFSETS",
    "CAMERA_FIELDS",
    "MOTION_FIELDS",
    "SENSOR_FRAME",
    "list_calibrations",
    "make_camera_fields",
    "make_sample3d",
    "read_table",
]

BOX_OFFSETS = "box_offsets"
SENSOR_FRAME = "sensor: x forward, y left, z up"
_PerBox = partial(Field, collate="concatenate", offsets=BOX_OFFSETS)
BOX3D_FIELDS: Mapping[str, Field] = {
    "points": Field("points 3", "float32", "m", SENSOR_FRAME, collate="concatenate"),
    "boxes": _PerBox("boxes 7", "float32", "m and rad", SENSOR_FRAME),
    "label": _PerBox("boxes", "int64", "class", low=-1),
    "is_ignored": _PerBox("boxes", "bool"),
    "num_points": _PerBox("boxes", "int64", "points inside", low=-1),
    "velocity": _PerBox("boxes 2", "float32", "m/s over ground", SENSOR_FRAME, may_be_nan=True),
    "track": _PerBox("boxes", "int64", "number of the object", low=-1),
}
"""Fields of every sample with 3D boxes; sets add one field per feature of a point, such as `remission` (N, 1) float32.

A row of `boxes` is x, y, z of the centre of the volume, extent along the heading, to its left and up, and yaw,
counter-clockwise from +x. `label` is -1 for a region of no class; `num_points` and `track` are -1, and `velocity` is
NaN, where they are not known. `offsets` separate the points of samples in a batch, `box_offsets` their boxes.
"""
MOTION_FIELDS: Mapping[str, Field] = {
    "pose": Field("4 4", "float64", "m", "from the sensor to the world", is_exact=True),
    "time_s": Field("", "float64", "s", is_exact=True),
}
"""Fields of frames of a sequence: the pose of the sensor, a rigid motion of homogeneous columns, and its time."""
CAMERA_FIELDS: Mapping[str, Field] = {
    "to_camera": Field("3 4", "float64", "m", "from the sensor to the rectified camera", is_exact=True),
    "projection": Field("3 4", "float64", "px", "from the rectified camera to the image", is_exact=True),
    "image_px": Field("2", "int64", "px", low=1),
    "kitti_truth": Field(
        *("labels 16", "float64", "m, rad and px", f"{SENSOR_FRAME}; image"),
        collate="concatenate",
        offsets="kitti_truth_offsets",
        is_exact=True,
        may_be_nan=True,
    ),
}
"""Fields of frames with a camera, which evaluations alone read: matrices, width and height of the image, and labels.

`kitti_truth` are the labels of the file as KITTI's rules take them, which no transform changes. A row is a box, its
class (-1 for a region of no class, whose box is zeros), 1 if it is ignored, left, top, right, bottom and angle of
observation in the image, truncation and occlusion, NaN where they are not stated.
"""


def make_sample3d(points: np.ndarray, features: Mapping[str, np.ndarray], table: BoxTable) -> Sample:
    """Make a sample of `points` (N, 3), `features` of points (N,) or (N, C) by name, and the boxes of the frame.

    All tensors are copies: what a transform does to them changes neither the arrays nor the table.
    """
    num_points = len(points)
    wrong = {name: len(values) for name, values in features.items() if len(values) != num_points}
    assert not wrong, f"{wrong} rows of features beside {num_points} points"
    columns = {name: np.asarray(values, dtype=np.float32).reshape(num_points, -1) for name, values in features.items()}
    rows = {
        "points": np.asarray(points, dtype=np.float32).reshape(num_points, 3),
        **columns,
        "boxes": table.boxes.astype(np.float32),
        "label": table.label.astype(np.int64),
        "is_ignored": table.is_ignored.astype(bool),
        "num_points": table.num_points.astype(np.int64),
        "velocity": table.velocity.astype(np.float32),
        "track": table.track.astype(np.int64),
    }
    return {name: torch.from_numpy(np.array(values)) for name, values in rows.items()}


def make_camera_fields(calibration: Calibration, image_px: tuple[int, int], truth: np.ndarray) -> Sample:
    """Make the `CAMERA_FIELDS` of a frame; `truth` (T, 16) are rows of `kitti_truth`."""
    rows = {
        "to_camera": calibration.camera_of_velodyne[:3],
        "projection": calibration.projection,
        "image_px": np.array(image_px, dtype=np.int64),
        "kitti_truth": truth.astype(np.float64),
    }
    return {name: torch.from_numpy(np.array(values)) for name, values in rows.items()}


def list_calibrations(batch: Batch) -> list[Calibration]:
    """Return the calibration of each frame of a batch on the CPU; none of a batch without `CAMERA_FIELDS`."""
    if "projection" not in batch:
        return []
    matrices = np.zeros((len(batch["to_camera"]), 4, 4))
    matrices[:, :3], matrices[:, 3, 3] = _to_array(batch["to_camera"]), 1
    sizes = [(width, height) for width, height in batch["image_px"].tolist()]
    return [Calibration(*each) for each in zip(matrices, _to_array(batch["projection"]), sizes, strict=True)]


def read_table(sample: Sample, class_names: tuple[str, ...]) -> BoxTable:
    """Return the boxes of a sample as a table, in float64; what its fields do not state is not known."""
    boxes = _to_array(sample["boxes"]).astype(np.float64)
    stated = ("is_ignored", "num_points", "velocity", "track")
    columns = {name: _to_array(sample[name]) for name in stated if name in sample}
    if "velocity" in columns:
        columns["velocity"] = columns["velocity"].astype(np.float64)
    return make_box_table(boxes, _to_array(sample["label"]), class_names, **columns)


def _to_array(values: torch.Tensor) -> np.ndarray:
    return values.detach().cpu().numpy().copy()
