"""ICVL hands: 331,006 training and 1,596 test depth images with sixteen hand joints."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sightline import registry
from sightline.arguments import FractionBelowOne, ReferencePoint, Seed
from sightline.data.depth.depth_frames import DepthCamera
from sightline.data.depth.depth_preparation import DepthPlan, find_source_folder, prepare_frames
from sightline.data.depth.depth_sets import PreparedFrames, train_and_test
from sightline.data.depth.listed_frames import MISSING, FrameList, ImageKind, image_kind, listed_parts
from sightline.data.depth.skeletons import HAND_16
from sightline.data.files.named_rows import LabelLines
from sightline.data.store.location import prepared_root
from sightline.data.store.prepared_set import open_prepared, prepare_command
from sightline.data.store.prepared_writer import Progress
from sightline.errors import DataError
from sightline.geometry.pinhole import unproject_pixels

__all__ = ["IcvlHands"]

_CAMERA = DepthCamera(241.42, 241.42, 160.0, 120.0, 320, 240)
_LISTS = {"train": ("Training/labels.txt",), "test": ("Testing/test_seq_1.txt", "Testing/test_seq_2.txt")}
_WHAT = "ICVL (Training/labels.txt, Training/Depth, Testing/test_seq_1.txt, Testing/Depth)"


@registry.data.add("icvl_hands")
class IcvlHands(PreparedFrames):
    """Hands of ten subjects with rotated copies; two sequences of others test. 16 joints, mm, y down, z forward.

    `validation_share` of the recordings, by `split_seed`, choose the checkpoint: a recording stays together with its
    rotated copies. Frames whose image is missing keep their place in files of reference points, and do not train.
    Source: Tang et al. 2014, Latent Regression Forest.
    """

    set_name = "icvl_hands"
    readable_sets = ("icvl_hands",)
    camera = _CAMERA
    skeleton = HAND_16

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

        Raises DataError with file and line for labels that are not 48 numbers, for images that cannot be read, and for
        a test image that is missing. A killed run is continued by the same call.
        """
        assert name == cls.set_name, f"{cls.__name__} prepares '{cls.set_name}', not '{name}'"
        root = find_source_folder(source, marks=("Training/labels.txt",), inner=("ICVL", "icvl"), what=_WHAT)
        lists = [(split, LabelLines(root / file, num_columns=48)) for split in _LISTS for file in _LISTS[split]]
        kind = _find_image_kind(root, lists[0][1])
        plan = DepthPlan(
            set_name=name,
            layout=kind,
            source=root,
            skeleton=HAND_16,
            parts=tuple(part for split, labels in lists for part in listed_parts(_frames(root, split, labels, kind))),
            depth_type="float32" if kind == "bin" else "uint16",
            invalid_note=MISSING,
            published={"train": 331_006, "test": 1_596},
            about={
                "orientation": "camera's frame, x right, y down, z forward; labels come as columns, rows and depths",
                "split": "train and test are the set's own; recordings are held out of train for validation",
            },
        )
        return prepare_frames(plan, target, progress=progress)

    @classmethod
    def card(cls) -> dict[str, Any]:
        """Description, accepted layouts, download page and licence."""
        return {
            "set": cls.set_name,
            "frames": {"train": 331_006, "test": 1_596},
            "joints": ", ".join(HAND_16.joint_names),
            "layouts": {
                "png16": "Training/labels.txt and Training/Depth/<path>.png, Testing/test_seq_<1, 2>.txt and "
                "Testing/Depth/<path>.png: 16 bits, mm",
                "bin": "the same with <path>.bin, raw float32, as the authors of V2V-PoseNet converted them",
            },
            "home": "https://labicvl.github.io/hand.html",
            "terms": "those of its page; nothing is downloaded for you",
            "cite": "Tang et al. 2014, Latent Regression Forest: Structured Estimation of 3D Articulated Hand Posture",
            "prepare": prepare_command(cls.set_name, "DIR"),
        }


def _list_images(root: Path, split: str, labels: LabelLines) -> list[Path]:
    folder = root / ("Training" if split == "train" else "Testing") / "Depth"
    for row, name in enumerate(labels.names):
        if not name.endswith(".png") or ".." in name or name.startswith("/"):
            raise DataError(f"{labels.path}:{row + 1}: {name[:60]!r} is not the path of a PNG file; get the file again")
    return [folder / name for name in labels.names]


def _find_image_kind(root: Path, labels: LabelLines) -> ImageKind:
    images = _list_images(root, "train", labels)
    return image_kind(images, "png16", [image.with_suffix(".bin") for image in images])


def _frames(root: Path, split: str, labels: LabelLines, kind: ImageKind) -> FrameList:
    def joints(first: int, count: int) -> np.ndarray:
        pixels = labels.rows(first, count).reshape(count, len(HAND_16), 3)
        with np.errstate(over="ignore", invalid="ignore"):  # of numbers beyond all cameras, which are refused
            return unproject_pixels(pixels, _CAMERA.intrinsics)

    images = _list_images(root, split, labels)
    recordings = [PurePosixPath(name).parent.name for name in labels.names]
    return FrameList(
        split=split,
        names=labels.names,
        images=[image.with_suffix(".bin") for image in images] if kind == "bin" else images,
        kind=kind,
        size_px=(_CAMERA.width_px, _CAMERA.height_px),
        labels=(labels.path,),
        rows=joints,
        groups=np.unique(recordings, return_inverse=True)[1],
    )
