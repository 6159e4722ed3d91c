"""Sets of depth images of hands: HANDS 2017, ICVL and NYU with their own test part, MSRA with a subject left out."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated

import numpy as np
from annotated_types import Ge, Le

from sightline.areas.pose.depth_files import read_colour_png, read_depth_png, read_windowed_depth
from sightline.areas.pose.sets.depth_frames import (
    HAND_14,
    HAND_16,
    HAND_21,
    HAND_21_BY_LEVEL,
    DepthCamera,
    FrameSplit,
)
from sightline.areas.pose.sets.depth_sets import (
    DepthSource,
    DepthSpec,
    FrameList,
    PreparedFrames,
    StoredFrames,
    check_joint_range,
    choose_frames,
    read_images,
)
from sightline.contract import registry
from sightline.contract.arguments import FractionBelowOne, ReferencePoint, Seed
from sightline.contract.errors import DataError
from sightline.contract.types import Folds
from sightline.ops.views.pinhole import unproject_pixels
from sightline.store.files.input_files import get_again
from sightline.store.files.mat_files import read_mat
from sightline.store.files.text_tables import LabelLines, parse_count, parse_rows, read_text

_TRAINING = "training/Training_Annotation.txt"
_BOXES = "frame/BoundingBox.txt"
_TEST_LABELS = ("frame/test_annotation_frame.txt", "test_annotation_frame.txt")
_STRETCHES = "train and test are the set's own; stretches of train are held out for validation"


@registry.data.add("hands2017")
class Hands2017(PreparedFrames):
    """Hands of five subjects train; of ten test, for which labels came later. 21 joints, mm, y down, z forward.

    A test split without labels can be read, and is not scored. `validation_share` of the blocks of a thousand frames,
    by `split_seed`, choose the checkpoint.
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
    )

    @classmethod
    def read_source(cls, root: Path) -> DepthSource:
        """List the frames of both splits, if there are test images.

        Raises DataError with file and line for labels that are not 63 numbers.
        """
        labels = LabelLines(root / _TRAINING, num_columns=63)
        lists = [_hands2017_frames(root, "train", labels, labels)]
        if (root / _BOXES).is_file():
            boxes = LabelLines(root / _BOXES, num_columns=4)
            path = next((root / file for file in _TEST_LABELS if (root / file).is_file()), None)
            lists.append(
                _hands2017_frames(root, "test", boxes, None if path is None else LabelLines(path, num_columns=63))
            )
        return DepthSource("png16", "uint16", lists)


def _hands2017_frames(root: Path, split: str, lines: LabelLines, labels: LabelLines | None) -> FrameList:
    """List the frames that `lines` name: the labels of `train`, the boxes of `test`."""
    is_test = split == "test"
    for row, name in enumerate(lines.names):
        if not name.endswith(".png") or "/" in name or "\\" in name:
            raise get_again(f"{lines.path}:{row + 1}: {name[:60]!r} is not the name of a PNG file")
    if labels is not None and len(labels) != len(lines):
        raise DataError(f"{labels.path}: has {len(labels)} lines, {lines.path.name} has {len(lines)}; get both again")
    folder = root / ("frame" if is_test else "training") / "images"
    images = [folder / name for name in lines.names]
    return FrameList(
        split=split,
        names=[f"{split}/{name}" for name in lines.names],
        depths=read_images(images, partial(read_depth_png, size_px=Hands2017.camera.size_px), all_needed=is_test),
        joints=None if labels is None else lambda first, last: _read_rows(labels, first, last, 21),
        files=tuple({file.path: None for file in (lines, labels) if file is not None}),
        images=images,
    )


def _read_rows(labels: LabelLines, first: int, last: int, num_joints: int) -> np.ndarray:
    return labels.rows(first, last - first).reshape(last - first, num_joints, 3)


@registry.data.add("icvl_hands")
class IcvlHands(PreparedFrames):
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
        """List the frames of the training file and of both test sequences.

        Raises DataError with file and line for labels that are not 48 numbers.
        """
        files = {"Training/labels.txt": "train", "Testing/test_seq_1.txt": "test", "Testing/test_seq_2.txt": "test"}
        return DepthSource("png16", "uint16", [_icvl_frames(root / file, split) for file, split in files.items()])


def _icvl_frames(path: Path, split: str) -> FrameList:
    labels = LabelLines(path, num_columns=48)

    def joints(first: int, last: int) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):  # of numbers beyond all cameras, which are refused
            return unproject_pixels(_read_rows(labels, first, last, 16), IcvlHands.camera.intrinsics)

    for row, name in enumerate(labels.names):
        if not name.endswith(".png") or ".." in name or name.startswith("/"):
            raise get_again(f"{path}:{row + 1}: {name[:60]!r} is not the path of a PNG file")
    images = [path.parent / "Depth" / name for name in labels.names]
    recordings = [PurePosixPath(name).parent.name for name in labels.names]
    read = partial(read_depth_png, size_px=IcvlHands.camera.size_px)
    return FrameList(
        split=split,
        names=labels.names,
        depths=read_images(images, read, all_needed=split == "test"),
        joints=joints,
        files=(path,),
        images=images,
        groups=np.unique(recordings, return_inverse=True)[1],
    )


_LABELS = "joint_data.mat"
_EVALUATED = (0, 3, 6, 9, 12, 15, 18, 21, 24, 25, 27, 30, 31, 32)
"""Indices of the evaluated joints among 36: tips and middles from the little finger on, wrist and palm."""


@registry.data.add("nyu_hands")
class NyuHands(PreparedFrames):
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

        Raises DataError for labels that are not (3, frames, 36, 3), and for images without labels.
        """
        return DepthSource("png_colour", "uint16", [_nyu_frames(root / split) for split in ("train", "test")])


def _nyu_frames(folder: Path) -> FrameList:
    joints = _read_joints(folder / _LABELS)
    images = [folder / f"depth_1_{number:07d}.png" for number in range(1, len(joints) + 2)]
    beyond = images.pop()
    if beyond.is_file():
        raise DataError(f"{beyond}: {folder / _LABELS} has labels for {len(joints)} frames only; get both again")
    read = partial(read_colour_png, size_px=NyuHands.camera.size_px)
    return FrameList(
        split=folder.name,
        names=[f"{folder.name}/{image.stem}" for image in images],
        depths=read_images(images, read, all_needed=folder.name == "test"),
        joints=lambda first, last: joints[first:last],
        files=(folder / _LABELS,),
        images=images,
    )


def _read_joints(path: Path) -> np.ndarray:
    """Read the evaluated joints (frames, 14, 3) of view 1, in mm."""
    world = read_mat(path, "joint_xyz").astype(np.float64)
    if world.ndim != 4 or world.shape[0] != 3 or world.shape[2:] != (36, 3):
        raise get_again(f"{path}: joint_xyz is {world.shape}, (3, frames, 36, 3) are needed")
    check_joint_range(world[0], f"{path}: joint_xyz[0]")
    joints: np.ndarray = world[0][:, _EVALUATED]
    return joints


SubjectIndex = Annotated[int, Ge(0), Le(8)]
"""Index of one of the nine subjects."""
_SUBJECTS = tuple(f"P{subject}" for subject in range(9))
_GESTURES = ("1", "2", "3", "4", "5", "6", "7", "8", "9", "I", "IP", "L", "MP", "RP", "T", "TIP", "Y")
_COUNTS = dict(zip(_SUBJECTS, (8499, 8499, 8406, 8498, 8500, 8497, 8498, 8498, 8496), strict=True))
_TWO_COPIES = (
    "two copies of MSRA are about, of 76,391 and of 76,375 frames; they differ in several sequences, so that files "
    "made for the one do not fit the other"
)


@registry.data.add("msra_hands")
class MsraHands(PreparedFrames):
    """Hands of the subjects but one to train on; the frames of `subject` test. 21 joints, mm, y up, z forward.

    `validation_share` of the sequences (a gesture of a subject) of the training subjects, by `split_seed`, choose the
    checkpoint.
    Source: Sun et al. 2015, Cascaded Hand Pose Regression; the protocol of leaving one subject out.
    """

    spec = DepthSpec(
        name="msra_hands",
        what="cvpr15_MSRAHandGestureDB (P<0 to 8>/<gesture>/joint.txt and <000000>_depth.bin)",
        marks=_SUBJECTS,
        inner=("cvpr15_MSRAHandGestureDB",),
        camera=DepthCamera(241.42, -241.42, 160.0, 120.0, 320, 240),
        skeleton=HAND_21,
        published=_COUNTS,
        orientation="camera's frame, x right, y up, z forward (negated: files have it negative)",
        split_note="a part for each subject; data.subject is the one for testing",
        invalid_note="",
        entries=lambda: {"frames": sum(_COUNTS.values())},
    )

    def __init__(
        self,
        *,
        split: str,
        root: str | None = None,
        subject: SubjectIndex = 0,
        reference: ReferencePoint | None = None,
        validation_share: FractionBelowOne = 0.1,
        split_seed: Seed = 0,
    ) -> None:
        self._subject = subject
        super().__init__(
            split=split, root=root, reference=reference, validation_share=validation_share, split_seed=split_seed
        )

    def choose(self, split: str, *, share: float, seed: int) -> tuple[StoredFrames, FrameSplit]:
        """Choose the frames of a split. Raises DataError for a subject that is not there."""
        tested = f"P{self._subject}"
        if tested not in self._prepared.splits:
            available = ", ".join(self._prepared.splits)
            raise DataError(
                f"{self._prepared.root}: holds no {tested}, it holds {available}; set data.subject to one of these"
            )
        training, testing = self.stored(*(name for name in _SUBJECTS if name != tested)), self.stored(tested)
        lengths = np.diff(training.starts())
        sequences = np.repeat(np.arange(len(lengths)), lengths) * len(_GESTURES) + training.column("group")
        frames, part = choose_frames(split, training, testing, sequences, share=share, seed=seed)
        return frames, dataclasses.replace(part, words={"subject": str(self._subject)}, if_counts_differ=_TWO_COPIES)

    @classmethod
    def read_source(cls, root: Path) -> DepthSource:
        """List the gestures of each subject. Raises DataError where images and labels are not as many."""
        lists, missing = [], []
        for subject in _SUBJECTS:
            if not (root / subject).is_dir():
                missing.append(subject)
                continue
            for index, gesture in enumerate(_GESTURES):
                folder = root / subject / gesture
                if folder.is_dir():
                    lists.append(_msra_frames(folder, index))
                else:
                    missing.append(f"{subject}/{gesture}")
        if not lists:
            raise DataError(f"{root}: holds no gesture of any subject, such as P0/1/joint.txt; get the data again")
        notes = [f"folders that are not there: {', '.join(missing)}"] if missing else []
        return DepthSource("msra_bin", "float32", lists, notes=notes)

    def _folds(self) -> Folds:
        return Folds(tuple(self._prepared.splits), (f"P{self._subject}",))


def _msra_frames(folder: Path, gesture: int) -> FrameList:
    images, subject = _list_images(folder), folder.parent.name
    return FrameList(
        split=subject,
        names=[f"{subject}/{folder.name}/{path.name.removesuffix('_depth.bin')}" for path in images],
        depths=read_images(images, partial(read_windowed_depth, size_px=MsraHands.camera.size_px)),
        joints=lambda first, last: _read_msra_joints(folder / "joint.txt", len(images))[first:last],
        files=(folder / "joint.txt",),
        images=images,
        groups=np.full(len(images), gesture),
    )


def _list_images(folder: Path) -> tuple[Path, ...]:
    """List the images of a sequence: one for each line of its labels, numbered from 0 without a gap."""
    labels = folder / "joint.txt"
    first = read_text(labels).split("\n", 1)[0].strip()
    num_frames = parse_count(first)
    if num_frames is None:
        raise DataError(f"{labels}:1: {first[:40]!r} is not the number of frames; get the file again")
    existing = {path.name for path in folder.glob("*_depth.bin")}
    missing = next((name for name in map(_image_name, range(num_frames)) if name not in existing), None)
    if missing is not None or len(existing) != num_frames:
        fault = f"{missing} is missing" if missing else "there are images without labels"
        raise DataError(
            f"{folder}: has {len(existing)} images, joint.txt announces {num_frames}, and {fault}; the download is not "
            "complete: get the folder again"
        )
    return tuple(folder / _image_name(number) for number in range(num_frames))


def _image_name(number: int) -> str:
    return f"{number:06d}_depth.bin"


def _read_msra_joints(path: Path, num_frames: int) -> np.ndarray:
    """Read the joints (frames, 21, 3) in mm, z forward; the first line of the file is the number of frames."""
    lines = read_text(path).rstrip().split("\n")[1:]
    if len(lines) != num_frames:
        raise DataError(f"{path}:1: announces {num_frames} frames, {len(lines)} lines follow; get the file again")
    numbers = range(2, len(lines) + 2)
    joints = parse_rows(lines, numbers, path=path, num_columns=3 * len(HAND_21)).reshape(num_frames, -1, 3)
    behind = np.flatnonzero((joints[..., 2] >= 0).any(axis=1))
    if len(behind):
        raise DataError(
            f"{path}:{int(behind[0]) + 2}: a joint has z = {joints[behind[0], :, 2].max():g}, in files of this set z "
            "is negative before the camera; these are labels of another version"
        )
    flipped: np.ndarray = joints * (1.0, 1.0, -1.0)
    return flipped
