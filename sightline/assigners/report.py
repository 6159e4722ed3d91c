"""What an assignment came to, as plain data: for pictures, tables and warnings."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sightline.assigners.base import BACKGROUND, IGNORED, Assignment
from sightline.geometry.boxes.overlaps import iou
from sightline.geometry.boxes.priors import Priors

__all__ = ["assignment_report"]


def assignment_report(assignment: Assignment, priors: Priors, boxes: Tensor, is_ignored: Tensor) -> dict[str, Any]:
    """Counts of one image: priors of each kind, positives of each box, and of each level; boxes without a prior.

    `positives_per_box` has an entry for each of `boxes` (M, 4), 0 for ignore regions; `unmatched_boxes` are the indices
    of boxes that are not regions and have none. `num_ambiguous` priors were claimed by several boxes. `mean_iou` is
    that of the positives with their boxes, None for points or without a positive.
    """
    matched = assignment.matched
    is_positive = matched >= 0
    per_box = matched[is_positive].bincount(minlength=len(boxes))
    per_level = priors.level[is_positive].bincount(minlength=len(priors.strides))
    mean = None
    if priors.kind == "anchors" and is_positive.any():
        mean = float(iou(priors.rows[is_positive], boxes[matched[is_positive]]).mean())
    return {
        "num_priors": len(priors),
        "num_positive": int(is_positive.sum()),
        "num_background": int((matched == BACKGROUND).sum()),
        "num_ignored": int((matched == IGNORED).sum()),
        "num_ambiguous": int((assignment.num_claims > 1).sum()),
        "positives_per_box": per_box.tolist(),
        "positives_per_level": per_level.tolist(),
        "unmatched_boxes": ((per_box == 0) & ~is_ignored).nonzero().flatten().tolist(),
        "mean_iou": mean,
    }
