"""Coverage of training boxes by a detector's anchors, compared with anchor sizes fitted to these boxes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sightline.areas.detect.anchor_shapes import fit_anchor_shapes, prior_coverage, prior_extent, shape_overlaps
from sightline.areas.detect.task import Detect
from sightline.contract.types import PrintedTable, SampleKey
from sightline.engine.build import TrainingSetup
from sightline.ops.box_overlaps import box_sizes
from sightline.ops.priors import Priors, best_iou_of_boxes, make_anchors
from sightline.parts.tasks.distillation import unwrap_distillation
from sightline.workbench.describe.report import DataDescription

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


def describe_anchors(built: TrainingSetup) -> DataDescription | None:
    """Describe the best IoU of training boxes with the anchors and with fitted sizes, by box size."""
    coverage = anchor_coverage(built)
    if coverage is None:
        return None
    sets = {
        "of the config, at their positions": "placed",
        "of the config, sizes only": "sizes",
        "fitted, at their positions": "fitted_placed",
        "fitted, sizes only": "fitted",
    }
    bins = [name for name, statistics in coverage["placed"]["bins"].items() if statistics["num_boxes"]]
    rows = [
        (
            title_of_set,
            *(f"{coverage[key][name]:.3f}" for name in ("mean_best_iou", "share_half", "share_below_0.3")),
            *(f"{coverage[key]['bins'][name]['mean_best_iou']:.3f}" for name in bins),
        )
        for title_of_set, key in sets.items()
        if coverage[key] is not None and coverage[key]["num_boxes"]
    ]
    counts = [f"{name} ({coverage['placed']['bins'][name]['num_boxes']})" for name in bins]
    title = (
        f"best IoU of {coverage['placed']['num_boxes']} boxes "
        f"in {coverage['num_images']} training images with an anchor"
    )
    lines: list[str | PrintedTable] = [
        PrintedTable(title, ("anchors", "mean", "share >= 0.5", "share < 0.3", *counts), rows)
    ]
    if coverage["fitted_placed"] and coverage["fitted_placed"]["mean_best_iou"] > coverage["placed"]["mean_best_iou"]:
        levels = [[list(anchor) for anchor in level] for level in coverage["fitted_sizes"]]
        lines.append(f"the fitted sizes cover boxes better: task.anchors={{sizes: {levels}}}")
    if not coverage["spanned"]["is_spanned"]:
        lines.append("the anchors' centres do not reach all sides of the canvas; look at task.grid and the canvas")
    return DataDescription("anchors", coverage, lines)
