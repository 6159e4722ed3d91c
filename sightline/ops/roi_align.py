"""RoIAlign: features of boxes on a grid, by bilinear samples that are not rounded to pixels.

Source: He et al. 2017 (Mask R-CNN), section 3; the samples, borders and options are torchvision's, by its definition.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from sightline.ops.box_overlaps import assert_boxes, promote_to_float32
from sightline.ops.waits import require


def roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """Pool the features (B, C, H, W) in boxes on a grid of `output_size`: (K, C, height, width).

    `boxes` are a list of x1, y1, x2, y2 (L, 4) for each image, or (K, 5) with the image's number first; times
    `spatial_scale` they are in cells of the features. A bin is the mean of `sampling_ratio` x `sampling_ratio` bilinear
    samples, spread evenly; below 1, of one sample for each cell that its side touches, which waits for a device and
    breaks a compiled graph. Samples more than a cell outside are 0. With `aligned` the middle of a cell is at half of
    it; without, boxes are half a cell off and at least one cell wide and high, as in older networks. Gradients reach
    the features alone. Half precision is computed in float32. Raises ValueError for another shape or dtype and for the
    number of an image that is not there.
    """
    if input.ndim != 4 or not input.is_floating_point():
        raise ValueError(f"input: found {tuple(input.shape)} {input.dtype}, expected floats (images, channels, H, W)")
    image, corners = _read_boxes(boxes, input)
    rows, columns = (output_size, output_size) if isinstance(output_size, int) else output_size
    corners = corners * spatial_scale - (0.5 if aligned else 0.0)
    x, x_weight = _place_samples(corners[:, 0], corners[:, 2], columns, input.shape[3], sampling_ratio, aligned)
    y, y_weight = _place_samples(corners[:, 1], corners[:, 3], rows, input.shape[2], sampling_ratio, aligned)
    row = (image[:, None, None] * input.shape[2] + y)[:, :, None, :, None] * input.shape[3]
    index = (row + x[:, None, :, None, :]).flatten(0, 2).flatten(1)
    weight = (y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :]).flatten(0, 2).flatten(1)
    cells = promote_to_float32(input).permute(0, 2, 3, 1).flatten(0, 2)
    pooled = functional.embedding_bag(index, cells, mode="sum", per_sample_weights=weight.to(cells.dtype))
    return pooled.unflatten(0, (len(image), rows, columns)).permute(0, 3, 1, 2).to(input.dtype)


def _read_boxes(boxes: Tensor | Sequence[Tensor], features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the image (K,) int64 and the corners (K, 4) of each box, without gradients."""
    if isinstance(boxes, Tensor):
        if boxes.ndim != 2 or boxes.shape[1] != 5:
            raise ValueError(f"boxes: found the shape {tuple(boxes.shape)}, expected (K, 5): image, x1, y1, x2, y2")
        image, corners = boxes[:, 0].long(), boxes[:, 1:]
        is_there = (image >= 0) & (image < len(features))
        if not torch.compiler.is_compiling():
            require(is_there, lambda: ValueError(f"boxes: found an image's number outside 0..{len(features) - 1}"))
    else:
        if len(boxes) != len(features):
            raise ValueError(f"boxes: found a list of {len(boxes)} for {len(features)} images; give one tensor each")
        for number, each in enumerate(boxes):
            assert_boxes(each, name=f"boxes[{number}]", form="(N, 4)")
        corners = torch.cat([*boxes])
        image = torch.cat([torch.full_like(each[:, 0], number, dtype=torch.int64) for number, each in enumerate(boxes)])
    return image, promote_to_float32(corners.detach())


def _place_samples(
    first: Tensor, last: Tensor, num_bins: int, size: int, sampling_ratio: int, aligned: bool
) -> tuple[Tensor, Tensor]:
    """Return the cells (K, bins, 2 S) below and above each sample along one axis, and their shares of a bin."""
    length = last - first if aligned else (last - first).clamp(min=1)
    step = length / num_bins
    if sampling_ratio > 0:
        count, most = torch.full_like(step, sampling_ratio), sampling_ratio
    else:
        count = step.ceil().clamp(min=0)
        most = max(1, int(count.max())) if len(count) else 1
    sample = torch.arange(most, device=first.device)
    offset = (sample + 0.5) * step[:, None] / count.clamp(min=1)[:, None]
    place = (first[:, None] + torch.arange(num_bins, device=first.device) * step[:, None])[:, :, None] + offset[:, None]
    is_used = (place >= -1) & (place <= size) & (sample < count[:, None])[:, None]
    low = place.clamp(0, size - 1).floor()
    above = torch.where(low < size - 1, place.clamp(min=0) - low, 0)
    share = torch.where(is_used, 1 / count.clamp(min=1)[:, None, None], 0)
    cells = torch.cat([low, (low + 1).clamp(max=size - 1)], dim=2).long()
    return cells, torch.cat([share * (1 - above), share * above], dim=2)
