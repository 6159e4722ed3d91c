"""Files of S3DIS: the raw text of the release, with repair of stray bytes, and NPY files that others converted.

`Area_<1..6>/<room>/Annotations/<class>_<number>.txt` has one point per line: x y z in metres, red green blue to 255.
`Area_<a>_<room>.npy` has numbers (points, 7), x y z red green blue label; it does not state the meaning of the labels.
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
from sightline.store.files.array_files import read_npy
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
_NPY_NAME_PATTERN = re.compile(r"(?P<area>Area_\d+)_(?P<room>.+)")


class Room(NamedTuple):
    """Room of S3DIS: area, name, files with their label, None for labels in the file, and names of unknown classes."""

    area: str
    room: str
    files: tuple[tuple[Path, int | None], ...]
    unknown: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the room in reports."""
        return f"{self.area}/{self.room}"

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(path for path, _ in self.files)


class RoomPoints(NamedTuple):
    """Points (N, 3) float64 as in the files, colours (N, 3) uint8, labels (N,) uint8, and notes on repaired lines."""

    points: np.ndarray
    colours: np.ndarray
    label: np.ndarray
    repairs: tuple[str, ...]


def list_rooms(root: Path, order: str | None) -> tuple[str, list[Room]]:
    """Find the layout, `raw_text` or `npy`, and its rooms by area and name; no file is opened.

    Raises DataError for a folder without areas, an unknown area, a room without annotations, and a file that is not
    named after a class; and if integer labels lack an `order`, or text has one.
    """
    paths = sorted(root.glob("*.npy"), key=lambda path: natural_sort_key(path.name))
    if not paths:
        if order is not None:
            raise DataError(f"{root}: raw text names its classes; leave order={order} out")
        return "raw_text", _list_text_rooms(root)
    if order is None:
        choices = "; ".join(f"order={key}: {', '.join(names[7:11])} are 7 to 10" for key, names in ORDERS.items())
        raise DataError(f"{paths[0]}: labels are bare integers, and two orders are in use; give one ({choices})")
    rooms = []
    for path in paths:
        match = _NPY_NAME_PATTERN.fullmatch(path.stem)
        if match is None or match["area"] not in AREAS:
            raise DataError(f"{path}: is not named Area_<1 to 6>_<room>, so its area is not known; rename it")
        rooms.append(Room(match["area"], match["room"], ((path, None),)))
    return "npy", rooms


def read_room(room: Room, order: str | None = None) -> RoomPoints:
    """Read all points of a room, files concatenated; integer labels are in `order`.

    Raises DataError with file and line, or point, for what cannot be read or repaired.
    """
    if room.files[0][1] is None:
        return _read_npy(room.files[0][0], order or "A")
    parts = [_read_annotation(path, label) for path, label in room.files if label is not None]
    points, colours, labels = (np.concatenate(arrays) for arrays in list(zip(*parts, strict=True))[:3])
    return RoomPoints(points, colours, labels, tuple(repair for part in parts for repair in part.repairs))


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


def _list_text_rooms(root: Path) -> list[Room]:
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
    return Room(area, folder.name, tuple(files), tuple(unknown))


def _read_npy(path: Path, order: str) -> RoomPoints:
    table = read_npy(path)
    if table.ndim != 2 or table.shape[1] != _NUM_COLUMNS + 1 or table.dtype.kind not in "fiu" or not len(table):
        raise DataError(
            f"{path}: holds {table.dtype} {table.shape}, numbers (points, {_NUM_COLUMNS + 1}) are needed: x y z red "
            "green blue label"
        )
    colours, labels = table[:, 3:6], table[:, 6]
    is_label = (labels == np.floor(labels)) & (labels >= 0) & (labels < len(CLASS_NAMES))
    is_colour = ((colours >= 0) & (colours <= 255)).all(axis=1)
    for name, is_valid, values, limit in (
        ("label", is_label, labels, len(CLASS_NAMES) - 1),
        ("colour", is_colour, colours, 255),
    ):
        if not is_valid.all():
            row = int(np.flatnonzero(~is_valid)[0])
            raise get_again(f"{path}: the {name} of point {row} is {values[row].tolist()}, 0 to {limit} is possible")
    class_of_label = np.array([CLASS_NAMES.index(class_name) for class_name in ORDERS[order]], dtype=np.uint8)
    colours = np.rint(colours).astype(np.uint8)
    return RoomPoints(table[:, :3].astype(np.float64), colours, class_of_label[labels.astype(np.int64)], ())


def _read_annotation(path: Path, label: int) -> RoomPoints:
    """Read an annotation file. Raises DataError with the line of a wrong colour."""
    table, repairs = _read_table(path)
    with np.errstate(invalid="ignore"):  # values out of range change by the cast, and then differ
        colours = table[:, 3:].astype(np.uint8)
    wrong = np.flatnonzero((colours != table[:, 3:]).any(axis=1))
    if len(wrong):
        colour = " ".join(f"{value:g}" for value in table[wrong[0], 3:])
        raise get_again(f"{path}:{wrong[0] + 1}: the colour {colour} is not three whole numbers from 0 to 255")
    return RoomPoints(table[:, :3].copy(), colours, np.full(len(table), label, dtype=np.uint8), tuple(repairs))


def _read_table(path: Path) -> tuple[np.ndarray, list[str]]:
    """Read the table (N, 6) of an annotation file, with notes on repaired lines. Raises DataError with the line."""
    lines, repairs = split_lines(read_text(path)), []
    if not lines:
        raise DataError(f"{path}: holds no points; get the file again, or take it out")
    numbers = range(1, len(lines) + 1)
    try:
        return parse_rows(lines, numbers, path=path, num_columns=_NUM_COLUMNS), []
    except DataError:
        for number, line in zip(numbers, lines, strict=True):
            if _STRAY_PATTERN.search(line):
                lines[number - 1], note = _repair(path, number, line)
                repairs.append(note)
    return parse_rows(lines, numbers, path=path, num_columns=_NUM_COLUMNS), repairs


def _repair(path: Path, number: int, line: str) -> tuple[str, str]:
    r"""Repair a line with stray bytes, and return it with a note.

    A stray byte is removed if six numbers remain, as in `103.0\x100000`, or replaced by a blank if that makes six, as
    in `185\x00187`; both are never possible. Raises DataError with the line for anything else.
    """
    stripped = line.strip(" \t")
    for replacement in ("", " "):
        repaired = _STRAY_PATTERN.sub(replacement, stripped)
        tokens = repaired.split()
        if len(tokens) == _NUM_COLUMNS and all(map(_NUMBER_PATTERN.fullmatch, tokens)):
            return repaired, f"{'/'.join(path.parts[-4:])}:{number}: {stripped!r} read as {repaired!r}"
    raise DataError(
        f"{path}:{number}: {stripped[:60]!r} has stray bytes and is not {_NUM_COLUMNS} numbers without them; correct "
        "the line"
    )
