"""Formats of boxes: corners, centres and sizes, turned boxes, and boxes around masks, by the names of torchvision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sightline.ops.boxes.overlaps import assert_boxes
from sightline.ops.dtypes import promote_to_float32

BoxFormat = Literal["xyxy", "xywh", "cxcywh", "xywhr", "cxcywhr", "xyxyxyxy"]
"""Corners; first corner and size; centre and size; the last two turned by an angle; four corners of a turned box."""


def box_convert(boxes: Tensor, in_fmt: BoxFormat, out_fmt: BoxFormat) -> Tensor:
    """Convert boxes (..., K) from one format to another.

    K is 4 for `xyxy`, `xywh` and `cxcywh`; 5 for `xywhr` and `cxcywhr`, whose angle is in degrees, counter-clockwise in
    the image, and whose x, y is the turned first corner; 8 for `xyxyxyxy`, whose corners run clockwise from that one.
    Floats keep their dtype, and half precision is computed in float32. Whole numbers become int64 between `xyxy` and
    `xywh`, elsewhere float64. Always a copy. Raises ValueError for another format or shape, and between upright and
    turned boxes, as a turn may be lost. Source: torchvision.
    """
    for name, value in (("in_fmt", in_fmt), ("out_fmt", out_fmt)):
        if value not in _FORMATS:
            raise ValueError(f"{name}: found {value!r}, allowed are {', '.join(_FORMATS)}")
    source, target = _FORMATS[in_fmt], _FORMATS[out_fmt]
    if source.is_turned != target.is_turned:
        raise ValueError(f"out_fmt: found {out_fmt!r} for boxes {in_fmt!r}; upright boxes have no turn, turned ones do")
    width = source.width
    if boxes.shape[-1:] != (width,) or boxes.dtype == torch.bool or boxes.is_complex():
        raise ValueError(f"boxes: found {tuple(boxes.shape)} {boxes.dtype}, expected numbers (..., {width}): {in_fmt}")
    if in_fmt == out_fmt:
        return boxes.clone()
    if boxes.is_floating_point():
        return target.write(source.read(promote_to_float32(boxes))).to(boxes.dtype)
    return target.write(source.read(boxes.long() if source.is_whole and target.is_whole else boxes.double()))


class _Format(NamedTuple):
    """Numbers of a box; how they are read to corners, or a turned corner, size and angle; how they are written."""

    width: int
    read: Callable[[Tensor], Tensor]
    write: Callable[[Tensor], Tensor]
    is_turned: bool = False
    is_whole: bool = False


def _same(boxes: Tensor) -> Tensor:
    return boxes


def _add_size(boxes: Tensor) -> Tensor:
    return torch.cat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], dim=-1)


def _take_size(boxes: Tensor) -> Tensor:
    return torch.cat([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], dim=-1)


def _leave_centre(boxes: Tensor) -> Tensor:
    centre, half = boxes[..., :2], 0.5 * boxes[..., 2:]
    return torch.cat([centre - half, centre + half], dim=-1)


def _take_centre(boxes: Tensor) -> Tensor:
    return torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], dim=-1)


def _sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sides (..., 2) along the width and the height of turned boxes (..., 5); y is down in an image."""
    angle = boxes[..., 4] * math.pi / 180
    cosine, sine = angle.cos(), angle.sin()
    along, down = torch.stack([cosine, -sine], dim=-1), torch.stack([sine, cosine], dim=-1)
    return boxes[..., 2:3] * along, boxes[..., 3:4] * down


def _leave_turned_centre(boxes: Tensor) -> Tensor:
    along, down = _sides(boxes)
    return torch.cat([boxes[..., :2] - (along + down) / 2, boxes[..., 2:]], dim=-1)


def _take_turned_centre(boxes: Tensor) -> Tensor:
    along, down = _sides(boxes)
    return torch.cat([boxes[..., :2] + (along + down) / 2, boxes[..., 2:]], dim=-1)


def _list_corners(boxes: Tensor) -> Tensor:
    first, (along, down) = boxes[..., :2], _sides(boxes)
    return torch.cat([first, first + along, first + along + down, first + down], dim=-1)


def _measure_corners(boxes: Tensor) -> Tensor:
    along, down = boxes[..., 2:4] - boxes[..., :2], boxes[..., 4:6] - boxes[..., 2:4]
    angle = torch.atan2(-along[..., 1:], along[..., :1]) * 180 / math.pi
    lengths = (torch.linalg.vector_norm(side, dim=-1, keepdim=True) for side in (along, down))
    return torch.cat([boxes[..., :2], *lengths, angle], dim=-1)


_FORMATS = {
    "xyxy": _Format(4, _same, _same, is_whole=True),
    "xywh": _Format(4, _add_size, _take_size, is_whole=True),
    "cxcywh": _Format(4, _leave_centre, _take_centre),
    "xywhr": _Format(5, _same, _same, is_turned=True),
    "cxcywhr": _Format(5, _leave_turned_centre, _take_turned_centre, is_turned=True),
    "xyxyxyxy": _Format(8, _measure_corners, _list_corners, is_turned=True),
}


def remove_small_boxes(boxes: Tensor, min_size: float) -> Tensor:
    """Find the boxes (N, 4) of which both sides are at least `min_size`: indices (K,) int64, in order; K is read."""
    assert_boxes(boxes, form="(N, 4)")
    boxes = promote_to_float32(boxes)
    return (boxes[:, 2:] - boxes[:, :2] >= min_size).all(dim=1).nonzero()[:, 0]


def masks_to_boxes(masks: Tensor) -> Tensor:
    """Find the boxes (N, 4) float32 around what is not 0 in masks (N, H, W), as the first and the last pixels.

    So x2 and y2 are pixels inside, and one pixel is a box without an area: add 1 for boxes that other operators
    measure. A mask without a pixel has the box 0, 0, 0, 0. Raises ValueError for another shape. Source: torchvision.
    """
    if masks.ndim != 3:
        raise ValueError(f"masks: found the shape {tuple(masks.shape)}, expected (N, H, W)")
    is_used = [(masks != 0).any(dim=axis) for axis in (1, 2)]  # columns with a pixel, then rows
    if masks.numel() == 0:
        return torch.zeros(masks.shape[0], 4, device=masks.device)
    first, last = [], []
    for used in is_used:
        position = torch.arange(used.shape[1], device=masks.device)
        last.append(torch.where(used, position, 0).amax(dim=1))
        first.append(torch.where(used, position, last[-1][:, None]).amin(dim=1))
    return torch.stack([*first, *last], dim=1).float()
