"""The raw text of S3DIS: areas, rooms, annotation files, and the stray bytes that the public release has in some lines.

`Area_<1..6>/<room>/Annotations/<class>_<number>.txt`, a point a line: x y z in metres, red green blue from 0 to 255.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from sightline.data.clouds.modelnet_classes import natural_sort_key
from sightline.data.files.fast_text_parser import parse_numbers, parse_numbers_reference, read_line_blocks
from sightline.data.files.input_files import file_size
from sightline.data.files.text_tables import parse_rows
from sightline.data.scenes.indoor_classes import CLASS_NAMES, CLUTTER
from sightline.data.store.prepared_set import summarise_folder
from sightline.errors import DataError
from sightline.numba_kernels import can_use_numba, numba_kernel, run_parallel

__all__ = [
    "AREAS",
    "ROOMS_PER_AREA",
    "Repair",
    "Room",
    "RoomPoints",
    "list_rooms",
    "missing_notes",
    "read_room",
    "unknown_notes",
]

ROOMS_PER_AREA = (44, 40, 23, 49, 68, 48)
AREAS = tuple(f"Area_{number}" for number in range(1, 7))
_NUM_COLUMNS = 6
_FEWEST_BYTES = 2 * _NUM_COLUMNS
"""Of a line: a digit and what ends it, for each number."""
_LAYOUT = "Area_<1 to 6>/<room>/Annotations/<class>_<number>.txt"
_STRAY = re.compile(rb"[^\t\r\x20-\x7e]")
_FILE_NAME = re.compile(r"(?P<label>[A-Za-z]+)_\d+\.txt")


class Repair(NamedTuple):
    """A line that was mended: as it was and as it was read."""

    path: Path
    line: int
    before: str
    after: str

    def describe(self, root: Path) -> str:
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
        raise DataError(f"{root}: holds no area, it holds {summarise_folder(root)}; S3DIS is laid out as {_LAYOUT}")
    unknown = [folder for folder in folders if folder.name not in AREAS]
    if unknown:
        raise DataError(f"{unknown[0]}: is none of the areas 1 to 6; S3DIS is laid out as {_LAYOUT}")
    return [_room_of(area.name, folder) for area in folders for folder in _rooms_in(area)]


def read_room(room: Room) -> RoomPoints:
    """Every point of a room, file after file. Raises DataError with file and line for what cannot be mended."""
    # Room for as many points as so many bytes can hold. What is left over is never touched, so it takes no memory.
    most = sum(file_size(path) for path, _ in room.files) // _FEWEST_BYTES + len(room.files)
    points, colours = np.empty((most, 3)), np.empty((most, 3), dtype=np.uint8)
    sizes: list[int] = []
    repairs: list[Repair] = []
    for path, _ in room.files:
        first = stop = sum(sizes)
        for table, mended in _read_tables(path):
            rows = slice(stop, stop + len(table))
            if rows.stop > most:
                raise DataError(f"{path}: grew while it was read; let whatever writes it finish, then read it again")
            _split(table, points[rows], colours[rows], path=path, num_before=stop - first)
            stop = rows.stop
            repairs += mended
        if stop == first:
            raise DataError(f"{path}: holds no points; get the file again, or take it out")
        sizes.append(stop - first)
    label = np.repeat(np.array([own_label for _, own_label in room.files], dtype=np.uint8), sizes)
    return RoomPoints(points[: len(label)], colours[: len(label)], label, tuple(repairs))


def unknown_notes(rooms: Sequence[Room]) -> list[str]:
    """Which files are of no class of ours and count as clutter, in words."""
    counts = Counter(name for room in rooms for name in room.unknown)
    return [f"files of the unknown class '{name}' count as clutter: {count}" for name, count in sorted(counts.items())]


def missing_notes(areas: Sequence[str]) -> list[str]:
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
    return sorted(folders, key=lambda path: natural_sort_key(path.name))


def _room_of(area: str, folder: Path) -> Room:
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
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            raise DataError(f"{path}: is not named <class>_<number>.txt, so its class is not known; rename it")
        name = match["label"]
        if name not in CLASS_NAMES:
            unknown.append(name)
        files.append((path, CLASS_NAMES.index(name) if name in CLASS_NAMES else CLUTTER))
    return Room(area, folder, tuple(files), tuple(unknown))


def _read_tables(path: Path) -> Iterator[tuple[np.ndarray, list[Repair]]]:
    """The tables (N, 6) of an annotation file, block after block, each with the lines that were mended."""
    try:
        with path.open("rb") as file:
            num_lines = 0
            for block in read_line_blocks(file):
                table, odd = parse_numbers(block, num_columns=_NUM_COLUMNS)
                repairs = []
                lines = block.split(b"\n") if len(odd) else []
                for row in odd:
                    table[row], repair = _read_line(path, num_lines + int(row) + 1, lines[row])
                    repairs += repair
                num_lines += len(table)
                yield table, repairs
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from error


def _split(table: np.ndarray, points: np.ndarray, colours: np.ndarray, *, path: Path, num_before: int) -> None:
    """Fills coordinates and colours from a table (N, 6). Raises DataError with the line for what is no colour.

    `num_before` lines of the file come before the table.
    """
    if can_use_numba(torch.empty(0)):
        is_wrong = np.zeros(len(table), dtype=np.bool_)
        run_parallel(_split_rows, len(table), table, points, colours, is_wrong)
    else:
        is_wrong = _split_plainly(table, points, colours)
    if is_wrong.any():
        wrong = int(np.flatnonzero(is_wrong)[0])
        found = " ".join(f"{value:g}" for value in table[wrong, 3:])
        raise DataError(
            f"{path}:{num_before + wrong + 1}: the colour {found} is not three whole numbers from 0 to 255; get the "
            "file again"
        )


def _split_plainly(table: np.ndarray, points: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """The reference; returns which rows have something that is no colour."""
    points[:] = table[:, :3]
    with np.errstate(invalid="ignore"):  # what does not fit becomes something else, and differs
        colours[:] = table[:, 3:].astype(np.uint8)
    is_wrong: np.ndarray = (colours != table[:, 3:]).any(axis=1)
    return is_wrong


@numba_kernel
def _split_rows(
    first: int, last: int, table: np.ndarray, points: np.ndarray, colours: np.ndarray, is_wrong: np.ndarray
) -> None:
    for row in range(first, last):
        for axis in range(3):
            points[row, axis] = table[row, axis]
            value = table[row, 3 + axis]
            colours[row, axis] = np.uint8(value) if 0 <= value <= 255 else np.uint8(0)
            is_wrong[row] |= value != colours[row, axis]


def _read_line(path: Path, number: int, line: bytes) -> tuple[np.ndarray, list[Repair]]:
    """The numbers of a line that is not plain: with long numbers, or with stray bytes.

    A stray byte is left out if six numbers remain, as in `103.0\\x100000`, and stands for a blank if it takes that to
    make six, as in `185\\x00187`; never are both possible. Raises DataError with the line for anything else.
    """
    stripped = line.strip(b" \t\r")
    if not _STRAY.search(stripped):
        numbers = parse_rows([stripped.decode("ascii")], [number], path=path, num_columns=_NUM_COLUMNS)
        return numbers[0], []
    for filling in (b"", b" "):
        mended = _STRAY.sub(filling, stripped)
        table, odd = parse_numbers_reference(mended, num_columns=_NUM_COLUMNS)
        if len(table) == 1 and not len(odd):
            return table[0], [Repair(path, number, stripped.decode("latin-1"), mended.decode("ascii"))]
    shown = stripped.decode("latin-1")[:60]
    raise DataError(
        f"{path}:{number}: {shown!r} has stray bytes and does not become {_NUM_COLUMNS} numbers without them; mend the "
        "line"
    )
