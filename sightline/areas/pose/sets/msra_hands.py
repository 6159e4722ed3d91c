"""MSRA hands: 76,391 depth images of nine subjects making 17 gestures; each subject is tested in turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Le

from sightline.areas.pose.depth_files import read_windowed_depth
from sightline.areas.pose.sets.depth_frames import DepthCamera
from sightline.areas.pose.sets.depth_sets import (
    DepthSet,
    DepthSource,
    DepthSpec,
    SourceFrame,
    StoredFrames,
    choose_frames,
)
from sightline.areas.pose.sets.skeletons import HAND_21
from sightline.contract import registry
from sightline.contract.arguments import FractionBelowOne, ReferencePoint, Seed
from sightline.contract.errors import DataError
from sightline.contract.types import Folds
from sightline.store.files.input_files import file_size
from sightline.store.files.text_tables import parse_count, parse_rows, read_text
from sightline.store.prepared.prepared_set import PreparedSet
from sightline.store.prepared.prepared_writer import Shard

SubjectIndex = Annotated[int, Ge(0), Le(8)]
"""Index of one of the nine subjects."""
_SUBJECTS = tuple(f"P{subject}" for subject in range(9))
_GESTURES = ("1", "2", "3", "4", "5", "6", "7", "8", "9", "I", "IP", "L", "MP", "RP", "T", "TIP", "Y")
_COUNTS = dict(zip(_SUBJECTS, (8499, 8499, 8406, 8498, 8500, 8497, 8498, 8498, 8496), strict=True))
_OLDER_COPY = 76_375
_TWO_COPIES = (
    "two copies of MSRA are about, of 76,391 and of 76,375 frames; they differ in several sequences, so that files "
    "made for the one do not fit the other"
)
_ORIGIN_PX = {"exact": 0.0, "release": 1.0, "port": -1.0}
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
class MsraHands(DepthSet):
    """Hands of the subjects but one to train on; the frames of `subject` test. 21 joints, mm, y up, z forward.

    `validation_share` of the `validation_groups` of the training subjects, by `split_seed`, choose the checkpoint:
    whole sequences (a gesture of a subject) or whole subjects. `faulty` frames are kept, or dropped from training and
    validation; they are always tested. `pixel_origin` puts the image one pixel to the left and up (`release`) or to the
    right and down (`port`), as the authors' code and its PyTorch port read it.
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
        validation_groups: Literal["sequences", "subjects"] = "sequences",
        split_seed: Seed = 0,
        pixel_origin: Literal["exact", "release", "port"] = "exact",
    ) -> None:
        prepared = self.open_root(root)
        training, testing = _split_subjects(prepared, f"P{subject}")
        groups = _groups(training, by=validation_groups)
        left_out = _faulty_mask(training) if faulty == "dropped" else None
        frames, part = choose_frames(
            split, training, testing, groups, share=validation_share, seed=split_seed, left_out=left_out
        )
        part = dataclasses.replace(part, words={"subject": str(subject)}, if_counts_differ=_TWO_COPIES)
        self._subject_folds = Folds(tuple(prepared.splits), testing.splits)
        super().__init__(
            frames=frames, part=part, reference=reference, joints=joints, shift_px=_ORIGIN_PX[pixel_origin]
        )

    @classmethod
    def read_source(cls, root: Path) -> DepthSource:
        """List the gestures of each subject. Raises DataError where images and labels are not as many."""
        shards, missing = _list_shards(root)
        return DepthSource("msra_bin", "float32", shards, notes=missing)

    @classmethod
    def list_differences(cls, prepared: PreparedSet) -> list[str]:
        """Return a note if there are as many frames as in the older copy."""
        num_frames = sum(facts["num_rows"] for facts in prepared.manifest["splits"].values())
        older = [f"{num_frames} frames, as many as the older copy has: {_TWO_COPIES}"]
        return older if num_frames == _OLDER_COPY else []

    def _folds(self) -> Folds:
        return self._subject_folds


def _split_subjects(prepared: PreparedSet, tested: str) -> tuple[StoredFrames, StoredFrames]:
    if tested not in prepared.splits:
        available = ", ".join(prepared.splits)
        raise DataError(f"{prepared.root}: holds no {tested}, it holds {available}; set data.subject to one of these")
    others = tuple(subject for subject in _SUBJECTS if subject in prepared.splits and subject != tested)
    return StoredFrames(prepared, others), StoredFrames(prepared, (tested,))


def _groups(training: StoredFrames, *, by: str) -> np.ndarray:
    """Return the group (num_frames,) of each training frame: its subject, or its sequence."""
    lengths = np.diff(training.starts())
    subjects = np.repeat(np.arange(len(lengths)), lengths)
    return subjects if by == "subjects" else subjects * len(_GESTURES) + training.column("group")


def _faulty_mask(training: StoredFrames) -> np.ndarray:
    """Mask (num_frames,) of the training frames that are listed as faulty."""
    names = [name for subject in training.splits for name in training.prepared.names(subject)]
    return np.array([name in FAULTY for name in names], dtype=bool)


def _list_shards(root: Path) -> tuple[list[Shard[SourceFrame]], list[str]]:
    """Make a shard for each gesture of each subject, and a note on the missing folders."""
    shards, missing = [], []
    for subject in _SUBJECTS:
        if not (root / subject).is_dir():
            missing.append(subject)
            continue
        for gesture in _GESTURES:
            folder = root / subject / gesture
            if not folder.is_dir():
                missing.append(f"{subject}/{gesture}")
                continue
            images = _list_images(folder)
            num_bytes = sum(file_size(path) for path in images) // 2
            read = partial(_frames, folder, images, _GESTURES.index(gesture))
            files = (folder / "joint.txt", *images)
            shards.append(Shard(subject, f"{subject}/{gesture}", len(images), files, read, num_bytes))
    if not shards:
        raise DataError(f"{root}: holds no gesture of any subject, such as P0/1/joint.txt; get the data again")
    return shards, [f"folders that are not there: {', '.join(missing)}"] if missing else []


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


def _frames(folder: Path, images: Sequence[Path], gesture: int) -> Iterator[SourceFrame]:
    joints = _read_joints(folder / "joint.txt", len(images))

    def make_frame(path: Path, frame_joints: np.ndarray) -> SourceFrame:
        name = f"{folder.parent.name}/{folder.name}/{path.name.removesuffix('_depth.bin')}"
        depth = read_windowed_depth(path, size_px=MsraHands.spec.camera.size_px)
        return SourceFrame(name, str(path), depth, frame_joints, group=gesture)

    return map(make_frame, images, joints)


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
