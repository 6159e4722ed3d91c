"""Base of the prepared data sets of depth images with joints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sightline.data.depth.depth_frames import DepthCamera, DepthFrames, FrameSplit, frames_info
from sightline.data.depth.references import DepthFrame, Reference
from sightline.data.depth.skeletons import Skeleton
from sightline.data.loading.splits import stratified_split
from sightline.data.store.depth_store import unpack_depth
from sightline.data.store.prepared_set import PreparedSet, open_prepared, verify
from sightline.errors import DataError
from sightline.types import DataInfo

__all__ = ["PreparedFrames", "StoredFrames", "choose_frames", "train_and_test"]

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class StoredFrames:
    """Frames in the order of the set's files: stored splits, concatenated."""

    prepared: PreparedSet
    splits: tuple[str, ...]

    def starts(self) -> np.ndarray:
        """Return the index of the first frame of each stored split, and the total: (splits + 1,) int64."""
        rows = [int(self.prepared.manifest["splits"][split]["num_rows"]) for split in self.splits]
        return np.concatenate(([0], np.cumsum(rows, dtype=np.int64))).astype(np.int64)

    def column(self, name: str) -> np.ndarray:
        """Read a column of all these frames, in their order."""
        parts = [self.prepared.array(split, name) for split in self.splits]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def usable_mask(self) -> np.ndarray:
        """Mask (num_frames,) of frames that are marked valid and have at least one measured pixel."""
        return np.asarray((self.column("is_valid") > 0) & (self.column("num_measured") > 0))


class PreparedFrames(DepthFrames):
    """Base of prepared depth sets; frames are decompressed at access. A subclass sets `camera` and `skeleton`."""

    readable_sets: ClassVar[tuple[str, ...]]
    camera: ClassVar[DepthCamera]
    skeleton: ClassVar[Skeleton]

    def __init__(
        self,
        *,
        frames: StoredFrames,
        part: FrameSplit,
        reference: Reference | None,
        joints: tuple[str, ...],
        shift_px: float = 0.0,
    ) -> None:
        """Open the frames; `shift_px` moves the camera's principal point along columns and rows."""
        self._prepared = frames.prepared
        self._splits = frames.splits
        self._starts = frames.starts()
        self._names: dict[str, list[str]] = {}
        camera = dataclasses.replace(self.camera, u0=self.camera.u0 + shift_px, v0=self.camera.v0 + shift_px)
        super().__init__(part=part, camera=camera, skeleton=self.skeleton, reference=reference, joints=joints)

    @classmethod
    def expected_info(cls, *, joints: tuple[str, ...] = ()) -> DataInfo:
        """Expected DataInfo before preparation, without counts."""
        return frames_info(cls.camera, cls.skeleton.select_joints(joints), farthest_mm=cls.farthest_mm)

    @property
    def fingerprint(self) -> str:
        """Digest of the manifest, which contains the hash of every file."""
        return str(self._prepared.manifest["digest"])

    def name_of(self, index: int) -> str:
        """Name of a sample in reports."""
        split, row = self._locate_row(int(self._frame_indices[index]))
        if split not in self._names:
            self._names[split] = self._prepared.names(split)
        return self._names[split][row]

    @classmethod
    def describe(cls, root: Path) -> dict[str, Any]:
        """Summary of a prepared folder for `data info`."""
        manifest = open_prepared(root, set_names=cls.readable_sets).manifest
        shown = ("layout", "orientation", "unit", "joint_depths_mm", "label_sha256", "split", "differences")
        return {
            "set": manifest["set"],
            "root": str(root.resolve()),
            "source": manifest["source"]["path"],
            "frames": {split: facts["num_rows"] for split, facts in manifest["splits"].items()},
            "frames_usable": {split: facts["num_usable"] for split, facts in manifest["splits"].items()},
            **{key: manifest[key] for key in shown if key in manifest},
        }

    @classmethod
    def verify(cls, root: Path) -> int:
        """Compare the hash of every file and return their number. Raises DataError with the first that differs."""
        return verify(root)

    def _locate_row(self, frame_index: int) -> tuple[str, int]:
        split_index = int(np.searchsorted(self._starts, frame_index, side="right")) - 1
        return self._splits[split_index], frame_index - int(self._starts[split_index])

    def _frame(self, frame_index: int) -> DepthFrame:
        split, row = self._locate_row(frame_index)
        manifest = self._prepared.manifest
        depth = unpack_depth(
            self._prepared.row(split, "depth", row),
            dtype=manifest["depth_type"],
            width_px=self._camera.width_px,
            height_px=self._camera.height_px,
        )
        return DepthFrame(
            depth.astype(np.float32) * np.float32(manifest["mm_per_unit"]),
            np.array(self._prepared.row(split, "joints", row)),
            np.array(self._prepared.row(split, "visible", row)),
            self._region(split, row),
        )

    def _region(self, split: str, row: int) -> tuple[int, int, int, int] | None:
        if "region_px" not in self._prepared.manifest["columns"]:
            return None
        left, top, right, bottom = (int(edge) for edge in self._prepared.row(split, "region_px", row))
        return (left, top, right, bottom) if right > left else None


def train_and_test(
    prepared: PreparedSet, split: str, *, share: float, seed: int, prefix: str = ""
) -> tuple[StoredFrames, FrameSplit]:
    """Choose the frames of a split of a set stored as `train` and `test`, after a `prefix` if it has several of each.

    Whole recordings are held out for validation.
    """
    training, testing = (
        StoredFrames(prepared, (f"{prefix}{name}",) if f"{prefix}{name}" in prepared.splits else ())
        for name in ("train", "test")
    )
    return choose_frames(split, training, testing, training.column("group"), share=share, seed=seed)


def choose_frames(
    split: str,
    training: StoredFrames,
    testing: StoredFrames,
    groups: np.ndarray,
    *,
    share: float,
    seed: int,
    left_out: np.ndarray | None = None,
    words: Mapping[str, str] | None = None,
    if_counts_differ: str = "",
) -> tuple[StoredFrames, FrameSplit]:
    """Choose the frames of a split; whole groups of training frames (`share` of them) are held out for validation.

    Frames marked in `left_out`, and unusable frames, do not train. Every valid frame is tested; a test split without
    labels can be read, but is missing from `sizes`, so that nothing is scored on it. Raises DataError for an unknown
    split.
    """
    root = training.prepared.root
    if split not in SPLITS:
        raise DataError(f"{root}: has no part '{split}'; it has {', '.join(SPLITS[:-1])} and {SPLITS[-1]}")
    if split == "test" and not testing.splits:
        raise DataError(f"{root}: holds no test frames, the source that it was prepared from had none")
    names, group = np.unique(groups, return_inverse=True)
    held_out = stratified_split(len(names), None, share=share, seed=seed)[1] if share else np.zeros(0, dtype=np.int64)
    is_held = np.isin(group, held_out)
    usable = training.usable_mask() if left_out is None else training.usable_mask() & ~left_out
    indices = {
        "train": np.flatnonzero(usable & ~is_held),
        "validation": np.flatnonzero(usable & is_held),
        "test": np.flatnonzero(testing.column("is_valid") > 0),
    }
    sizes = {name: len(frames) for name, frames in indices.items()}
    if split != "test" and not testing.column("visible").any():
        del sizes["test"]
    chosen = testing if split == "test" else training
    return chosen, FrameSplit(
        split=split,
        file_split="test" if split == "test" else "train",
        frame_indices=indices[split],
        num_ordered=int(chosen.starts()[-1]),
        sizes=sizes,
        words=words or {},
        if_counts_differ=if_counts_differ,
    )
