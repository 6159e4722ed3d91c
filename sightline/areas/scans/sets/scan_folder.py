"""The user's own LiDAR scans, of any sensor, with an id at every point."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sightline.areas.scans.sets.labelled_scans import NamedScans, ScanSpec
from sightline.areas.scans.sets.nuscenes_tables import COLUMNS, find_tables, list_labelled_files
from sightline.areas.scans.sets.scan_preparation import (
    NO_RETURNS,
    ListedScan,
    scan_plan,
)
from sightline.areas.scans.sets.scan_survey import survey_scans
from sightline.contract import registry
from sightline.contract.arguments import Count
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.types import ScanInputSpec
from sightline.store.files.cloud_files import Withheld, check_columns, check_unlisted, list_skipped_files
from sightline.store.files.scan_reading import (
    SCAN_COLUMNS,
    SCAN_SUFFIXES,
    NoReturn,
    RingOrder,
    read_scan,
    ring_column,
    scan_ids,
    to_raw_scan,
)
from sightline.store.files.scan_samples import RawScan
from sightline.store.files.sensors import Sensor
from sightline.store.prepared.columns import ColumnSpec
from sightline.store.prepared.name_lists import describe_split, read_name_lists
from sightline.store.prepared.prepared_set import PreparedSet, summarise_folder
from sightline.store.prepared.prepared_writer import PreparationPlan

_FOLDERS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}
"""Folders of each split."""
_SUFFIXES = (*SCAN_SUFFIXES, ".label")
_LISTS = ("train.txt", "val.txt", "test.txt")
_LAYOUTS = "scans in one folder, or in its folders train, val and test, each file of labels beside its scan"


@registry.data.add("scan_folder")
class ScanFolder(NamedScans):
    """The user's own scans with an id at every point, prepared by `sightline data prepare scan_folder`.

    `sensor` describes the sensor: its field of view and number of beams at least. `label_map` is a file, or the names
    of the ids 0, 1, 2 and so on, None for one that is ignored. Without it every id is a class, in ascending order; id 0
    is then ignored. `tested` are beginnings of names; without them folders or lists of the source decide, or the last
    `test_share` of the scans in the order of their names.
    Source: the user's files.
    """

    preset = "segment/own_scans"
    spec = ScanSpec(
        name="scan_folder",
        what="scans",
        is_own=True,
        sensor={},
        entries=lambda: {"files": ", ".join(SCAN_SUFFIXES)},
    )

    @classmethod
    def plan(
        cls,
        root: Path,
        *,
        columns: tuple[str, ...] | None = None,
        label: str = "label",
        num_beams: Count | None = None,
        ring_order: RingOrder = "top_first",
        no_return: NoReturn | None = None,
        withheld: Withheld = "drop",
    ) -> PreparationPlan:
        """Plan to list the scans of a folder in place, and to count the ids of each.

        `columns` names the columns of files without column names, all of them for `.bin`. Labels are in the column
        `label` or in a file `<name>.label` next to the scan. With `num_beams` rings are read from a column `ring`;
        `ring_order` states whether ring 0 is the top. With `no_return=nan` points that are NaN at x, y and z have no
        return: they keep their index and label in the file, and are ignored. So are points that a file flags as
        withheld, unless `withheld` is `keep`. Scans and labels of nuScenes lidarseg are paired by its tables. Raises
        DataError for a folder without scans, and for a file in another format.
        """
        listed = _find_scans(root)
        names = listed.columns if columns is None else check_columns(columns)
        reader = _ReaderOptions(names, label.lower(), num_beams, ring_order, no_return, withheld)
        scans = [
            ListedScan(part, name, files) for part, members in listed.parts.items() for name, files in members.items()
        ]
        return scan_plan(
            cls,
            layout=listed.layout,
            root=listed.root,
            scans=scans,
            columns={} if no_return is None else {NO_RETURNS: ColumnSpec((), "int64")},
            about={
                "split": describe_split(listed.parts, "folders" if (root / "test").is_dir() else "lists of names"),
                **({"id_names": listed.id_names} if listed.id_names else {}),
            },
            options=reader.options(),
            notes=[*listed.notes, *_note_unused_rings(scans[0].files[0], reader)],
        )

    @classmethod
    def survey(
        cls,
        source: Path,
        *,
        columns: tuple[str, ...] | None = None,
        label: str = "label",
        num_beams: Count | None = None,
        ring_order: RingOrder = "top_first",
        no_return: NoReturn | None = None,
        withheld: Withheld = "drop",
    ) -> dict[str, Any]:
        """Survey unprepared scans, with or without labels, and propose a `sensor` block.

        Options as those of `plan`. Raises as `plan`.
        """
        root = cls.spec.find(source)
        listed = _find_scans(root)
        names = listed.columns if columns is None else check_columns(columns)
        reader = _ReaderOptions(names, label.lower(), num_beams, ring_order, no_return, withheld)
        scans = [files for members in listed.parts.values() for files in members.values()]
        readers = {files[0]: partial(reader.read, *files, is_survey=True) for files in scans}
        return survey_scans(readers, source=root, id_names=listed.id_names, num_beams=num_beams)

    @classmethod
    def propose(cls, prepared: PreparedSet) -> list[str]:
        """Return the sensor and the range image that a survey of the files finds."""
        options = prepared.manifest["options"]
        return shlex.split(cls.survey(Path(prepared.manifest["source"]["path"]), **options)["for_config"])

    def _check_sensor(self, prepared: PreparedSet, sensor: Sensor) -> None:
        num_beams = prepared.manifest["options"]["num_beams"]
        self.has_rings = num_beams is not None
        if self.has_rings and sensor.num_beams != num_beams:
            raise ConfigError(f"sensor: num_beams is {sensor.num_beams}, {prepared.root} was prepared with {num_beams}")

    def _input_spec(self) -> ScanInputSpec:
        options = self._prepared.manifest["options"]
        columns = None if options["columns"] is None else tuple(options["columns"])
        return replace(
            super()._input_spec(),
            columns=columns,
            num_beams=options["num_beams"],
            ring_order=options["ring_order"],
            no_return=options.get("no_return"),
            withheld=options.get("withheld", "drop"),
        )

    @classmethod
    def read_files(
        cls, files: Sequence[Path], values: Mapping[str, np.ndarray], manifest: Mapping[str, Any]
    ) -> RawScan:
        """Read a scan and its ids by the options of the preparation."""
        return _ReaderOptions(**manifest["options"]).read(*files)


@dataclass(frozen=True)
class _ReaderOptions:
    """Options of reading a scan file, for preparation and for later reads."""

    columns: Sequence[str] | None
    label: str
    num_beams: int | None
    ring_order: RingOrder
    no_return: NoReturn | None = None
    withheld: Withheld = "drop"

    def options(self) -> dict[str, Any]:
        """Return the fields for the manifest; those that older manifests lack only if they are set."""
        entries = {**asdict(self), "columns": None if self.columns is None else list(self.columns)}
        unset = {"no_return": None, "withheld": "drop"}
        return {name: value for name, value in entries.items() if name not in unset or value != unset[name]}

    def read(self, path: Path, label_path: Path | None = None, *, is_survey: bool = False) -> RawScan:
        """Read a scan; a survey accepts files without labels, and infers the number of rings."""
        used = (*SCAN_COLUMNS, self.label)
        cloud = read_scan(path, columns=self.columns, used=used, no_return=self.no_return, withheld=self.withheld)
        is_unlabelled = is_survey and self.label not in cloud.channels and label_path is None
        num_points = len(cloud.points)
        ids = np.zeros(num_points, dtype=np.int64) if is_unlabelled else scan_ids(cloud, path, self.label, label_path)
        num_beams, rings = self.num_beams, ring_column(cloud)
        if num_beams is None and is_survey and rings is not None and len(rings):
            num_beams = int(np.nanmax(rings, initial=0)) + 1
        return to_raw_scan(
            cloud, ids, ring_order=self.ring_order, num_beams=num_beams, path=path, no_return=self.no_return
        )


def _note_unused_rings(path: Path, reader: _ReaderOptions) -> list[str]:
    """Return a note if the first scan has a column of rings that is not read."""
    with contextlib.suppress(DataError):  # is reported when all scans are read
        scan = read_scan(path, columns=reader.columns, used=SCAN_COLUMNS, no_return=reader.no_return)
        rings = ring_column(scan)
        if reader.num_beams is None and rings is not None and len(rings):
            last = int(np.nanmax(rings, initial=0))
            return [
                f"the column of rings (0 to {last} in {path.name}) is not read, because num_beams is not given: "
                f"rows of range images follow elevations; prepare again with num_beams={last + 1}, or the sensor's"
            ]
    return []


def _add_label_file(path: Path) -> tuple[Path, ...]:
    label_path = path.with_suffix(".label")
    return (path, label_path) if label_path.exists() else (path,)


class _ScanFiles(NamedTuple):
    """Files of every scan by split and name, and what the layout states; `root` is above all files."""

    root: Path
    layout: str
    parts: dict[str, dict[str, tuple[Path, ...]]]
    notes: list[str]
    columns: tuple[str, ...] | None
    id_names: Mapping[int, str]


def _find_scans(root: Path) -> _ScanFiles:
    """Find the scans and labels of every split; one split `all` if neither folders nor lists divide the scans."""
    tables = find_tables(root)
    if tables is not None:
        files, id_names, notes = list_labelled_files(tables)
        named, list_notes = read_name_lists(root, list(files))
        by_part = {part: {name: files[name] for name in names} for part, names in named.items()}
        notes += [f"scans and labels are paired by {tables}, and columns read as {', '.join(COLUMNS)}", *list_notes]
        return _ScanFiles(tables.parent, "nuscenes_lidarseg", by_part, notes, COLUMNS, id_names)
    parts, notes = _list_splits(root)
    notes += filter(None, [list_skipped_files(root, suffixes=_SUFFIXES)])
    by_part = {
        part: {path.relative_to(root).as_posix(): _add_label_file(path) for path in paths}
        for part, paths in parts.items()
    }
    return _ScanFiles(root, "split_folders" if "test" in parts else "folder", by_part, notes, None, {})


def _list_splits(root: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """List the scans of every split, and notes."""
    existing = {split: [root / name for name in names if (root / name).is_dir()] for split, names in _FOLDERS.items()}
    folders = {
        split: [path for folder in roots for path in _list_scans(folder)] for split, roots in existing.items() if roots
    }
    if folders:
        empty = [split for split in ("train", "test") if not folders.get(split)]
        if empty:
            raise DataError(f"{root}: has no scan in the folder '{empty[0]}'; put scans into train and test")
        _check_unlisted(root, [path for paths in folders.values() for path in paths])
        lists = [name for name in _LISTS if (root / name).is_file()]
        return folders, [f"{', '.join(lists)} not read, as folders divide the scans"] if lists else []
    scans = _list_scans(root)
    paths = {path.stem: path for path in scans}
    duplicate = next((path for path in scans if paths[path.stem] != path), None)
    if duplicate is not None:
        raise DataError(f"{duplicate}: {paths[duplicate.stem].name} has the same name; leave one of them out")
    if not paths:
        raise DataError(f"{root}: holds {summarise_folder(root)}, no scan ({' '.join(SCAN_SUFFIXES)})")
    _check_unlisted(root, scans)
    parts, notes = read_name_lists(root, list(paths))
    return {part: [paths[name] for name in names] for part, names in parts.items()}, notes


def _check_unlisted(root: Path, scans: Sequence[Path]) -> None:
    """Raise DataError for a scan, or a file of labels, that no split would have."""
    files = {file for path in scans for file in _add_label_file(path)}
    check_unlisted(root, files, suffixes=_SUFFIXES, ignored_names=_LISTS, layout=_LAYOUTS)


def _list_scans(folder: Path) -> list[Path]:
    files = (path for path in folder.iterdir() if path.suffix.lower() in SCAN_SUFFIXES and path.name not in _LISTS)
    return sorted(path for path in files if not path.name.startswith("."))
