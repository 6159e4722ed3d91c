"""Reader of converted S3DIS rooms with integer labels: NPY tables, or pairs of BIN files.

`Area_<a>_<room>.npy`: numbers (points, 7), x y z red green blue label. `points/Area_<a>_<room>.bin`: float32, six per
point; `semantic_mask/Area_<a>_<room>.bin`: int64, one per point. The files do not state the meaning of the labels.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sightline.data.clouds.modelnet_classes import natural_sort_key
from sightline.data.files.array_files import read_npy
from sightline.data.files.input_files import read_file
from sightline.data.scenes.indoor_classes import CLASS_NAMES, ORDERS
from sightline.data.scenes.s3dis_files import AREAS, RoomPoints
from sightline.errors import DataError

__all__ = ["IntegerRoom", "list_integer_rooms", "read_integer_room"]

_NAME_PATTERN = re.compile(r"(?P<area>Area_\d+)_(?P<room>.+)")
_NUM_COLUMNS = 7


class IntegerRoom(NamedTuple):
    """Room of converted S3DIS: area, name, and files (one NPY, or the BIN files of points and labels)."""

    area: str
    room: str
    files: tuple[Path, ...]

    @property
    def name(self) -> str:
        return f"{self.area}/{self.room}"


def list_integer_rooms(root: Path) -> tuple[str, list[IntegerRoom]]:
    """Find the layout (`npy` or `bin`) and list its rooms by name; [] if the folder contains neither.

    Raises DataError for a name without an area, and for points without labels.
    """
    layout, paths = "npy", sorted(root.glob("*.npy"), key=lambda path: natural_sort_key(path.name))
    if not paths:
        layout, paths = "bin", sorted((root / "points").glob("*.bin"), key=lambda path: natural_sort_key(path.name))
    rooms = []
    for path in paths:
        match = _NAME_PATTERN.fullmatch(path.stem)
        if match is None or match["area"] not in AREAS:
            raise DataError(f"{path}: is not named Area_<1 to 6>_<room>, so its area is not known; rename it")
        files = (path,) if layout == "npy" else (path, root / "semantic_mask" / path.name)
        if not files[-1].is_file():
            raise DataError(f"{files[-1]}: there is no such file, {path.name} has no labels without it; get it again")
        rooms.append(IntegerRoom(match["area"], match["room"], files))
    return layout, rooms


def read_integer_room(room: IntegerRoom, *, order: str) -> RoomPoints:
    """Read all points of a room, labels in this project's order. Raises DataError with the file and the row."""
    path = room.files[-1]
    points, colours, file_labels = _read_npy_room(path) if len(room.files) == 1 else _read_bin_room(*room.files)
    is_label = (file_labels == np.floor(file_labels)) & (file_labels >= 0) & (file_labels < len(CLASS_NAMES))
    is_colour = ((colours >= 0) & (colours <= 255)).all(axis=1)
    for name, is_valid in (("label", is_label), ("colour", is_colour)):
        if not is_valid.all():
            row = int(np.flatnonzero(~is_valid)[0])
            value = file_labels[row] if name == "label" else colours[row].tolist()
            limit = f"0 to {len(CLASS_NAMES) - 1}" if name == "label" else "0 to 255"
            raise DataError(f"{path}: the {name} of point {row} is {value}, {limit} is possible; get the file again")
    labels_by_order = np.array([CLASS_NAMES.index(class_name) for class_name in ORDERS[order]], dtype=np.uint8)
    return RoomPoints(points, np.rint(colours).astype(np.uint8), labels_by_order[file_labels.astype(np.int64)], ())


def _read_npy_room(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    table = read_npy(path)
    if table.ndim != 2 or table.shape[1] != _NUM_COLUMNS or table.dtype.kind not in "fiu" or not len(table):
        raise DataError(
            f"{path}: holds {table.dtype} {table.shape}, numbers (points, {_NUM_COLUMNS}) are needed: x y z red green "
            "blue label"
        )
    return table[:, :3].astype(np.float64), table[:, 3:6], table[:, 6]


def _read_bin_room(path: Path, label_path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    content, labels = read_file(path), read_file(label_path)
    if not content or len(content) % 24 or len(labels) * 3 != len(content):
        raise DataError(
            f"{label_path}: {len(content)} bytes of points, six float32 each, and {len(labels)} of labels, an int64 "
            "each, do not belong together; one is cut short: get both again"
        )
    table = np.frombuffer(content, dtype="<f4").reshape(-1, 6)
    return table[:, :3].astype(np.float64), table[:, 3:], np.frombuffer(labels, dtype="<i8")
