"""SemanticKITTI: 43,552 scans of an HDL-64E in 22 sequences, 11 of them with point labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le, Len

from sightline.areas.scans.sets.labelled_scans import LabelledScans, ScanSampling, scan_facts
from sightline.areas.scans.sets.scan_preparation import NO_RETURNS, ListedScan, scan_plan, survey_scans
from sightline.contract import registry
from sightline.contract.arguments import FractionBelowOne
from sightline.contract.errors import DataError
from sightline.contract.types import DataInfo, Folds, ScanInputSpec
from sightline.store.files.cloud_files import PointCloud
from sightline.store.files.input_files import expand_home
from sightline.store.files.scan_files import read_bin, read_label_ids, velodyne_poses
from sightline.store.files.scan_reading import NoReturn, to_raw_scan
from sightline.store.files.scan_samples import FEATURES, RawScan, SensorBlock, make_sensor, scan_fields
from sightline.store.label_maps import read_label_map
from sightline.store.prepared.columns import ColumnSpec
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
    Scans with less than `min_labelled` of labels are not trained on; `balanced` draws rare classes more often.
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
        min_labelled: FractionBelowOne = 0.0,
        balanced: bool = False,
    ) -> None:
        prepared = self.open_root(root)
        super().__init__(
            prepared=prepared,
            split=split,
            parts=_make_splits(prepared, test_sequences, validation_share),
            label_map=read_label_map(label_map, LABEL_MAPS),
            sensor=make_sensor(sensor, preset="hdl64", owner=self.set_name),
            frames=ScanSampling(min_labelled, balanced),
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
    def plan(cls, root: Path, *, no_return: NoReturn | None = None) -> PreparationPlan:
        """Plan to list the scans and labels in place, and to count the ids of every scan.

        With `no_return=nan` points that are NaN at x, y and z have no return, as in `scan_folder`. Sequences without
        labels are skipped: `sightline predict` reads their files. Raises DataError with a scan that lacks labels in a
        labelled sequence, and for a file of wrong size.
        """
        sequences, labelled = _list_sequences(root)
        return scan_plan(
            set_name=cls.set_name,
            layout="sequences",
            root=root,
            scans=[scan for path in labelled for scan in _list_scans(path, no_return)],
            columns={
                "pose": ColumnSpec((3, 4), "float64"),
                **({} if no_return is None else {NO_RETURNS: ColumnSpec((), "int64")}),
            },
            about={"split": "a part for each sequence; data.test_sequences says which are tested on"},
            options={} if no_return is None else {"no_return": no_return},
            notes=_collect_notes(sequences, labelled),
        )

    @classmethod
    def survey(cls, source: Path, *, no_return: NoReturn | None = None) -> dict[str, Any]:
        """Survey ids and sensor, and compare them with the label map and an HDL-64E. Raises as `plan`."""
        root = expand_home(source).resolve()
        readers = {
            scan.files[0]: scan.read for path in _list_sequences(root)[1] for scan in _list_scans(path, no_return)
        }
        sensor = make_sensor(None, preset="hdl64", owner=cls.set_name)
        return survey_scans(readers, source=root, label_map=read_label_map("single", LABEL_MAPS), sensor=sensor)

    def get_pose(self, index: int) -> np.ndarray:
        """Return the scanner's pose (3, 4) float64 in the sequence's frame; the identity if the files have none."""
        stored, row = self._rows[index]
        return np.array(self._prepared.row(stored, "pose", row))

    def _read_files(self, files: tuple[Path, ...], values: Mapping[str, np.ndarray]) -> RawScan:
        return _read_scan(*files, no_return=self._no_return())

    def _input_spec(self) -> ScanInputSpec:
        return replace(super()._input_spec(), no_return=self._no_return())

    def _no_return(self) -> NoReturn | None:
        no_return: NoReturn | None = self._prepared.manifest.get("options", {}).get("no_return")
        return no_return


def _read_scan(points_path: Path, labels_path: Path, *, no_return: NoReturn | None) -> RawScan:
    table = read_bin(points_path, num_columns=4)
    ids = read_label_ids(labels_path, num_points=len(table), points_path=points_path)
    cloud = PointCloud(table[:, :3], channels={"remission": table[:, 3]})
    return to_raw_scan(cloud, ids, ring_order="top_first", num_beams=None, path=points_path, no_return=no_return)


def _list_sequences(root: Path) -> tuple[list[Path], list[Path]]:
    """List the sequences of a tree, and those with labels. Raises DataError if no sequence has labels."""
    folder = _find_sequences_folder(root)
    sequences = sorted(path for path in folder.iterdir() if path.name.isdecimal() or (path / "velodyne").is_dir())
    unnumbered = next((path for path in sequences if not path.name.isdecimal()), None)
    if unnumbered is not None:
        raise DataError(f"{unnumbered}: is a sequence without a number; rename it, or move it out of {folder}")
    labelled = [path for path in sequences if (path / "labels").is_dir()]
    if not labelled:
        raise DataError(f"{folder}: no sequence has a folder 'labels'; a set to train on needs some")
    return sequences, labelled


def _find_sequences_folder(root: Path) -> Path:
    for folder in (root / "sequences", root / "dataset" / "sequences", root):
        if folder.is_dir() and any((path / "velodyne").is_dir() for path in folder.iterdir()):
            return folder
    raise DataError(f"{root}: {describe_contents(root)}; sequences/<nn>/velodyne is needed")


def _list_scans(sequence: Path, no_return: NoReturn | None) -> list[ListedScan]:
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
    poses = _read_poses(sequence, len(scans))
    return [
        ListedScan(
            split=sequence.name,
            name=f"{sequence.name}/{stem}",
            files=(path, labels[stem]),
            read=partial(_read_scan, path, labels[stem], no_return=no_return),
            values={"pose": pose},
        )
        for (stem, path), pose in zip(scans.items(), poses, strict=True)
    ]


def _read_poses(sequence: Path, num_scans: int) -> np.ndarray:
    """Read the poses (num_scans, 3, 4); identities if poses.txt is missing or has another number of poses."""
    path = sequence / "poses.txt"
    if not path.exists():
        return np.broadcast_to(np.eye(3, 4), (num_scans, 3, 4))
    poses = velodyne_poses(path, sequence / "calib.txt")
    if len(poses) != num_scans:  # it is unknown which scan lacks its pose
        return np.broadcast_to(np.eye(3, 4), (num_scans, 3, 4))
    return poses


def _collect_notes(sequences: list[Path], labelled: list[Path]) -> list[str]:
    unlabelled = [path.name for path in sequences if path not in labelled]
    posed = [path for path in labelled if (path / "poses.txt").exists()]
    unposed = [path.name for path in labelled if path not in posed] if posed else []
    return [
        *([f"sequences without labels, passed over: {', '.join(unlabelled)}"] if unlabelled else []),
        *([f"sequences without poses.txt: {', '.join(unposed)}"] if unposed else []),
        *(note for path in posed if (note := _note_pose_mismatch(path))),
    ]


def _note_pose_mismatch(sequence: Path) -> str:
    """Return a note if the numbers of poses and scans of a sequence differ, so that no pose is used; else ""."""
    path = sequence / "poses.txt"
    num_scans = len(list((sequence / "velodyne").glob("*.bin")))
    num_poses = len(velodyne_poses(path, sequence / "calib.txt"))
    if num_poses == num_scans:
        return ""
    return f"{path}: has {num_poses} poses for {num_scans} scans; none of them is taken"


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
