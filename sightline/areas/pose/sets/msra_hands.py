"""MSRA hands: 76,391 depth images of nine subjects making 17 gestures; each subject is tested in turn."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Le

from sightline.areas.pose.depth_files import read_windowed_depth
from sightline.areas.pose.sets.depth_frames import DepthCamera, FrameSplit
from sightline.areas.pose.sets.depth_sets import (
    DepthSource,
    DepthSpec,
    FrameList,
    PreparedFrames,
    StoredFrames,
    choose_frames,
    read_images,
)
from sightline.areas.pose.sets.skeletons import HAND_21
from sightline.contract import registry
from sightline.contract.arguments import FractionBelowOne, ReferencePoint, Seed
from sightline.contract.errors import DataError
from sightline.contract.types import Folds
from sightline.store.files.text_tables import parse_count, parse_rows, read_text

SubjectIndex = Annotated[int, Ge(0), Le(8)]
"""Index of one of the nine subjects."""
_SUBJECTS = tuple(f"P{subject}" for subject in range(9))
_GESTURES = ("1", "2", "3", "4", "5", "6", "7", "8", "9", "I", "IP", "L", "MP", "RP", "T", "TIP", "Y")
_COUNTS = dict(zip(_SUBJECTS, (8499, 8499, 8406, 8498, 8500, 8497, 8498, 8498, 8496), strict=True))
_TWO_COPIES = (
    "two copies of MSRA are about, of 76,391 and of 76,375 frames; they differ in several sequences, so that files "
    "made for the one do not fit the other"
)
FAULTY = frozenset(
    f"{folder}/{number:06d}"
    for folder, numbers in {
        "P2/TIP": range(172, 175),
        "P2/MP": (*range(173, 176), *range(345, 355), 356, 359, 360),
        "P3/T": (120, 489),
        "P8/4": (168,),
    }.items()
    for number in numbers
)
"""Faulty frames. Source: the reader of Oberweger and Lepetit 2017 (DeepPrior++)."""


@registry.data.add("msra_hands")
class MsraHands(PreparedFrames):
    """Hands of the subjects but one to train on; the frames of `subject` test. 21 joints, mm, y up, z forward.

    `validation_share` of the sequences (a gesture of a subject) of the training subjects, by `split_seed`, choose the
    checkpoint. `faulty` frames are kept, or dropped from training and validation; they are always tested.
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
        entries=lambda: {"frames": sum(_COUNTS.values()), "faulty_frames": ", ".join(sorted(FAULTY))},
    )

    def __init__(
        self,
        *,
        split: str,
        root: str | None = None,
        subject: SubjectIndex = 0,
        reference: ReferencePoint | None = None,
        joints: tuple[str, ...] = (),
        faulty: Literal["kept", "dropped"] = "kept",
        validation_share: FractionBelowOne = 0.1,
        split_seed: Seed = 0,
    ) -> None:
        self._subject = subject
        self._drops_faulty = faulty == "dropped"
        super().__init__(
            split=split,
            root=root,
            reference=reference,
            joints=joints,
            validation_share=validation_share,
            split_seed=split_seed,
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
        left_out = np.array([name in FAULTY for name in training.names()], dtype=bool) & self._drops_faulty
        frames, part = choose_frames(split, training, testing, sequences, share=share, seed=seed, left_out=left_out)
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
                    lists.append(_list_frames(folder, index))
                else:
                    missing.append(f"{subject}/{gesture}")
        if not lists:
            raise DataError(f"{root}: holds no gesture of any subject, such as P0/1/joint.txt; get the data again")
        notes = [f"folders that are not there: {', '.join(missing)}"] if missing else []
        return DepthSource("msra_bin", "float32", lists, notes=notes)

    def _folds(self) -> Folds:
        return Folds(tuple(self._prepared.splits), (f"P{self._subject}",))


def _list_frames(folder: Path, gesture: int) -> FrameList:
    images, subject = _list_images(folder), folder.parent.name
    return FrameList(
        split=subject,
        names=[f"{subject}/{folder.name}/{path.name.removesuffix('_depth.bin')}" for path in images],
        depths=read_images(images, partial(read_windowed_depth, size_px=MsraHands.camera.size_px)),
        joints=lambda first, last: _read_joints(folder / "joint.txt", len(images))[first:last],
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


def _read_joints(path: Path, num_frames: int) -> np.ndarray:
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
