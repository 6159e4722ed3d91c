"""Boxes of a few training batches and the priors that they get, counted once for all checks of assignments."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sightline.geometry.boxes.anchor_fitting import best_iou_of_boxes
from sightline.geometry.boxes.priors import BACKGROUND, Priors
from sightline.tasks.detect import Detect
from sightline.types import Batch

__all__ = ["AssignedBoxes", "assigned_boxes", "is_significantly_above"]

_SIDE_STRIDES = 8
"""The side, in strides, of the square around a point whose overlap with a box is measured."""


class AssignedBoxes(NamedTuple):
    """Boxes (N, 4) on canvases that are not ignored, and what priors they get.

    `best` (N, L) is the highest IoU with an anchor of each level, or with a square around a point, `best_free` (N,)
    that with a prior that no other box has; `is_unmatched` (N,) has none. Of each image there are `positives` and
    `negatives` (B, L), and rows and columns of its file, `file_px` (B, 2). `priors` are those of the last batch.
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
        """How much was looked at, in words."""
        return f"{len(self.boxes)} boxes in {len(self.file_px)} training images"

    @property
    def num_boxes_of_level(self) -> list[int]:
        """How many boxes overlap an anchor of each level by half, and by more than any of another level."""
        is_near = self.best_iou.amax(dim=1) >= (0.5 if self.priors.kind == "anchors" else torch.inf)
        return self.best_iou.argmax(dim=1)[is_near].bincount(minlength=self.best_iou.shape[1]).tolist()


def is_significantly_above(count: int, total: int, share: float) -> bool:
    """Whether so many of a total are more than a share of it by three deviations, those of independent draws.

    One or two, however few there are, never are: deviations say little of such counts.
    """
    return count > max(2, share * total + 3 * math.sqrt(share * total))


def assigned_boxes(task: Detect, model: nn.Module, batches: Iterable[Batch]) -> AssignedBoxes:
    """The table of one batch or more on the CPU, in one pass over them."""
    rows = []
    for batch in batches:
        priors, context = task.get_priors(batch["image"]), task.context(model, batch)
        for image, pair in enumerate(pairwise(batch["box_offsets"].tolist())):
            rows.append((batch["file_px"][image, None], *_of_image(priors, batch, context, image, slice(*pair))))
    return AssignedBoxes(priors, *(torch.cat(each) for each in zip(*rows, strict=True)))


def _of_image(priors: Priors, batch: Batch, context: Batch, image: int, rows: slice) -> tuple[Tensor, ...]:
    """An image's part of each column of the table, from `boxes` on."""
    is_counted = ~batch["is_ignored"][rows]
    boxes = batch["boxes"][rows][is_counted].to(priors.coordinates)
    target, squares = context["target"][image], priors.to_boxes(_SIDE_STRIDES)
    chosen = [squares[level] for level in priors.level_slices] + [squares[target < 0]]
    *best, free = (best_iou_of_boxes(replace(priors, coordinates=each), boxes) for each in chosen)
    counts = [
        priors.prior_level[is_it].bincount(minlength=len(best))[None] for is_it in (target >= 0, target == BACKGROUND)
    ]
    return boxes, torch.stack(best, dim=1), free, context["is_unmatched"][rows][is_counted], *counts
