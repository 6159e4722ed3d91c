"""Boxes of a few training batches and their assigned priors, computed once for all checks of assignments."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sightline.contract.types import Batch
from sightline.ops.boxes.overlaps import box_iou, column_blocks
from sightline.ops.boxes.priors import BACKGROUND, Priors
from sightline.ops.dtypes import promote_to_float32

_SIDE_STRIDES = 8
"""Side, in strides, of the square around a point prior whose IoU with a box is measured."""


class AssignedBoxes(NamedTuple):
    """Boxes (N, 4) on canvases, without ignored boxes, and their assignment to priors.

    `best_iou` (N, L) is the highest IoU with an anchor of each level, or with a square around a point; `best_free` (N,)
    is the highest IoU with a prior that is not assigned to any box; `is_unmatched` (N,) marks boxes without a prior.
    Each image has `positives` and `negatives` (B, L) and the size of its file, `file_px` (B, 2). `priors` are those of
    the last batch.
    """

    priors: Priors
    file_px: Tensor
    boxes: Tensor
    best_iou: Tensor
    best_free: Tensor
    is_unmatched: Tensor
    positives: Tensor
    negatives: Tensor

    @property
    def looked_at(self) -> str:
        """Text of the numbers of boxes and images."""
        return f"{len(self.boxes)} boxes in {len(self.file_px)} training images"

    @property
    def num_boxes_of_level(self) -> list[int]:
        """Number of boxes per level whose best anchor, with an IoU of at least 0.5, is at this level."""
        is_near = self.best_iou.amax(dim=1) >= (0.5 if self.priors.kind == "anchors" else torch.inf)
        return self.best_iou.argmax(dim=1)[is_near].bincount(minlength=self.best_iou.shape[1]).tolist()


def assigned_boxes(task: Any, model: nn.Module, batches: Iterable[Batch]) -> AssignedBoxes:
    """Collect the boxes and assignments of one or more batches on the CPU, in one pass; `task` has `get_priors`."""
    rows = []
    for batch in batches:
        priors, context = task.get_priors(batch["image"]), task.context(model, batch)
        for image, row_range in enumerate(pairwise(batch["box_offsets"].tolist())):
            rows.append(
                (batch["file_px"][image, None], *_collect_image(priors, batch, context, image, slice(*row_range)))
            )
    return AssignedBoxes(priors, *(torch.cat(column) for column in zip(*rows, strict=True)))


def _collect_image(priors: Priors, batch: Batch, context: Batch, image: int, rows: slice) -> tuple[Tensor, ...]:
    """Return an image's rows of each field of `AssignedBoxes`, from `boxes` on."""
    is_counted = ~batch["is_ignored"][rows]
    boxes = batch["boxes"][rows][is_counted].to(priors.coordinates)
    target, squares = context["target"][image], priors.to_boxes(_SIDE_STRIDES)
    prior_sets = [squares[level] for level in priors.level_slices] + [squares[target < 0]]
    *best, best_free = (
        best_iou_of_boxes(replace(priors, coordinates=coordinates), boxes) for coordinates in prior_sets
    )
    counts = [
        priors.prior_level[is_selected].bincount(minlength=len(best))[None]
        for is_selected in (target >= 0, target == BACKGROUND)
    ]
    return boxes, torch.stack(best, dim=1), best_free, context["is_unmatched"][rows][is_counted], *counts


def best_iou_of_boxes(priors: Priors, boxes: Tensor) -> Tensor:
    """Return the highest IoU (M,) of each of `boxes` (M, 4) with any anchor of `priors`."""
    boxes = promote_to_float32(boxes)
    best_iou = boxes.new_zeros(len(boxes))
    for part in column_blocks(len(boxes), len(priors), boxes.device):
        best_iou = torch.maximum(best_iou, box_iou(boxes, priors.coordinates[part].to(boxes)).amax(dim=1))
    return best_iou
