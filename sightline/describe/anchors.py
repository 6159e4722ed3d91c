"""How well the anchors of a detector cover the boxes of its training images, beside sizes fitted to these boxes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sightline.engine.build import TrainingSetup
from sightline.geometry.boxes.anchor_fitting import (
    best_iou_of_boxes,
    fit_anchor_shapes,
    prior_coverage,
    prior_extent,
    shape_overlaps,
)
from sightline.geometry.boxes.overlaps import box_sizes
from sightline.geometry.boxes.priors import Priors, make_anchors
from sightline.tasks.detect import Detect
from sightline.tasks.distillation import unwrap_distillation
from sightline.types import SampleKey

__all__ = ["anchor_coverage"]

_MOST_IMAGES = 256


def anchor_coverage(built: TrainingSetup) -> dict[str, Any] | None:
    """Coverage of boxes in images as training sees them, ignored ones left out; None for a run without anchors.

    `placed` counts the best IoU with an anchor where both lie, `sizes` that of sizes alone, around one centre; both of
    the config's anchors and as many `fitted` ones (None of fewer different boxes), level by level `fitted_sizes`.
    `spanned` is whether the anchors' centres reach every side of the canvas. Source: Redmon and Farhadi 2017.
    """
    task, part = unwrap_distillation(built.job.task), built.data.train
    if not isinstance(task, Detect):
        return None
    images: list[tuple[Priors, Tensor]] = []
    for index in part.evenly_spaced_indices(_MOST_IMAGES):
        batch = part.reader([SampleKey(int(index), 0, built.config.seed)])
        priors = task.get_priors(batch["image"])
        if priors.kind != "anchors":
            return None
        images.append((priors, batch["boxes"][~batch["is_ignored"]].to(priors.coordinates)))
    boxes = torch.cat([own for _, own in images])
    sizes, shapes = box_sizes(boxes), _sizes_of(priors)
    figures = {
        "num_images": len(images),
        "placed": prior_coverage(torch.cat([best_iou_of_boxes(*image) for image in images]), boxes),
        "sizes": prior_coverage(_best(sizes, shapes), boxes),
        "spanned": prior_extent(priors, height=batch["image"].shape[2], width=batch["image"].shape[3]),
        "fitted_placed": None,
        "fitted": None,
        "fitted_sizes": None,
    }
    if len(sizes.unique(dim=0)) >= shapes[..., 0].numel():
        fitted = fit_anchor_shapes(sizes, shapes[..., 0].numel()).view_as(shapes)
        levels = [[(round(width, 1), round(height, 1)) for width, height in level] for level in fitted.tolist()]
        placed = [
            best_iou_of_boxes(make_anchors(own.maps, own.strides, levels, grid=own.grid), at) for own, at in images
        ]
        figures["fitted_placed"] = prior_coverage(torch.cat(placed), boxes)
        figures |= {"fitted": prior_coverage(_best(sizes, fitted), boxes), "fitted_sizes": levels}
    return figures


def _sizes_of(priors: Priors) -> Tensor:
    """Width and height (L, A, 2) of the anchors of a cell on each level."""
    counts = zip(priors.level_slices, priors.priors_per_cell, strict=True)
    return torch.stack([box_sizes(priors.coordinates[level][:count]) for level, count in counts])


def _best(sizes: Tensor, shapes: Tensor) -> Tensor:
    """The highest IoU (M,) of boxes with one of these sizes (L, A, 2)."""
    return shape_overlaps(sizes, shapes.flatten(0, 1)).amax(dim=1)
