"""Bases of the prepared data sets of LiDAR scans with a class at every point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from sightline.areas.scans.sets.scan_preparation import guess_remission_max, id_counts
from sightline.contract.arguments import FractionBelowOne
from sightline.contract.errors import DataError
from sightline.contract.types import DataInfo, Sample, SampleKey, ScanInputSpec
from sightline.store.files.scan_samples import FEATURES, RawScan, mean_and_std, scan_fields
from sightline.store.files.sensors import Sensor, SensorBlock, make_sensor
from sightline.store.label_maps import LabelMap, identity_map, make_label_map, read_label_map
from sightline.store.prepared.prepared_data import SetSpec, SplitFigure, Summary
from sightline.store.prepared.prepared_rows import PreparedRows
from sightline.store.prepared.prepared_set import PreparedSet
from sightline.store.prepared.splits import RowRefs, SplitRows, check_part, make_splits


@dataclass(frozen=True, kw_only=True)
class ScanSpec(SetSpec):
    """Row of a set of scans.

    `label_maps` are its label maps by name, the default first; without one every id is a class. `sensor` has the values
    of its sensor where the user gives none.
    """

    label_maps: Mapping[str, Path] = field(default_factory=dict)
    sensor: SensorBlock

    def list_entries(self) -> dict[str, Any]:
        """Return the entries of the card that are computed."""
        classes = [", ".join(read_label_map(name, self.label_maps).class_names) for name in self.label_maps]
        entries = {"classes": classes[0]} if classes else {}
        return {**entries, **({"label_maps": ", ".join(self.label_maps)} if len(classes) > 1 else {}), **self.entries()}


class LabelledScans(PreparedRows):
    """Base of sets of LiDAR scans; files are read in place and whole, and labels are mapped while reading.

    Another label map or sensor block therefore needs no new preparation. Pure: the same key gives the same scan.
    """

    spec: ClassVar[ScanSpec]
    has_rings: bool = False
    has_columns: bool = False
    summary: ClassVar[Summary] = {"scans": SplitFigure("num_rows"), "points": SplitFigure("num_points")}
    printed = ("layout", "split", "rings", "remission_high", "points_per_id", "differences")

    def __init__(
        self,
        *,
        prepared: PreparedSet,
        split: str,
        parts: SplitRows,
        label_map: LabelMap,
        sensor: Sensor,
    ) -> None:
        check_part(parts, split, root=prepared.root, what="scan")
        _check_remission(prepared, sensor)
        self._label_map = label_map
        self._prepared = prepared
        self._rows = parts.rows[split]
        self._sensor = sensor
        self.info = self._describe(parts)

    @property
    def label_map(self) -> LabelMap:
        """Label map between the ids of files of predicted labels and classes: that of the set's own files."""
        return self._label_map

    def __getitem__(self, key: SampleKey) -> Sample:
        """Read one whole scan as new tensors.

        Raises IndexError for an index out of range, and DataError with the file that is missing, was changed, or has an
        id that the label map lacks.
        """
        stored, row = self._locate(key.index)
        files = self._prepared.listing(stored).paths(row)
        scan = self._read_scan(files, {name: self._prepared.row(stored, name, row) for name in self._value_columns})
        values = {
            "points": scan.points,
            "remission": (scan.remission / np.float32(self._sensor.remission_max))[:, None],
            "label": self._map_classes(scan, where=str(files[0])),
        }
        optional = {"ring": scan.ring, "column": scan.column}
        values |= {name: array for name, array in optional.items() if array is not None and name in self.info.fields}
        return {name: torch.from_numpy(np.array(array)) for name, array in values.items()}

    _value_columns: ClassVar[tuple[str, ...]] = ()
    """Names of the stored columns that `read_files` needs."""

    def _input_spec(self) -> ScanInputSpec:
        """Return the ScanInputSpec with which `predict` must read a file; the default is KITTI's format."""
        return ScanInputSpec(
            self.label_map.ids_of_classes,
            remission_max=self._sensor.remission_max,
            has_remission=float(self._prepared.manifest["remission_high"]) > 0,
        )

    @classmethod
    def make_sensor(cls, block: SensorBlock | None) -> Sensor:
        """Make the sensor of the set with the values of a block."""
        values: SensorBlock = {**cls.spec.sensor, **(block or {})}
        return make_sensor(values, preset=None, owner=cls.set_name)

    @classmethod
    def read_files(
        cls, files: Sequence[Path], values: Mapping[str, np.ndarray], manifest: Mapping[str, Any]
    ) -> RawScan:
        """Read the scan in these files, by the values of its stored columns and the entries of the manifest."""
        raise NotImplementedError(f"{cls.__name__} must define read_files")

    def _read_scan(self, files: Sequence[Path], values: Mapping[str, np.ndarray]) -> RawScan:
        return self.read_files(files, values, self._prepared.manifest)

    def _map_classes(self, scan: RawScan, *, where: str) -> np.ndarray:
        """Return the class (N,) int64 of every point; points without a return are ignored regardless of their id."""
        return_classes = self._label_map.classes(scan.returns().ids, where=where)
        if scan.is_return is None:
            return return_classes
        classes = np.full(len(scan.ids), self._label_map.ignore_index, dtype=np.int64)
        classes[scan.is_return] = return_classes
        return classes

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


class NamedScans(LabelledScans):
    """Base of sets whose scans are dealt to splits by their names, or by lists of the source.

    `tested` are beginnings of names, whose scans are tested on; without them the source decides, or the last
    `test_share` of the scans in the order of their names. The last `validation_share` of the rest chooses the
    checkpoint. Without a `label_map` of the user's, a file or the names of the ids from 0 on, the set's own is used,
    or the names of the preparation, or every id is a class; `sensor` replaces values of the set's.
    """

    def __init__(
        self,
        *,
        split: str,
        root: str | None = None,
        tested: tuple[str, ...] = (),
        label_map: str | tuple[str | None, ...] | None = None,
        sensor: SensorBlock | None = None,
        test_share: FractionBelowOne = 0.2,
        validation_share: FractionBelowOne = 0.1,
    ) -> None:
        full_sensor = self.make_sensor(sensor)
        prepared = self.open_root(root)
        self._check_sensor(prepared, full_sensor)
        classes = self._read_label_map(prepared, label_map)
        parts = make_splits(
            prepared, test_names=tested, test_share=test_share, validation_share=validation_share, what="scan"
        )
        super().__init__(prepared=prepared, split=split, parts=parts, label_map=classes, sensor=full_sensor)

    def _read_label_map(self, prepared: PreparedSet, label_map: str | tuple[str | None, ...] | None) -> LabelMap:
        """Read the user's label map, or the set's own."""
        if label_map is None and not self.spec.label_maps:
            return map_every_id(prepared)
        return read_label_map(self.set_name if label_map is None else label_map, self.spec.label_maps)

    def _check_sensor(self, prepared: PreparedSet, sensor: Sensor) -> None:
        """Raise ConfigError if the sensor is not that of the prepared scans."""


AHEAD: SensorBlock = {"preset": "hdl64", "azimuth_deg": (45.0, -45.0)}
"""HDL-64E of which the scans are the view ahead."""


def map_every_id(prepared: PreparedSet) -> LabelMap:
    """Map ids by the names of the preparation, or every id that occurs to a class."""
    if (names := prepared.manifest.get("options", {}).get("names")) is not None:
        return make_label_map(names, where=f"names of {prepared.root}")
    rows = [(split, row) for split in prepared.splits for row in range(len(prepared.names(split)))]
    id_names = {int(raw): name for raw, name in prepared.manifest.get("id_names", {}).items()}
    return identity_map(id_counts(prepared, rows)[0].tolist(), id_names, where=str(prepared.root))


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
