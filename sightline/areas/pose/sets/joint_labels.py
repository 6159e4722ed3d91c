"""Labels of the user's own depth frames: joints, from CSV or JSON files with their lines."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from sightline.contract.errors import DataError
from sightline.contract.regular_files import parse_json
from sightline.store.files.input_files import read_file
from sightline.store.prepared.splits import SPLITS

LABEL_FILES = ("joints.csv", "joints.json")
_AXES = "xyz"
_MAX_NUMBER = 1e300
_FORM = "a CSV file has the columns frame, NAME_x, NAME_y and NAME_z of every joint, and split if you like"
_JSON_FORM = (
    '{"joint_names": ["palm", ...], "frames": [{"frame": "a.png", "joints": [[x, y, z], ...]}, ...]}, with "split" of '
    'a frame and "bones" [["palm", "index"], ...] if you like, null for an unlabelled joint'
)


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
    """Labels of all frames, in the order of the file; `bones` are pairs of names, empty if the file states none."""

    path: Path
    joint_names: tuple[str, ...]
    frames: Sequence[FrameLabel]
    bones: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def read_joint_labels(root: Path) -> JointLabels:
    """Read `joints.csv` or `joints.json` of a folder.

    Raises DataError with file and line, or entry, for labels that cannot be used; and if neither file, or both, exist.
    """
    paths = [root / name for name in LABEL_FILES if (root / name).is_file()]
    if len(paths) != 1:
        named = " and ".join(LABEL_FILES) if paths else "neither " + " nor ".join(LABEL_FILES)
        advice = "leave one of them out" if paths else f"write one: {_FORM}; a JSON file is {_JSON_FORM}"
        raise DataError(f"{root}: has {named}; {advice}")
    labels = _read_csv(paths[0]) if paths[0].suffix == ".csv" else _read_json(paths[0])
    labels = _with_slashes(labels, root)
    _check_frames(labels)
    return labels


def _with_slashes(labels: JointLabels, root: Path) -> JointLabels:
    r"""Return the labels with the names of Windows, as `take_1\000.png`, written with slashes."""
    is_windows = ["\\" in label.frame and not (root / label.frame).is_file() for label in labels.frames]
    if not any(is_windows):
        return labels
    frames = [
        replace(label, frame=PureWindowsPath(label.frame).as_posix()) if is_turned else label
        for label, is_turned in zip(labels.frames, is_windows, strict=True)
    ]
    first = labels.frames[is_windows.index(True)].frame
    note = f"{sum(is_windows)} frames are named as on Windows, first {first}; a backslash is read as a slash"
    return replace(labels, frames=frames, notes=(*labels.notes, note))


def _read_csv(path: Path) -> JointLabels:
    try:
        rows = list(csv.reader(io.StringIO(read_file(path).decode("utf-8-sig")), strict=True))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path}: is not a CSV file ({error}); {_FORM}") from error
    header = [name.strip() for name in rows[0]] if rows else []
    names = _read_joint_names(path, header)
    columns = {name: index for index, name in enumerate(header)}
    frames = []
    for number, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        where = f"{path}:{number}"
        if len(row) != len(header):
            raise DataError(f"{where}: has {len(row)} columns, the first line has {len(header)}; mend the line")
        cells = [[row[columns[f"{name}_{axis}"]].strip() for axis in _AXES] for name in names]
        split = row[columns["split"]].strip() if "split" in columns else ""
        joints = np.array([_parse_joint(where, *pair) for pair in zip(names, cells, strict=True)])
        frames.append(FrameLabel(row[columns["frame"]].strip(), split, joints, where))
    return JointLabels(path, names, frames)


def _read_joint_names(path: Path, header: Sequence[str]) -> tuple[str, ...]:
    """Return the joints that the header names, in its order. Raises DataError for a header of another form."""
    names = list(dict.fromkeys(column[:-2] for column in header if column[-2:] in ("_x", "_y", "_z")))
    needed = ["frame", *(f"{name}_{axis}" for name in names for axis in _AXES)]
    known = {*needed, "split"}
    faults = ["names no joint"] if not names else []
    faults += [f"has no column '{column}'" for column in needed if column not in header]
    faults += [f"has the column '{column}' twice" for column in header if header.count(column) > 1]
    faults += [f"has the column '{column}', which is none of a joint" for column in header if column not in known]
    if faults:
        raise DataError(f"{path}:1: {faults[0]}; {_FORM}")
    return tuple(names)


def _parse_joint(where: str, name: str, cells: Sequence[str]) -> list[float]:
    """Parse the coordinates of a joint; NaN where all three cells are empty."""
    if not any(cells):
        return [math.nan] * 3
    numbers = []
    for axis, cell in zip(_AXES, cells, strict=True):
        try:
            number = float(cell)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise DataError(
                f"{where}: {name}_{axis} is {cell[:40]!r}, a number is needed; leave all three cells of an unlabelled "
                "joint empty"
            )
        numbers.append(number)
    return numbers


def _read_json(path: Path) -> JointLabels:
    document = parse_json_file(path)
    names: Any = document.get("joint_names") if isinstance(document, dict) else None
    frames: Any = document.get("frames") if isinstance(document, dict) else None
    is_named = isinstance(names, list) and names and all(isinstance(name, str) and name for name in names)
    if not is_named or len(set(names)) < len(names) or not isinstance(frames, list):
        raise DataError(f"{path}: has no list of different joint_names, or none of frames; it is {_JSON_FORM}")
    bones = document.get("bones", [])
    if not isinstance(bones, list) or not all(isinstance(bone, list) and len(bone) == 2 for bone in bones):
        raise DataError(f"{path}: bones is not a list of pairs of joints; it is {_JSON_FORM}")
    labels = [_read_json_frame(f"{path}: frames[{i}]", frame, len(names)) for i, frame in enumerate(frames)]
    return JointLabels(path, tuple(names), labels, tuple((str(a), str(b)) for a, b in bones))


def _read_json_frame(where: str, frame: Any, num_joints: int) -> FrameLabel:
    rows = frame.get("joints") if isinstance(frame, Mapping) else None
    if rows is None or not isinstance(frame.get("frame"), str) or not isinstance(frame.get("split", ""), str):
        raise DataError(f"{where}: has no text 'frame', or no 'joints'; the file is {_JSON_FORM}")
    if not isinstance(rows, list) or len(rows) != num_joints:
        raise DataError(f"{where}: joints is not a list of {num_joints}, one for each of joint_names")
    joints = np.full((num_joints, 3), np.nan)
    for index, row in enumerate(rows):
        if row is None:
            continue
        if not isinstance(row, list) or len(row) != 3 or not all(map(is_number, row)):
            raise DataError(f"{where}: joints[{index}] is {str(row)[:40]}, three numbers or null are needed")
        joints[index] = row
    return FrameLabel(frame["frame"], frame.get("split", ""), joints, where)


def parse_json_file(path: Path) -> Any:
    """Parse a JSON file. Raises DataError for anything else."""
    try:
        return parse_json(read_file(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON ({' '.join(str(error).split())[:80]})") from error


def is_number(value: Any) -> bool:
    """Return True for a number of JSON that a float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _MAX_NUMBER


def _check_frames(labels: JointLabels) -> None:
    """Raise DataError for no frames, one joint, a frame twice, a path out of the folder, and wrong splits."""
    if not labels.frames:
        raise DataError(f"{labels.path}: labels no frame; {_FORM}")
    if len(labels.joint_names) < 2:
        raise DataError(f"{labels.path}: names {len(labels.joint_names)} joint, at least two are needed")
    places: dict[str, str] = {}
    for label in labels.frames:
        path = Path(label.frame)
        if not label.frame or path.is_absolute() or PureWindowsPath(label.frame).drive or ".." in path.parts:
            raise DataError(
                f"{label.where}: {label.frame[:60]!r} is not a path in the folder; name the image from there on"
            )
        if label.frame in places:
            raise DataError(f"{label.where}: {label.frame} is labelled a second time, first in {places[label.frame]}")
        if label.split not in ("", *SPLITS):
            raise DataError(f"{label.where}: the split is {label.split[:40]!r}, it must be {', '.join(SPLITS)}")
        places[label.frame] = label.where
    splits = {label.split for label in labels.frames}
    if splits != {""} and ("" in splits or not {"train", "test"} <= splits):
        first = next((label for label in labels.frames if not label.split), labels.frames[0])
        raise DataError(f"{first.where}: name the split of every frame, train and test among them, or of none")
