"""Sets of scans in numbered sequences, as SemanticKITTI is laid out: folds of a cross-validation are sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le, Len

from sightline.areas.scans.sets.labelled_scans import LabelledScans, scan_facts
from sightline.areas.scans.sets.scan_preparation import ListedScan, scan_plan
from sightline.contract.errors import DataError
from sightline.contract.types import DataInfo, ScanInputSpec
from sightline.store.files.cloud_files import PointCloud
from sightline.store.files.input_files import list_named_files
from sightline.store.files.scan_files import read_bin, read_label_ids
from sightline.store.files.scan_reading import to_raw_scan
from sightline.store.files.scan_samples import FEATURES, RawScan, scan_fields
from sightline.store.files.sensors import SensorBlock
from sightline.store.label_maps import read_label_map
from sightline.store.prepared.prepared_set import PreparedSet, describe_contents
from sightline.store.prepared.prepared_writer import PreparationPlan
from sightline.store.prepared.splits import SplitRows, hold_out_ends, split_by_folds

SequenceNumbers = Annotated[tuple[Annotated[int, Ge(0), Le(99)], ...], Len(1)]
"""Numbers of sequences, at least one."""
_MAX_REACH_M = 240.0
"""Twice the range of an HDL-64E: the bound of coordinates before any scan is read."""
_SUFFIXES = {"velodyne": ".bin", "labels": ".label"}


class SequenceScans(LabelledScans):
    """Base of sets of `sequences/<nn>/velodyne/*.bin` with `labels/*.label`: x, y, z, remission, and ids of 16 bits.

    All labelled sequences but `test_sequences` train; the last `validation_share` of each chooses the checkpoint. A set
    is a row, `spec`, with the label maps and the sensor of its scans, which the user's replace.
    """

    def __init__(
        self,
        *,
        split: str,
        root: str | None,
        test_sequences: SequenceNumbers,
        label_map: str,
        sensor: SensorBlock | None,
        validation_share: float,
    ) -> None:
        prepared = self.open_root(root)
        super().__init__(
            prepared=prepared,
            split=split,
            parts=_make_splits(prepared, test_sequences, validation_share),
            label_map=read_label_map(label_map, self.spec.label_maps),
            sensor=self.make_sensor(sensor),
        )

    @classmethod
    def expected_info(cls, *, label_map: str | None = None, sensor: SensorBlock | None = None) -> DataInfo:
        """Return the DataInfo expected before preparation, without counts."""
        classes = read_label_map(label_map or next(iter(cls.spec.label_maps)), cls.spec.label_maps)
        full_sensor = cls.make_sensor(sensor)
        fields = scan_fields(
            num_classes=classes.num_classes, reach_m=_MAX_REACH_M, num_beams=None, ignore_index=classes.ignore_index
        )
        facts = scan_facts(classes, full_sensor)
        if classes.frequencies:
            facts["class_counts"] = tuple(round(1e6 * share) for share in classes.frequencies)
        form = ScanInputSpec(classes.ids_of_classes, remission_max=full_sensor.remission_max)
        return DataInfo(facts, fields, features=FEATURES, scans=form)

    @classmethod
    def plan(cls, root: Path) -> PreparationPlan:
        """Plan to list the scans and labels in place, and to count the ids of every scan.

        Sequences without labels are skipped: `sightline predict` reads their files. Raises DataError with a scan that
        lacks labels in a labelled sequence, and for a file of wrong size.
        """
        sequences, labelled = _list_sequences(root)
        unlabelled = [path.name for path in sequences if path not in labelled]
        return scan_plan(
            cls,
            layout="sequences",
            root=root,
            scans=[scan for path in labelled for scan in _list_scans(path)],
            about={"split": "a part for each sequence; data.test_sequences says which are tested on"},
            notes=[f"sequences without labels, passed over: {', '.join(unlabelled)}"] if unlabelled else [],
        )

    @classmethod
    def read_files(
        cls, files: Sequence[Path], values: Mapping[str, np.ndarray], manifest: Mapping[str, Any]
    ) -> RawScan:
        """Read a scan and its ids."""
        points_path, labels_path = files
        table = read_bin(points_path, num_columns=4)
        ids = read_label_ids(labels_path, num_points=len(table), points_path=points_path)
        cloud = PointCloud(table[:, :3], channels={"remission": table[:, 3]})
        return to_raw_scan(cloud, ids, ring_order="top_first", num_beams=None, path=points_path, no_return=None)


def _list_sequences(root: Path) -> tuple[list[Path], list[Path]]:
    """List the sequences of a tree, and those with labels. Raises DataError for none, or two of one number."""
    folder = _find_sequences_folder(root)
    sequences = sorted(path for path in folder.iterdir() if path.name.isdecimal() or (path / "velodyne").is_dir())
    unnumbered = next((path for path in sequences if not path.name.isdecimal()), None)
    if unnumbered is not None:
        raise DataError(f"{unnumbered}: is a sequence without a number; rename it, or move it out of {folder}")
    labelled = [path for path in sequences if (path / "labels").is_dir()]
    if not labelled:
        raise DataError(f"{folder}: no sequence has a folder 'labels'; a set to train on needs some")
    by_number = {int(path.name): path for path in labelled}
    twin = next((path for path in labelled if by_number[int(path.name)] != path), None)
    if twin is not None:
        raise DataError(f"{twin}: has the number of {by_number[int(twin.name)].name}; rename one, or move it away")
    return sequences, labelled


def _find_sequences_folder(root: Path) -> Path:
    for folder in (root / "sequences", root / "dataset" / "sequences", root):
        if folder.is_dir() and any((path / "velodyne").is_dir() for path in folder.iterdir()):
            return folder
    raise DataError(f"{root}: {describe_contents(root)}; sequences/<nn>/velodyne is needed")


def _list_scans(sequence: Path) -> list[ListedScan]:
    """List the scans of a labelled sequence. Raises DataError for a scan without labels, or labels without a scan."""
    files = list_named_files(sequence, _SUFFIXES)
    unpaired = [name for name, paths in files.items() if len(paths) < len(_SUFFIXES)]
    if unpaired:
        fault = "has no labels" if "velodyne" in files[unpaired[0]] else "has labels and no scan"
        more = f", and {len(unpaired) - 1} more are not pairs" if len(unpaired) > 1 else ""
        raise DataError(f"{sequence}: {unpaired[0]} {fault}{more}; complete the sequence")
    return [
        ListedScan(sequence.name, f"{sequence.name}/{name}", tuple(paths[folder] for folder in _SUFFIXES))
        for name, paths in files.items()
    ]


def _make_splits(prepared: PreparedSet, test_sequences: Sequence[int], validation_share: float) -> SplitRows:
    """Divide the scans into splits by test sequences. Raises DataError for a missing test sequence."""
    name_by_number = {int(name): name for name in prepared.splits}  # a folder may be called 8 or 08
    return split_by_folds(
        prepared,
        [name_by_number.get(number, f"{number:02d}") for number in dict.fromkeys(test_sequences)],
        deal=partial(hold_out_ends, share=validation_share),
        noun="sequence",
        advice="set data.test_sequences to some of these",
    )
