"""Depth images that a set lists one by one, in files of their own: PNG, or the raw float32 that others made of them."""

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
"""One channel of 16 bits; green and blue of 8 bits; raw float32, as the authors of V2V-PoseNet converted either."""
MISSING = "are listed and their images are missing; they do not train"


@dataclass(frozen=True, eq=False)
class FrameList:
    """Frames of a part of a set, in order. `images` are the files as `kind` has them.

    `rows` gives the joints (count, J, 3) float64, in mm in the camera's frame, of `count` frames from `first` on, or
    None where there are none. `groups` (frames,) is the recording of each, `regions` (frames, 4) where the figure is.
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
    """Whether the images of a list are there as PNG or as raw float32. Raises DataError where none is there."""
    for image, converted in zip(images, bins, strict=True):
        if os.path.isfile(image):
            return png
        if os.path.isfile(converted):
            return "bin"
    raise DataError(f"{images[0]}: neither this image nor {bins[0].name} is there, nor any after it; get the images")


def listed_parts(frames: FrameList) -> list[DepthShard]:
    """The frames of a list in parts of a thousand."""
    parts = []
    for first in range(0, len(frames.names), BLOCK_LINES):
        last = min(first + BLOCK_LINES, len(frames.names))
        there = tuple(path for path in frames.images[first:last] if os.path.isfile(path))
        num_bytes = sum(file_size(path) for path in there)
        parts.append(
            DepthShard(
                split=frames.split,
                title=f"{frames.split} {first} to {last - 1}",
                num_frames=last - first,
                files=(*frames.labels, *there),
                frames=partial(_read, frames, first, last),
                estimated_bytes=num_bytes // 4 if frames.kind == "bin" else num_bytes,
                needs_all=frames.split == "test",
            )
        )
    return parts


def _read(frames: FrameList, first: int, last: int) -> Iterator[SourceFrame]:
    joints = None if frames.rows is None else frames.rows(first, last - first)
    if joints is not None:
        _check_before_camera(joints, frames, first)

    def frame(place: int) -> SourceFrame:
        path = frames.images[place]
        return SourceFrame(
            name=frames.names[place],
            where=str(path),
            depth=_image(path, frames.kind, frames.size_px) if os.path.isfile(path) else None,
            joints=None if joints is None else joints[place - first],
            group=int(frames.groups[place]),
            region_px=None if frames.regions is None else frames.regions[place].tolist(),
        )

    return map(frame, range(first, last))


def _image(path: Path, kind: ImageKind, size_px: SizePx) -> np.ndarray:
    if kind == "bin":
        return read_raw_depth(path, size_px=size_px)
    read = read_depth_png if kind == "png16" else read_colour_png
    return read(path, size_px=size_px)


def _check_before_camera(joints: np.ndarray, frames: FrameList, first: int) -> None:
    behind = np.flatnonzero((joints[..., 2] <= 0).any(axis=1))
    if len(behind):
        place = int(behind[0])
        raise DataError(
            f"{frames.labels[0]}: frame {first + place} ({frames.names[first + place]}): a joint lies at z = "
            f"{joints[place, :, 2].min():g} mm, behind the camera; get the labels again"
        )
