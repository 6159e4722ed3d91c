"""What a label file states of its boxes, before it is known how they are to be read, and the checks of its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sightline.contract.errors import DataError, escape_to_one_line
from sightline.store.boxes3d.box_table import BoxTable, ImageBoxes, make_box_table
from sightline.store.boxes3d.conversions import BoxReading

MAX_SIDE_M = 1000.0
"""Largest side of a box; larger numbers are in other units, or damaged."""
MAX_DISTANCE_M = 1e6
"""Largest distance of a box from the origin; larger numbers are damaged, or coordinates of the world."""
MAX_TILT_RAD = 1e-6
"""Largest pitch or roll that is none."""


class StatedBox(NamedTuple):
    """Box of a label file: its class, seven numbers as the file has them, and what it says besides.

    `where` is the file with the line or entry. `tilt` is the larger of pitch and roll in the unit of the yaw, which
    upright boxes drop. `image` are left, top, right, bottom, truncated, occluded, alpha of KITTI's rows. `track` is the
    object's name in all frames, "" if there is none.
    """

    name: str
    numbers: tuple[float, ...]
    where: str
    tilt: float = 0.0
    score: float = math.nan
    is_ignored: bool = False
    track: str = ""
    image: tuple[float, ...] = ()


@dataclass(frozen=True)
class LabelFile:
    """Boxes of a label file by frame: by the name of the frame, "" for the frame that is called as the file.

    `forms` are the conversions that may be meant, the likeliest first, by name; counts of points decide among several.
    `notes` are remarks on the file.
    """

    path: Path
    format_name: str
    frames: Mapping[str, Sequence[StatedBox]]
    forms: Mapping[str, Form]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Form:
    """One meaning of a format's numbers: `reading` of rows that `convert` makes of the stated ones.

    `is_stated` are the parts of the reading that the format itself fixes: the data decide the others.
    """

    reading: BoxReading = field(default_factory=BoxReading)
    is_stated: frozenset[str] = frozenset({"centre", "size", "unit", "sense", "zero"})
    convert: Callable[[np.ndarray], np.ndarray] | None = None

    def rows(self, stated: Sequence[StatedBox]) -> np.ndarray:
        """Return the rows (M, 7) that `reading` reads."""
        table = np.array([box.numbers for box in stated], dtype=np.float64).reshape(-1, 7)
        return table if self.convert is None else self.convert(table)


def parse_number(value: Any, where: str) -> float:
    """Return a finite number of JSON. Raises DataError with the place for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{where} is {show(value)}, a number is needed; mend the file, or export it again")
    number = _to_float(value)
    if not math.isfinite(number):
        raise DataError(f"{where} is {show(value)}, which is no finite number; mend the file, or export it again")
    return number


def _to_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def parse_words(words: Sequence[str], where: str) -> list[float]:
    """Return the numbers of words. Raises DataError with the place for a word that is no finite number."""
    numbers = []
    for word in words:
        try:
            number = float(word) if word.isascii() and "_" not in word else math.nan
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise DataError(f"{where}: {show(word)} is no finite number; correct the line")
        numbers.append(number)
    return numbers


def parse_point(item: Any, keys: Sequence[str], where: str) -> tuple[float, ...]:
    """Return the numbers of an object of JSON by their keys. Raises DataError with the place for a missing one."""
    if not isinstance(item, Mapping):
        raise DataError(f"{where} is {show(item)}, an object with {', '.join(keys)} is needed; export the file again")
    missing = [key for key in keys if key not in item]
    if missing:
        raise DataError(f"{where} has no '{missing[0]}', {', '.join(keys)} are needed; export the file again")
    return tuple(parse_number(item[key], f"{where}.{key}") for key in keys)


def parse_name(value: Any, where: str) -> str:
    """Return the name of a class, without white space around it. Raises DataError with the place for anything else."""
    name = " ".join(value.split()) if isinstance(value, str) else ""
    if not name or not name.isprintable():
        raise DataError(f"{where} is {show(value)}, the name of a class is needed; mend the file, or export it again")
    return name


def check_sizes(numbers: Sequence[float], where: str) -> None:
    """Raise DataError with the place for sizes, numbers 3 to 5, that no object has, and for a place out of reach."""
    sizes = numbers[3:6]
    if not all(0 < size <= MAX_SIDE_M for size in sizes):
        listed = ", ".join(f"{size:g}" for size in sizes)
        raise DataError(
            f"{where}: its sizes are {listed} m, each must be above 0 and at most {MAX_SIDE_M:g}; correct it"
        )
    if max(map(abs, numbers[:3])) > MAX_DISTANCE_M:
        raise DataError(f"{where}: lies {max(map(abs, numbers[:3])):g} m away; coordinates are metres from the sensor")


def show(value: Any) -> str:
    """Show a value of a file in a message: short, on one line."""
    return escape_to_one_line(repr(value)[:60])


def make_table(
    stated: Sequence[StatedBox],
    boxes: np.ndarray,
    class_names: tuple[str, ...],
    *,
    frame: str = "",
    tracks: Mapping[str, int] | None = None,
) -> BoxTable:
    """Make the table of a frame of what a file states and its converted `boxes` (M, 7)."""
    label = np.array([class_names.index(box.name) if box.name in class_names else -1 for box in stated], dtype=np.int64)
    numbers = tracks or {}
    image = None
    if stated and all(len(box.image) == 7 for box in stated):
        values = np.array([box.image for box in stated], dtype=np.float64)
        image = ImageBoxes(values[:, :4], values[:, 4], values[:, 5].astype(np.int64), values[:, 6])
    return make_box_table(
        boxes,
        label,
        class_names,
        score=np.array([box.score for box in stated], dtype=np.float64),
        is_ignored=np.array([box.is_ignored for box in stated], dtype=bool),
        track=np.array([numbers.get(box.track, -1) if box.track else -1 for box in stated], dtype=np.int64),
        frame=frame,
        image=image,
    )


def number_tracks(frames: Iterable[Sequence[StatedBox]]) -> dict[str, int]:
    """Return numbers of the names of objects, in the order in which frames name them."""
    return {name: number for number, name in enumerate(dict.fromkeys(_iterate_tracks(frames)))}


def _iterate_tracks(frames: Iterable[Sequence[StatedBox]]) -> Iterator[str]:
    return (box.track for boxes in frames for box in boxes if box.track)


def list_classes(frames: Iterable[Sequence[StatedBox]], *, without: Collection[str] = ()) -> tuple[str, ...]:
    """List the names of classes that have boxes, in alphabetical order."""
    return tuple(sorted({box.name for boxes in frames for box in boxes} - {*without}))
