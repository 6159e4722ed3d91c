"""Bags of anchors around boxes. Source: Zhang et al. 2019, FreeAnchor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sightline.ops.box_overlaps import box_iou, column_blocks, giou
from sightline.ops.waits import is_free_to_read

_FARTHEST = 3.0
"""More than GIoUs less 1 are below 0."""


def anchor_bags(anchors: Tensor, boxes: Tensor, size: int, is_member: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the `size` anchors (M, size) of highest IoU with each box (M, 4), best first, and these IoUs (M, size).

    If fewer than `size` of the anchors (N, 4) overlap a box, those with the highest GIoU follow; all anchors if N <
    size. Anchors that are not `is_member` (N,) come last, with an IoU below -1.
    """
    size = min(size, len(anchors))
    bags, overlaps = [boxes.new_zeros((0, size), dtype=torch.int64)], [boxes.new_zeros(0, size)]
    for part in column_blocks(len(anchors), len(boxes), boxes.device):
        overlap = box_iou(boxes[part], anchors)
        if is_member is not None:
            overlap = torch.where(is_member, overlap, -_FARTHEST)
        best, bag = overlap.topk(size, dim=1)
        is_known = is_free_to_read(best)  # elsewhere each box is taken for one with too few anchors
        rows: Any = (best <= 0).any(dim=1).nonzero().flatten() if is_known else slice(None)
        if not is_known or len(rows):
            short = overlap[rows]
            far = giou(boxes[part][rows, None], anchors) - 1  # below any IoU
            far = torch.where(short < 0, short, far)
            bag[rows] = torch.where(short > 0, short, far).topk(size, dim=1).indices
        bags.append(bag)
        overlaps.append(overlap.gather(1, bag))
    return torch.cat(bags), torch.cat(overlaps)
