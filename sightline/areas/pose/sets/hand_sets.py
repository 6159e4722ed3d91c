"""Sets of depth images of hands with joints: HANDS2017, ICVL and NYU.

HANDS 2017: 957,032 depth images with 21 hand joints, and 295,510 test frames with bounding boxes.

ICVL hands: 331,006 training and 1,596 test depth images with sixteen hand joints.

NYU hands: 72,757 depth images of one subject to train, 8,252 of two to test; view 1, 14 of 36 joints.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from sightline.areas.pose.sets.depth_frames import DepthCamera
from sightline.areas.pose.sets.depth_sets import (
    DepthSet,
    DepthSource,
    DepthSpec,
    FrameList,
    ImageKind,
    check_joint_range,
    cut_blocks,
    find_image_kind,
    join_lists,
    train_and_test,
)
from sightline.areas.pose.sets.skeletons import HAND_14, HAND_16, HAND_21_BY_LEVEL
from sightline.contract import registry
from sightline.contract.arguments import FractionBelowOne, ReferencePoint, Seed
from sightline.contract.errors import DataError
from sightline.ops.pinhole import project_points, unproject_pixels
from sightline.store.files.input_files import get_again
from sightline.store.files.mat_files import read_mat
from sightline.store.files.text_tables import BLOCK_LINES, LabelLines

_TRAINING = "training/Training_Annotation.txt"
_BOXES = "frame/BoundingBox.txt"
_TEST_LABELS = ("frame/test_annotation_frame.txt", "test_annotation_frame.txt")
_STRETCHES = "train and test are the set's own; stretches of train are held out for validation"


class _OfficialSplits(DepthSet):
    """Base of sets with their own train and test split; a share of the training groups becomes the validation split."""

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
        frames, part = train_and_test(self.open_root(root), split, share=validation_share, seed=split_seed)
        super().__init__(frames=frames, part=part, reference=reference, joints=joints)


@registry.data.add("hands2017")
class Hands2017(_OfficialSplits):
    """Hands of five subjects train; of ten test, for which labels came later. 21 joints, mm, y down, z forward.

    A test split without labels can be read, and is not scored. Its bounding boxes limit the search for the centre of
    mass. `validation_share` of the blocks of a thousand frames, by `split_seed`, choose the checkpoint.
    Source: Yuan et al. 2017, The 2017 Hands in the Million Challenge on 3D Hand Pose Estimation.
    """

    spec = DepthSpec(
        name="hands2017",
        what="HANDS 2017 (training/Training_Annotation.txt, training/images, frame/BoundingBox.txt, frame/images)",
        marks=(_TRAINING,),
        inner=("HANDS2017", "hands2017"),
        camera=DepthCamera(475.065948, 475.065857, 315.944855, 245.287079, 640, 480),
        skeleton=HAND_21_BY_LEVEL,
        published={"train": 957_032, "test": 295_510},
        orientation="camera's frame, x right, y down, z forward",
        split_note=_STRETCHES,
        has_regions=True,
    )

    @classmethod
    def read_source(cls, root: Path) -> DepthSource:
        """List the frames of both splits, if there are test images.

        Raises DataError with file and line for labels that are not 63 numbers and boxes that are not four.
        """
        return join_lists([_list_training(root), *([_list_testing(root)] if (root / _BOXES).is_file() else [])])


def _list_training(root: Path) -> FrameList:
    labels = LabelLines(root / _TRAINING, num_columns=63)
    return _hands2017_frames(root, "train", labels.names, labels, files=(labels.path,))


def _list_testing(root: Path) -> FrameList:
    boxes = LabelLines(root / _BOXES, num_columns=4)
    path = next((root / file for file in _TEST_LABELS if (root / file).is_file()), None)
    labels = None if path is None else LabelLines(path, num_columns=63)
    if labels is not None:
        _check_names(boxes, labels)
    regions = _read_regions(boxes)
    files = (boxes.path, *(() if labels is None else (labels.path,)))
    return _hands2017_frames(root, "test", boxes.names, labels, files=files, regions=regions)


def _hands2017_frames(
    root: Path,
    split: str,
    names: list[str],
    labels: LabelLines | None,
    *,
    files: tuple[Path, ...],
    regions: np.ndarray | None = None,
) -> FrameList:
    for row, name in enumerate(names):
        if not name.endswith(".png") or "/" in name or "\\" in name:
            raise get_again(f"{files[0]}:{row + 1}: {name[:60]!r} is not the name of a PNG file")
    folder = root / ("training" if split == "train" else "frame") / "images"
    images = [folder / name for name in names]
    bins = [image.with_suffix(".bin") for image in images]
    kind = find_image_kind(images, "png16", bins)
    return FrameList(
        split=split,
        names=[f"{split}/{name}" for name in names],
        images=bins if kind == "bin" else images,
        kind=kind,
        size_px=Hands2017.spec.camera.size_px,
        labels=files,
        rows=None if labels is None else lambda first, count: labels.rows(first, count).reshape(count, -1, 3),
        regions=regions,
    )


def _read_regions(boxes: LabelLines) -> np.ndarray:
    """Read the bounding boxes (frames, 4) int64: left, top, right, bottom within the image, the last two excluded."""
    blocks = cut_blocks(len(boxes), BLOCK_LINES)
    corners = np.concatenate([boxes.rows(first, last - first) for first, last in blocks])
    size = Hands2017.spec.camera.size_px
    low = np.clip(np.floor(corners[:, :2]), 0, size)
    high = np.clip(np.ceil(corners[:, 2:]) + 1, 0, size)
    empty = np.flatnonzero((corners[:, 2:] <= corners[:, :2]).any(axis=1) | (high <= low).any(axis=1))
    if len(empty):
        row = int(empty[0])
        edges = " ".join(f"{edge:g}" for edge in corners[row])
        raise DataError(
            f"{boxes.path}:{row + 1}: {edges} is not a box in the image; left, top, right and bottom are needed: get "
            "the file again"
        )
    regions: np.ndarray = np.concatenate((low, high), axis=1).astype(np.int64)
    return regions


def _check_names(boxes: LabelLines, labels: LabelLines) -> None:
    """Raise DataError unless the labels of the test split list the same images in the same order as its boxes."""
    if len(boxes) != len(labels):
        raise DataError(
            f"{labels.path}: has {len(labels)} lines, {boxes.path.name} has {len(boxes)}; get both files again"
        )
    for row, (name, label) in enumerate(zip(boxes.names, labels.names, strict=True)):
        if label.replace("\\", "/").rpartition("/")[2] != name:
            raise DataError(
                f"{labels.path}:{row + 1}: is of {label[-40:]}, {boxes.path.name} has {name} there; get both again"
            )


@registry.data.add("icvl_hands")
class IcvlHands(_OfficialSplits):
    """Hands of ten subjects with rotated copies; two sequences of others test. 16 joints, mm, y down, z forward.

    `validation_share` of the recordings, by `split_seed`, choose the checkpoint: a recording stays together with its
    rotated copies. Frames whose image is missing keep their place in files of reference points, and do not train.
    Source: Tang et al. 2014, Latent Regression Forest.
    """

    spec = DepthSpec(
        name="icvl_hands",
        what="ICVL (Training/labels.txt, Training/Depth, Testing/test_seq_1.txt, Testing/Depth)",
        marks=("Training/labels.txt",),
        inner=("ICVL", "icvl"),
        camera=DepthCamera(241.42, 241.42, 160.0, 120.0, 320, 240),
        skeleton=HAND_16,
        published={"train": 331_006, "test": 1_596},
        orientation="camera's frame, x right, y down, z forward; labels come as columns, rows and depths",
        split_note="train and test are the set's own; recordings are held out of train for validation",
    )

    @classmethod
    def read_source(cls, root: Path) -> DepthSource:
        """List the frames of the training file and of both test sequences, all in the format of the first image.

        Raises DataError with file and line for labels that are not 48 numbers.
        """
        files = {"Training/labels.txt": "train", "Testing/test_seq_1.txt": "test", "Testing/test_seq_2.txt": "test"}
        lists = [(split, LabelLines(root / file, num_columns=48)) for file, split in files.items()]
        images = _list_images(root, *lists[0])
        kind = find_image_kind(images, "png16", [image.with_suffix(".bin") for image in images])
        return join_lists([_icvl_frames(root, split, labels, kind) for split, labels in lists])


def _list_images(root: Path, split: str, labels: LabelLines) -> list[Path]:
    folder = root / ("Training" if split == "train" else "Testing") / "Depth"
    for row, name in enumerate(labels.names):
        if not name.endswith(".png") or ".." in name or name.startswith("/"):
            raise get_again(f"{labels.path}:{row + 1}: {name[:60]!r} is not the path of a PNG file")
    return [folder / name for name in labels.names]


def _icvl_frames(root: Path, split: str, labels: LabelLines, kind: ImageKind) -> FrameList:
    def joints(first: int, count: int) -> np.ndarray:
        pixels = labels.rows(first, count).reshape(count, len(HAND_16), 3)
        with np.errstate(over="ignore", invalid="ignore"):  # of numbers beyond all cameras, which are refused
            return unproject_pixels(pixels, IcvlHands.spec.camera.intrinsics)

    images = _list_images(root, split, labels)
    recordings = [PurePosixPath(name).parent.name for name in labels.names]
    return FrameList(
        split=split,
        names=labels.names,
        images=[image.with_suffix(".bin") for image in images] if kind == "bin" else images,
        kind=kind,
        size_px=IcvlHands.spec.camera.size_px,
        labels=(labels.path,),
        rows=joints,
        groups=np.unique(recordings, return_inverse=True)[1],
    )


_LABELS = "joint_data.mat"
_EVALUATED = (0, 3, 6, 9, 12, 15, 18, 21, 24, 25, 27, 30, 31, 32)
"""Indices of the evaluated joints among 36: tips and middles from the little finger on, wrist and palm."""
_MAX_OFFSET_PX = 10.0
"""Maximum median distance between the labels in mm and in pixels; in the release it is below one pixel."""


@registry.data.add("nyu_hands")
class NyuHands(_OfficialSplits):
    """Hands before the first of three cameras: 72,757 frames of one subject train. 14 joints, mm, y up, z forward.

    `validation_share` of the blocks of a thousand frames, by `split_seed`, choose the checkpoint.
    Source: Tompson et al. 2014, Real-Time Continuous Pose Recovery of Human Hands Using Convolutional Networks.
    """

    spec = DepthSpec(
        name="nyu_hands",
        what="the NYU hand pose dataset (train/joint_data.mat, train/depth_1_<0000001>.png, the same in test)",
        marks=(f"train/{_LABELS}",),
        inner=("dataset",),
        camera=DepthCamera(588.036865, -587.075073, 320.0, 240.0, 640, 480),
        skeleton=HAND_14,
        published={"train": 72_757, "test": 8_252},
        orientation="camera's frame, x right, y up, z forward; view 1",
        split_note=_STRETCHES,
    )

    @classmethod
    def read_source(cls, root: Path) -> DepthSource:
        """List the frames of both splits.

        Raises DataError for labels that are not (3, frames, 36, 3) or do not project to the labels in pixels, and for
        images without labels.
        """
        return join_lists([_nyu_frames(root, split) for split in ("train", "test")])


def _nyu_frames(root: Path, split: str) -> FrameList:
    folder = root / split
    joints = _read_joints(folder / _LABELS)
    names = [f"depth_1_{number:07d}" for number in range(1, len(joints) + 1)]
    images = [folder / f"{name}.png" for name in names]
    bins = [folder / "parsed" / f"{name}.bin" for name in names]
    kind = find_image_kind(images, "png_colour", bins)
    _check_counts(folder, kind, len(joints))
    return FrameList(
        split=split,
        names=[f"{split}/{name}" for name in names],
        images=bins if kind == "bin" else images,
        kind=kind,
        size_px=NyuHands.spec.camera.size_px,
        labels=(folder / _LABELS,),
        rows=lambda first, count: joints[first : first + count],
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
    world, pixels = (read_mat(path, key).astype(np.float64) for key in ("joint_xyz", "joint_uvd"))
    if world.ndim != 4 or world.shape[0] != 3 or world.shape[2:] != (36, 3) or pixels.shape != world.shape:
        raise get_again(
            f"{path}: joint_xyz is {world.shape} and joint_uvd {pixels.shape}, (3, frames, 36, 3) are needed"
        )
    check_joint_range(world[0], f"{path}: joint_xyz[0]")
    distance_px = np.abs(project_points(world[0], NyuHands.spec.camera.intrinsics)[..., :2] - pixels[0, ..., :2]).max(
        axis=-1
    )
    if not np.median(distance_px) <= _MAX_OFFSET_PX:
        raise DataError(
            f"{path}: the joints of view 1 appear {np.median(distance_px):.0f} px from where joint_uvd has them; the "
            "two are of other views or units: get the file again"
        )
    joints: np.ndarray = world[0][:, _EVALUATED]
    return joints
