"""Synthetic LiDAR scans of streets: points with remission, ring and class."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sightline import registry
from sightline.arguments import Count, FractionBelowOne, NonNegativeFloat, Seed
from sightline.data.scans.label_maps import LabelMap
from sightline.data.scans.scan_samples import FEATURES, channel_sums, mean_and_std, scan_fields
from sightline.data.scans.sensors import SensorBlock, make_sensor
from sightline.data.synthetic.lidar_street import CLASS_IDS, FARTHEST_M, LidarNoise, Scan, cast_street, draw_street
from sightline.data.synthetic.synthetic_shapes import Many
from sightline.errors import ConfigError
from sightline.types import DataInfo, Sample, SampleKey, ScanInputSpec

__all__ = ["CLASS_NAMES", "SyntheticLidar"]

CLASS_NAMES = ("unlabeled", *CLASS_IDS)
"""Class names; class 0 exists as in SemanticKITTI, but no point has it."""
_SPLITS = ("train", "test")
_MAX_CACHE_BYTES = 2**28
_COLUMNS = ("x", "y", "z", "remission", "ring")
"""Columns of raw files for `predict`."""
_NUM_MEASURED = 4
"""Number of training scans from which mean and std of the input are estimated."""


@registry.data.add("synthetic_lidar")
class SyntheticLidar:
    """Scans of streets with the class of every point, a pure function of (data_seed, split, index).

    The sensor, an HDL-64E unless `sensor` describes another, is 1.73 m above a road with cars, persons, houses, trunks
    and poles; a turn has `num_columns` directions. Ranges have normal noise of `range_noise_m`, `lost_share` of the
    returns are missing. `count_classes` computes every training scan once in advance, for losses that need class
    frequencies. Epoch and seed of a key change nothing.
    Source: made here; sightline/data/synthetic/lidar_street.py.
    """

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
        self._cache: dict[tuple[str, int], dict[str, np.ndarray]] = {}
        self._cache_bytes = 0
        has_input_mean = "input_mean" in (sensor or {})
        self.info = self._describe(count_classes=count_classes, measures_input=not has_input_mean)

    @classmethod
    def card(cls) -> dict[str, str]:
        """Description, accepted layouts, download page and licence."""
        return {
            "layout": "no files: every scan is computed from data_seed, the split and its index",
            "obtain": "nothing to obtain; it is part of sightline",
            "terms": "free to use in any way, under the licence of sightline",
        }

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

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without cached scans: a worker process casts its own, with the same bits."""
        return self.__dict__ | {"_cache": {}, "_cache_bytes": 0}

    @property
    def label_map(self) -> LabelMap:
        """Label map between the ids of SemanticKITTI and classes."""
        names = dict(zip((0, *CLASS_IDS.values()), CLASS_NAMES, strict=True))
        to_class = {raw: label for label, raw in enumerate(names)}
        to_id = {label: raw for raw, label in to_class.items()}
        tables = {"labels": names, "learning_map": to_class, "learning_map_inv": to_id, "learning_ignore": {0: True}}
        return LabelMap(tables, where="synthetic_lidar")

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
        num_bytes = sum(values.nbytes for values in arrays.values())
        if self._cache_bytes + num_bytes <= _MAX_CACHE_BYTES:
            self._cache[split, index] = arrays
            self._cache_bytes += num_bytes
        return arrays

    def _describe(self, *, count_classes: bool, measures_input: bool) -> DataInfo:
        facts: dict[str, Any] = {
            "num_classes": len(CLASS_NAMES),
            "class_names": CLASS_NAMES,
            "ignore_index": 0,
            "in_channels": 4,
            "up_axis": "z",
            **self._sensor.facts(),
        }
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
