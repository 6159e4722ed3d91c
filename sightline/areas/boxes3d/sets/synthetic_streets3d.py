"""Synthetic LiDAR frames of streets with the true 3D box of every car, pedestrian and cyclist, also as sequences."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from sightline.areas.boxes3d.sets.street_traffic import (
    CLASS_NAMES,
    FRAME_S,
    Traffic,
    draw_traffic,
    list_boxes,
    place_street,
)
from sightline.contract import registry
from sightline.contract.arguments import Count, FractionBelowOne, Index, NonNegativeFloat, Seed
from sightline.contract.errors import ConfigError
from sightline.contract.types import DataInfo, Field, Sample, SampleKey, ScanInputSpec
from sightline.ops import points_in_boxes
from sightline.store.boxes3d.box_sample import BOX3D_FIELDS, MOTION_FIELDS, make_sample3d
from sightline.store.boxes3d.box_table import BoxTable, make_box_table
from sightline.store.computed_samples import ComputedSet, Many, SampleCache
from sightline.store.files.scan_samples import FEATURES
from sightline.store.files.sensors import SensorBlock, make_sensor
from sightline.store.prepared.splits import SPLITS
from sightline.store.streets.casting import LidarNoise, Scan, cast_street

_MAX_CACHE_BYTES = 2**28
_RANGE_M = (-46.08, -15.36, -3.0, 46.08, 15.36, 1.0)
"""Lowest and highest x, y and z of all boxes of cars, pedestrians and cyclists at the first frame."""
_SLACK_M = 0.01
"""Distance of boxes from surfaces besides the noise: room for rounding."""
_GAP_M = 0.5
"""Smallest gap between footprints; boxes, which are larger, do not touch either."""
_MAX_TRACKS = 100
"""More objects than a street has: the number of an object is that of its street, and its own in it."""


class StreetFrame(NamedTuple):
    """Frame of a street: its returns and its boxes, `time_s` after the first frame.

    `owner` (N,) int64 is the row of the box that each return is of, -1 for none; `pose` (4, 4) leads from the sensor to
    the world.
    """

    scan: Scan
    table: BoxTable
    owner: np.ndarray
    pose: np.ndarray
    time_s: float


@registry.data.add("synthetic_streets3d")
class SyntheticStreets3d(ComputedSet):
    """LiDAR frames of streets with true 3D boxes, a pure function of (data_seed, split, index).

    The sensor, an HDL-64E unless `sensor` describes another, is 1.73 m above a road; a turn has `num_columns`
    directions. Ranges have normal noise of `range_noise_m`, `lost_share` of the returns are missing. Cars have a body
    and a cabin that is set back; a third are parked across the road or turn, three in ten are partly hidden. Boxes
    stand off the surfaces by three times the noise; those with fewer than `min_points` inside are ignored. With
    `sequence` frames of each street, 0.1 s apart, the sensor moves, and `track` numbers are those of one object in all
    of them. Epoch and seed of a key change nothing.
    Source: made here; sightline/areas/boxes3d/sets/street_traffic.py.
    """

    computed = "frame is computed"

    def __init__(
        self,
        *,
        split: str,
        train_size: Many = 400,
        validation_size: Many = 50,
        test_size: Many = 100,
        sensor: SensorBlock | None = None,
        num_columns: Count = 1024,
        range_noise_m: NonNegativeFloat = 0.02,
        lost_share: FractionBelowOne = 0.05,
        min_points: Index = 5,
        sequence: Count = 1,
        data_seed: Seed = 0,
    ) -> None:
        if split not in SPLITS:
            raise ConfigError(f"synthetic_streets3d: there is no split '{split}'; it has {', '.join(SPLITS)}")
        self._split = split
        self._sizes = dict(zip(SPLITS, (train_size, validation_size, test_size), strict=True))
        self._sensor = make_sensor(sensor, preset="hdl64", owner="synthetic_streets3d")
        self._num_columns = num_columns
        self._disturbance = LidarNoise(range_m=range_noise_m, lost_share=lost_share)
        self._margin_m = 3 * range_noise_m + _SLACK_M
        self._min_points = min_points
        self._sequence = sequence
        self._data_seed = data_seed
        self._cache = SampleCache[Sample](_MAX_CACHE_BYTES, _count_bytes)
        self.info = self._describe()

    def __len__(self) -> int:
        return self._sizes[self._split]

    def __getitem__(self, key: SampleKey) -> Sample:
        if not 0 <= key.index < len(self):
            raise IndexError(f"synthetic_streets3d: sample {key.index} of '{self._split}', which has {len(self)}")
        sample = self._cache.get((self._split, key.index))
        if sample is None:
            sample = self._cache.put((self._split, key.index), self._make(self._split, key.index))
        return {name: values.clone() for name, values in sample.items()}

    def sample_name(self, index: int) -> str:
        """Return the number of the street, and of the frame in a sequence."""
        street, frame = divmod(index, self._sequence)
        return f"{street:04d}" if self._sequence == 1 else f"{street:04d}/{frame:02d}"

    def traffic(self, split: str, index: int) -> Traffic:
        """Draw the street of a frame, as it is at its first frame."""
        key = SampleKey(index // self._sequence, SPLITS.index(split), self._data_seed)
        gap_m = max(_GAP_M, 3 * self._margin_m)
        return draw_traffic(key.generator(), num_frames=self._sequence, gap_m=gap_m)

    def frame(self, split: str, index: int) -> StreetFrame:
        """Cast a frame, with the class and the owner of every return."""
        traffic, time_s = self.traffic(split, index), (index % self._sequence) * FRAME_S
        boxes, velocity, pose = list_boxes(traffic, time_s, margin_m=self._margin_m)
        street, owner = place_street(traffic, time_s)
        noise_key = SampleKey(index, len(SPLITS) + SPLITS.index(split), self._data_seed)
        scan = cast_street(
            street,
            self._sensor,
            num_columns=self._num_columns,
            generator=noise_key.generator(),
            disturbance=self._disturbance,
            side_m=float(pose[1, 3]),
            heading_rad=float(np.arctan2(pose[1, 0], pose[0, 0])),
        )
        num_points = _count_inside(scan.points, boxes)
        table = make_box_table(
            boxes,
            traffic.users.label,
            CLASS_NAMES,
            is_ignored=num_points < self._min_points,
            num_points=num_points,
            velocity=velocity,
            track=index // self._sequence * _MAX_TRACKS + np.arange(len(boxes)),
            frame=self.sample_name(index),
        )
        return StreetFrame(scan, table, np.append(owner, -1)[scan.thing], pose, time_s)

    def _make(self, split: str, index: int) -> Sample:
        frame = self.frame(split, index)
        sample = make_sample3d(frame.scan.points, {"remission": frame.scan.remission}, frame.table)
        if self._sequence > 1:
            sample |= {
                "pose": torch.from_numpy(frame.pose),
                "time_s": torch.tensor(frame.time_s, dtype=torch.float64),
            }
        return sample

    def _describe(self) -> DataInfo:
        facts = {
            "num_classes": len(CLASS_NAMES),
            "class_names": CLASS_NAMES,
            "in_channels": 3 + len(FEATURES),
            "up_axis": "z",
            "range_m": _RANGE_M,
        }
        fields = {
            **BOX3D_FIELDS,
            "remission": Field("points 1", "float32", "share of what was sent", "", 0.0, 1.0, "concatenate"),
            **(MOTION_FIELDS if self._sequence > 1 else {}),
        }
        return DataInfo(facts=facts, fields=fields, split_sizes=self._sizes, features=FEATURES, scans=ScanInputSpec(()))


def _count_inside(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Count the points (N, 3) in each of the boxes (M, 7), which do not touch: (M,) int64."""
    inside = points_in_boxes(torch.from_numpy(points), torch.from_numpy(boxes.astype(np.float32)), frame="lidar")
    return np.bincount(inside.numpy() + 1, minlength=len(boxes) + 1)[1:]


def _count_bytes(sample: Sample) -> int:
    return sum(int(values.nbytes) for values in sample.values())
