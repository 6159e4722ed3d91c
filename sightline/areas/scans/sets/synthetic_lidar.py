"""Synthetic LiDAR scans of random streets: exact ray casting, noise and lost returns, with the class of each point."""

from __future__ import annotations

import numpy as np
import torch

from sightline.areas.scans.sets.labelled_scans import scan_facts
from sightline.contract import registry
from sightline.contract.arguments import Count, FractionBelowOne, NonNegativeFloat, Seed
from sightline.contract.errors import ConfigError
from sightline.contract.types import DataInfo, Sample, SampleKey, ScanInputSpec
from sightline.store.computed_samples import ComputedSet, Many, SampleCache, array_bytes
from sightline.store.files.scan_samples import FEATURES, channel_sums, mean_and_std, scan_fields
from sightline.store.files.sensors import SensorBlock, make_sensor
from sightline.store.label_maps import LabelMap, identity_map
from sightline.store.streets.beams import Obstacles
from sightline.store.streets.casting import (
    BUILDING,
    CAR,
    FARTHEST_M,
    PERSON,
    POLE,
    ROAD,
    SENSOR_HEIGHT_M,
    SIDEWALK,
    TERRAIN,
    TRUNK,
    LidarNoise,
    Scan,
    Street,
    cast_street,
)

CLASS_IDS = {
    "car": CAR,
    "person": PERSON,
    "road": ROAD,
    "sidewalk": SIDEWALK,
    "building": BUILDING,
    "trunk": TRUNK,
    "terrain": TERRAIN,
    "pole": POLE,
}
"""Classes and their ids in SemanticKITTI."""
_NUM = {CAR: 6, PERSON: 3, BUILDING: 10, POLE: 8, TRUNK: 6}


def draw_street(generator: np.random.Generator) -> Street:
    """Draw a street with 6 cars at the road's edges, 3 persons, 10 houses, 8 poles and 6 trunks, sizes +- 10 %."""
    ground = -SENSOR_HEIGHT_M
    side = {key: generator.choice([-1.0, 1.0], count) for key, count in _NUM.items()}
    scale = {key: generator.uniform(0.9, 1.1, (count, 3)) for key, count in _NUM.items()}
    car_x = generator.choice([-1.0, 1.0], _NUM[CAR]) * generator.uniform(5.0, 40.0, _NUM[CAR])
    yaw = generator.normal(0.0, 0.05, _NUM[CAR]) + np.pi * generator.integers(0, 2, _NUM[CAR])
    cars = _make_boxes(car_x, side[CAR] * generator.uniform(2.7, 3.2, _NUM[CAR]), (4.2, 1.8, 1.5), scale[CAR], yaw)
    facing = generator.uniform(-np.pi, np.pi, _NUM[PERSON])
    person_y = side[PERSON] * generator.uniform(4.2, 5.8, _NUM[PERSON])
    persons = _make_boxes(
        generator.uniform(-25.0, 25.0, _NUM[PERSON]), person_y, (0.6, 0.6, 1.8), scale[PERSON], facing
    )
    house_x = np.repeat(np.arange(-40.0, 41.0, 20.0), 2) + generator.uniform(-2.0, 2.0, _NUM[BUILDING])
    houses = _make_boxes(
        house_x, 14.0 * np.tile([-1.0, 1.0], 5), (16.0, 8.0, 8.0), scale[BUILDING], np.zeros(len(house_x))
    )
    poles = _draw_cylinders(generator, side[POLE] * 6.2, 0.1, 4.0 * scale[POLE][:, 2])
    trunk_y = side[TRUNK] * generator.uniform(7.0, 9.0, _NUM[TRUNK])
    trunks = _draw_cylinders(generator, trunk_y, 0.2, 1.5 * scale[TRUNK][:, 2])
    boxes, cylinders = np.concatenate([cars, persons, houses]), np.concatenate([poles, trunks])
    boxes[:, 5] += ground
    cylinders[:, 3] += ground
    kinds = (CAR, PERSON, BUILDING, POLE, TRUNK)
    ids = np.repeat(kinds, [_NUM[kind] for kind in kinds])
    return Street(Obstacles(boxes, cylinders), ids)


def _make_boxes(
    x: np.ndarray, y: np.ndarray, size: tuple[float, float, float], scale: np.ndarray, yaw: np.ndarray
) -> np.ndarray:
    length, width, height = (np.asarray(size) * scale).T
    return np.stack([x, y, length / 2, width / 2, yaw, height], axis=1)


def _draw_cylinders(generator: np.random.Generator, y: np.ndarray, radius: float, top: np.ndarray) -> np.ndarray:
    x = generator.uniform(-40.0, 40.0, len(y))
    return np.stack([x, y, np.full(len(y), radius), top], axis=1)


CLASS_NAMES = ("unlabeled", *CLASS_IDS)
"""Class names; class 0 exists as in SemanticKITTI, but no point has it."""
_SPLITS = ("train", "test")
_MAX_CACHE_BYTES = 2**28
_COLUMNS = ("x", "y", "z", "remission", "ring")
"""Columns of raw files for `predict`."""
_NUM_MEASURED = 4
"""Number of training scans from which mean and std of the input are estimated."""


@registry.data.add("synthetic_lidar")
class SyntheticLidar(ComputedSet):
    """Scans of streets with the class of every point, a pure function of (data_seed, split, index).

    The sensor, an HDL-64E unless `sensor` describes another, is 1.73 m above a road with cars, persons, houses, trunks
    and poles; a turn has `num_columns` directions. Ranges have normal noise of `range_noise_m`, `lost_share` of the
    returns are missing. `count_classes` computes every training scan once in advance, for losses that need class
    frequencies. Epoch and seed of a key change nothing.
    Source: made here; sightline/areas/scans/sets/synthetic_lidar.py.
    """

    computed = "scan is computed"

    def __init__(
        self,
        *,
        split: str,
        train_size: Many = 160,
        test_size: Many = 40,
        sensor: SensorBlock | None = None,
        num_columns: Count = 512,
        range_noise_m: NonNegativeFloat = 0.02,
        lost_share: FractionBelowOne = 0.05,
        count_classes: bool = False,
        data_seed: Seed = 0,
    ) -> None:
        if split not in _SPLITS:
            raise ConfigError(f"synthetic_lidar: there is no split '{split}'; it has {' and '.join(_SPLITS)}")
        self._split = split
        self._sizes = {"train": train_size, "test": test_size}
        self._sensor = make_sensor(sensor, preset="hdl64", owner="synthetic_lidar")
        self._num_columns = num_columns
        self._disturbance = LidarNoise(range_m=range_noise_m, lost_share=lost_share)
        self._data_seed = data_seed
        self._cache = SampleCache[dict[str, np.ndarray]](_MAX_CACHE_BYTES, array_bytes)
        has_input_mean = "input_mean" in (sensor or {})
        self.info = self._describe(count_classes=count_classes, measures_input=not has_input_mean)

    def __len__(self) -> int:
        return self._sizes[self._split]

    def __getitem__(self, key: SampleKey) -> Sample:
        if not 0 <= key.index < len(self):
            raise IndexError(f"synthetic_lidar: sample {key.index} of '{self._split}', which has {len(self)}")
        scan = self._cast_cached(self._split, key.index)
        return {
            "points": torch.from_numpy(scan["points"].copy()),
            "remission": torch.from_numpy(scan["remission"].copy()),
            "label": torch.from_numpy(scan["label"].astype(np.int64)),
            "ring": torch.from_numpy(scan["ring"].astype(np.int64)),
        }

    @property
    def label_map(self) -> LabelMap:
        """Label map between the ids of SemanticKITTI and classes."""
        names = {0: CLASS_NAMES[0], **{raw: name for name, raw in CLASS_IDS.items()}}
        return identity_map(list(names), names, where="synthetic_lidar")

    def scan(self, split: str, index: int) -> Scan:
        """Cast a scan, with the ids of SemanticKITTI and the index of the object of every return."""
        generator = SampleKey(index, _SPLITS.index(split), self._data_seed).generator()
        street = draw_street(generator)
        return cast_street(
            street, self._sensor, num_columns=self._num_columns, generator=generator, disturbance=self._disturbance
        )

    def _cast_cached(self, split: str, index: int) -> dict[str, np.ndarray]:
        cached = self._cache.get((split, index))
        if cached is not None:
            return cached
        scan = self.scan(split, index)
        arrays = {
            "points": scan.points,
            "remission": scan.remission[:, None],
            "label": _LABEL_BY_ID[scan.ids],
            "ring": scan.ring.astype(np.uint16),
        }
        return self._cache.put((split, index), arrays)

    def _describe(self, *, count_classes: bool, measures_input: bool) -> DataInfo:
        facts = scan_facts(self.label_map, self._sensor)
        if measures_input:
            facts["input_mean"], facts["input_std"] = self._measure_input()
        if count_classes:
            labels = (self._cast_cached("train", index)["label"] for index in range(self._sizes["train"]))
            counts = sum(np.bincount(label, minlength=len(CLASS_NAMES)) for label in labels)
            facts["class_counts"] = tuple(np.asarray(counts).tolist())
        reach = FARTHEST_M + 8 * self._disturbance.range_m
        fields = scan_fields(num_classes=len(CLASS_NAMES), reach_m=reach, num_beams=self._sensor.num_beams)
        form = ScanInputSpec(
            (0, *CLASS_IDS.values()),
            columns=_COLUMNS,
            remission_max=self._sensor.remission_max,
            num_beams=self._sensor.num_beams,
        )
        return DataInfo(facts=facts, fields=fields, split_sizes=self._sizes, features=FEATURES, scans=form)

    def _measure_input(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Compute mean and std of range, x, y, z and remission over the first training scans."""
        scans = [self._cast_cached("train", index) for index in range(min(_NUM_MEASURED, self._sizes["train"]))]
        sums = sum((channel_sums(scan["points"], scan["remission"]) for scan in scans), start=np.zeros((2, 5)))
        return mean_and_std(sums, sum(len(scan["points"]) for scan in scans))


_LABEL_BY_ID = np.zeros(max(CLASS_IDS.values()) + 1, dtype=np.uint8)
_LABEL_BY_ID[list(CLASS_IDS.values())] = np.arange(1, len(CLASS_NAMES))
