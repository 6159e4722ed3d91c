"""HANDS 2017: 957,032 depth images with 21 hand joints, and 295,510 test frames with bounding boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sightline import registry
from sightline.arguments import FractionBelowOne, ReferencePoint, Seed
from sightline.data.depth.depth_frames import DepthCamera
from sightline.data.depth.depth_preparation import DepthPlan, find_source_folder, prepare_frames
from sightline.data.depth.depth_sets import PreparedFrames, train_and_test
from sightline.data.depth.listed_frames import MISSING, FrameList, ImageKind, image_kind, listed_parts
from sightline.data.depth.skeletons import HAND_21_BY_LEVEL
from sightline.data.files.named_rows import BLOCK_LINES, LabelLines
from sightline.data.store.location import prepared_root
from sightline.data.store.prepared_set import open_prepared, prepare_command
from sightline.data.store.prepared_writer import Progress
from sightline.errors import DataError

__all__ = ["Hands2017"]

_CAMERA = DepthCamera(475.065948, 475.065857, 315.944855, 245.287079, 640, 480)
_TRAINING = "training/Training_Annotation.txt"
_BOXES = "frame/BoundingBox.txt"
_TEST_LABELS = ("frame/test_annotation_frame.txt", "test_annotation_frame.txt")
_WHAT = "HANDS 2017 (training/Training_Annotation.txt, training/images, frame/BoundingBox.txt, frame/images)"


@registry.data.add("hands2017")
class Hands2017(PreparedFrames):
    """Hands of five subjects train; of ten test, for which labels came later. 21 joints, mm, y down, z forward.

    A test split without labels can be read, and is not scored. Its bounding boxes limit the search for the centre of
    mass. `validation_share` of the blocks of a thousand frames, by `split_seed`, choose the checkpoint.
    Source: Yuan et al. 2017, The 2017 Hands in the Million Challenge on 3D Hand Pose Estimation.
    """

    set_name = "hands2017"
    readable_sets = ("hands2017",)
    camera = _CAMERA
    skeleton = HAND_21_BY_LEVEL

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

        Raises DataError with file and line for labels that are not 63 numbers and boxes that are not four, for images
        that cannot be read, and for a test image that is missing. A killed run is continued by the same call.
        """
        assert name == cls.set_name, f"{cls.__name__} prepares '{cls.set_name}', not '{name}'"
        root = find_source_folder(source, marks=(_TRAINING,), inner=("HANDS2017", "hands2017"), what=_WHAT)
        lists = [_list_training(root), *([_list_testing(root)] if (root / _BOXES).is_file() else [])]
        plan = DepthPlan(
            set_name=name,
            layout="+".join(sorted({frames.kind for frames in lists})),
            source=root,
            skeleton=HAND_21_BY_LEVEL,
            parts=tuple(part for frames in lists for part in listed_parts(frames)),
            depth_type="float32" if any(frames.kind == "bin" for frames in lists) else "uint16",
            invalid_note=MISSING,
            has_regions=True,
            published={"train": 957_032, "test": 295_510},
            about={
                "orientation": "camera's frame, x right, y down, z forward",
                "split": "train and test are the set's own; stretches of train are held out for validation",
            },
        )
        return prepare_frames(plan, target, progress=progress)

    @classmethod
    def card(cls) -> dict[str, Any]:
        """Description, accepted layouts, download page and licence."""
        return {
            "set": cls.set_name,
            "frames": {"train": 957_032, "test": 295_510},
            "joints": ", ".join(HAND_21_BY_LEVEL.joint_names),
            "layouts": {
                "png16": f"{_TRAINING} and training/images/<name>.png; {_BOXES} and frame/images/<name>.png: 16 bits, "
                f"mm; labels of the test part, where you have them: {_TEST_LABELS[0]}",
                "bin": "the same with <name>.bin, raw float32, as the authors of V2V-PoseNet converted them",
            },
            "home": "http://icvl.ee.ic.ac.uk/hands17/challenge/",
            "terms": "for research, after agreeing to the organisers' form; nothing is downloaded for you",
            "cite": "Yuan et al. 2017, The 2017 Hands in the Million Challenge on 3D Hand Pose Estimation",
            "prepare": prepare_command(cls.set_name, "DIR"),
        }


def _list_training(root: Path) -> FrameList:
    labels = LabelLines(root / _TRAINING, num_columns=63)
    return _frames(root, "train", labels.names, labels, files=(labels.path,))


def _list_testing(root: Path) -> FrameList:
    boxes = LabelLines(root / _BOXES, num_columns=4)
    path = next((root / file for file in _TEST_LABELS if (root / file).is_file()), None)
    labels = None if path is None else LabelLines(path, num_columns=63)
    if labels is not None:
        _check_names(boxes, labels)
    regions = _read_regions(boxes)
    files = (boxes.path, *(() if labels is None else (labels.path,)))
    return _frames(root, "test", boxes.names, labels, files=files, regions=regions)


def _frames(
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
            raise DataError(f"{files[0]}:{row + 1}: {name[:60]!r} is not the name of a PNG file; get the file again")
    folder = root / ("training" if split == "train" else "frame") / "images"
    images = [folder / name for name in names]
    bins = [image.with_suffix(".bin") for image in images]
    kind: ImageKind = image_kind(images, "png16", bins)
    return FrameList(
        split=split,
        names=[f"{split}/{name}" for name in names],
        images=bins if kind == "bin" else images,
        kind=kind,
        size_px=(_CAMERA.width_px, _CAMERA.height_px),
        labels=files,
        rows=None if labels is None else lambda first, count: labels.rows(first, count).reshape(count, -1, 3),
        groups=np.arange(len(names)) // BLOCK_LINES,
        regions=regions,
    )


def _read_regions(boxes: LabelLines) -> np.ndarray:
    """Read the bounding boxes (frames, 4) int64: left, top, right, bottom within the image, the last two excluded."""
    starts = range(0, len(boxes), BLOCK_LINES)
    corners = np.concatenate([boxes.rows(first, min(BLOCK_LINES, len(boxes) - first)) for first in starts])
    size = (_CAMERA.width_px, _CAMERA.height_px)
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
