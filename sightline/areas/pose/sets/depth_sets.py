"""Base of the prepared data sets of depth images with joints.

A set is a row, `DepthSpec`, and a function `read_source` that lists the frames of its source folder; `PreparedFrames`
writes them, opens them and deals them to splits.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from sightline.areas.pose.sets.depth_frames import (
    DepthCamera,
    DepthFrame,
    DepthFrames,
    FrameSplit,
    Skeleton,
    frames_info,
)
from sightline.areas.pose.sets.packed_depth import DEPTH_TYPES, pack_depth, unpack_depth
from sightline.contract.arguments import FractionBelowOne, ReferencePoint, Seed
from sightline.contract.errors import DataError
from sightline.contract.types import DataInfo
from sightline.store.files.input_files import file_size
from sightline.store.files.text_tables import BLOCK_LINES
from sightline.store.loading.stratified import stratified_split
from sightline.store.prepared.columns import CLASSES, VECTORS, ColumnForm, ColumnSpec
from sightline.store.prepared.prepared_data import PreparedData, SetSpec
from sightline.store.prepared.prepared_set import PreparedSet
from sightline.store.prepared.prepared_writer import PreparationPlan, SampleRow, Shard
from sightline.store.prepared.splits import SPLITS

_MAX_COORDINATE_MM = 1e6
_MISSING = "are listed and their images are missing; they do not train"


@dataclass(frozen=True, kw_only=True)
class DepthSpec(SetSpec):
    """Row of a depth set.

    `published` is the number of frames of the release by stored split; `orientation` and `split_note` are stated in the
    manifest. `mm_per_unit` is the unit of stored depths in mm, `invalid_note` completes the note on invalid frames.
    """

    camera: DepthCamera
    skeleton: Skeleton
    published: Mapping[str, int]
    orientation: str
    split_note: str
    mm_per_unit: float = 1.0
    invalid_note: str = _MISSING

    def list_entries(self) -> dict[str, Any]:
        """Return the entries of the card that are computed."""
        joint_names = ", ".join(self.skeleton.joint_names)
        return {"frames": dict(self.published), "joints": joint_names, **self.entries()}


@dataclass(frozen=True, eq=False)
class FrameList:
    """Frames of a stored split, in order, as the function of a format lists them.

    `depths(first, last)` yields the depths (H, W) of frames in the set's own type and unit, None for a frame that is
    listed and whose image is missing; `joints(first, last)` returns their joints (count, J, 3) float64 in mm in the
    camera's frame, and is None without labels. `images` are the files of the frames, if each has its own; `files` are
    all others. `visible` (frames, J) and `is_valid` (frames,) are None if all are. `groups` is the recording of each
    frame, or None where stretches of a thousand stand for recordings.
    """

    split: str
    names: Sequence[str]
    depths: Callable[[int, int], Iterable[np.ndarray | None]]
    joints: Callable[[int, int], np.ndarray] | None
    files: tuple[Path, ...]
    images: Sequence[Path] = ()
    groups: np.ndarray | None = None
    visible: np.ndarray | None = None
    is_valid: np.ndarray | None = None

    def list_shards(self, spec: DepthSpec, depth_type: str) -> Iterator[Shard]:
        """Divide the list into shards of a thousand frames."""
        for first in range(0, len(self.names), BLOCK_LINES):
            last = min(first + BLOCK_LINES, len(self.names))
            images = tuple(path for path in self.images[first:last] if os.path.isfile(path))
            share = file_size(self.files[0]) * (last - first) // len(self.names)
            num_bytes = sum(map(file_size, images)) if self.images else share
            title = f"{self.names[first]} to {self.names[last - 1]}"
            rows = partial(self._iterate_rows, spec, depth_type, first, last)
            yield Shard(self.split, title, last - first, (*self.files, *images), rows, num_bytes)

    def _iterate_rows(self, spec: DepthSpec, depth_type: str, first: int, last: int) -> Iterator[SampleRow]:
        joints = None if self.joints is None else self.joints(first, last)
        if joints is not None:
            self._check_before_camera(joints, first)
        depths = iter(self.depths(first, last))

        def make_row(index: int) -> SampleRow:
            return self._make_row(
                spec, depth_type, index, next(depths), None if joints is None else joints[index - first]
            )

        return map(make_row, range(first, last))

    def _make_row(
        self, spec: DepthSpec, depth_type: str, index: int, depth: np.ndarray | None, joints: np.ndarray | None
    ) -> SampleRow:
        name, num_joints = self.names[index], len(spec.skeleton)
        where = f"{self.images[index]}" if self.images else f"{self.files[0]}: frame {index}"
        is_valid = depth is not None and (self.is_valid is None or bool(self.is_valid[index]))
        if depth is None or not is_valid:
            depth = np.zeros((1, 1), dtype=depth_type)
        if self.is_valid is not None and not self.is_valid[index]:
            joints = None
        assert np.can_cast(depth.dtype, depth_type), f"{where}: {depth.dtype} depths in {depth_type}"
        visible = np.full(num_joints, joints is not None) if self.visible is None else self.visible[index]
        joints = np.zeros((num_joints, 3)) if joints is None else joints
        check_joint_range(joints, f"{where}: the joints of {name}")
        values = {
            "depth": pack_depth(depth.astype(depth_type, copy=False)),
            "joints": joints,
            "visible": visible,
            "num_measured": np.count_nonzero(depth),
            "group": index // BLOCK_LINES if self.groups is None else self.groups[index],
            "is_valid": is_valid,
        }
        return SampleRow(name, where, values, content=None if is_valid else "")

    def _check_before_camera(self, joints: np.ndarray, first: int) -> None:
        """Raise DataError for a visible joint of a valid frame that is at or behind the camera."""
        is_behind = joints[..., 2] <= 0
        if self.visible is not None:
            is_behind &= self.visible[first : first + len(joints)]
        behind = np.flatnonzero(is_behind.any(axis=1))
        if len(behind):
            row = int(behind[0])
            raise DataError(
                f"{self.files[0]}: frame {first + row} ({self.names[first + row]}): a joint is at z = "
                f"{joints[row, :, 2].min():g} mm, behind the camera; get the labels again"
            )


def read_images(
    images: Sequence[Path], read: Callable[[Path], np.ndarray], *, all_needed: bool = False
) -> Callable[[int, int], Iterator[np.ndarray | None]]:
    """Return the function `depths` of a `FrameList` whose frames have a file each.

    It raises DataError for a file that is missing, if all are needed.
    """

    def read_one(path: Path) -> np.ndarray | None:
        if os.path.isfile(path):
            return read(path)
        if all_needed:
            raise DataError(f"{path}: the image is missing, and every test frame counts; get it")
        return None

    return lambda first, last: map(read_one, images[first:last])


class DepthSource(NamedTuple):
    """Frames of a source folder, and the dtype in which their depths are stored.

    `expected` are the splits whose sizes are compared with the release; all if None. `notes` go into the manifest.
    """

    layout: str
    depth_type: str
    lists: Sequence[FrameList]
    expected: Sequence[str] | None = None
    notes: Sequence[str] = ()


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

    def names(self) -> list[str]:
        """List the names of these frames, in their order."""
        return [name for split in self.splits for name in self.prepared.names(split)]

    def usable_mask(self) -> np.ndarray:
        """Mask (num_frames,) of frames that are marked valid and have at least one measured pixel."""
        return np.asarray((self.column("is_valid") > 0) & (self.column("num_measured") > 0))


class PreparedFrames(PreparedData, DepthFrames):
    """Base of prepared depth sets; frames are decompressed at access.

    A set defines the row `spec` and `read_source`; one with other splits than `train` and `test` of its own defines
    `choose`, too.
    """

    spec: ClassVar[DepthSpec]
    camera: DepthCamera
    skeleton: Skeleton
    forms: ClassVar[Mapping[str, ColumnForm]] = {"joints": VECTORS, "group": CLASSES}
    printed = ("layout", "orientation", "unit", "joint_depths_mm", "label_sha256", "split", "differences")

    def __init__(
        self,
        *,
        split: str,
        root: str | None = None,
        reference: ReferencePoint | None = None,
        validation_share: FractionBelowOne = 0.1,
        split_seed: Seed = 0,
    ) -> None:
        self._prepared = self.open_root(root)
        self._frames_stored, part = self.choose(split, share=validation_share, seed=split_seed)
        self._starts = self._frames_stored.starts()
        self._names: list[str] = []
        super().__init__(part=part, camera=self.camera, skeleton=self.skeleton, reference=reference)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        spec = vars(cls).get("spec")
        if isinstance(spec, DepthSpec):
            cls.camera, cls.skeleton = spec.camera, spec.skeleton

    @classmethod
    def read_source(cls, root: Path) -> DepthSource:
        """List the frames of the source at `root`. Raises DataError for labels that cannot be used."""
        raise NotImplementedError(f"{cls.__name__} must define read_source")

    @classmethod
    def plan(cls, root: Path) -> PreparationPlan:
        """Plan to write the frames in native form.

        Raises DataError with file, and line or byte, for labels and images that cannot be used.
        """
        return plan_depth_set(cls.spec, cls.read_source(root), root)

    @classmethod
    def expected_info(cls) -> DataInfo:
        """Return the DataInfo expected before preparation, without counts."""
        return frames_info(cls.camera, cls.skeleton, farthest_mm=cls.farthest_mm)

    def choose(self, split: str, *, share: float, seed: int) -> tuple[StoredFrames, FrameSplit]:
        """Choose the frames of a split of a set that is stored as `train` and `test`."""
        training, testing = self.stored("train"), self.stored("test")
        return choose_frames(split, training, testing, training.column("group"), share=share, seed=seed)

    def stored(self, *splits: str) -> StoredFrames:
        """Return the frames of those of these stored splits that there are."""
        return StoredFrames(self._prepared, tuple(split for split in splits if split in self._prepared.splits))

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        """Digest of the manifest, which contains the hash of every file."""
        return str(self._prepared.manifest["digest"])

    def sample_name(self, index: int) -> str:
        """Name of a sample in reports."""
        self._names = self._names or self._frames_stored.names()
        return self._names[int(self._frame_indices[index])]

    def _list_stored_rows(self) -> list[tuple[str, int]]:
        sizes = np.diff(self._starts)
        rows = [
            (split, row) for split, size in zip(self._frames_stored.splits, sizes, strict=True) for row in range(size)
        ]
        return [rows[index] for index in self._frame_indices.tolist()]

    @classmethod
    def summarise(cls, prepared: PreparedSet) -> dict[str, Any]:
        """Return the frames, and the usable ones, per split."""
        splits = prepared.manifest["splits"].items()
        return {
            "frames": {split: facts["num_rows"] for split, facts in splits},
            "frames_usable": {split: facts["num_usable"] for split, facts in splits},
        }

    def _frame(self, frame_index: int) -> DepthFrame:
        split_index = int(np.searchsorted(self._starts, frame_index, side="right")) - 1
        split, row = self._frames_stored.splits[split_index], frame_index - int(self._starts[split_index])
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
        )


def choose_frames(
    split: str,
    training: StoredFrames,
    testing: StoredFrames,
    groups: np.ndarray,
    *,
    share: float,
    seed: int,
    is_held: np.ndarray | None = None,
) -> tuple[StoredFrames, FrameSplit]:
    """Choose the frames of a split; whole groups of training frames (`share` of them) are held out for validation.

    `is_held` marks the held-out frames where the set states them: then none are drawn. Unusable frames do not train.
    Every valid frame is tested; a test split without labels can be read, but is missing from `sizes`, so that nothing
    is scored on it. Raises DataError for an unknown split.
    """
    root = training.prepared.root
    if split not in SPLITS:
        raise DataError(f"{root}: has no part '{split}'; it has {', '.join(SPLITS[:-1])} and {SPLITS[-1]}")
    if split == "test" and not testing.splits:
        raise DataError(f"{root}: holds no test frames, the source that it was prepared from had none")
    if is_held is None:
        names, group = np.unique(groups, return_inverse=True)
        drawn = stratified_split(len(names), None, share=share, seed=seed)[1] if share else np.zeros(0, dtype=np.int64)
        is_held = np.isin(group, drawn)
    usable = training.usable_mask()
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
    )


def plan_depth_set(
    spec: DepthSpec,
    content: DepthSource,
    root: Path,
    *,
    about: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> PreparationPlan:
    """Plan the preparation of the frames of a source at `root`; `about` adds entries to the manifest."""
    assert content.depth_type in DEPTH_TYPES, f"depths are stored as {content.depth_type}"
    num_joints = len(spec.skeleton)
    columns = {
        "depth": ColumnSpec((), "uint8", is_ragged=True),
        "joints": ColumnSpec((num_joints, 3), "float32"),
        "visible": ColumnSpec((num_joints,), "bool"),
        "num_measured": ColumnSpec((), "int32"),
        "group": ColumnSpec((), "int32"),
        "is_valid": ColumnSpec((), "bool"),
    }
    return PreparationPlan(
        set_name=spec.name,
        layout=content.layout,
        source=root,
        columns=columns,
        shards=tuple(shard for frames in content.lists for shard in frames.list_shards(spec, content.depth_type)),
        manifest_extra={
            "unit": "mm",
            "depth_type": content.depth_type,
            "mm_per_unit": spec.mm_per_unit,
            "joint_names": list(spec.skeleton.joint_names),
            "orientation": spec.orientation,
            "split": spec.split_note,
            **(about or {}),
        },
        summarise=partial(_summarise, spec=spec, content=content),
        options=options or {},
        notes=content.notes,
    )


def check_joint_range(joints: np.ndarray, where: str) -> None:
    """Raise DataError for joints in mm that are not finite, or a kilometre away."""
    wrong = np.argwhere(~(np.abs(joints) < _MAX_COORDINATE_MM))
    if len(wrong):
        index = ", ".join(map(str, wrong[0]))
        raise DataError(
            f"{where}: the coordinate [{index}] is {joints[tuple(wrong[0])]:g} mm, less than {_MAX_COORDINATE_MM:g} is "
            "needed; get the file again"
        )


def _summarise(prepared: PreparedSet, *, spec: DepthSpec, content: DepthSource) -> dict[str, Any]:
    """Manifest entries computed from the written arrays.

    `label_sha256`, of all joints (float32, mm, splits concatenated), identifies a version of the labels.
    """
    splits, notes, depths, digest = {}, list(content.notes), [], hashlib.sha256()
    for split in content.expected or spec.published:
        count, published = prepared.manifest["splits"].get(split, {}).get("num_rows", 0), spec.published[split]
        if count != published:
            notes.append(f"{split} has {count} frames, the release has {published}")
    for split in prepared.splits:
        is_valid, measured = prepared.array(split, "is_valid"), prepared.array(split, "num_measured") > 0
        splits[split] = {"num_rows": len(is_valid), "num_usable": int((is_valid & measured).sum())}
        notes += _note_rows(prepared, split, ~is_valid, spec.invalid_note)
        notes += _note_rows(prepared, split, is_valid & ~measured, "have no measured pixel, and do not train")
        joints = prepared.array(split, "joints")
        digest.update(np.ascontiguousarray(joints.astype("<f4", copy=False)).data)
        depths.append(joints[..., 2][prepared.array(split, "visible")])
    all_depths = np.concatenate(depths)
    return {
        "splits": splits,
        "label_sha256": digest.hexdigest(),
        "joint_depths_mm": [float(all_depths.min()), float(all_depths.max())] if len(all_depths) else [],
        "differences": notes,
    }


def _note_rows(prepared: PreparedSet, split: str, mask: np.ndarray, description: str) -> list[str]:
    if not mask.any():
        return []
    first = prepared.names(split)[int(np.flatnonzero(mask)[0])]
    return [f"{split}: {int(mask.sum())} of {len(mask)} frames {description}; the first is {first}"]
