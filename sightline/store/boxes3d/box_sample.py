"""Samples of a LiDAR frame with 3D boxes: their fields, and how one is made of arrays and a table of boxes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch

from sightline.contract.types import Field, Sample
from sightline.store.boxes3d.box_table import BoxTable, make_box_table

__all__ = ["BOX3D_FIELDS", "BOX_OFFSETS", "MOTION_FIELDS", "SENSOR_FRAME", "make_sample3d", "read_table"]

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
