"""Bags of anchors around boxes. Source: Zhang et al. 2019, FreeAnchor."""

from __future__ import annotations

import torch
from torch import Tensor

from sightline.ops.box_overlaps import box_iou, column_blocks, giou
from sightline.ops.waits import expect

_FARTHEST = 3.0
"""More than GIoUs less 1 are below 0."""


def anchor_bags(anchors: Tensor, boxes: Tensor, size: int, is_member: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the `size` anchors (M, size) of highest IoU with each box (M, 4), best first, and these IoUs (M, size).

    If fewer than `size` of the anchors (N, 4) overlap a box, those with the highest GIoU follow; all anchors if N <
    size. Only anchors `is_member` (N,) are taken, of which there have to be `size`.
    """
    size = min(size, len(anchors))
    bags, overlaps = [boxes.new_zeros((0, size), dtype=torch.int64)], [boxes.new_zeros(0, size)]
    for part in column_blocks(len(anchors), len(boxes), boxes.device):
        overlap = box_iou(boxes[part], anchors)
        if is_member is not None:
            overlap = torch.where(is_member, overlap, -_FARTHEST)
        best, bag = overlap.topk(size, dim=1)
        is_short = (best <= 0).any(dim=1)
        if not expect(~is_short):
            short = overlap[is_short]
            far = giou(boxes[part][is_short, None], anchors) - 1  # below any IoU
            far = torch.where(short < 0, short, far)
            bag[is_short] = torch.where(short > 0, short, far).topk(size, dim=1).indices
        bags.append(bag)
        overlaps.append(overlap.gather(1, bag))
    return torch.cat(bags), torch.cat(overlaps)
