"""Base of the prepared data sets of LiDAR scans with a class at every point.

Paths of predicted label files in the layout of the SemanticKITTI evaluator and server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from sightline.areas.scans.sets.scan_preparation import guess_remission_max, id_counts
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.types import DataInfo, Sample, SampleKey, ScanInputSpec
from sightline.store.files.scan_samples import FEATURES, RawScan, Sensor, mean_and_std, scan_fields
from sightline.store.label_maps import LabelMap
from sightline.store.prepared.prepared_data import PreparedData
from sightline.store.prepared.prepared_set import PreparedSet
from sightline.store.prepared.splits import RowRefs, SplitRows, check_part


class ScanSampling(NamedTuple):
    """Sampling of the training scans of an epoch.

    Scans with a share of labelled points below `min_labelled` are left out. With `balanced` an epoch draws as many
    scans as there are, with replacement, by the inverse square root of the share of scans with their rarest class.
    Source: Gupta et al. 2019 (LVIS), repeat factors with the threshold 1.
    """

    min_labelled: float = 0.0
    balanced: bool = False


class LabelledScans(PreparedData):
    """Base of sets of LiDAR scans; files are read in place and whole, and labels are mapped while reading.

    Another label map or sensor block therefore needs no new preparation. Pure: the same key gives the same scan.
    """

    has_rings: bool = False
    has_columns: bool = False
    printed = ("layout", "split", "remission_high", "points_per_id", "differences")

    def __init__(
        self,
        *,
        prepared: PreparedSet,
        split: str,
        parts: SplitRows,
        label_map: LabelMap,
        sensor: Sensor,
        frames: ScanSampling,
    ) -> None:
        check_part(parts, split, root=prepared.root, what="scan")
        _check_remission(prepared, sensor)
        self._label_map = label_map
        self._cumulative: np.ndarray | None = None
        if frames != ScanSampling():
            parts = self._select_training_scans(prepared, parts, frames, is_train=split == "train")
        self._prepared = prepared
        self._rows = parts.rows[split]
        self._sensor = sensor
        self.info = self._describe(parts)

    @property
    def label_map(self) -> LabelMap:
        """Label map between the ids of files and classes."""
        return self._label_map

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: SampleKey) -> Sample:
        """Read one whole scan as new tensors.

        Raises IndexError for an index out of range, and DataError with the file that is missing, was changed, or has an
        id that the label map lacks.
        """
        if not 0 <= key.index < len(self):
            raise IndexError(f"{self.set_name} has the samples 0 to {len(self) - 1}, asked for {key.index}")
        index = key.index
        if self._cumulative is not None:
            index = int(np.searchsorted(self._cumulative, key.generator().random(), side="right"))
        stored, row = self._rows[index]
        files = self._prepared.listing(stored).paths(row)
        scan = self._read_files(files, {name: self._prepared.row(stored, name, row) for name in self._value_columns})
        values = {
            "points": scan.points,
            "remission": (scan.remission / np.float32(self._sensor.remission_max))[:, None],
            "label": self._map_classes(scan, where=str(files[0])),
        }
        optional = {"ring": scan.ring, "column": scan.column}
        values |= {name: array for name, array in optional.items() if array is not None and name in self.info.fields}
        return {name: torch.from_numpy(np.array(array)) for name, array in values.items()}

    def sample_name(self, index: int) -> str:
        """Name of a sample in reports."""
        stored, row = self._rows[index]
        return self._prepared.names(stored)[row]

    @classmethod
    def summarise(cls, prepared: PreparedSet) -> dict[str, Any]:
        """Return the scans and points per split."""
        splits = prepared.manifest["splits"].items()
        return {
            "scans": {split: facts["num_rows"] for split, facts in splits},
            "points": {split: facts["num_points"] for split, facts in splits},
        }

    _value_columns: ClassVar[tuple[str, ...]] = ()
    """Names of the stored columns that `_read_files` needs."""

    def _input_spec(self) -> ScanInputSpec:
        """Return the ScanInputSpec with which `predict` must read a file; the default is KITTI's format."""
        return ScanInputSpec(
            self._label_map.ids_of_classes,
            remission_max=self._sensor.remission_max,
            has_remission=float(self._prepared.manifest["remission_high"]) > 0,
        )

    def _read_files(self, files: tuple[Path, ...], values: Mapping[str, np.ndarray]) -> RawScan:
        """Read the scan in these files."""
        raise NotImplementedError

    def _map_classes(self, scan: RawScan, *, where: str) -> np.ndarray:
        """Return the class (N,) int64 of every point; points without a return are ignored regardless of their id."""
        return_classes = self._label_map.classes(scan.returns().ids, where=where)
        if scan.is_return is None:
            return return_classes
        classes = np.full(len(scan.ids), self._label_map.ignore_index, dtype=np.int64)
        classes[scan.is_return] = return_classes
        return classes

    def _select_training_scans(
        self, prepared: PreparedSet, parts: SplitRows, frames: ScanSampling, *, is_train: bool
    ) -> SplitRows:
        """Filter the training scans by `frames`; for the training split also compute the sampling distribution.

        Raises ConfigError if no scan remains.
        """
        train, where = parts.rows["train"], str(prepared.root)
        counts = np.array([self._label_map.counts(*id_counts(prepared, [row]), where=where) for row in train])
        scored_counts = np.delete(counts, 0, axis=1) if self._label_map.ignore_index == 0 else counts
        sizes = np.array([prepared.array(split, "num_points")[row] for split, row in train])
        selected_mask = scored_counts.sum(axis=1) >= frames.min_labelled * np.maximum(sizes, 1)
        if not selected_mask.any():
            raise ConfigError(f"min_labelled: no scan of {where} has {frames.min_labelled:g} of its points labelled")
        if frames.balanced and is_train:
            is_shown = scored_counts[selected_mask] > 0
            rarity = 1 / np.sqrt(np.maximum(is_shown.mean(axis=0), 1 / len(train)))
            weights = np.maximum((is_shown * rarity).max(axis=1), 1.0)
            self._cumulative = np.cumsum(weights)[:-1] / weights.sum()
        selected = tuple(row for row, is_selected in zip(train, selected_mask, strict=True) if is_selected)
        return parts._replace(rows={**parts.rows, "train": selected})

    def _describe(self, parts: SplitRows) -> DataInfo:
        all_rows = tuple(row for rows in parts.rows.values() for row in rows)
        train = parts.rows["train"] or all_rows  # a set with test scans only uses these
        label_map, sensor = self._label_map, self._sensor
        label_map.counts(*id_counts(self._prepared, all_rows), where=str(self._prepared.root))
        counts = label_map.counts(*id_counts(self._prepared, train), where=str(self._prepared.root))
        if sensor.input_mean is None:
            mean, std = _compute_mean_and_std(self._prepared, train, sensor.remission_max)
            sensor = replace(sensor, input_mean=mean, input_std=std)
        facts = {**scan_facts(label_map, sensor), "class_counts": tuple(counts.tolist())}
        # Twice the stored maximum: another scan may reach a little further, one in another unit far beyond.
        reach = 2 * max(float(self._prepared.array(split, "reach_m").max()) for split in self._prepared.splits)
        fields = scan_fields(
            num_classes=label_map.num_classes,
            reach_m=reach,
            num_beams=sensor.num_beams if self.has_rings else None,
            ignore_index=label_map.ignore_index,
            has_columns=self.has_columns,
        )
        sizes = {name: len(rows) for name, rows in parts.rows.items() if rows}
        return DataInfo(facts, fields, sizes, features=FEATURES, folds=parts.folds, scans=self._input_spec())


def scan_facts(label_map: LabelMap, sensor: Sensor) -> dict[str, Any]:
    """Return the facts of a set of scans, without class counts."""
    return {
        "num_classes": label_map.num_classes,
        "class_names": label_map.class_names,
        "ignore_index": label_map.ignore_index,
        "in_channels": 4,
        "up_axis": "z",
        **sensor.facts(),
    }


def _check_remission(prepared: PreparedSet, sensor: Sensor) -> None:
    """Raise DataError if the remissions of the files do not fit the sensor's scale."""
    high, stated = float(prepared.manifest["remission_high"]), sensor.remission_max
    if high > stated * (1 + 1e-6) or (stated > 1 and 0 < high <= 1):
        raise DataError(
            f"{prepared.root}: remissions of the files run to {high:g}, and sensor.remission_max is {stated:g}; set "
            f"sensor.remission_max={guess_remission_max(high)} if that is their scale"
        )


def _compute_mean_and_std(
    prepared: PreparedSet, rows: RowRefs, remission_max: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute mean and std of range, x, y, z and remission (0 to 1) over all points of these scans."""
    scale = np.array([1.0, 1.0, 1.0, 1.0, 1 / remission_max])
    sums = sum((prepared.array(split, "sums")[row] for split, row in rows), start=np.zeros((2, 5)))
    count = sum(int(prepared.array(split, "num_points")[row]) for split, row in rows)
    return mean_and_std(sums * np.stack([scale, scale**2]), count)
