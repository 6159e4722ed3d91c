"""The user's own LiDAR scans, of any sensor, with an id at every point."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from sightline.areas.scans.sets.labelled_scans import NamedScans, ScanSpec
from sightline.areas.scans.sets.scan_preparation import (
    NO_RETURNS,
    ListedScan,
    scan_plan,
)
from sightline.areas.scans.sets.scan_survey import choose_evenly, survey_scans
from sightline.contract import registry
from sightline.contract.arguments import Count
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.types import ScanInputSpec
from sightline.store.files.cloud_files import Withheld, check_columns, check_unlisted, list_skipped_files
from sightline.store.files.scan_reading import (
    SCAN_COLUMNS,
    SCAN_SUFFIXES,
    NoReturn,
    read_scan,
    ring_column,
    scan_ids,
    to_raw_scan,
)
from sightline.store.files.scan_samples import RawScan
from sightline.store.files.sensors import RingOrder, Rings, Sensor, find_rings, next_number_of_beams
from sightline.store.label_maps import make_label_map
from sightline.store.prepared.columns import ColumnSpec
from sightline.store.prepared.config_bases import ConfigBase
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
    of the ids 0, 1, 2 and so on, None for one that is ignored. Without it the names of the preparation hold, or every
    id is a class, in ascending order; id 0 is then ignored. `tested` are beginnings of names; without them folders or
    lists of the source decide, or the last `test_share` of the scans in the order of their names.
    Source: the user's files.
    """

    config_bases = (
        ConfigBase("segment/own_scans", "SalsaNext on range images"),
        ConfigBase("segment/own_scans_voxels", "MinkUNet on sparse voxels, which hide hardly a point"),
        ConfigBase("segment/own_scans_frnet", "FRNet on points and pixels, which labels every point of a pixel"),
    )
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
        ring_order: RingOrder | None = None,
        names: tuple[str | None, ...] | None = None,
        no_return: NoReturn | None = None,
        withheld: Withheld = "drop",
    ) -> PreparationPlan:
        """Plan to list the scans of a folder in place, and to count the ids of each.

        `columns` names the columns of files without column names, all of them for `.bin`. Labels are in the column
        `label` or in a file `<name>.label` next to the scan. Rings are read from a column `ring` if its values are
        whole numbers that rise or fall with the elevation, or if `num_beams` is stated; `ring_order` states whether
        ring 0 is the top, else the elevations do. `names` are those of the ids 0, 1, 2 and so on, None for one that is
        not scored. With `no_return=nan` points that are NaN at x, y and z have no
        return: they keep their index and label in the file, and are ignored. So are points that a file flags as
        withheld, unless `withheld` is `keep`. Raises DataError for a folder without scans, and for a file in another
        format.
        """
        listed = _find_scans(root)
        scans = [
            ListedScan(part, name, files) for part, members in listed.parts.items() for name, files in members.items()
        ]
        column_names = None if columns is None else check_columns(columns)
        stated = _ReaderOptions(column_names, label.lower(), num_beams, ring_order, no_return, withheld)
        reader, about_rings, notes = _recognise_rings(stated, [scan.files[0] for scan in scans])
        if names is not None:
            make_label_map(names, where="names")  # refuses what is no map
        return scan_plan(
            cls,
            layout=listed.layout,
            root=root,
            scans=scans,
            columns={} if no_return is None else {NO_RETURNS: ColumnSpec((), "int64")},
            about={
                "split": describe_split(listed.parts, "folders" if (root / "test").is_dir() else "lists of names"),
                **({"rings": about_rings} if about_rings else {}),
            },
            options={**reader.options(), **({"names": list(names)} if names is not None else {})},
            notes=[*listed.notes, *notes],
        )

    @classmethod
    def survey(
        cls,
        source: Path,
        *,
        columns: tuple[str, ...] | None = None,
        label: str = "label",
        num_beams: Count | None = None,
        ring_order: RingOrder | None = None,
        names: tuple[str | None, ...] | None = None,
        no_return: NoReturn | None = None,
        withheld: Withheld = "drop",
    ) -> dict[str, Any]:
        """Survey unprepared scans, with or without labels, and propose a `sensor` block.

        Options as those of `plan`. Raises as `plan`.
        """
        root = cls.spec.find(source)
        listed = _find_scans(root)
        column_names = None if columns is None else check_columns(columns)
        stated = _ReaderOptions(column_names, label.lower(), num_beams, ring_order, no_return, withheld)
        scans = [files for members in listed.parts.values() for files in members.values()]
        reader, about_rings, notes = _recognise_rings(stated, [files[0] for files in scans])
        readers = {files[0]: partial(reader.read, *files, is_survey=True) for files in scans}
        return survey_scans(
            readers,
            source=root,
            names=names,
            num_beams=reader.num_beams,
            about_rings=about_rings,
            notes=notes,
        )

    @classmethod
    def propose(cls, prepared: PreparedSet, base: Mapping[str, Any]) -> list[str]:
        """Return the sensor and the range image, or the side of sparse voxels, that a survey of the files finds."""
        options = prepared.manifest["options"]
        found = cls.survey(Path(prepared.manifest["source"]["path"]), **options)
        if "grid_m" in base["model"]:
            return shlex.split(found["voxels"]["for_config"])
        transform = base["transforms"]["evaluate"][-1]["name"]  # it takes the arguments of `project`, at its place
        words = [word.replace("{name: project,", f"{{name: {transform},") for word in shlex.split(found["for_config"])]
        return [word for word in words if not word.startswith("model.circular") or "circular" in base["model"]]

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
        options = {key: value for key, value in manifest["options"].items() if key != "names"}
        return _ReaderOptions(**options).read(*files)


@dataclass(frozen=True)
class _ReaderOptions:
    """Options of reading a scan file, for preparation and for later reads."""

    columns: Sequence[str] | None
    label: str
    num_beams: int | None
    ring_order: RingOrder | None
    no_return: NoReturn | None = None
    withheld: Withheld = "drop"

    def options(self) -> dict[str, Any]:
        """Return the fields for the manifest; those that older manifests lack only if they are set."""
        entries = {**asdict(self), "columns": None if self.columns is None else list(self.columns)}
        unset = {"no_return": None, "withheld": "drop"}
        return {name: value for name, value in entries.items() if name not in unset or value != unset[name]}

    def read(self, path: Path, label_path: Path | None = None, *, is_survey: bool = False) -> RawScan:
        """Read a scan; a survey accepts files without labels."""
        used = (*SCAN_COLUMNS, self.label)
        cloud = read_scan(path, columns=self.columns, used=used, no_return=self.no_return, withheld=self.withheld)
        is_unlabelled = is_survey and self.label not in cloud.channels and label_path is None
        num_points = len(cloud.points)
        ids = np.zeros(num_points, dtype=np.int64) if is_unlabelled else scan_ids(cloud, path, self.label, label_path)
        order = self.ring_order or "top_first"
        return to_raw_scan(cloud, ids, ring_order=order, num_beams=self.num_beams, path=path, no_return=self.no_return)


def _recognise_rings(reader: _ReaderOptions, files: Sequence[Path]) -> tuple[_ReaderOptions, str, list[str]]:
    """Complete the options of a reader by the rings of a few scans; also describe these, and what to look at."""
    if reader.num_beams is not None and reader.ring_order is not None:
        return reader, "", []
    chosen = [files[index] for index in choose_evenly(len(files), _MAX_RECOGNISED)]
    seen = [rings for path in chosen if (rings := _read_rings(path, reader)) is not None]
    found = [rings for rings in seen if rings != "other"]
    order: RingOrder = found[0].order if found else "top_first"
    if reader.num_beams is not None or not seen:
        return replace(reader, ring_order=reader.ring_order or order), "", []
    if len(found) < len(seen) or len({rings.order for rings in found}) > 1:
        note = (
            "the column of rings is not read, because its values are not whole numbers from 0 that rise or fall with "
            "the elevation in every scan: rows of range images follow elevations; num_beams=N reads it as it is"
        )
        return replace(reader, ring_order=reader.ring_order or order), "", [note]
    count = max(rings.num_rings for rings in found)
    num_beams, first = next_number_of_beams(count), "highest" if order == "top_first" else "lowest"
    about = f"a column of whole numbers from 0 (the {first} beam) to {count - 1}, read as num_beams={num_beams}"
    doubt = (
        f"num_beams: there are {count} rings by a column, and beams without a return leave none; {num_beams} is the "
        "next number that sensors have: look at the sensor's data sheet, and prepare with num_beams=N if it differs"
    )
    return (
        replace(reader, num_beams=num_beams, ring_order=reader.ring_order or order),
        about,
        [doubt] if num_beams != count else [],
    )


_MAX_RECOGNISED = 16
"""Number of scans, evenly spaced over all, whose rings are looked at before all are read."""


def _read_rings(path: Path, reader: _ReaderOptions) -> Rings | Literal["other"] | None:
    """Read the rings of a scan; "other" for a column of that name that has none, None without such a column."""
    with contextlib.suppress(DataError):  # is reported when all scans are read
        scan = read_scan(path, columns=reader.columns, used=SCAN_COLUMNS, no_return=reader.no_return)
        values = ring_column(scan)
        if values is not None and len(values):
            return find_rings(scan.points, np.asarray(values, dtype=np.float64)) or "other"
    return None


def _add_label_file(path: Path) -> tuple[Path, ...]:
    label_path = path.with_suffix(".label")
    return (path, label_path) if label_path.exists() else (path,)


class _ScanFiles(NamedTuple):
    """Files of every scan by split and name, how they are laid out, and notes."""

    layout: str
    parts: dict[str, dict[str, tuple[Path, ...]]]
    notes: list[str]


def _find_scans(root: Path) -> _ScanFiles:
    """Find the scans and labels of every split; one split `all` if neither folders nor lists divide the scans."""
    if (root / "lidarseg.json").is_file() or any(root.glob("*/lidarseg.json")):
        raise DataError(
            f"{root}: has the tables of nuScenes lidarseg; prepare the set nuscenes_lidarseg, which reads them"
        )
    parts, notes = _list_splits(root)
    notes += filter(None, [list_skipped_files(root, suffixes=_SUFFIXES)])
    by_part = {
        part: {path.relative_to(root).as_posix(): _add_label_file(path) for path in paths}
        for part, paths in parts.items()
    }
    return _ScanFiles("split_folders" if "test" in parts else "folder", by_part, notes)


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
