"""Frame lists of depth sets with one image file per frame: PNG, or raw float32 as others converted them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from sightline.data.depth.depth_preparation import DepthShard, SourceFrame
from sightline.data.files.depth_files import SizePx, read_colour_png, read_depth_png, read_raw_depth
from sightline.data.files.input_files import file_size
from sightline.data.files.named_rows import BLOCK_LINES
from sightline.errors import DataError

__all__ = ["MISSING", "FrameList", "ImageKind", "image_kind", "listed_parts"]

ImageKind = Literal["png16", "png_colour", "bin"]
"""Image format: one 16-bit channel; depth in 8-bit green and blue; raw float32, as converted for V2V-PoseNet."""
MISSING = "are listed and their images are missing; they do not train"


@dataclass(frozen=True, eq=False)
class FrameList:
    """Frames of a split, in order. `images` are their files in the format `kind`.

    `rows(first, count)` returns the joints (count, J, 3) float64 in mm in the camera's frame; None without labels.
    `groups` (frames,) is the recording of each frame, `regions` (frames, 4) the rectangle of the figure.
    """

    split: str
    names: Sequence[str]
    images: Sequence[Path]
    kind: ImageKind
    size_px: SizePx
    labels: tuple[Path, ...]
    rows: Callable[[int, int], np.ndarray] | None
    groups: np.ndarray
    regions: np.ndarray | None = None


def image_kind(images: Sequence[Path], png: ImageKind, bins: Sequence[Path]) -> ImageKind:
    """Return the format of the first image that exists: `png`, or "bin". Raises DataError if none exists."""
    for image, converted in zip(images, bins, strict=True):
        if os.path.isfile(image):
            return png
        if os.path.isfile(converted):
            return "bin"
    raise DataError(f"{images[0]}: neither this image nor {bins[0].name} is there, nor any after it; get the images")


def listed_parts(frames: FrameList) -> list[DepthShard]:
    """Divide a list of frames into shards of a thousand."""
    parts = []
    for first in range(0, len(frames.names), BLOCK_LINES):
        last = min(first + BLOCK_LINES, len(frames.names))
        existing = tuple(path for path in frames.images[first:last] if os.path.isfile(path))
        num_bytes = sum(file_size(path) for path in existing)
        parts.append(
            DepthShard(
                split=frames.split,
                title=f"{frames.split} {first} to {last - 1}",
                num_frames=last - first,
                files=(*frames.labels, *existing),
                frames=partial(_iterate_frames, frames, first, last),
                estimated_bytes=num_bytes // 4 if frames.kind == "bin" else num_bytes,
                needs_all=frames.split == "test",
            )
        )
    return parts


def _iterate_frames(frames: FrameList, first: int, last: int) -> Iterator[SourceFrame]:
    joints = None if frames.rows is None else frames.rows(first, last - first)
    if joints is not None:
        _check_before_camera(joints, frames, first)

    def make_frame(index: int) -> SourceFrame:
        path = frames.images[index]
        return SourceFrame(
            name=frames.names[index],
            where=str(path),
            depth=_read_image(path, frames.kind, frames.size_px) if os.path.isfile(path) else None,
            joints=None if joints is None else joints[index - first],
            group=int(frames.groups[index]),
            region_px=None if frames.regions is None else frames.regions[index].tolist(),
        )

    return map(make_frame, range(first, last))


def _read_image(path: Path, kind: ImageKind, size_px: SizePx) -> np.ndarray:
    if kind == "bin":
        return read_raw_depth(path, size_px=size_px)
    read = read_depth_png if kind == "png16" else read_colour_png
    return read(path, size_px=size_px)


def _check_before_camera(joints: np.ndarray, frames: FrameList, first: int) -> None:
    behind = np.flatnonzero((joints[..., 2] <= 0).any(axis=1))
    if len(behind):
        row = int(behind[0])
        raise DataError(
            f"{frames.labels[0]}: frame {first + row} ({frames.names[first + row]}): a joint lies at z = "
            f"{joints[row, :, 2].min():g} mm, behind the camera; get the labels again"
        )
