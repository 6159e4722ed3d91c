"""SemanticKITTI: 43,552 scans of an HDL-64E in 22 sequences, with an id at every point of eleven of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le, Len

from sightline import registry
from sightline.arguments import FractionBelowOne
from sightline.data.files.cloud_files import PointCloud
from sightline.data.files.scan_files import read_bin, read_label_ids, velodyne_poses
from sightline.data.scans.label_maps import read_label_map
from sightline.data.scans.labelled_scans import LabelledScans, ScanSampling, scan_facts
from sightline.data.scans.scan_preparation import NO_RETURNS, ListedScan, scan_plan
from sightline.data.scans.scan_reading import NoReturn, to_raw_scan
from sightline.data.scans.scan_samples import FEATURES, RawScan, scan_fields
from sightline.data.scans.scan_survey import survey_scans
from sightline.data.scans.sensors import SensorBlock, make_sensor
from sightline.data.store.columns import ColumnSpec
from sightline.data.store.location import prepared_root
from sightline.data.store.prepared_set import PreparedSet, open_prepared, prepare_command, summarise_folder
from sightline.data.store.prepared_writer import Progress, write_prepared_set
from sightline.data.store.splits import SplitRows, split_off_last
from sightline.errors import DataError
from sightline.types import DataInfo, Folds, ScanInputSpec

__all__ = ["LABEL_MAPS", "SemanticKitti"]

LABEL_MAPS = {"single": "semantic_kitti_single.yaml", "multi": "semantic_kitti_multi.yaml"}
"""The published maps: of single scans (19 classes and class 0), and with moving things as classes (25 and class 0)."""
_REACH_M = 240.0
"""Twice the range of an HDL-64E, where no scan says how far they reach."""
SequenceNumber = Annotated[int, Ge(0), Le(99)]


@registry.data.add("semantic_kitti")
class SemanticKitti(LabelledScans):
    """Scans of SemanticKITTI in the sensor's frame: all labelled sequences but `test_sequences` to train on.

    `label_map` is `single`, `multi` or a file of one's own in the format of semantic-kitti-api; `sensor` says what is
    different from an HDL-64E. The last `validation_share` of each training sequence chooses the checkpoint.
    Scans with less than `min_labelled` of labels are not trained on; `balanced` draws rare classes more often.
    Source: Behley et al. 2019.
    """

    set_name = "semantic_kitti"

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
        prepared = open_prepared(prepared_root(root, self.set_name), set_names=(self.set_name,))
        super().__init__(
            prepared=prepared,
            split=split,
            parts=_parts(prepared, [f"{number:02d}" for number in test_sequences], validation_share),
            label_map=read_label_map(label_map, LABEL_MAPS),
            sensor=make_sensor(sensor, preset="hdl64", owner=self.set_name),
            frames=ScanSampling(min_labelled, balanced),
        )

    @classmethod
    def expected_info(cls, *, label_map: str = "single", sensor: SensorBlock | None = None) -> DataInfo:
        """What `info` states, sizes left out, before the set is there; class counts are the published shares."""
        classes, found = read_label_map(label_map, LABEL_MAPS), make_sensor(sensor, preset="hdl64", owner=cls.set_name)
        fields = scan_fields(
            num_classes=classes.num_classes, reach_m=_REACH_M, num_beams=None, ignore_index=classes.ignore_index
        )
        facts = scan_facts(classes, found)
        if classes.frequencies:
            facts["class_counts"] = tuple(round(1e6 * share) for share in classes.frequencies)
        form = ScanInputSpec(classes.ids_of_classes, remission_max=found.remission_max)
        return DataInfo(facts, fields, features=FEATURES, scans=form)

    @classmethod
    def prepare(
        cls, *, source: Path, target: Path, name: str, progress: Progress, no_return: NoReturn | None = None
    ) -> dict[str, Any]:
        """List the scans and labels in place, and count the ids of every scan; returns the manifest.

        `no_return=nan` takes points that are NaN at x, y and z for such without a return, as `scan_folder` does.
        Sequences without labels are passed over: `sightline predict` takes their files. Raises DataError naming a scan
        without labels among labelled ones, and a file of another size than it should have.
        """
        assert name == cls.set_name, f"{cls.__name__} prepares '{cls.set_name}', not '{name}'"
        root = source.expanduser().resolve()
        sequences, labelled = _sequences(root)
        plan = scan_plan(
            set_name=name,
            layout="sequences",
            root=root,
            scans=[scan for path in labelled for scan in _scans(path, no_return)],
            columns={
                "pose": ColumnSpec((3, 4), "float64"),
                **({} if no_return is None else {NO_RETURNS: ColumnSpec((), "int64")}),
            },
            about={"split": "a part for each sequence; data.test_sequences says which are tested on"},
            options={} if no_return is None else {"no_return": no_return},
            notes=_notes(sequences, labelled),
        )
        return write_prepared_set(plan, target, progress=progress)

    @classmethod
    def survey(cls, source: Path, *, no_return: NoReturn | None = None) -> dict[str, Any]:
        """Ids and a label map for them, the sensor, and what is unlike an HDL-64E. Raises as `prepare`."""
        root = source.expanduser().resolve()
        readers = {scan.files[0]: scan.read for path in _sequences(root)[1] for scan in _scans(path, no_return)}
        sensor = make_sensor(None, preset="hdl64", owner=cls.set_name)
        return survey_scans(readers, source=root, label_map=read_label_map("single", LABEL_MAPS), sensor=sensor)

    @classmethod
    def card(cls) -> dict[str, Any]:
        """What the set is, what is read, and where to obtain it."""
        return {
            "set": cls.set_name,
            "classes": ", ".join(read_label_map("single", LABEL_MAPS).class_names),
            "layouts": {
                "sequences": "sequences/<00 to 21>/velodyne/<nnnnnn>.bin (float32 x y z remission) and labels/"
                "<nnnnnn>.label (uint32, the id in the lower half); poses.txt and calib.txt if there"
            },
            "label_maps": ", ".join(LABEL_MAPS),
            "home": "http://semantic-kitti.org",
            "terms": "CC BY-NC-SA 4.0 (labels), CC BY-NC-SA 3.0 (KITTI's scans); nothing is downloaded for you",
            "cite": "Behley et al. 2019, SemanticKITTI: A Dataset for Semantic Scene Understanding of LiDAR Sequences",
            "prepare": prepare_command(cls.set_name, "DIR"),
        }

    def pose_of(self, index: int) -> np.ndarray:
        """The pose (3, 4) float64 of the scanner in its sequence's frame; the identity where the files have none."""
        stored, row = self._rows[index]
        return np.array(self._prepared.row(stored, "pose", row))

    def _read(self, files: tuple[Path, ...], values: Mapping[str, np.ndarray]) -> RawScan:
        return _read_scan(*files, no_return=self._no_return())

    def _form(self) -> ScanInputSpec:
        return replace(super()._form(), no_return=self._no_return())

    def _no_return(self) -> NoReturn | None:
        found: NoReturn | None = self._prepared.manifest.get("options", {}).get("no_return")
        return found


def _read_scan(points_path: Path, labels_path: Path, *, no_return: NoReturn | None) -> RawScan:
    table = read_bin(points_path, num_columns=4)
    ids = read_label_ids(labels_path, num_points=len(table), points_path=points_path)
    cloud = PointCloud(table[:, :3], channels={"remission": table[:, 3]})
    return to_raw_scan(cloud, ids, ring_order="top_first", num_beams=None, path=points_path, no_return=no_return)


def _sequences(root: Path) -> tuple[list[Path], list[Path]]:
    """The sequences of a tree, and those of them with labels. Raises DataError where none has any."""
    folder = _sequences_folder(root)
    sequences = sorted(path for path in folder.iterdir() if path.is_dir() and path.name.isdigit())
    labelled = [path for path in sequences if (path / "labels").is_dir()]
    if not labelled:
        raise DataError(f"{folder}: no sequence has a folder 'labels'; a set to train on needs some")
    return sequences, labelled


def _sequences_folder(root: Path) -> Path:
    for folder in (root / "sequences", root / "dataset" / "sequences", root):
        if folder.is_dir() and any((path / "velodyne").is_dir() for path in folder.iterdir()):
            return folder
    found = f"holds {summarise_folder(root)}" if root.is_dir() else "there is no such folder"
    raise DataError(f"{root}: {found}; sequences/<nn>/velodyne is needed")


def _scans(sequence: Path, no_return: NoReturn | None) -> list[ListedScan]:
    """The scans of a labelled sequence. Raises DataError naming one without labels, and labels without a scan."""
    scans, labels = (
        {path.stem: path for path in sorted((sequence / folder).glob(f"*{suffix}"))}
        for folder, suffix in (("velodyne", ".bin"), ("labels", ".label"))
    )
    odd = sorted(scans.keys() ^ labels.keys())
    if odd:
        what = "has no labels" if odd[0] in scans else "has labels and no scan"
        more = f", and {len(odd) - 1} more are not pairs" if len(odd) > 1 else ""
        raise DataError(f"{sequence}: {odd[0]} {what}{more}; complete the sequence")
    poses = _poses(sequence, len(scans))
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


def _poses(sequence: Path, num_scans: int) -> np.ndarray:
    """A pose (3, 4) for every scan; identities where there is no poses.txt, and where it is not as long."""
    path = sequence / "poses.txt"
    if not path.exists():
        return np.broadcast_to(np.eye(3, 4), (num_scans, 3, 4))
    poses = velodyne_poses(path, sequence / "calib.txt")
    if len(poses) != num_scans:  # which scan lacks its own nobody can tell
        return np.broadcast_to(np.eye(3, 4), (num_scans, 3, 4))
    return poses


def _notes(sequences: list[Path], labelled: list[Path]) -> list[str]:
    bare = [path.name for path in sequences if path not in labelled]
    posed = [path for path in labelled if (path / "poses.txt").exists()]
    unposed = [path.name for path in labelled if path not in posed] if posed else []
    return [
        *([f"sequences without labels, passed over: {', '.join(bare)}"] if bare else []),
        *([f"sequences without poses.txt: {', '.join(unposed)}"] if unposed else []),
        *(note for path in posed if (note := _note_on_poses(path))),
    ]


def _note_on_poses(sequence: Path) -> str:
    """The poses of a sequence that are not as many as its scans, none of which is taken; empty where they are."""
    path = sequence / "poses.txt"
    num_scans = len(list((sequence / "velodyne").glob("*.bin")))
    num_poses = len(velodyne_poses(path, sequence / "calib.txt"))
    if num_poses == num_scans:
        return ""
    return f"{path}: has {num_poses} poses for {num_scans} scans; none of them is taken"


def _parts(prepared: PreparedSet, tested: list[str], validation_share: float) -> SplitRows:
    """Raises DataError for a test sequence that the set does not hold."""
    missing = [name for name in tested if name not in prepared.splits]
    if missing:
        raise DataError(
            f"{prepared.root}: holds no sequence {missing[0]}, it holds {', '.join(prepared.splits)}; set "
            "data.test_sequences to some of these"
        )
    rows = {name: [(name, row) for row in range(len(prepared.names(name)))] for name in prepared.splits}
    dealt = [split_off_last(rows[name], validation_share) for name in prepared.splits if name not in tested]
    parts = {
        "train": tuple(row for train, _ in dealt for row in train),
        "validation": tuple(row for _, held_out in dealt for row in held_out),
        "test": tuple(row for name in tested for row in rows[name]),
    }
    return SplitRows(parts, Folds(tuple(prepared.splits), tuple(tested)))
