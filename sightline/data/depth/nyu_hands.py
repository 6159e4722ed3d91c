"""NYU hands: 72,757 depth images of one subject to train, 8,252 of two to test; view 1, 14 of 36 joints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sightline import registry
from sightline.arguments import FractionBelowOne, ReferencePoint, Seed
from sightline.data.depth.depth_frames import DepthCamera
from sightline.data.depth.depth_preparation import DepthPlan, check_joint_range, find_source_folder, prepare_frames
from sightline.data.depth.depth_sets import PreparedFrames, train_and_test
from sightline.data.depth.listed_frames import MISSING, FrameList, ImageKind, image_kind, listed_parts
from sightline.data.depth.skeletons import HAND_14
from sightline.data.files.mat_files import read_mat
from sightline.data.files.named_rows import BLOCK_LINES
from sightline.data.store.location import prepared_root
from sightline.data.store.prepared_set import open_prepared, prepare_command
from sightline.data.store.prepared_writer import Progress
from sightline.errors import DataError
from sightline.geometry.pinhole import project_points

__all__ = ["NyuHands"]

_CAMERA = DepthCamera(588.036865, -587.075073, 320.0, 240.0, 640, 480)
_EVALUATED = (0, 3, 6, 9, 12, 15, 18, 21, 24, 25, 27, 30, 31, 32)
"""Indices of the evaluated joints among 36: tips and middles from the little finger on, wrist and palm."""
_LABELS = "joint_data.mat"
_WHAT = "the NYU hand pose dataset (train/joint_data.mat, train/depth_1_<0000001>.png, the same in test)"
_MAX_OFFSET_PX = 10.0
"""Maximum median distance between the labels in mm and in pixels; in the release it is below one pixel."""


@registry.data.add("nyu_hands")
class NyuHands(PreparedFrames):
    """Hands before the first of three cameras: 72,757 frames of one subject train. 14 joints, mm, y up, z forward.

    `validation_share` of the blocks of a thousand frames, by `split_seed`, choose the checkpoint.
    Source: Tompson et al. 2014, Real-Time Continuous Pose Recovery of Human Hands Using Convolutional Networks.
    """

    set_name = "nyu_hands"
    readable_sets = ("nyu_hands",)
    camera = _CAMERA
    skeleton = HAND_14

    def __init__(
        self,
        *,
        split: str,
        root: str | None = None,
        reference: ReferencePoint | None = None,
        joints: tuple[str, ...] = (),
        validation_share: FractionBelowOne = 0.1,
        split_seed: Seed = 0,
    ) -> None:
        prepared = open_prepared(prepared_root(root, self.set_name), set_names=self.readable_sets)
        frames, part = train_and_test(prepared, split, share=validation_share, seed=split_seed)
        super().__init__(frames=frames, part=part, reference=reference, joints=joints)

    @classmethod
    def prepare(cls, *, source: Path, target: Path, name: str, progress: Progress) -> dict[str, Any]:
        """Write the frames in native form; returns the manifest with `root` and `outcome`.

        Raises DataError for labels that are not (3, frames, 36, 3) or do not project to the labels in pixels, for
        images without labels, and for a test image that is missing. A killed run is continued by the same call.
        """
        assert name == cls.set_name, f"{cls.__name__} prepares '{cls.set_name}', not '{name}'"
        root = find_source_folder(source, marks=(f"train/{_LABELS}",), inner=("dataset",), what=_WHAT)
        lists = [_frames(root, split) for split in ("train", "test")]
        kinds = {frames.kind for frames in lists}
        plan = DepthPlan(
            set_name=name,
            layout="+".join(sorted(kinds)),
            source=root,
            skeleton=HAND_14,
            parts=tuple(part for frames in lists for part in listed_parts(frames)),
            depth_type="float32" if "bin" in kinds else "uint16",
            invalid_note=MISSING,
            published={"train": 72_757, "test": 8_252},
            about={
                "orientation": "camera's frame, x right, y up, z forward; view 1",
                "split": "train and test are the set's own; stretches of train are held out for validation",
            },
        )
        return prepare_frames(plan, target, progress=progress)

    @classmethod
    def card(cls) -> dict[str, Any]:
        """Description, accepted layouts, download page and licence."""
        return {
            "set": cls.set_name,
            "frames": {"train": 72_757, "test": 8_252},
            "joints": ", ".join(HAND_14.joint_names),
            "layouts": {
                "png_colour": "train and test: joint_data.mat, depth_1_<0000001>.png; depth is green * 256 + blue",
                "bin": "train/parsed/depth_1_<0000001>.bin, raw float32, as the authors of V2V-PoseNet converted them",
            },
            "home": "https://jonathantompson.github.io/NYU_Hand_Pose_Dataset.htm",
            "terms": "those of its page; nothing is downloaded for you",
            "cite": "Tompson et al. 2014, Real-Time Continuous Pose Recovery of Human Hands",
            "prepare": prepare_command(cls.set_name, "DIR"),
        }


def _frames(root: Path, split: str) -> FrameList:
    folder = root / split
    joints = _read_joints(folder / _LABELS)
    names = [f"depth_1_{number:07d}" for number in range(1, len(joints) + 1)]
    images = [folder / f"{name}.png" for name in names]
    bins = [folder / "parsed" / f"{name}.bin" for name in names]
    kind: ImageKind = image_kind(images, "png_colour", bins)
    _check_counts(folder, kind, len(joints))
    return FrameList(
        split=split,
        names=[f"{split}/{name}" for name in names],
        images=bins if kind == "bin" else images,
        kind=kind,
        size_px=(_CAMERA.width_px, _CAMERA.height_px),
        labels=(folder / _LABELS,),
        rows=lambda first, count: joints[first : first + count],
        groups=np.arange(len(joints)) // BLOCK_LINES,
    )


def _check_counts(folder: Path, kind: ImageKind, num_labels: int) -> None:
    """Raise DataError for images of view 1 that have no labels."""
    beyond = folder / f"depth_1_{num_labels + 1:07d}.png"
    if kind == "bin":
        beyond = folder / "parsed" / beyond.with_suffix(".bin").name
    if beyond.is_file():
        raise DataError(f"{beyond}: {folder / _LABELS} has labels for {num_labels} frames only; get both again")


def _read_joints(path: Path) -> np.ndarray:
    """Read the evaluated joints (frames, 14, 3) of view 1, in mm."""
    world, pixels = (_read_array(path, key) for key in ("joint_xyz", "joint_uvd"))
    if world.ndim != 4 or world.shape[0] != 3 or world.shape[2:] != (36, 3) or pixels.shape != world.shape:
        raise DataError(
            f"{path}: joint_xyz is {world.shape} and joint_uvd {pixels.shape}, (3, frames, 36, 3) are needed; get the "
            "file again"
        )
    check_joint_range(world[0], f"{path}: joint_xyz[0]")
    distance_px = np.abs(project_points(world[0], _CAMERA.intrinsics)[..., :2] - pixels[0, ..., :2]).max(axis=-1)
    if not np.median(distance_px) <= _MAX_OFFSET_PX:
        raise DataError(
            f"{path}: the joints of view 1 appear {np.median(distance_px):.0f} px from where joint_uvd has them; the "
            "two are of other views or units: get the file again"
        )
    joints: np.ndarray = world[0][:, _EVALUATED]
    return joints


def _read_array(path: Path, key: str) -> np.ndarray:
    return read_mat(path, key).astype(np.float64)
