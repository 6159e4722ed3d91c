"""The raw text of S3DIS: areas, rooms, annotation files, and the stray bytes that the public release has in some lines.

`Area_<1..6>/<room>/Annotations/<class>_<number>.txt`, a point a line: x y z in metres, red green blue from 0 to 255.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sightline.data.indoor_classes import CLASS_NAMES, CLUTTER
from sightline.data.modelnet_classes import by_number
from sightline.data.native import listing
from sightline.data.number_lines import numbers_in, numbers_in_plainly
from sightline.data.text_tables import numbers_of
from sightline.errors import DataError

__all__ = [
    "AREAS",
    "ROOMS_PER_AREA",
    "Repair",
    "Room",
    "RoomPoints",
    "list_rooms",
    "read_room",
    "told_missing",
    "told_unknown",
]

ROOMS_PER_AREA = (44, 40, 23, 49, 68, 48)
AREAS = tuple(f"Area_{number}" for number in range(1, 7))
_NUM_COLUMNS = 6
_LAYOUT = "Area_<1 to 6>/<room>/Annotations/<class>_<number>.txt"
_STRAY = re.compile(rb"[^\t\r\x20-\x7e]")
_FILE_NAME = re.compile(r"(?P<label>[A-Za-z]+)_\d+\.txt")


class Repair(NamedTuple):
    """A line that was mended: as it was and as it was read."""

    path: Path
    line: int
    before: str
    after: str

    def told(self, root: Path) -> str:
        return f"{self.path.relative_to(root)}:{self.line}: {self.before!r} read as {self.after!r}"


class Room(NamedTuple):
    """A room: its area, its folder, its annotation files with the label of each, and classes that are none of ours."""

    area: str
    folder: Path
    files: tuple[tuple[Path, int], ...]
    unknown: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.area}/{self.folder.name}"


class RoomPoints(NamedTuple):
    """Points (N, 3) float64 as the files have them, colours (N, 3) uint8, labels (N,) uint8, and what was mended."""

    points: np.ndarray
    colours: np.ndarray
    label: np.ndarray
    repairs: tuple[Repair, ...]


def list_rooms(root: Path) -> list[Room]:
    """All rooms below `root`, area by area, in the order of their names; no file is opened.

    Raises DataError for a folder without areas, an area that there is not, a room without annotations, and a file that
    is not named after a class.
    """
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder; give the one that holds Area_1 to Area_6")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and path.name.startswith("Area"))
    if not folders:
        raise DataError(f"{root}: holds no area, it holds {listing(root)}; S3DIS is laid out as {_LAYOUT}")
    unknown = [folder for folder in folders if folder.name not in AREAS]
    if unknown:
        raise DataError(f"{unknown[0]}: is none of the areas 1 to 6; S3DIS is laid out as {_LAYOUT}")
    return [_room_of(area.name, folder) for area in folders for folder in _rooms_in(area)]


def read_room(room: Room) -> RoomPoints:
    """Every point of a room, file after file. Raises DataError with file and line for what cannot be mended."""
    points, colours, label, repairs = [], [], [], []
    for path, own_label in room.files:
        table, mended = _read_table(path)
        points.append(table[:, :3])
        colours.append(_colours_of(table, path))
        label.append(np.full(len(table), own_label, dtype=np.uint8))
        repairs += mended
    return RoomPoints(np.concatenate(points), np.concatenate(colours), np.concatenate(label), tuple(repairs))


def told_unknown(rooms: Sequence[Room]) -> list[str]:
    """Which files are of no class of ours and count as clutter, in words."""
    counts = Counter(name for room in rooms for name in room.unknown)
    return [f"files of the unknown class '{name}' count as clutter: {count}" for name, count in sorted(counts.items())]


def told_missing(areas: Sequence[str]) -> list[str]:
    """Which areas have another number of rooms than the release, in words; `areas` are those of the rooms."""
    counts = Counter(areas)
    return [
        f"{area} has {counts[area]} rooms, the release has {published}"
        for area, published in zip(AREAS, ROOMS_PER_AREA, strict=True)
        if counts[area] != published
    ]


def _rooms_in(area: Path) -> list[Path]:
    folders = [path for path in area.iterdir() if path.is_dir() and not path.name.startswith(".")]
    if not folders:
        raise DataError(f"{area}: holds no room; S3DIS is laid out as {_LAYOUT}")
    return sorted(folders, key=lambda path: by_number(path.name))


def _room_of(area: str, folder: Path) -> Room:
    annotations = folder / "Annotations"
    if not annotations.is_dir():
        raise DataError(
            f"{folder}: has no folder Annotations, it holds {listing(folder)}; get the room again, or take its folder "
            "out"
        )
    paths = [path for path in annotations.glob("*.txt") if not path.name.startswith(".")]
    paths.sort(key=lambda path: by_number(path.name))
    if not paths:
        raise DataError(f"{annotations}: holds no <class>_<number>.txt; get the room again, or take its folder out")
    files, unknown = [], []
    for path in paths:
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            raise DataError(f"{path}: is not named <class>_<number>.txt, so its class is not known; rename it")
        name = match["label"]
        if name not in CLASS_NAMES:
            unknown.append(name)
        files.append((path, CLASS_NAMES.index(name) if name in CLASS_NAMES else CLUTTER))
    return Room(area, folder, tuple(files), tuple(unknown))


def _read_table(path: Path) -> tuple[np.ndarray, list[Repair]]:
    """The table (N, 6) of one annotation file, and the lines that were mended."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from error
    table, odd = numbers_in(content, num_columns=_NUM_COLUMNS)
    if not len(table):
        raise DataError(f"{path}: holds no points; get the file again, or take it out")
    repairs = []
    lines = content.split(b"\n") if len(odd) else []
    for row in odd:
        table[row], repair = _read_line(path, int(row) + 1, lines[row])
        repairs += repair
    return table, repairs


def _colours_of(table: np.ndarray, path: Path) -> np.ndarray:
    """The last three columns as uint8. Raises DataError with the line for what is no colour."""
    with np.errstate(invalid="ignore"):  # what does not fit becomes something else, and is refused below
        colours = table[:, 3:].astype(np.uint8)
    if not np.array_equal(colours, table[:, 3:]):
        wrong = int(np.flatnonzero((colours != table[:, 3:]).any(axis=1))[0])
        found = " ".join(f"{value:g}" for value in table[wrong, 3:])
        raise DataError(
            f"{path}:{wrong + 1}: the colour {found} is not three whole numbers from 0 to 255; get the file again"
        )
    return colours


def _read_line(path: Path, number: int, line: bytes) -> tuple[np.ndarray, list[Repair]]:
    """The numbers of a line that is not plain: with long numbers, or with stray bytes.

    A stray byte is left out if six numbers remain, as in `103.0\\x100000`, and stands for a blank if it takes that to
    make six, as in `185\\x00187`; never are both possible. Raises DataError with the line for anything else.
    """
    stripped = line.strip(b" \t\r")
    if not _STRAY.search(stripped):
        numbers = numbers_of([stripped.decode("ascii")], [number], path=path, num_columns=_NUM_COLUMNS)
        return numbers[0], []
    for filling in (b"", b" "):
        mended = _STRAY.sub(filling, stripped)
        table, odd = numbers_in_plainly(mended, num_columns=_NUM_COLUMNS)
        if len(table) == 1 and not len(odd):
            return table[0], [Repair(path, number, stripped.decode("latin-1"), mended.decode("ascii"))]
    shown = stripped.decode("latin-1")[:60]
    raise DataError(
        f"{path}:{number}: {shown!r} has stray bytes and does not become {_NUM_COLUMNS} numbers without them; mend the "
        "line"
    )
