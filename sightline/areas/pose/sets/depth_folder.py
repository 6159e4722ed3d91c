"""The user's own depth frames with joints, from a folder of images, `joints.csv`, and the camera's file."""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from sightline.areas.pose.depth_files import (
    DEPTH_KINDS,
    MIN_RANGE_MM,
    check_marks,
    read_depth,
    read_depth_numbers,
    read_depth_png,
)
from sightline.areas.pose.sets.depth_figure import describe_figure, make_figure, read_figure
from sightline.areas.pose.sets.depth_frames import DepthCamera, FrameSplit, SkeletonName
from sightline.areas.pose.sets.depth_sets import (
    DepthSource,
    DepthSpec,
    FrameList,
    PreparedFrames,
    StoredFrames,
    choose_frames,
    plan_depth_set,
    read_images,
)
from sightline.areas.pose.sets.depth_units import MM_PER, note_units
from sightline.contract import registry
from sightline.contract.arguments import PositiveFloat, PositiveFraction, Seed
from sightline.contract.errors import DataError
from sightline.contract.regular_files import parse_json
from sightline.store.files.input_files import list_files, natural_sort_key, parsed_yaml, read_file
from sightline.store.prepared.config_bases import ConfigBase
from sightline.store.prepared.prepared_data import SetSpec, Summary
from sightline.store.prepared.prepared_set import PreparedSet
from sightline.store.prepared.prepared_writer import PreparationPlan, digest_json
from sightline.store.prepared.splits import SPLITS, order_by_hash

LABEL_FILE, CAMERA_FILE, ROS_CAMERA_FILE = "joints.csv", "camera.json", "camera_info.yaml"
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
_BY_ROWS, _BY_COLUMNS = (0, 4, 2, 5), (0, 4, 6, 7)
_MATRICES = {"k": _BY_ROWS, "K": _BY_ROWS, "camera_matrix": _BY_ROWS, "intrinsic_matrix": _BY_COLUMNS}
"""Keys of a matrix (of ROS, of OpenCV, of Open3D), and the places of fx, fy, u0 and v0 in its nine numbers."""
_DISTORTION = ("coeffs", "d", "D", "distortion_coefficients", "k1", "k2", "k3", "p1", "p2")
_MAX_NUMBER = 1e300
_MIN_RECORDINGS = 5
"""Recordings below which stretches of frames stand for them when splits are made."""
_STRETCHES = 10
_MIN_PX, _MAX_PX = 4.0, 1e6
"""Range of the largest number of a camera's intrinsics: below it they are shares of the image's sides."""
_MAX_RANGE_MM = 1e5
"""Range that no depth camera has."""
_KINDS = tuple(suffix for suffix in DEPTH_KINDS if suffix != ".bin")
"""Suffixes of the frames: those whose files state the size of the image."""


@registry.data.add("depth_folder")
class DepthFolder(PreparedFrames):
    """The user's own depth frames with joints in mm, prepared by `sightline data prepare depth_folder`.

    The default `reference` is the centre of mass of the figure. `validation_share` of the training recordings, by
    `split_seed`, choose the checkpoint, unless the labels state validation frames; a recording is a folder of frames,
    or of few folders a stretch of frames.
    Source: the user's files.
    """

    config_bases = (ConfigBase("pose/own_depth"),)
    spec = SetSpec(  # type: ignore[assignment]  # camera and joints are the user's
        is_own=True,
        name="depth_folder",
        what=f"frames and {LABEL_FILE}",
        entries=lambda: {"files": ", ".join(f"{suffix} ({DEPTH_KINDS[suffix]})" for suffix in _KINDS)},
    )
    summary: ClassVar[Summary] = {
        **PreparedFrames.summary,
        "image_size_px": lambda manifest: manifest["image_size_px"],
        "camera_px": lambda manifest: dict(zip(CAMERA_KEYS, manifest["camera_px"], strict=True)),
        "joints": lambda manifest: ", ".join(manifest["joint_names"]),
        "bones": lambda manifest: manifest["figure"]["bones"],
        "centre": lambda manifest: manifest["figure"]["centre"],
        "cube_mm": lambda manifest: manifest["figure"]["cube_mm"],
    }
    expected_info: ClassVar[None] = None  # type: ignore[assignment]

    @classmethod
    def plan(
        cls,
        root: Path,
        *,
        joint_unit: Literal["mm", "cm", "m"] = "mm",
        mm_per_unit: PositiveFloat = 1.0,
        no_return: float | None = None,
        cube_mm: PositiveFloat | None = None,
        skeleton: SkeletonName | None = None,
        joint_names: tuple[str, ...] | None = None,
        bones: tuple[tuple[str, str], ...] | None = None,
        test_share: PositiveFraction = 0.2,
        seed: Seed = 0,
    ) -> PreparationPlan:
        """Plan to write the labelled frames of a folder in native form.

        `mm_per_unit` is the unit of the images' numbers, `no_return` the number of pixels without a measurement beside
        0 and NaN. `cube_mm` is the side of the cube around the figure, by default a quarter more than the joints need
        about the middle one. `skeleton` states names and bones of the joints, which the file has in its order or calls
        by its names; `joint_names` renames the joints in the order of the file, and `bones` are pairs of names. Without
        either, no bones are known. `test_share` of the recordings are tested, by a hash of `seed` and their names,
        unless the labels state splits. Raises DataError with file and line for labels, and with file and place for
        images, that cannot be used; ConfigError for options that do not fit.
        """
        labels = read_joint_labels(root)
        with np.errstate(over="ignore"):
            joints = np.stack([label.joints for label in labels.frames]) * MM_PER[joint_unit]
        _check_joints(labels, joints, joint_unit)
        stated = read_camera(root)
        images = [root / label.frame for label in labels.frames]
        read = partial(read_depth, mm_per_unit=mm_per_unit, no_return=no_return)
        camera = _find_camera(root, labels, stated, read)
        read = partial(read, size_px=camera.size_px)
        notes = [*stated.notes, *_note_unlabelled(root, labels)]
        is_png = mm_per_unit == 1.0 and all(path.suffix.lower() == ".png" for path in images)
        if is_png:
            read = partial(read_depth_png, size_px=camera.size_px, no_return=no_return)
        splits, groups, split_note = _assign_splits(labels.frames, test_share, seed)
        lists = _list_frames(labels, images, joints, splits, groups, read)
        figure = make_figure(
            labels.joint_names,
            joints,
            cube_mm,
            path=labels.path,
            skeleton=skeleton,
            joint_names=joint_names,
            bones=bones,
        )
        spec = DepthSpec(
            name=cls.set_name,
            camera=camera,
            skeleton=figure,
            published={},
            orientation=f"camera's frame, x right, y {camera.y_points}, z forward",
            split_note=split_note,
        )
        about = {
            "camera_px": camera.intrinsics.tolist(),
            "image_size_px": list(camera.size_px),
            "figure": describe_figure(figure, joints, skeleton),
            "joint_unit": joint_unit,
            "file_depth_type": read_depth_numbers(images[0], no_return=no_return).dtype.name,
            "file_mm_per_unit": mm_per_unit,
            **({} if no_return is None else {"no_return": no_return}),
        }
        listed = [[label.frame, split] for label, split in zip(labels.frames, splits, strict=True)]
        digest = hashlib.sha256(np.ascontiguousarray(joints).tobytes()).hexdigest()
        options = {**about, "frames": digest_json(listed), "labels": digest}
        content = DepthSource(labels.path.name, "uint16" if is_png else "float32", lists, (), notes)
        planned = plan_depth_set(spec, content, root, about=about, options=options)
        return replace(planned, summarise=partial(_summarise, planned.summarise))

    def choose(self, split: str, *, share: float, seed: int) -> tuple[StoredFrames, FrameSplit]:
        """Choose the frames of a split; where the labels state the validation frames, nothing is drawn.

        Those follow the frames of train in the order of the training frames, as in every set.
        """
        self.camera = DepthCamera(*self._prepared.manifest["camera_px"], *self._prepared.manifest["image_size_px"])
        self.skeleton = read_figure(self._prepared.manifest["figure"], self._prepared.manifest["joint_names"])
        if "validation" not in self._prepared.splits:
            return super().choose(split, share=share, seed=seed)
        training = self.stored("train", "validation")
        is_held = np.arange(training.starts()[-1]) >= training.starts()[1]
        return choose_frames(split, training, self.stored("test"), is_held, share=share, seed=seed, is_held=is_held)


def _summarise(summarise: Callable[[PreparedSet], Mapping[str, Any]], prepared: PreparedSet) -> dict[str, Any]:
    """Manifest entries computed from the written arrays, with a note on units that disagree."""
    summary, units = summarise(prepared), note_units(prepared)
    return {**summary, "doubts": units, "differences": [*summary["differences"], *units]}


def _list_frames(
    labels: JointLabels,
    images: Sequence[Path],
    joints: np.ndarray,
    splits: Sequence[str],
    groups: np.ndarray,
    read: partial[np.ndarray],
) -> list[FrameList]:
    """List the frames of each stored split; joints without a label are 0 and not visible."""
    visible = ~np.isnan(joints).any(axis=2)
    known = np.where(visible[..., None], joints, 0.0)
    lists = []
    for split in dict.fromkeys(splits):
        members = [index for index, name in enumerate(splits) if name == split]
        files = [images[index] for index in members]
        lists.append(
            FrameList(
                split=split,
                names=[labels.frames[index].frame for index in members],
                depths=read_images(files, read),
                joints=partial(_take_rows, known[members]),
                files=(labels.path,),
                images=files,
                groups=groups[members],
                visible=visible[members],
            )
        )
    return lists


def _take_rows(joints: np.ndarray, first: int, last: int) -> np.ndarray:
    return joints[first:last]


def _find_camera(root: Path, labels: JointLabels, stated: StatedCamera, read: partial[np.ndarray]) -> DepthCamera:
    """Return the stated camera, with the size of the first image."""
    frames, numbers = labels.frames, stated.intrinsics
    if numbers["fx"] <= 0 or numbers["fy"] == 0 or not _MIN_PX < max(map(abs, numbers.values())) <= _MAX_PX:
        raise DataError(
            f"{stated.path}: fx must be positive, fy not 0 (negative: Y points up), and all four at most "
            f"{_MAX_PX:g} pixels, one above {_MIN_PX:g}: they are no shares of the image's sides"
        )
    for label in frames:
        path = root / label.frame
        if not path.is_file():
            raise DataError(f"{label.where}: there is no image {path}; put it there, or take the line out")
        if path.suffix.lower() not in _KINDS:
            raise DataError(f"{label.where}: {label.frame} is none of {', '.join(_KINDS)}; convert the image to one")
    first = read(root / frames[0].frame)
    check_marks(first, root / frames[0].frame, mm_per_unit=read.keywords["mm_per_unit"])
    height, width = first.shape
    if stated.size_px not in (None, (width, height)):
        raise DataError(
            f"{stated.path}: is the camera of images of {'{} x {}'.format(*stated.size_px or ())}, "
            f"{frames[0].frame} has {width} x {height}; give the numbers of this size"
        )
    if stated.size_px is None and not (0 <= numbers["u0"] < width and 0 <= numbers["v0"] < height):
        raise DataError(
            f"{stated.path}: the middle of the lens, u0 = {numbers['u0']:g} and v0 = {numbers['v0']:g}, is outside of "
            f"{frames[0].frame} with {width} x {height} pixels, so the camera is of another size; give the numbers of "
            "this size, or state width and height in the file, too, if the frames are cut out of larger ones"
        )
    return DepthCamera(numbers["fx"], numbers["fy"], numbers["u0"], numbers["v0"], width, height)


def _check_joints(labels: JointLabels, joints: np.ndarray, unit: str) -> None:
    """Raise DataError for joints in another unit, one without any label, and a set without any."""
    depths = joints[..., 2]
    if np.isnan(depths).all():
        raise DataError(f"{labels.path}: labels no joint of any frame")
    median = float(np.nanmedian(depths))
    if 0 < median < MIN_RANGE_MM:
        raise DataError(
            f"{labels.path}: the joints are {median:.3g} mm from the camera (median), nearer than any camera measures; "
            f"name their unit, which is not {unit}: joint_unit=m or cm"
        )
    largest = np.where(np.isnan(joints), 0.0, np.abs(joints)).max(axis=(1, 2))
    if largest.max() > _MAX_RANGE_MM:
        raise DataError(
            f"{labels.frames[int(largest.argmax())].where}: a joint is {largest.max():.3g} mm away, further than any "
            f"depth camera measures; correct the line, or the unit, joint_unit={unit}"
        )
    never = np.isnan(depths).all(axis=0)
    if never.any():
        raise DataError(
            f"{labels.path}: {labels.joint_names[int(never.argmax())]} is labelled in no frame; leave it out"
        )


def _assign_splits(frames: Sequence[FrameLabel], test_share: float, seed: int) -> tuple[list[str], np.ndarray, str]:
    """Return the stored split of every frame, its group (frames,) of like frames, and a note on both.

    Groups are never divided between training and test: neighbours in a recording are alike.
    """
    recordings = [str(Path(label.frame).parent) for label in frames]
    kind = "recordings (folders)"
    if len(set(recordings)) < _MIN_RECORDINGS:
        kind = "stretches of frames"
        recordings = _cut_stretches([label.frame for label in frames], recordings)
    names, groups = np.unique(recordings, return_inverse=True)
    if frames[0].split:
        splits = [label.split for label in frames]
        held_out = "" if "validation" in splits else f"; {kind} of train are held out for validation"
        return splits, groups, f"as the labels state{held_out}"
    num_test = min(max(1, round(test_share * len(names))), len(names) - 1)
    if num_test < 1:
        raise DataError(f"{frames[0].where}: is the only frame; label more frames, or state their splits")
    tested = {names[index] for index in order_by_hash(names.tolist(), seed=seed)[:num_test]}
    note = f"{num_test} of {len(names)} {kind} are tested, by a hash of seed {seed}; others are held out for validation"
    return ["test" if recording in tested else "train" for recording in recordings], groups, note


def _cut_stretches(names: Sequence[str], recordings: Sequence[str]) -> list[str]:
    """Return the stretch of each frame: a tenth of its recording, in the order of the names."""
    stretches = [""] * len(names)
    for recording in set(recordings):
        members = [index for index, name in enumerate(recordings) if name == recording]
        members.sort(key=lambda index: natural_sort_key(names[index]))
        for rank, index in enumerate(members):
            stretches[index] = f"{recording}/{rank * min(_STRETCHES, len(members)) // len(members)}"
    return stretches


def _note_unlabelled(root: Path, labels: JointLabels) -> list[str]:
    """Return a note on images of the folder that no label names."""
    labelled = {label.frame for label in labels.frames}
    names = [path.relative_to(root).as_posix() for path in list_files(root, _KINDS)]
    unlabelled = sorted(name for name in names if name not in labelled)
    return (
        [f"{len(unlabelled)} images have no label and are left out; the first is {unlabelled[0]}"] if unlabelled else []
    )


class FrameLabel(NamedTuple):
    """Label of one frame: its image's path relative to the folder, its split or "", its joints, and its place.

    `joints` (J, 3) float64 in the unit of the file, NaN for an unlabelled joint.
    """

    frame: str
    split: str
    joints: np.ndarray
    where: str


class JointLabels(NamedTuple):
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


class StatedCamera(NamedTuple):
    """File; intrinsics in pixels by the names of `CAMERA_KEYS`; width and height of the images if stated; notes."""

    path: Path
    intrinsics: Mapping[str, float]
    size_px: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()


def read_camera(root: Path) -> StatedCamera:
    """Read the camera of a folder: `camera.json`, or the `camera_info.yaml` that ROS writes.

    Raises DataError for a key that is missing, no number, or stated twice, and for a folder with none or both.
    """
    paths = [path for name in (CAMERA_FILE, ROS_CAMERA_FILE) if (path := root / name).is_file()]
    if not paths:
        raise DataError(f"{root}: has no {CAMERA_FILE}, the intrinsics in pixels; write {_CAMERA_FORM}")
    if len(paths) > 1:
        raise DataError(f"{root}: has {CAMERA_FILE} and {ROS_CAMERA_FILE}; keep the one of these frames")
    [path] = paths
    if path.name == ROS_CAMERA_FILE:
        document = parsed_yaml(read_file(path), path, name="a camera")
    else:
        try:
            document = parse_json(read_file(path))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: is not JSON ({' '.join(str(error).split())[:80]})") from error
    keys = _expand_matrix(path, document if isinstance(document, dict) else {})
    numbers = {}
    for name, spellings in CAMERA_KEYS.items():
        stated = [key for key in spellings if key in keys]
        if len(stated) != 1:
            fault = f"states {' and '.join(stated)}" if stated else f"has no {' or '.join(spellings)}"
            raise DataError(f"{path}: {fault}; it has {', '.join(keys)[:100] or 'no keys'}; write {_CAMERA_FORM}")
        numbers[name] = _parse_number(path, stated[0], keys[stated[0]])
    size = [_parse_number(path, key, keys.get(key, 0)) for key in ("width", "height")]
    bent = {key: keys[key] for key in _DISTORTION if key in keys}
    bent = {key: values.get("data", ()) if isinstance(values, dict) else values for key, values in bent.items()}
    distorted = [key for key, values in bent.items() if np.any(np.array(values, dtype=object) != 0)]
    notes = tuple(f"{path.name}: {key} is not 0, and lens distortion is not applied" for key in distorted)
    return StatedCamera(path, numbers, (int(size[0]), int(size[1])) if min(size) > 0 else None, notes)


def _expand_matrix(path: Path, document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the keys of a camera, with the numbers of the matrix that it states, if it does; by Open3D by columns."""
    stated = [key for key in _MATRICES if key in document]
    if not stated:
        return document
    values: Any = document[stated[0]]
    values = values.get("data") if isinstance(values, dict) else values
    is_nested = isinstance(values, list) and all(isinstance(row, list) for row in values)
    if is_nested:
        values = [number for row in values for number in row]
    if not isinstance(values, list) or len(values) != 9:
        raise DataError(f"{path}: {stated[0]} is {str(values)[:40]!r}, a matrix of nine numbers is needed")
    places = _BY_ROWS if is_nested else _MATRICES[stated[0]]
    rest = {
        new: document[old] for new, old in (("width", "image_width"), ("height", "image_height")) if old in document
    }
    return {**document, **rest, **{key: values[position] for key, position in zip(CAMERA_KEYS, places, strict=True)}}


def _parse_number(path: Path, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _MAX_NUMBER:
        raise DataError(f"{path}: {key} is {str(value)[:40]!r}, a number of pixels is needed")
    return float(value)
