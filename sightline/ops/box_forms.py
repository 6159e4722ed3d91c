"""Forms of boxes: other coordinates, boxes cut to an image, small ones left out, and boxes around masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sightline.ops.box_overlaps import assert_boxes, promote_to_float32

_Pair = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

FORMATS: Mapping[str, tuple[_Pair, _Pair]] = {
    "xyxy": (lambda first, last: (first, last), lambda first, last: (first, last)),
    "xywh": (lambda first, sizes: (first, first + sizes), lambda first, last: (first, last - first)),
    "cxcywh": (
        lambda centres, sizes: (centres - sizes / 2, centres + sizes / 2),
        lambda first, last: ((first + last) / 2, last - first),
    ),
}
"""Formats by name: the corners of both pairs of numbers, and the inverse."""


def box_convert(boxes: Tensor, in_fmt: str, out_fmt: str) -> Tensor:
    """Convert boxes (..., 4) from one format to another: `xyxy`, `xywh` or `cxcywh`.

    Half precision is computed in float32 and rounded once; whole numbers become float64. Raises ValueError for another
    format.
    """
    assert_boxes(boxes)
    for name, value in (("in_fmt", in_fmt), ("out_fmt", out_fmt)):
        if value not in FORMATS:
            raise ValueError(f"{name}: found {value!r}, expected one of {', '.join(FORMATS)}")
    numbers = promote_to_float32(boxes)
    if in_fmt != out_fmt:
        to_corners, of_corners = FORMATS[in_fmt][0], FORMATS[out_fmt][1]
        numbers = torch.cat(of_corners(*to_corners(numbers[..., :2], numbers[..., 2:])), dim=-1)
    return numbers.to(boxes.dtype, copy=True) if boxes.is_floating_point() else numbers


def clip_boxes_to_image(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut boxes (..., 4) to an image of `size` (height, width): coordinates are 0 to its sides."""
    assert_boxes(boxes)
    height, width = size
    columns, rows = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack([columns, rows], dim=-1).flatten(-2)


def remove_small_boxes(boxes: Tensor, min_size: float) -> Tensor:
    """Return the indices (K,) int64 of the boxes (N, 4) whose width and height are `min_size` at least."""
    assert_boxes(boxes, form="(N, 4)")
    numbers = promote_to_float32(boxes)
    return (numbers[:, 2:] - numbers[:, :2] >= min_size).all(dim=1).nonzero()[:, 0]


def masks_to_boxes(masks: Tensor) -> Tensor:
    """Return the boxes (N, 4) float32 around masks (N, H, W): the first and last column and row that are not 0.

    Corners are indices of pixels, as torchvision's: add 1 to the last two for a box whose area counts pixels. An empty
    mask has a box of zeros. Raises ValueError for another shape.
    """
    if masks.ndim != 3:
        raise ValueError(f"masks: found the shape {tuple(masks.shape)}, expected (N, height, width)")
    is_inside = masks != 0
    corners = []
    for size, axis in ((masks.shape[2], 1), (masks.shape[1], 2)):
        index = torch.arange(size, device=masks.device)
        is_some = is_inside.any(dim=axis)
        first = torch.where(is_some, index, size).amin(dim=1) if size else index.new_zeros(len(masks))
        last = torch.where(is_some, index, -1).amax(dim=1) if size else first
        corners.append(torch.where(last < 0, 0, torch.stack([first, last])))
    return torch.stack(corners, dim=-1).transpose(0, 1).flatten(1).float()
