"""Coverage of training boxes by a detector's anchors, compared with anchor sizes fitted to these boxes."""

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

_MAX_IMAGES = 256


def anchor_coverage(built: TrainingSetup) -> dict[str, Any] | None:
    """Compute the coverage of boxes in training images, without ignored ones; None for a run without anchors.

    `placed` is the best IoU with anchors at their positions, `sizes` that of sizes only, with equal centres; both for
    the config's anchors and for as many `fitted` ones (None if there are fewer distinct boxes), whose `fitted_sizes`
    are by level. `spanned`: the anchors' centres reach every side of the canvas. Source: Redmon and Farhadi 2017.
    """
    task, part = unwrap_distillation(built.job.task), built.data.train
    if not isinstance(task, Detect):
        return None
    images: list[tuple[Priors, Tensor]] = []
    for index in part.evenly_spaced_indices(_MAX_IMAGES):
        batch = part.reader([SampleKey(int(index), 0, built.config.seed)])
        priors = task.get_priors(batch["image"])
        if priors.kind != "anchors":
            return None
        images.append((priors, batch["boxes"][~batch["is_ignored"]].to(priors.coordinates)))
    boxes = torch.cat([image_boxes for _, image_boxes in images])
    sizes, shapes = box_sizes(boxes), _anchor_sizes(priors)
    figures = {
        "num_images": len(images),
        "placed": prior_coverage(torch.cat([best_iou_of_boxes(*image) for image in images]), boxes),
        "sizes": prior_coverage(_best_iou(sizes, shapes), boxes),
        "spanned": prior_extent(priors, height=batch["image"].shape[2], width=batch["image"].shape[3]),
        "fitted_placed": None,
        "fitted": None,
        "fitted_sizes": None,
    }
    if len(sizes.unique(dim=0)) >= shapes[..., 0].numel():
        fitted = fit_anchor_shapes(sizes, shapes[..., 0].numel()).view_as(shapes)
        levels = [[(round(width, 1), round(height, 1)) for width, height in level] for level in fitted.tolist()]
        placed = [
            best_iou_of_boxes(make_anchors(p.maps, p.strides, levels, grid=p.grid), image_boxes)
            for p, image_boxes in images
        ]
        figures["fitted_placed"] = prior_coverage(torch.cat(placed), boxes)
        figures |= {"fitted": prior_coverage(_best_iou(sizes, fitted), boxes), "fitted_sizes": levels}
    return figures


def _anchor_sizes(priors: Priors) -> Tensor:
    """Compute width and height (L, A, 2) of the anchors of one cell on each level."""
    counts = zip(priors.level_slices, priors.priors_per_cell, strict=True)
    return torch.stack([box_sizes(priors.coordinates[level][:count]) for level, count in counts])


def _best_iou(sizes: Tensor, shapes: Tensor) -> Tensor:
    """Compute the best IoU (M,) of box sizes (M, 2) with anchor sizes (L, A, 2) at equal centres."""
    return shape_overlaps(sizes, shapes.flatten(0, 1)).amax(dim=1)
