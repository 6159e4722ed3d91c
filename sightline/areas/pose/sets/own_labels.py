"""Labels and camera of the user's own depth frames: joints from `joints.csv`, intrinsics from `camera.json`."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from sightline.areas.pose.depth_files import SizePx
from sightline.contract.errors import DataError
from sightline.contract.regular_files import parse_json
from sightline.store.files.input_files import read_file
from sightline.store.prepared.splits import SPLITS

LABEL_FILE, CAMERA_FILE = "joints.csv", "camera.json"
_AXES = "xyz"
_FORM = "it has the columns frame, NAME_x, NAME_y and NAME_z of every joint, and split if you like"
_CAMERA_FORM = f'{CAMERA_FILE}: {{"fx": 475.0, "fy": 475.0, "u0": 320.0, "v0": 240.0}}'
CAMERA_KEYS: Mapping[str, tuple[str, ...]] = {
    "fx": ("fx",),
    "fy": ("fy",),
    "u0": ("u0", "cx", "ppx"),
    "v0": ("v0", "cy", "ppy"),
}
"""Keys of a camera's numbers: ours, those of OpenCV, and those of RealSense."""
_DISTORTION = ("coeffs", "k1", "k2", "k3", "p1", "p2")
_MAX_NUMBER = 1e300


@dataclass(frozen=True, eq=False)
class FrameLabel:
    """Label of one frame: its image's path relative to the folder, its split or "", its joints, and its place.

    `joints` (J, 3) float64 in the unit of the file, NaN for an unlabelled joint.
    """

    frame: str
    split: str
    joints: np.ndarray
    where: str


@dataclass(frozen=True, eq=False)
class JointLabels:
    """Labels of all frames, in the order of the file."""

    path: Path
    joint_names: tuple[str, ...]
    frames: Sequence[FrameLabel]


def read_joint_labels(root: Path) -> JointLabels:
    """Read `joints.csv` of a folder. Raises DataError with file and line for labels that cannot be used."""
    path = root / LABEL_FILE
    if not path.is_file():
        raise DataError(f"{root}: has no {LABEL_FILE}; write one: {_FORM}")
    try:
        rows = list(csv.reader(io.StringIO(read_file(path).decode("utf-8-sig")), strict=True))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path}: is not a CSV file ({error}); {_FORM}") from error
    header = [name.strip() for name in rows[0]] if rows else []
    names = _read_joint_names(path, header)
    frames = [
        _read_row(root, f"{path}:{number}", header, row, names)
        for number, row in enumerate(rows[1:], start=2)
        if any(cell.strip() for cell in row)
    ]
    _check_frames(path, names, frames)
    return JointLabels(path, names, frames)


def _read_joint_names(path: Path, header: Sequence[str]) -> tuple[str, ...]:
    """Return the joints that the header names, in its order. Raises DataError for a header of another form."""
    names = list(dict.fromkeys(column[:-2] for column in header if column[-2:] in ("_x", "_y", "_z")))
    needed = ["frame", *(f"{name}_{axis}" for name in names for axis in _AXES)]
    faults = ["names no joint"] if not names else []
    faults += [f"has no column '{column}'" for column in needed if column not in header]
    faults += [f"has the column '{column}' twice" for column in header if header.count(column) > 1]
    faults += [
        f"has the column '{column}', which is none of a joint" for column in header if column not in [*needed, "split"]
    ]
    if faults:
        raise DataError(f"{path}:1: {faults[0]}; {_FORM}")
    return tuple(names)


def _read_row(root: Path, where: str, header: Sequence[str], row: Sequence[str], names: Sequence[str]) -> FrameLabel:
    if len(row) != len(header):
        raise DataError(f"{where}: has {len(row)} columns, the first line has {len(header)}; mend the line")
    cells = dict(zip(header, map(str.strip, row), strict=True))
    frame = cells["frame"]
    if "\\" in frame and not (root / frame).is_file():  # as Windows writes paths
        frame = PureWindowsPath(frame).as_posix()
    return FrameLabel(
        frame, cells.get("split", ""), np.array([_parse_joint(where, name, cells) for name in names]), where
    )


def _parse_joint(where: str, name: str, cells: Mapping[str, str]) -> list[float]:
    """Parse the coordinates of a joint; NaN where all three cells are empty."""
    texts = {f"{name}_{axis}": cells[f"{name}_{axis}"] for axis in _AXES}
    if not any(texts.values()):
        return [math.nan] * 3
    numbers = []
    for column, text in texts.items():
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise DataError(
                f"{where}: {column} is {text[:40]!r}, a number is needed; leave all three cells of an unlabelled joint "
                "empty"
            )
        numbers.append(number)
    return numbers


def _check_frames(path: Path, names: Sequence[str], frames: Sequence[FrameLabel]) -> None:
    """Raise DataError for no frames, one joint, a frame twice, a path out of the folder, and wrong splits."""
    if not frames:
        raise DataError(f"{path}: labels no frame; {_FORM}")
    if len(names) < 2:
        raise DataError(f"{path}: names {len(names)} joint, at least two are needed")
    places: dict[str, str] = {}
    for label in frames:
        image = Path(label.frame)
        if not label.frame or image.is_absolute() or PureWindowsPath(label.frame).drive or ".." in image.parts:
            raise DataError(
                f"{label.where}: {label.frame[:60]!r} is not a path in the folder; name the image from there on"
            )
        if label.frame in places:
            raise DataError(f"{label.where}: {label.frame} is labelled a second time, first in {places[label.frame]}")
        if label.split not in ("", *SPLITS):
            raise DataError(f"{label.where}: the split is {label.split[:40]!r}, it must be {', '.join(SPLITS)}")
        places[label.frame] = label.where
    splits = {label.split for label in frames}
    if splits != {""} and ("" in splits or not {"train", "test"} <= splits):
        first = next((label for label in frames if not label.split), frames[0])
        raise DataError(f"{first.where}: name the split of every frame, train and test among them, or of none")


@dataclass(frozen=True)
class StatedCamera:
    """Intrinsics in pixels by the names of `CAMERA_KEYS`; width and height of the images if stated; notes."""

    intrinsics: Mapping[str, float]
    size_px: SizePx | None = None
    notes: tuple[str, ...] = ()


def read_camera(root: Path) -> StatedCamera:
    """Read `camera.json` of a folder. Raises DataError for a key that is missing, no number, or stated twice."""
    path = root / CAMERA_FILE
    if not path.is_file():
        raise DataError(f"{root}: has no {CAMERA_FILE}, the intrinsics in pixels; write {_CAMERA_FORM}")
    try:
        document = parse_json(read_file(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON ({' '.join(str(error).split())[:80]})") from error
    keys = document if isinstance(document, dict) else {}
    numbers = {}
    for name, spellings in CAMERA_KEYS.items():
        stated = [key for key in spellings if key in keys]
        if len(stated) != 1:
            fault = f"states {' and '.join(stated)}" if stated else f"has no {' or '.join(spellings)}"
            raise DataError(f"{path}: {fault}; it has {', '.join(keys)[:100] or 'no keys'}; write {_CAMERA_FORM}")
        numbers[name] = _parse_number(path, stated[0], keys[stated[0]])
    size = [_parse_number(path, key, keys.get(key, 0)) for key in ("width", "height")]
    distorted = [key for key in _DISTORTION if key in keys and np.any(np.array(keys[key], dtype=object) != 0)]
    notes = tuple(f"{CAMERA_FILE}: {key} is not 0, and lens distortion is not applied" for key in distorted)
    return StatedCamera(numbers, (int(size[0]), int(size[1])) if min(size) > 0 else None, notes)


def _parse_number(path: Path, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _MAX_NUMBER:
        raise DataError(f"{path}: {key} is {str(value)[:40]!r}, a number of pixels is needed")
    return float(value)
