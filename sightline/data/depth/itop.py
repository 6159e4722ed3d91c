"""ITOP: depth images of people from the side and from above, fifteen joints, 16 people train and 4 test."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sightline import registry
from sightline.arguments import FractionBelowOne, ReferencePoint, Seed
from sightline.data.depth.depth_frames import DepthCamera
from sightline.data.depth.depth_preparation import (
    DepthPlan,
    DepthShard,
    SourceFrame,
    find_source_folder,
    prepare_frames,
)
from sightline.data.depth.depth_sets import PreparedFrames, train_and_test
from sightline.data.depth.references import DepthFrame
from sightline.data.depth.skeletons import BODY_15
from sightline.data.files.hdf5_files import TEXT, Hdf5File, open_hdf5
from sightline.data.files.input_files import file_size
from sightline.data.files.text_tables import parse_count
from sightline.data.store.location import prepared_root
from sightline.data.store.prepared_set import open_prepared, prepare_command
from sightline.data.store.prepared_writer import Progress
from sightline.errors import DataError
from sightline.geometry.pinhole import project_points

__all__ = ["Itop"]

_CAMERA = DepthCamera(1 / 0.0035, -1 / 0.0035, 160.0, 120.0, 320, 240)
_VIEWS = ("side", "top")
_FRAMES = {"train": 39_795, "test": 10_501}
_SIZE = (_CAMERA.height_px, _CAMERA.width_px)
_BLOCK_FRAMES = 500
_MOST_OFF_PX = 10.0
"""How far a joint may appear from its place in the image: labels are rounded to pixels and to float16 (2 mm at 3 m)."""
_MM_PER_M = 1000.0


@registry.data.add("itop")
class Itop(PreparedFrames):
    """People before a camera at the side, or under one above (`view`). 15 joints, mm, y up, z forward.

    Frames that the set calls invalid are left out everywhere. Joints that are `hidden` have labels too, and count as
    published figures do, unless they are `left_out`. `validation_share` of the people, by `split_seed`, choose the
    checkpoint.
    Source: Haque et al. 2016, Towards Viewpoint Invariant 3D Human Pose Estimation.
    """

    set_name = "itop"
    readable_sets = ("itop",)
    camera = _CAMERA
    skeleton = BODY_15

    def __init__(
        self,
        *,
        split: str,
        root: str | None = None,
        view: Literal["side", "top"] = "side",
        reference: ReferencePoint | None = None,
        joints: tuple[str, ...] = (),
        hidden: Literal["counted", "left_out"] = "counted",
        validation_share: FractionBelowOne = 0.1,
        split_seed: Seed = 0,
    ) -> None:
        prepared = open_prepared(prepared_root(root, self.set_name), set_names=self.readable_sets)
        if not any(stored.startswith(f"{view}_") for stored in prepared.splits):
            held = ", ".join(prepared.splits)
            raise DataError(f"{prepared.root}: has no frames from the {view}, it holds {held}; set data.view")
        stretch, part = train_and_test(prepared, split, share=validation_share, seed=split_seed, prefix=f"{view}_")
        self._leaves_out_hidden = hidden == "left_out"
        super().__init__(stretch=stretch, part=part, reference=reference, joints=joints)

    @classmethod
    def prepare(cls, *, source: Path, target: Path, name: str, progress: Progress) -> dict[str, Any]:
        """Write the frames of the views that are there; returns the manifest with `root` and `outcome`.

        Raises DataError for files that are compressed, cut short or of other shapes, for depth maps and labels of other
        frames, and for joints that do not appear where the labels in pixels have them, as of another order. A killed
        run is continued by the same call.
        """
        assert name == cls.set_name, f"{cls.__name__} prepares '{cls.set_name}', not '{name}'"
        files = [_files(view, split) for view in _VIEWS for split in _FRAMES]
        marks = [each for pair in files for file in pair for each in (file, f"{file}.gz")]
        root = find_source_folder(
            source, marks=marks, inner=("ITOP", "itop"), what="ITOP (ITOP_<view>_<split>_depth_map.h5)"
        )
        pairs = {
            f"{view}_{split}": _opened(root, view, split)
            for view in _VIEWS
            for split in _FRAMES
            if any((root / f"{file}{end}").exists() for file in _files(view, split) for end in ("", ".gz"))
        }
        types = {pair.depth_type for pair in pairs.values()}
        depth_type = "float16" if types == {"float16"} else "float32"
        plan = DepthPlan(
            set_name=name,
            layout="hdf5",
            source=root,
            skeleton=BODY_15,
            parts=tuple(part for stored, pair in pairs.items() for part in _parts(stored, pair, depth_type)),
            depth_type=depth_type,
            mm_per_unit=_MM_PER_M,
            invalid_note="are invalid by the set's own word, and are not used",
            published={stored: _FRAMES[stored.split("_")[1]] for stored in pairs},
            about={
                "orientation": "camera's frame, x right, y up, z forward; in the files in metres, here in mm",
                "split": "train and test are the set's own, for each view; people of train are held out for validation",
            },
        )
        return prepare_frames(plan, target, progress=progress)

    @classmethod
    def card(cls) -> dict[str, Any]:
        """What the set is, what is read, and where to obtain it."""
        return {
            "set": cls.set_name,
            "frames": {f"{view}_{split}": count for view in _VIEWS for split, count in _FRAMES.items()},
            "joints": ", ".join(BODY_15.joint_names),
            "layouts": {"hdf5": "ITOP_<side, top>_<train, test>_depth_map.h5 and _labels.h5, unpacked from .h5.gz"},
            "home": "https://zenodo.org/record/3932973",
            "terms": "those of its page; nothing is downloaded for you",
            "cite": "Haque et al. 2016, Towards Viewpoint Invariant 3D Human Pose Estimation",
            "prepare": prepare_command(cls.set_name, "DIR"),
        }

    def _frame(self, place: int) -> DepthFrame:
        frame = super()._frame(place)
        return frame if self._leaves_out_hidden else dataclasses.replace(frame, visible=frame.joints[:, 2] > 0)


@dataclass(frozen=True, eq=False)
class _Labels:
    """What the label file of a part says of its frames; `depth_type` is that of the depth maps beside it."""

    depth_path: Path
    path: Path
    depth_type: str
    names: list[str]
    people: np.ndarray
    is_valid: np.ndarray
    visible: np.ndarray
    joints_mm: np.ndarray


def _files(view: str, split: str) -> tuple[str, str]:
    return f"ITOP_{view}_{split}_depth_map.h5", f"ITOP_{view}_{split}_labels.h5"


def _opened(root: Path, view: str, split: str) -> _Labels:
    """The labels of a part, its two files checked against each other."""
    depth_path, path = (_unpacked(root / file) for file in _files(view, split))
    with open_hdf5(depth_path) as file:
        depth = file.array("data")
        if depth.ndim != 3 or depth.shape[1:] != _SIZE or depth.dtype.name not in ("float16", "float32"):
            raise DataError(
                f"{depth_path}: data is {depth.dtype} {depth.shape}, float16 (frames, {_SIZE[0]}, {_SIZE[1]}) is "
                "needed; get the file again"
            )
        num_frames, depth_type = len(depth), depth.dtype.name
        depth_names = _ids(file, depth_path, num_frames)
    num_joints = len(BODY_15)
    with open_hdf5(path) as file:
        names = _ids(file, path, num_frames)
        is_valid = _labels(file, path, "is_valid", (num_frames,)) == 1
        visible = _labels(file, path, "visible_joints", (num_frames, num_joints)) == 1
        pixels = _labels(file, path, "image_coordinates", (num_frames, num_joints, 2))
        joints_m = _labels(file, path, "real_world_coordinates", (num_frames, num_joints, 3))
    differing = next((row for row, pair in enumerate(zip(depth_names, names, strict=True)) if len(set(pair)) > 1), None)
    if differing is not None:
        raise DataError(
            f"{path}: id[{differing}] is {names[differing]}, that of the depth maps is {depth_names[differing]}; the "
            "two files are not of the same frames: get both again"
        )
    _check_joints(path, joints_m, pixels, is_valid)
    return _Labels(
        depth_path, path, depth_type, names, _people(names, path), is_valid, visible, joints_m.astype("f8") * _MM_PER_M
    )


def _unpacked(path: Path) -> Path:
    if path.is_file():
        return path
    packed = path.with_name(f"{path.name}.gz")
    if packed.is_file():
        raise DataError(f"{packed}: is compressed, and frames are read one by one; unpack it: gunzip -k {packed}")
    raise DataError(f"{path}: is missing, and belongs to the file beside it; get it")


def _ids(file: Hdf5File, path: Path, num_frames: int) -> list[str]:
    """The names of the frames, `<person>_<frame>`."""
    array = file.array("id", kinds=TEXT)
    if array.shape != (num_frames,):
        raise DataError(
            f"{path}: id is {array.shape}, ({num_frames},) is needed as the depth maps have; get the file again"
        )
    return [each.decode("latin-1") if isinstance(each, bytes) else str(each) for each in array[...].tolist()]


def _labels(file: Hdf5File, path: Path, key: str, shape: tuple[int, ...]) -> np.ndarray:
    array = file.array(key)
    if array.shape != shape or array.dtype.kind not in "iufb":
        raise DataError(f"{path}: {key} is {array.dtype} {array.shape}, {shape} is needed; get the file again")
    found: np.ndarray = array[...]
    return found


def _people(names: list[str], path: Path) -> np.ndarray:
    people = [parse_count(name.partition("_")[0]) for name in names]
    wrong = next((row for row, person in enumerate(people) if person is None), None)
    if wrong is not None:
        raise DataError(f"{path}: id[{wrong}] is {names[wrong][:40]!r}, <person>_<frame> is needed; get the file again")
    return np.array(people)


def _check_joints(path: Path, joints_m: np.ndarray, pixels: np.ndarray, is_valid: np.ndarray) -> None:
    """Raises DataError where the joints of valid frames do not lie before the camera, where the image has them."""
    rows = np.flatnonzero(is_valid)
    if not len(rows):
        return
    joints = joints_m[rows].astype(np.float64)
    wrong = np.flatnonzero(~(np.isfinite(joints).all(axis=(1, 2)) & (joints[..., 2] > 0).all(axis=1)))
    if len(wrong):
        raise DataError(
            f"{path}: real_world_coordinates[{rows[wrong[0]]}] has a joint at or behind the camera (z > 0 is needed, "
            "in metres); get the file again"
        )
    seen = project_points(joints, _CAMERA.intrinsics)[..., :2]
    # As if each joint were labelled with each place: (joints, places) medians over the frames.
    off = np.array([np.median(np.abs(seen[:, [j]] - pixels[rows]).max(axis=-1), axis=0) for j in range(len(BODY_15))])
    joint = int(np.argmax(off.diagonal()))
    if off[joint, joint] > _MOST_OFF_PX:
        nearest = int(off[joint].argmin())
        names = BODY_15.joint_names
        other = f"; that is where {names[nearest]} is" if off[joint, nearest] <= _MOST_OFF_PX else ""
        raise DataError(
            f"{path}: {names[joint]} of real_world_coordinates appears {off[joint, joint]:.0f} px from where "
            f"image_coordinates has it{other}; the joints are in another order or in other units: get the file again"
        )


def _parts(stored: str, labels: _Labels, depth_type: str) -> list[DepthShard]:
    num_bytes, num_frames = file_size(labels.depth_path), len(labels.names)
    blocks = [(first, min(first + _BLOCK_FRAMES, num_frames)) for first in range(0, num_frames, _BLOCK_FRAMES)]
    return [
        DepthShard(
            split=stored,
            title=f"{stored} {first} to {last - 1}",
            num_frames=last - first,
            files=(labels.depth_path, labels.path),
            frames=partial(_read, labels, first, last, depth_type),
            estimated_bytes=num_bytes * (last - first) // num_frames,
        )
        for first, last in blocks
    ]


def _read(labels: _Labels, first: int, last: int, depth_type: str) -> Iterator[SourceFrame]:
    with open_hdf5(labels.depth_path) as file:
        depths = file.array("data")[first:last].astype(depth_type)

    def frame(row: int) -> SourceFrame:
        where = f"{labels.depth_path}: data[{row}]"
        is_valid = bool(labels.is_valid[row])
        return SourceFrame(
            name=labels.names[row],
            where=where,
            depth=_checked(depths[row - first], where) if is_valid else np.zeros((1, 1), dtype=depth_type),
            joints=labels.joints_mm[row] if is_valid else None,
            visible=labels.visible[row] & is_valid,
            group=int(labels.people[row]),
            is_valid=is_valid,
        )

    return map(frame, range(first, last))


def _checked(depth: np.ndarray, where: str) -> np.ndarray:
    wrong = np.argwhere(~np.isfinite(depth) | (depth < 0))
    if len(wrong):
        row, column = (int(place) for place in wrong[0])
        raise DataError(f"{where}: the depth in row {row}, column {column} is {depth[row, column]}; get the file again")
    return depth
