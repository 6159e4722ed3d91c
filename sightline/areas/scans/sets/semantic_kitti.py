"""SemanticKITTI: 43,552 scans of an HDL-64E in 22 sequences, 11 of them with point labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge, Le, Len

from sightline.areas.scans.sets.labelled_scans import LabelledScans, scan_facts
from sightline.areas.scans.sets.scan_preparation import ListedScan, scan_plan
from sightline.contract import registry
from sightline.contract.arguments import FractionBelowOne
from sightline.contract.errors import DataError
from sightline.contract.types import DataInfo, Folds, ScanInputSpec
from sightline.store.files.cloud_files import PointCloud
from sightline.store.files.scan_files import read_bin, read_label_ids
from sightline.store.files.scan_reading import to_raw_scan
from sightline.store.files.scan_samples import FEATURES, RawScan, scan_fields
from sightline.store.files.sensors import SensorBlock, make_sensor
from sightline.store.label_maps import read_label_map
from sightline.store.prepared.prepared_data import SetSpec
from sightline.store.prepared.prepared_set import PreparedSet, describe_contents
from sightline.store.prepared.prepared_writer import PreparationPlan
from sightline.store.prepared.splits import SplitRows, split_off_last

LABEL_MAPS = {name: Path(__file__).with_name(f"semantic_kitti_{name}.yaml") for name in ("single", "multi")}
"""Published label maps: single scans (19 classes and class 0), and with classes of moving objects (25 and class 0)."""
_MAX_REACH_M = 240.0
"""Twice the range of an HDL-64E: the bound of coordinates before any scan is read."""
SequenceNumber = Annotated[int, Ge(0), Le(99)]


@registry.data.add("semantic_kitti")
class SemanticKitti(LabelledScans):
    """Scans of SemanticKITTI in the sensor's frame: all labelled sequences but `test_sequences` to train on.

    `label_map` is `single`, `multi` or the user's file in the format of semantic-kitti-api; `sensor` overrides values
    of the HDL-64E. The last `validation_share` of each training sequence chooses the checkpoint.
    Source: Behley et al. 2019.
    """

    spec = SetSpec(
        name="semantic_kitti",
        entries=lambda: {
            "classes": ", ".join(read_label_map("single", LABEL_MAPS).class_names),
            "label_maps": ", ".join(LABEL_MAPS),
        },
    )

    def __init__(
        self,
        *,
        split: str,
        root: str | None = None,
        test_sequences: Annotated[tuple[SequenceNumber, ...], Len(1)] = (8,),
        label_map: str = "single",
        sensor: SensorBlock | None = None,
        validation_share: FractionBelowOne = 0.1,
    ) -> None:
        prepared = self.open_root(root)
        super().__init__(
            prepared=prepared,
            split=split,
            parts=_make_splits(prepared, test_sequences, validation_share),
            label_map=read_label_map(label_map, LABEL_MAPS),
            sensor=make_sensor(sensor, preset="hdl64", owner=self.set_name),
        )

    @classmethod
    def expected_info(cls, *, label_map: str = "single", sensor: SensorBlock | None = None) -> DataInfo:
        """Return the DataInfo expected before preparation, without counts."""
        classes, full_sensor = (
            read_label_map(label_map, LABEL_MAPS),
            make_sensor(sensor, preset="hdl64", owner=cls.set_name),
        )
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
            set_name=cls.set_name,
            layout="sequences",
            root=root,
            scans=[scan for path in labelled for scan in _list_scans(path)],
            columns={},
            about={"split": "a part for each sequence; data.test_sequences says which are tested on"},
            options={},
            notes=[f"sequences without labels, passed over: {', '.join(unlabelled)}"] if unlabelled else [],
        )

    def _read_files(self, files: tuple[Path, ...], values: Mapping[str, np.ndarray]) -> RawScan:
        return _read_scan(*files)


def _read_scan(points_path: Path, labels_path: Path) -> RawScan:
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
    scans, labels = (
        {path.stem: path for path in sorted((sequence / folder).glob(f"*{suffix}"))}
        for folder, suffix in (("velodyne", ".bin"), ("labels", ".label"))
    )
    unpaired = sorted(scans.keys() ^ labels.keys())
    if unpaired:
        fault = "has no labels" if unpaired[0] in scans else "has labels and no scan"
        more = f", and {len(unpaired) - 1} more are not pairs" if len(unpaired) > 1 else ""
        raise DataError(f"{sequence}: {unpaired[0]} {fault}{more}; complete the sequence")
    return [
        ListedScan(
            sequence.name, f"{sequence.name}/{stem}", (path, labels[stem]), partial(_read_scan, path, labels[stem])
        )
        for stem, path in scans.items()
    ]


def _make_splits(prepared: PreparedSet, test_sequences: Sequence[int], validation_share: float) -> SplitRows:
    """Divide the scans into splits by test sequences. Raises DataError for a missing test sequence."""
    name_by_number = {int(name): name for name in prepared.splits}  # a folder may be called 8 or 08
    tested = [name_by_number.get(number, f"{number:02d}") for number in dict.fromkeys(test_sequences)]
    missing = [name for name in tested if name not in prepared.splits]
    if missing:
        raise DataError(
            f"{prepared.root}: holds no sequence {missing[0]}, it holds {', '.join(prepared.splits)}; set "
            "data.test_sequences to some of these"
        )
    rows = {name: [(name, row) for row in range(len(prepared.names(name)))] for name in prepared.splits}
    pairs = [split_off_last(rows[name], validation_share) for name in prepared.splits if name not in tested]
    parts = {
        "train": tuple(row for train, _ in pairs for row in train),
        "validation": tuple(row for _, held_out in pairs for row in held_out),
        "test": tuple(row for name in tested for row in rows[name]),
    }
    return SplitRows(parts, Folds(tuple(prepared.splits), tuple(tested)))
