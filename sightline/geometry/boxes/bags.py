"""Anchor bags: the anchors with the highest overlap of each box. Source: Zhang et al. 2019, FreeAnchor, section 3.2."""

from __future__ import annotations

import torch
from torch import Tensor

from sightline.geometry.boxes.overlaps import column_blocks, giou, pairwise_iou

__all__ = ["anchor_bags"]


def anchor_bags(anchors: Tensor, boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the `size` anchors (M, size) of highest IoU with each box (M, 4), best first, and these IoUs (M, size).

    If fewer than `size` of the anchors (N, 4) overlap a box, those with the highest GIoU follow; all anchors if N <
    size.
    """
    size = min(size, len(anchors))
    bags, overlaps = [boxes.new_zeros((0, size), dtype=torch.int64)], [boxes.new_zeros(0, size)]
    for part in column_blocks(len(anchors), len(boxes), boxes.device):
        overlap = pairwise_iou(boxes[part], anchors)
        best, bag = overlap.topk(size, dim=1)
        is_short = (best == 0).any(dim=1)
        if is_short.any():
            short = overlap[is_short]
            far = giou(boxes[part][is_short, None], anchors) - 1  # below any IoU
            bag[is_short] = torch.where(short > 0, short, far).topk(size, dim=1).indices
        bags.append(bag)
        overlaps.append(overlap.gather(1, bag))
    return torch.cat(bags), torch.cat(overlaps)
