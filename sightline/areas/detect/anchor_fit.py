"""Anchors against the boxes of a data set: how well they cover them, and anchor sizes fitted to the boxes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sightline.areas.detect.task import Detect
from sightline.contract.types import PrintedTable, SampleKey
from sightline.engine.build import TrainingSetup
from sightline.ops.box_overlaps import box_area, box_iou, box_sizes
from sightline.ops.priors import SIZE_BINS, Priors, best_iou_of_boxes, make_anchors
from sightline.parts.tasks.distillation import unwrap_distillation
from sightline.workbench.describe.sources import DataDescription

_MAX_IMAGES = 256


def anchor_coverage(built: TrainingSetup) -> dict[str, Any] | None:
    """Compute the coverage of boxes in training images, without ignored ones; None for a run without anchors.

    `placed` is the best IoU with anchors at their positions, `sizes` that of sizes only, with equal centres; both for
    the config's anchors and for as many `fitted` ones (None if there are fewer distinct boxes), whose `fitted_sizes`
    are by level. Source: Redmon and Farhadi 2017.
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
    return DataDescription("anchors", coverage, lines)


def shape_overlaps(sizes: Tensor, shapes: Tensor) -> Tensor:
    """Compute the IoU (M, A) of concentric boxes with widths and heights (M, 2) and (A, 2)."""
    return box_iou(
        *(
            torch.cat([-widths_heights / 2, widths_heights / 2], dim=1)
            for widths_heights in (sizes.double(), shapes.double())
        )
    )


def fit_anchor_shapes(sizes: Tensor, num_shapes: int, *, seed: int = 0, num_rounds: int = 300) -> Tensor:
    """Fit widths and heights (K, 2) float64, sorted by area, that maximise the mean best IoU with `sizes` (M, 2).

    k-means with the distance 1 - IoU; the first centres are drawn as k-means++ draws them. The mean of a group need not
    raise its IoU, so the best round is kept. Raises ValueError for fewer different sizes than shapes, and for sizes
    that are not positive. Source: Redmon and Farhadi 2017, section 2; Arthur and Vassilvitskii 2007.
    """
    sizes = sizes.double()
    if not (sizes > 0).all() or not sizes.isfinite().all():
        raise ValueError("sizes: found widths or heights that are not positive and finite; leave out such boxes")
    num_different = len(sizes.unique(dim=0))
    if not 1 <= num_shapes <= num_different:
        raise ValueError(f"num_shapes: found {num_shapes}, the boxes have {num_different} different sizes")
    shapes = _first_shapes(sizes, num_shapes, torch.Generator().manual_seed(seed))
    best, best_mean, nearest = shapes, -1.0, None
    for _ in range(num_rounds):
        overlap, group = shape_overlaps(sizes, shapes).max(dim=1)
        if float(overlap.mean()) > best_mean:
            best, best_mean = shapes, float(overlap.mean())
        if nearest is not None and torch.equal(group, nearest):
            break
        nearest, count = group, group.bincount(minlength=num_shapes)[:, None]
        sums = torch.zeros_like(shapes).index_add_(0, group, sizes)
        shapes = torch.where(count > 0, sums / count.clamp(min=1), shapes)
    return best[best.prod(dim=1).argsort()]


def prior_coverage(overlaps: Tensor, boxes: Tensor) -> dict[str, Any]:
    """Summarise how well priors cover boxes (M, 4), from the best IoU (M,) of each; overall and by size of box.

    Each summary has the number of boxes, the mean best IoU, and the shares with at least 0.5 and with less than 0.3;
    None without boxes.
    """
    areas = box_area(boxes)
    bins = {name: _summary(overlaps[(areas >= low) & (areas < high)]) for name, (low, high) in SIZE_BINS.items()}
    return {**_summary(overlaps), "bins": bins}


def _first_shapes(sizes: Tensor, count: int, generator: torch.Generator) -> Tensor:
    chosen = [int(torch.randint(len(sizes), (1,), generator=generator))]
    while len(chosen) < count:
        distance = (1 - shape_overlaps(sizes, sizes[chosen]).amax(dim=1)).clamp(min=0).square()
        chosen.append(int(torch.multinomial(distance.cpu(), 1, generator=generator)))
    return sizes[chosen]


def _summary(overlaps: Tensor) -> dict[str, Any]:
    if not len(overlaps):
        return {"num_boxes": 0, "mean_best_iou": None, "share_half": None, "share_below_0.3": None}
    return {
        "num_boxes": len(overlaps),
        "mean_best_iou": float(overlaps.double().mean()),
        "share_half": float((overlaps >= 0.5).double().mean()),
        "share_below_0.3": float((overlaps < 0.3).double().mean()),
    }
