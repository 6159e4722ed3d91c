"""ITOP: depth images of people from the side and from above, 15 joints; 16 people train, 4 test."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from sightline.areas.pose.sets.depth_frames import BODY_15, DepthCamera, DepthFrame, FrameSplit
from sightline.areas.pose.sets.depth_sets import (
    DepthSource,
    DepthSpec,
    FrameList,
    PreparedFrames,
    StoredFrames,
    choose_frames,
)
from sightline.contract import registry
from sightline.contract.arguments import FractionBelowOne, ReferencePoint, Seed
from sightline.contract.errors import DataError
from sightline.ops.views.pinhole import project_points
from sightline.store.files.hdf5_files import TEXT, Hdf5File, open_hdf5
from sightline.store.files.input_files import get_again
from sightline.store.files.text_tables import parse_count

_CAMERA = DepthCamera(1 / 0.0035, -1 / 0.0035, 160.0, 120.0, 320, 240)
_FRAMES = {"train": 39_795, "test": 10_501}
_FILES = {
    f"{view}_{split}": (f"ITOP_{view}_{split}_depth_map.h5", f"ITOP_{view}_{split}_labels.h5")
    for view in ("side", "top")
    for split in _FRAMES
}
"""Names of the depth file and of the label file of each stored split."""
_SIZE = (_CAMERA.height_px, _CAMERA.width_px)
_MAX_OFFSET_PX = 10.0
"""Maximum distance of projected joints from their pixel labels, which are rounded (float16: 2 mm at 3 m)."""
_MM_PER_M = 1000.0


@registry.data.add("itop")
class Itop(PreparedFrames):
    """People before a camera at the side, or under one above (`view`). 15 joints, mm, y up, z forward.

    Frames that the set calls invalid are left out everywhere. Hidden joints have labels too, and count, as in published
    figures. `validation_share` of the people, by `split_seed`, choose the checkpoint.
    Source: Haque et al. 2016, Towards Viewpoint Invariant 3D Human Pose Estimation.
    """

    spec = DepthSpec(
        name="itop",
        what="ITOP (ITOP_<view>_<split>_depth_map.h5)",
        marks=tuple(mark for pair in _FILES.values() for file in pair for mark in (file, f"{file}.gz")),
        inner=("ITOP", "itop"),
        camera=_CAMERA,
        skeleton=BODY_15,
        published={stored: _FRAMES[stored.split("_")[1]] for stored in _FILES},
        orientation="camera's frame, x right, y up, z forward; in the files in metres, here in mm",
        split_note="train and test are the set's own, for each view; people of train are held out for validation",
        mm_per_unit=_MM_PER_M,
        invalid_note="are invalid by the set's own word, and are not used",
    )

    def __init__(
        self,
        *,
        split: str,
        root: str | None = None,
        view: Literal["side", "top"] = "side",
        reference: ReferencePoint | None = None,
        validation_share: FractionBelowOne = 0.1,
        split_seed: Seed = 0,
    ) -> None:
        self._view = view
        super().__init__(
            split=split, root=root, reference=reference, validation_share=validation_share, split_seed=split_seed
        )

    def choose(self, split: str, *, share: float, seed: int) -> tuple[StoredFrames, FrameSplit]:
        """Choose the frames of a split. Raises DataError for a view that is not there."""
        training, testing = self.stored(f"{self._view}_train"), self.stored(f"{self._view}_test")
        if not (training.splits or testing.splits):
            available = ", ".join(self._prepared.splits)
            raise DataError(
                f"{self._prepared.root}: has no frames from the {self._view}, it holds {available}; set data.view"
            )
        return choose_frames(split, training, testing, training.column("group"), share=share, seed=seed)

    @classmethod
    def read_source(cls, root: Path) -> DepthSource:
        """Read the labels of the views that are there.

        Raises DataError for files that are compressed, cut short or of other shapes, for depth maps and labels of
        different frames, and for joints that do not project to their pixel labels.
        """
        splits = [
            stored
            for stored, files in _FILES.items()
            if any((root / f"{file}{end}").exists() for file in files for end in ("", ".gz"))
        ]
        lists = [
            _list_frames(stored, *(_require_unpacked(root / file) for file in _FILES[stored])) for stored in splits
        ]
        return DepthSource("hdf5", "float16", lists, expected=splits)

    def _frame(self, frame_index: int) -> DepthFrame:
        frame = super()._frame(frame_index)
        return dataclasses.replace(frame, visible=frame.joints[:, 2] > 0)


def _list_frames(stored: str, depth_path: Path, path: Path) -> FrameList:
    """Read the labels of a split and check the label file against the depth file."""
    with open_hdf5(depth_path) as file:
        depth = file.array("data")
        if depth.ndim != 3 or depth.shape[1:] != _SIZE or depth.dtype.name != "float16":
            raise get_again(
                f"{depth_path}: data is {depth.dtype} {depth.shape}, float16 (frames, {_SIZE[0]}, {_SIZE[1]}) is needed"
            )
        num_frames = len(depth)
        depth_names = _read_names(file, depth_path, num_frames)
    num_joints = len(BODY_15)
    with open_hdf5(path) as file:
        names = _read_names(file, path, num_frames)
        is_valid = _read_array(file, path, "is_valid", (num_frames,)) == 1
        visible = _read_array(file, path, "visible_joints", (num_frames, num_joints)) == 1
        pixels = _read_array(file, path, "image_coordinates", (num_frames, num_joints, 2))
        joints_m = _read_array(file, path, "real_world_coordinates", (num_frames, num_joints, 3))
    differing = next((row for row, pair in enumerate(zip(depth_names, names, strict=True)) if len(set(pair)) > 1), None)
    if differing is not None:
        raise DataError(
            f"{path}: id[{differing}] is {names[differing]}, that of the depth maps is {depth_names[differing]}; the "
            "two files are not of the same frames: get both again"
        )
    _check_joints(path, joints_m, pixels, is_valid)
    joints = np.where(is_valid[:, None, None], joints_m.astype("f8") * _MM_PER_M, 0.0)
    return FrameList(
        split=stored,
        names=names,
        depths=partial(_read_depths, depth_path, is_valid),
        joints=lambda first, last: joints[first:last],
        files=(depth_path, path),
        groups=_parse_people(names, path),
        visible=visible & is_valid[:, None],
        is_valid=is_valid,
    )


def _read_depths(path: Path, is_valid: np.ndarray, first: int, last: int) -> Iterator[np.ndarray | None]:
    with open_hdf5(path) as file:
        depths = file.array("data")[first:last]

    def check(row: int) -> np.ndarray | None:
        return _check_depth(depths[row - first], f"{path}: data[{row}]") if is_valid[row] else None

    return map(check, range(first, last))


def _require_unpacked(path: Path) -> Path:
    if path.is_file():
        return path
    packed = path.with_name(f"{path.name}.gz")
    if packed.is_file():
        raise DataError(f"{packed}: is compressed, but frames are read individually; unpack it: gunzip -k {packed}")
    raise DataError(f"{path}: is missing, and the other file of this split needs it; download it")


def _read_names(file: Hdf5File, path: Path, num_frames: int) -> list[str]:
    """Read the names of the frames, `<person>_<frame>`."""
    array = file.array("id", kinds=TEXT)
    if array.shape != (num_frames,):
        raise get_again(f"{path}: id is {array.shape}, ({num_frames},) is needed as the depth maps have")
    return [name.decode("latin-1") if isinstance(name, bytes) else str(name) for name in array[...].tolist()]


def _read_array(file: Hdf5File, path: Path, key: str, shape: tuple[int, ...]) -> np.ndarray:
    array = file.array(key)
    if array.shape != shape or array.dtype.kind not in "iufb":
        raise get_again(f"{path}: {key} is {array.dtype} {array.shape}, {shape} is needed")
    values: np.ndarray = array[...]
    return values


def _parse_people(names: list[str], path: Path) -> np.ndarray:
    people = [parse_count(name.partition("_")[0]) for name in names]
    wrong = next((row for row, person in enumerate(people) if person is None), None)
    if wrong is not None:
        raise get_again(f"{path}: id[{wrong}] is {names[wrong][:40]!r}, <person>_<frame> is needed")
    return np.array(people)


def _check_joints(path: Path, joints_m: np.ndarray, pixels: np.ndarray, is_valid: np.ndarray) -> None:
    """Raise DataError unless the joints of valid frames lie before the camera and project to their pixel labels."""
    rows = np.flatnonzero(is_valid)
    if not len(rows):
        return
    joints = joints_m[rows].astype(np.float64)
    wrong = np.flatnonzero(~(np.isfinite(joints).all(axis=(1, 2)) & (joints[..., 2] > 0).all(axis=1)))
    if len(wrong):
        raise get_again(
            f"{path}: real_world_coordinates[{rows[wrong[0]]}] has a joint at or behind the camera (z > 0 is needed, "
            "in metres)"
        )
    distances_px = np.abs(project_points(joints, _CAMERA.intrinsics)[..., :2] - pixels[rows]).max(axis=-1)
    medians = np.median(distances_px, axis=0)
    joint = int(medians.argmax())
    if medians[joint] > _MAX_OFFSET_PX:
        raise DataError(
            f"{path}: {BODY_15.joint_names[joint]} of real_world_coordinates appears {medians[joint]:.0f} px from "
            "where image_coordinates has it; the joints are in another order or in other units: get the file again"
        )


def _check_depth(depth: np.ndarray, where: str) -> np.ndarray:
    wrong = np.argwhere(~np.isfinite(depth) | (depth < 0))
    if len(wrong):
        row, column = (int(index) for index in wrong[0])
        raise get_again(f"{where}: the depth in row {row}, column {column} is {depth[row, column]}")
    return depth
