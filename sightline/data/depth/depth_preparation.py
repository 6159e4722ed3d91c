"""Preparation of depth data sets: columns, checks and manifest entries."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sightline.data.depth.skeletons import Skeleton
from sightline.data.store.columns import ColumnSpec
from sightline.data.store.depth_store import DEPTH_TYPES, pack_depth
from sightline.data.store.prepared_set import MANIFEST, PreparedSet, summarise_folder
from sightline.data.store.prepared_writer import PreparationPlan, Progress, SampleRow, Shard, write_prepared_set
from sightline.errors import DataError

__all__ = [
    "DepthPlan",
    "DepthShard",
    "SourceFrame",
    "check_joint_range",
    "count_notes",
    "find_source_folder",
    "prepare_frames",
]

_MAX_COORDINATE_MM = 1e6


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


@dataclass(frozen=True)
class DepthShard:
    """Frames that are read together. `estimated_bytes` estimates the size of their stored images.

    If `needs_all` is true, a missing image is an error: every frame of a test split counts.
    """

    split: str
    title: str
    num_frames: int
    files: tuple[Path, ...]
    frames: Callable[[], Iterator[SourceFrame]]
    estimated_bytes: int
    needs_all: bool = False


@dataclass(frozen=True)
class DepthPlan:
    """Preparation plan of a depth set.

    `depth_type` is the dtype of the stored depths, `mm_per_unit` their unit in mm. `invalid_note` completes the note on
    invalid frames. `published` is the number of frames of the release by stored split. `about` is copied into the
    manifest; `differences` are notes made before any frame is read, and `differences_of` adds notes on the stored
    arrays.
    """

    set_name: str
    layout: str
    source: Path
    skeleton: Skeleton
    parts: tuple[DepthShard, ...]
    depth_type: str
    mm_per_unit: float = 1.0
    invalid_note: str = ""
    has_regions: bool = False
    published: Mapping[str, int] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    differences: Sequence[str] = ()
    differences_of: Callable[[PreparedSet], Sequence[str]] = lambda prepared: ()


def prepare_frames(plan: DepthPlan, target: Path, *, progress: Progress) -> dict[str, Any]:
    """Prepare a depth set at `target`, as `write_prepared_set` does, and return the manifest."""
    assert plan.depth_type in DEPTH_TYPES, f"depths are stored as {plan.depth_type}"
    about = {
        "unit": "mm",
        "depth_type": plan.depth_type,
        "mm_per_unit": plan.mm_per_unit,
        "joint_names": list(plan.skeleton.joint_names),
        **plan.about,
    }
    native = PreparationPlan(
        set_name=plan.set_name,
        layout=plan.layout,
        source=plan.source,
        columns=_columns(len(plan.skeleton), has_regions=plan.has_regions),
        shards=tuple(_to_shard(part, plan) for part in plan.parts),
        manifest_extra=about,
        summarise=partial(_summary, plan=plan),
        options=plan.options,
    )
    return write_prepared_set(native, target, progress=progress)


def find_source_folder(source: Path, *, marks: Sequence[str], inner: Sequence[str], what: str) -> Path:
    """Find the folder with one of the files `marks`: `source` itself or one of its folders `inner`; resolved.

    Raises DataError that names the files it looked for.
    """
    root = source.expanduser().resolve()
    if not root.is_dir():
        raise DataError(f"{source}: there is no such folder (looked at {root}); give that of {what}")
    if (root / MANIFEST).is_file():
        raise DataError(f"{root}: is prepared already; give the folder of {what}")
    for folder in (root, *(root / name for name in inner)):
        if any((folder / mark).exists() for mark in marks):
            return folder
    raise DataError(f"{root}: holds {summarise_folder(root)}, which is not {what}; looked for {', '.join(marks)}")


def count_notes(prepared: PreparedSet, published: Mapping[str, int]) -> list[str]:
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


def _to_shard(part: DepthShard, plan: DepthPlan) -> Shard:
    rows = partial(_iterate_rows, part, plan)
    return Shard(part.split, part.title, part.num_frames, part.files, rows, part.estimated_bytes)


def _iterate_rows(part: DepthShard, plan: DepthPlan) -> Iterator[SampleRow]:
    return map(partial(_make_row, part, plan), part.frames())


def _make_row(part: DepthShard, plan: DepthPlan, frame: SourceFrame) -> SampleRow:
    num_joints = len(plan.skeleton)
    if frame.depth is None and part.needs_all:
        raise DataError(f"{frame.where}: the image of {frame.name} is missing, and every test frame counts; get it")
    depth = np.zeros((1, 1), dtype=plan.depth_type) if frame.depth is None else frame.depth
    assert np.can_cast(depth.dtype, plan.depth_type), f"{frame.where}: {depth.dtype} depths in {plan.depth_type}"
    joints = np.zeros((num_joints, 3)) if frame.joints is None else frame.joints
    check_joint_range(joints, f"{frame.where}: the joints of {frame.name}")
    visible = np.full(num_joints, frame.joints is not None) if frame.visible is None else frame.visible
    values = {
        "depth": pack_depth(depth.astype(plan.depth_type, copy=False)),
        "joints": joints,
        "visible": visible,
        "num_measured": np.count_nonzero(depth),
        "group": frame.group,
        "is_valid": frame.is_valid and frame.depth is not None,
    }
    if plan.has_regions:
        values["region_px"] = np.zeros(4) if frame.region_px is None else np.asarray(frame.region_px)
    return SampleRow(frame.name, frame.where, values)


def _summary(prepared: PreparedSet, *, plan: DepthPlan) -> dict[str, Any]:
    """Manifest entries computed from the written arrays."""
    splits, notes = {}, [*plan.differences, *count_notes(prepared, plan.published), *plan.differences_of(prepared)]
    for split in prepared.splits:
        is_valid, measured = prepared.array(split, "is_valid"), prepared.array(split, "num_measured") > 0
        splits[split] = {"num_rows": len(is_valid), "num_usable": int((is_valid & measured).sum())}
        notes += _note_rows(prepared, split, ~is_valid, plan.invalid_note)
        notes += _note_rows(prepared, split, is_valid & ~measured, "have no measured pixel, and do not train")
    return {
        "splits": splits,
        "label_sha256": _hash_labels(prepared),
        "joint_depths_mm": _measure_joint_depths(prepared),
        "differences": notes,
    }


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
