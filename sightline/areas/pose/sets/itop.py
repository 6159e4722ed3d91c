"""ITOP: depth images of people from the side and from above, 15 joints; 16 people train, 4 test."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from sightline.areas.pose.sets.depth_frames import DepthCamera
from sightline.areas.pose.sets.depth_sets import (
    DepthSet,
    DepthSource,
    DepthSpec,
    SourceFrame,
    cut_blocks,
    train_and_test,
)
from sightline.areas.pose.sets.references import DepthFrame
from sightline.areas.pose.sets.skeletons import BODY_15
from sightline.contract import registry
from sightline.contract.arguments import FractionBelowOne, ReferencePoint, Seed
from sightline.contract.errors import DataError
from sightline.ops.pinhole import project_points
from sightline.store.files.hdf5_files import TEXT, Hdf5File, open_hdf5
from sightline.store.files.input_files import file_size, get_again
from sightline.store.files.text_tables import parse_count
from sightline.store.prepared.prepared_writer import Shard

_CAMERA = DepthCamera(1 / 0.0035, -1 / 0.0035, 160.0, 120.0, 320, 240)
_VIEWS = ("side", "top")
_FRAMES = {"train": 39_795, "test": 10_501}
_FILES = {
    f"{view}_{split}": (f"ITOP_{view}_{split}_depth_map.h5", f"ITOP_{view}_{split}_labels.h5")
    for view in _VIEWS
    for split in _FRAMES
}
"""Names of the depth file and of the label file of each stored split."""
_SIZE = (_CAMERA.height_px, _CAMERA.width_px)
_BLOCK_FRAMES = 500
_MAX_OFFSET_PX = 10.0
"""Maximum distance of projected joints from their pixel labels, which are rounded (float16: 2 mm at 3 m)."""
_MM_PER_M = 1000.0


@registry.data.add("itop")
class Itop(DepthSet):
    """People before a camera at the side, or under one above (`view`). 15 joints, mm, y up, z forward.

    Frames that the set calls invalid are left out everywhere. Joints that are `hidden` have labels too, and count as
    published figures do, unless they are `left_out`. `validation_share` of the people, by `split_seed`, choose the
    checkpoint.
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
        joints: tuple[str, ...] = (),
        hidden: Literal["counted", "left_out"] = "counted",
        validation_share: FractionBelowOne = 0.1,
        split_seed: Seed = 0,
    ) -> None:
        prepared = self.open_root(root)
        if not any(stored.startswith(f"{view}_") for stored in prepared.splits):
            available = ", ".join(prepared.splits)
            raise DataError(f"{prepared.root}: has no frames from the {view}, it holds {available}; set data.view")
        frames, part = train_and_test(prepared, split, share=validation_share, seed=split_seed, prefix=f"{view}_")
        self._leaves_out_hidden = hidden == "left_out"
        super().__init__(frames=frames, part=part, reference=reference, joints=joints)

    @classmethod
    def read_source(cls, root: Path) -> DepthSource:
        """Read the labels of the views that are there.

        Raises DataError for files that are compressed, cut short or of other shapes, for depth maps and labels of
        different frames, and for joints that do not project to their pixel labels.
        """
        labels = {
            stored: _read_labels(root, files)
            for stored, files in _FILES.items()
            if any((root / f"{file}{end}").exists() for file in files for end in ("", ".gz"))
        }
        is_half = all(split_labels.depth_type == "float16" for split_labels in labels.values())
        depth_type = "float16" if is_half else "float32"
        shards = [shard for stored in labels for shard in _make_shards(stored, labels[stored], depth_type)]
        return DepthSource("hdf5", depth_type, shards, expected=tuple(labels))

    def _frame(self, frame_index: int) -> DepthFrame:
        frame = super()._frame(frame_index)
        return frame if self._leaves_out_hidden else dataclasses.replace(frame, visible=frame.joints[:, 2] > 0)


@dataclass(frozen=True, eq=False)
class _Labels:
    """Labels of one split of one view; `depth_type` is the dtype of the depth maps next to the label file."""

    depth_path: Path
    path: Path
    depth_type: str
    names: list[str]
    people: np.ndarray
    is_valid: np.ndarray
    visible: np.ndarray
    joints_mm: np.ndarray


def _read_labels(root: Path, files: tuple[str, str]) -> _Labels:
    """Read the labels of a split and check the label file against the depth file."""
    depth_path, path = (_require_unpacked(root / file) for file in files)
    with open_hdf5(depth_path) as file:
        depth = file.array("data")
        if depth.ndim != 3 or depth.shape[1:] != _SIZE or depth.dtype.name not in ("float16", "float32"):
            raise get_again(
                f"{depth_path}: data is {depth.dtype} {depth.shape}, float16 (frames, {_SIZE[0]}, {_SIZE[1]}) is needed"
            )
        num_frames, depth_type = len(depth), depth.dtype.name
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
    return _Labels(
        depth_path,
        path,
        depth_type,
        names,
        _parse_people(names, path),
        is_valid,
        visible,
        joints_m.astype("f8") * _MM_PER_M,
    )


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
    projected = project_points(joints, _CAMERA.intrinsics)[..., :2]
    # Distances of every joint from every label: (joints, labels), medians over the frames.
    distances_px = np.array(
        [np.median(np.abs(projected[:, [j]] - pixels[rows]).max(axis=-1), axis=0) for j in range(len(BODY_15))]
    )
    joint = int(np.argmax(distances_px.diagonal()))
    if distances_px[joint, joint] > _MAX_OFFSET_PX:
        nearest = int(distances_px[joint].argmin())
        names = BODY_15.joint_names
        other = f"; that is where {names[nearest]} is" if distances_px[joint, nearest] <= _MAX_OFFSET_PX else ""
        raise DataError(
            f"{path}: {names[joint]} of real_world_coordinates appears {distances_px[joint, joint]:.0f} px from where "
            f"image_coordinates has it{other}; the joints are in another order or in other units: get the file again"
        )


def _make_shards(stored: str, labels: _Labels, depth_type: str) -> list[Shard[SourceFrame]]:
    num_bytes, num_frames = file_size(labels.depth_path), len(labels.names)
    return [
        Shard(
            stored,
            f"{stored} {first} to {last - 1}",
            last - first,
            (labels.depth_path, labels.path),
            partial(_iterate_frames, labels, first, last, depth_type),
            num_bytes * (last - first) // num_frames,
        )
        for first, last in cut_blocks(num_frames, _BLOCK_FRAMES)
    ]


def _iterate_frames(labels: _Labels, first: int, last: int, depth_type: str) -> Iterator[SourceFrame]:
    with open_hdf5(labels.depth_path) as file:
        depths = file.array("data")[first:last].astype(depth_type)

    def frame(row: int) -> SourceFrame:
        where = f"{labels.depth_path}: data[{row}]"
        is_valid = bool(labels.is_valid[row])
        return SourceFrame(
            name=labels.names[row],
            where=where,
            depth=_check_depth(depths[row - first], where) if is_valid else np.zeros((1, 1), dtype=depth_type),
            joints=labels.joints_mm[row] if is_valid else None,
            visible=labels.visible[row] & is_valid,
            group=int(labels.people[row]),
            is_valid=is_valid,
        )

    return map(frame, range(first, last))


def _check_depth(depth: np.ndarray, where: str) -> np.ndarray:
    wrong = np.argwhere(~np.isfinite(depth) | (depth < 0))
    if len(wrong):
        row, column = (int(index) for index in wrong[0])
        raise get_again(f"{where}: the depth in row {row}, column {column} is {depth[row, column]}")
    return depth
