"""Bases of the prepared data sets of depth images with joints.

A set is a row, `DepthSpec`, and the function that lists the frames of its source folder; `DepthSet` does the rest.

Frame lists of depth sets with one image file per frame: PNG, or raw float32 as others converted them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from sightline.areas.pose.depth_files import SizePx, read_colour_png, read_depth_png, read_raw_depth
from sightline.areas.pose.sets.depth_frames import DepthCamera, DepthFrames, FrameSplit, frames_info
from sightline.areas.pose.sets.references import DepthFrame, Reference
from sightline.areas.pose.sets.skeletons import Skeleton
from sightline.contract.errors import DataError
from sightline.contract.types import DataInfo
from sightline.store.files.input_files import file_size
from sightline.store.files.text_tables import BLOCK_LINES
from sightline.store.loading.batch_reader import stratified_split
from sightline.store.prepared.columns import DEPTH_TYPES, ColumnSpec, pack_depth, unpack_depth
from sightline.store.prepared.prepared_data import PreparedData, SetSpec
from sightline.store.prepared.prepared_set import PreparedSet
from sightline.store.prepared.prepared_writer import PreparationPlan, SampleRow, Shard
from sightline.store.prepared.splits import SPLITS


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


class PreparedFrames(PreparedData, DepthFrames):
    """Base of prepared depth sets; frames are decompressed at access. A subclass sets `camera` and `skeleton`."""

    camera: DepthCamera
    skeleton: Skeleton
    printed = ("layout", "orientation", "unit", "joint_depths_mm", "label_sha256", "split", "differences")

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
        """Return the DataInfo expected before preparation, without counts."""
        return frames_info(cls.camera, cls.skeleton.select_joints(joints), farthest_mm=cls.farthest_mm)

    @property
    def fingerprint(self) -> str:
        """Digest of the manifest, which contains the hash of every file."""
        return str(self._prepared.manifest["digest"])

    def sample_name(self, index: int) -> str:
        """Name of a sample in reports."""
        split, row = self._locate_row(int(self._frame_indices[index]))
        if split not in self._names:
            self._names[split] = self._prepared.names(split)
        return self._names[split][row]

    @classmethod
    def summarise(cls, prepared: PreparedSet) -> dict[str, Any]:
        """Return the frames, and the usable ones, per split."""
        splits = prepared.manifest["splits"].items()
        return {
            "frames": {split: facts["num_rows"] for split, facts in splits},
            "frames_usable": {split: facts["num_usable"] for split, facts in splits},
        }

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
    is_held: np.ndarray | None = None,
) -> tuple[StoredFrames, FrameSplit]:
    """Choose the frames of a split; whole groups of training frames (`share` of them) are held out for validation.

    `is_held` marks the held-out frames where the set states them: then none are drawn. Frames marked in `left_out`, and
    unusable frames, do not train. Every valid frame is tested; a test split without
    labels can be read, but is missing from `sizes`, so that nothing is scored on it. Raises DataError for an unknown
    split.
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
    )


_MAX_COORDINATE_MM = 1e6
MISSING = "are listed and their images are missing; they do not train"


@dataclass(frozen=True, eq=False)
class SourceFrame:
    """One frame as read from the source files of a set.

    `depth` (H, W) in the set's own type and unit, None if the frame is listed and its image is missing; `joints`
    (J, 3) in mm in the camera's frame, None without labels; `visible` (J,), None if all are. `group` is the index of
    its recording. `is_valid` is false for a frame that the set marks as unusable; it keeps its position in the order.
    """

    name: str
    where: str
    depth: np.ndarray | None
    joints: np.ndarray | None
    visible: np.ndarray | None = None
    group: int = 0
    is_valid: bool = True
    region_px: Sequence[int] | None = None


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
    invalid_note: str = MISSING
    has_regions: bool = False

    def list_entries(self) -> dict[str, Any]:
        """Return the entries of the card that are computed."""
        joint_names = ", ".join(self.skeleton.joint_names)
        return {"frames": dict(self.published), "joints": joint_names, **self.entries()}


class DepthSource(NamedTuple):
    """Shards of a source folder, and the dtype in which their depths are stored.

    `expected` are the splits whose sizes are compared with the release; all if None. `notes` go into the manifest.
    """

    layout: str
    depth_type: str
    shards: Sequence[Shard[SourceFrame]]
    expected: Sequence[str] | None = None
    notes: Sequence[str] = ()


class DepthSet(PreparedFrames):
    """Base of depth sets that are a row, `spec`, and a function `read_source` that lists the shards of a folder."""

    spec: ClassVar[DepthSpec]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "spec" in vars(cls):
            cls.camera, cls.skeleton = cls.spec.camera, cls.spec.skeleton

    @classmethod
    def read_source(cls, root: Path) -> DepthSource:
        """List the shards of the source at `root`. Raises DataError for labels that cannot be used."""
        raise NotImplementedError(f"{cls.__name__} must define read_source")

    @classmethod
    def list_differences(cls, prepared: PreparedSet) -> Sequence[str]:
        """Return notes on the stored arrays for the manifest."""
        return ()

    @classmethod
    def plan(cls, root: Path) -> PreparationPlan:
        """Plan to write the frames in native form.

        Raises DataError with file, and line or byte, for labels and images that cannot be used. A killed run is
        continued by the same call.
        """
        return plan_depth_set(cls.spec, cls.read_source(root), root, list_differences=cls.list_differences)


def plan_depth_set(
    spec: DepthSpec,
    content: DepthSource,
    root: Path,
    *,
    about: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    list_differences: Callable[[PreparedSet], Sequence[str]] = lambda prepared: (),
) -> PreparationPlan:
    """Plan the preparation of the frames of a source at `root`; `about` adds entries to the manifest."""
    assert content.depth_type in DEPTH_TYPES, f"depths are stored as {content.depth_type}"
    return PreparationPlan(
        set_name=spec.name,
        layout=content.layout,
        source=root,
        columns=_columns(len(spec.skeleton), has_regions=spec.has_regions),
        shards=tuple(shard.map_rows(partial(_make_row, spec, content.depth_type)) for shard in content.shards),
        manifest_extra={
            "unit": "mm",
            "depth_type": content.depth_type,
            "mm_per_unit": spec.mm_per_unit,
            "joint_names": list(spec.skeleton.joint_names),
            "orientation": spec.orientation,
            "split": spec.split_note,
            **(about or {}),
        },
        summarise=partial(_summarise, spec=spec, content=content, list_differences=list_differences),
        options=options or {},
        notes=content.notes,
    )


def _summarise(
    prepared: PreparedSet,
    *,
    spec: DepthSpec,
    content: DepthSource,
    list_differences: Callable[[PreparedSet], Sequence[str]],
) -> dict[str, Any]:
    """Manifest entries computed from the written arrays."""
    expected = {split: spec.published[split] for split in content.expected or spec.published}
    splits, notes = {}, [*content.notes, *_note_counts(prepared, expected), *list_differences(prepared)]
    for split in prepared.splits:
        is_valid, measured = prepared.array(split, "is_valid"), prepared.array(split, "num_measured") > 0
        splits[split] = {"num_rows": len(is_valid), "num_usable": int((is_valid & measured).sum())}
        notes += _note_rows(prepared, split, ~is_valid, spec.invalid_note)
        notes += _note_rows(prepared, split, is_valid & ~measured, "have no measured pixel, and do not train")
    return {
        "splits": splits,
        "label_sha256": _hash_labels(prepared),
        "joint_depths_mm": _measure_joint_depths(prepared),
        "differences": notes,
    }


def _note_counts(prepared: PreparedSet, published: Mapping[str, int]) -> list[str]:
    """Return a note for every split whose number of frames differs from the release."""
    counts = {split: prepared.manifest["splits"].get(split, {}).get("num_rows", 0) for split in published}
    return [
        f"{split} has {counts[split]} frames, the release has {count}"
        for split, count in published.items()
        if counts[split] != count
    ]


def _columns(num_joints: int, *, has_regions: bool) -> dict[str, ColumnSpec]:
    columns = {
        "depth": ColumnSpec((), "uint8", is_ragged=True),
        "joints": ColumnSpec((num_joints, 3), "float32"),
        "visible": ColumnSpec((num_joints,), "bool"),
        "num_measured": ColumnSpec((), "int32"),
        "group": ColumnSpec((), "int32"),
        "is_valid": ColumnSpec((), "bool"),
    }
    return columns | ({"region_px": ColumnSpec((4,), "int32")} if has_regions else {})


def check_joint_range(joints: np.ndarray, where: str) -> None:
    """Raise DataError for joints in mm that are not finite, or a kilometre away."""
    wrong = np.argwhere(~(np.abs(joints) < _MAX_COORDINATE_MM))
    if len(wrong):
        index = ", ".join(map(str, wrong[0]))
        raise DataError(
            f"{where}: the coordinate [{index}] is {joints[tuple(wrong[0])]:g} mm, less than {_MAX_COORDINATE_MM:g} is "
            "needed; get the file again"
        )


def _make_row(spec: DepthSpec, depth_type: str, frame: SourceFrame) -> SampleRow:
    num_joints = len(spec.skeleton)
    depth = np.zeros((1, 1), dtype=depth_type) if frame.depth is None else frame.depth
    assert np.can_cast(depth.dtype, depth_type), f"{frame.where}: {depth.dtype} depths in {depth_type}"
    joints = np.zeros((num_joints, 3)) if frame.joints is None else frame.joints
    check_joint_range(joints, f"{frame.where}: the joints of {frame.name}")
    values = {
        "depth": pack_depth(depth.astype(depth_type, copy=False)),
        "joints": joints,
        "visible": np.full(num_joints, frame.joints is not None) if frame.visible is None else frame.visible,
        "num_measured": np.count_nonzero(depth),
        "group": frame.group,
        "is_valid": frame.is_valid and frame.depth is not None,
    }
    if spec.has_regions:
        values["region_px"] = np.zeros(4) if frame.region_px is None else np.asarray(frame.region_px)
    return SampleRow(frame.name, frame.where, values)


def _note_rows(prepared: PreparedSet, split: str, mask: np.ndarray, description: str) -> list[str]:
    if not mask.any():
        return []
    first = prepared.names(split)[int(np.flatnonzero(mask)[0])]
    return [f"{split}: {int(mask.sum())} of {len(mask)} frames {description}; the first is {first}"]


def _hash_labels(prepared: PreparedSet) -> str:
    """Compute the SHA-256 of all joints (float32, mm, splits concatenated): it identifies a version of the labels."""
    digest = hashlib.sha256()
    for split in prepared.splits:
        digest.update(np.ascontiguousarray(prepared.array(split, "joints").astype("<f4", copy=False)).data)
    return digest.hexdigest()


def _measure_joint_depths(prepared: PreparedSet) -> list[float]:
    """Return the smallest and the largest depth of visible joints in mm; [] if there are none."""
    depths = [prepared.array(split, "joints")[..., 2][prepared.array(split, "visible")] for split in prepared.splits]
    flat = np.concatenate(depths)
    return [float(flat.min()), float(flat.max())] if len(flat) else []


ImageKind = Literal["png16", "png_colour", "bin"]
"""Image format: one 16-bit channel; depth in 8-bit green and blue; raw float32, as converted for V2V-PoseNet."""
_READERS: Mapping[ImageKind, Callable[..., np.ndarray]] = {
    "png16": read_depth_png,
    "png_colour": read_colour_png,
    "bin": read_raw_depth,
}


@dataclass(frozen=True, eq=False)
class FrameList:
    """Frames of a split, in order. `images` are their files in the format `kind`.

    `rows(first, count)` returns the joints (count, J, 3) float64 in mm in the camera's frame; None without labels.
    `groups` (frames,) is the recording of each frame, or None where stretches of a thousand stand for recordings;
    `regions` (frames, 4) is the rectangle of the figure.
    """

    split: str
    names: Sequence[str]
    images: Sequence[Path]
    kind: ImageKind
    size_px: SizePx
    labels: tuple[Path, ...]
    rows: Callable[[int, int], np.ndarray] | None
    groups: np.ndarray | None = None
    regions: np.ndarray | None = None

    def list_shards(self) -> list[Shard[SourceFrame]]:
        """Divide the list into shards of a thousand."""
        return [self._make_shard(first, last) for first, last in cut_blocks(len(self.names), BLOCK_LINES)]

    def _make_shard(self, first: int, last: int) -> Shard[SourceFrame]:
        existing = tuple(path for path in self.images[first:last] if os.path.isfile(path))
        num_bytes = sum(map(file_size, existing)) // (4 if self.kind == "bin" else 1)
        title, files = f"{self.split} {first} to {last - 1}", (*self.labels, *existing)
        return Shard(self.split, title, last - first, files, partial(self._iterate_frames, first, last), num_bytes)

    def _iterate_frames(self, first: int, last: int) -> Iterator[SourceFrame]:
        joints = None if self.rows is None else self.rows(first, last - first)
        if joints is not None:
            self._check_before_camera(joints, first)
        return map(partial(self._make_frame, first, joints), range(first, last))

    def _make_frame(self, first: int, joints: np.ndarray | None, index: int) -> SourceFrame:
        path, name, depth = self.images[index], self.names[index], None
        if os.path.isfile(path):
            depth = _READERS[self.kind](path, size_px=self.size_px)
        elif self.split == "test":
            raise DataError(f"{path}: the image of {name} is missing, and every test frame counts; get it")
        return SourceFrame(
            name=name,
            where=str(path),
            depth=depth,
            joints=None if joints is None else joints[index - first],
            group=index // BLOCK_LINES if self.groups is None else int(self.groups[index]),
            region_px=None if self.regions is None else self.regions[index].tolist(),
        )

    def _check_before_camera(self, joints: np.ndarray, first: int) -> None:
        behind = np.flatnonzero((joints[..., 2] <= 0).any(axis=1))
        if len(behind):
            row = int(behind[0])
            raise DataError(
                f"{self.labels[0]}: frame {first + row} ({self.names[first + row]}): a joint is at z = "
                f"{joints[row, :, 2].min():g} mm, behind the camera; get the labels again"
            )


def join_lists(lists: Sequence[FrameList]) -> DepthSource:
    """Return the source that these lists of frames make up; depths are float32 if any list has raw images."""
    kinds = {frames.kind for frames in lists}
    shards = [shard for frames in lists for shard in frames.list_shards()]
    return DepthSource("+".join(sorted(kinds)), "float32" if "bin" in kinds else "uint16", shards)


def find_image_kind(images: Sequence[Path], png: ImageKind, bins: Sequence[Path]) -> ImageKind:
    """Return the format of the first image that exists: `png`, or "bin". Raises DataError if none exists."""
    for image, converted in zip(images, bins, strict=True):
        if os.path.isfile(image):
            return png
        if os.path.isfile(converted):
            return "bin"
    raise DataError(f"{images[0]}: neither this image nor {bins[0].name} is there, nor any after it; get the images")


def cut_blocks(num_frames: int, size: int) -> list[tuple[int, int]]:
    """Cut a number of frames into blocks: the first frame of each, and the one after its last."""
    return [(first, min(first + size, num_frames)) for first in range(0, num_frames, size)]
