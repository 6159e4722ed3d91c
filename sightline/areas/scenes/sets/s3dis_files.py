"""Reader of the raw text of S3DIS: areas, rooms and annotation files, with repair of stray bytes.

`Area_<1..6>/<room>/Annotations/<class>_<number>.txt`, one point per line: x y z in metres, red green blue to 255.

Thirteen classes of indoor scenes, and the two orders in which files number them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from sightline.contract.errors import DataError
from sightline.store.files.input_files import get_again, list_folders, natural_sort_key
from sightline.store.files.text_tables import parse_rows, read_text, split_lines
from sightline.store.prepared.prepared_set import summarise_folder

CLASS_NAMES = (
    *("ceiling", "floor", "wall", "beam", "column", "window", "door"),
    *("table", "chair", "sofa", "bookcase", "board", "clutter"),
)
"""Classes of Armeni et al. 2016 in the order of PointNet's release of S3DIS, which this project uses."""

CLUTTER = CLASS_NAMES.index("clutter")

ORDERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "A": CLASS_NAMES,
        "B": (*CLASS_NAMES[:7], "chair", "table", "bookcase", "sofa", "board", "clutter"),
    }
)
"""Class names by label: order A of PointNet, order B of the names file of the Point Transformer code."""


ROOMS_PER_AREA = (44, 40, 23, 49, 68, 48)
AREAS = tuple(f"Area_{number}" for number in range(1, 7))
_NUM_COLUMNS = 6
_LAYOUT = "Area_<1 to 6>/<room>/Annotations/<class>_<number>.txt"
_STRAY_PATTERN = re.compile(r"[^\t\x20-\x7e]")
_NUMBER_PATTERN = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")
_FILE_NAME_PATTERN = re.compile(r"(?P<label>[A-Za-z]+)_\d+\.txt")


class Repair(NamedTuple):
    """Repaired line of a file: the stored text and the text that was read."""

    path: Path
    line: int
    before: str
    after: str

    def describe(self, root: Path) -> str:
        return f"{self.path.relative_to(root)}:{self.line}: {self.before!r} read as {self.after!r}"


class Room(NamedTuple):
    """Room of S3DIS: area, folder, annotation files with their labels, and names of unknown classes."""

    area: str
    folder: Path
    files: tuple[tuple[Path, int], ...]
    unknown: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.area}/{self.folder.name}"

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(path for path, _ in self.files)


class RoomPoints(NamedTuple):
    """Points (N, 3) float64 as in the files, colours (N, 3) uint8, labels (N,) uint8, and the repairs of a room."""

    points: np.ndarray
    colours: np.ndarray
    label: np.ndarray
    repairs: tuple[Repair, ...]


def list_rooms(root: Path) -> list[Room]:
    """List all rooms below `root` by area and name; no file is opened.

    Raises DataError for a folder without areas, an unknown area, a room without annotations, and a file that is not
    named after a class.
    """
    folders = sorted(path for path in root.iterdir() if path.is_dir() and path.name.startswith("Area"))
    if not folders:
        raise DataError(f"{root}: holds no area, it holds {summarise_folder(root)}; S3DIS is laid out as {_LAYOUT}")
    unknown = [folder for folder in folders if folder.name not in AREAS]
    if unknown:
        raise DataError(f"{unknown[0]}: is not one of the areas 1 to 6; S3DIS is laid out as {_LAYOUT}")
    return [_list_room(area.name, folder) for area in folders for folder in _list_room_folders(area)]


def read_room(room: Room) -> RoomPoints:
    """Read all points of a room, files concatenated. Raises DataError with file and line if a repair is impossible."""
    tables: list[np.ndarray] = []
    repairs: list[Repair] = []
    for path, _ in room.files:
        table, table_repairs = _read_table(path)
        tables.append(table)
        repairs += table_repairs
    sizes = [len(table) for table in tables]
    points, colours = np.empty((sum(sizes), 3)), np.empty((sum(sizes), 3), dtype=np.uint8)
    for (path, _), table, stop in zip(room.files, tables, np.cumsum(sizes), strict=True):
        rows = slice(stop - len(table), stop)
        _split(table, points[rows], colours[rows], path=path)
    label = np.repeat(np.array([file_label for _, file_label in room.files], dtype=np.uint8), sizes)
    return RoomPoints(points, colours, label, tuple(repairs))


def unknown_notes(rooms: Sequence[Room]) -> list[str]:
    """Return notes on files of unknown classes, which count as clutter."""
    counts = Counter(name for room in rooms for name in room.unknown)
    return [f"files of the unknown class '{name}' count as clutter: {count}" for name, count in sorted(counts.items())]


def missing_notes(areas: Sequence[str]) -> list[str]:
    """Return notes on areas whose number of rooms differs from the release; `areas` has one entry per room."""
    counts = Counter(areas)
    return [
        f"{area} has {counts[area]} rooms, the release has {published}"
        for area, published in zip(AREAS, ROOMS_PER_AREA, strict=True)
        if counts[area] != published
    ]


def _list_room_folders(area: Path) -> list[Path]:
    folders = list_folders(area)
    if not folders:
        raise DataError(f"{area}: holds no room; S3DIS is laid out as {_LAYOUT}")
    return sorted(folders, key=lambda path: natural_sort_key(path.name))


def _list_room(area: str, folder: Path) -> Room:
    annotations = folder / "Annotations"
    if not annotations.is_dir():
        raise DataError(
            f"{folder}: has no folder Annotations, it holds {summarise_folder(folder)}; get the room again, "
            "or take its folder "
            "out"
        )
    paths = [path for path in annotations.glob("*.txt") if not path.name.startswith(".")]
    paths.sort(key=lambda path: natural_sort_key(path.name))
    if not paths:
        raise DataError(f"{annotations}: holds no <class>_<number>.txt; get the room again, or take its folder out")
    files, unknown = [], []
    for path in paths:
        match = _FILE_NAME_PATTERN.fullmatch(path.name)
        if match is None:
            raise DataError(f"{path}: is not named <class>_<number>.txt, so its class is not known; rename it")
        name = match["label"]
        if name not in CLASS_NAMES:
            unknown.append(name)
        files.append((path, CLASS_NAMES.index(name) if name in CLASS_NAMES else CLUTTER))
    return Room(area, folder, tuple(files), tuple(unknown))


def _read_table(path: Path) -> tuple[np.ndarray, list[Repair]]:
    """Read the table (N, 6) of an annotation file, and its repaired lines. Raises DataError with the line."""
    lines, repairs = split_lines(read_text(path)), []
    if not lines:
        raise DataError(f"{path}: holds no points; get the file again, or take it out")
    numbers = range(1, len(lines) + 1)
    try:
        return parse_rows(lines, numbers, path=path, num_columns=_NUM_COLUMNS), []
    except DataError:
        for number, line in zip(numbers, lines, strict=True):
            if _STRAY_PATTERN.search(line):
                repairs.append(_repair(path, number, line))
                lines[number - 1] = repairs[-1].after
    return parse_rows(lines, numbers, path=path, num_columns=_NUM_COLUMNS), repairs


def _split(table: np.ndarray, points: np.ndarray, colours: np.ndarray, *, path: Path) -> None:
    """Split a table (N, 6) into coordinates and colours, in place. Raises DataError with the line of a wrong colour."""
    points[:] = table[:, :3]
    with np.errstate(invalid="ignore"):  # values out of range change by the cast, and then differ
        colours[:] = table[:, 3:].astype(np.uint8)
    wrong = np.flatnonzero((colours != table[:, 3:]).any(axis=1))
    if len(wrong):
        colour = " ".join(f"{value:g}" for value in table[wrong[0], 3:])
        raise get_again(f"{path}:{wrong[0] + 1}: the colour {colour} is not three whole numbers from 0 to 255")


def _repair(path: Path, number: int, line: str) -> Repair:
    r"""Repair a line with stray bytes.

    A stray byte is removed if six numbers remain, as in `103.0\x100000`, or replaced by a blank if that makes six, as
    in `185\x00187`; both are never possible. Raises DataError with the line for anything else.
    """
    stripped = line.strip(" \t")
    for replacement in ("", " "):
        repaired = _STRAY_PATTERN.sub(replacement, stripped)
        tokens = repaired.split()
        if len(tokens) == _NUM_COLUMNS and all(map(_NUMBER_PATTERN.fullmatch, tokens)):
            return Repair(path, number, stripped, repaired)
    raise DataError(
        f"{path}:{number}: {stripped[:60]!r} has stray bytes and is not {_NUM_COLUMNS} numbers without them; correct "
        "the line"
    )
