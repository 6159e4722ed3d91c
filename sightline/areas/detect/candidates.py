"""Candidate pairs of boxes and priors, and classification costs, for assigners by predictions."""

from __future__ import annotations

import torch
from torch import Tensor

from sightline.ops.boxes.codes import encode_distances
from sightline.ops.boxes.overlaps import box_centres, column_blocks
from sightline.ops.boxes.priors import Priors


def is_within_reach(boxes: Tensor, points: Tensor, reach_px: Tensor) -> Tensor:
    """Return a mask (M, P): points (P, 2) nearer than `reach_px` (P,) to the centres of boxes (M, 4), in x and y."""
    centres = box_centres(boxes)
    is_near = (points[:, 0] - centres[:, :1]).abs() < reach_px
    return is_near & ((points[:, 1] - centres[:, 1:]).abs() < reach_px)


def candidate_pairs(
    priors: Priors, boxes: Tensor, radius: float, *, inside_px: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return the boxes (E,) and priors (E,) whose centres are less than `radius` strides apart, in x and in y.

    With `inside_px` the prior must also be inside the box by more than that.
    """
    centres, reach, all_pairs = priors.centres, radius * priors.prior_stride, []
    for part in column_blocks(len(boxes), len(priors), boxes.device):
        pairs = is_within_reach(boxes, centres[part], reach[part]).nonzero()
        all_pairs.append(pairs + pairs.new_tensor([0, part.start]))
    box, prior = torch.cat(all_pairs).unbind(dim=1)
    if inside_px is not None:
        is_inside = encode_distances(centres[prior], boxes[box]).amin(dim=1) > inside_px
        box, prior = box[is_inside], prior[is_inside]
    return box, prior


def class_costs(of_background: Tensor, of_target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cost (P, K) of each class as the only one, and of none (P,), from binary costs per class (P, K)."""
    none = of_background.sum(dim=1)
    return none[:, None] + (of_target - of_background), none
