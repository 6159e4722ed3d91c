"""Anchor shapes fitted to the boxes of a data set, and how well priors cover boxes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sightline.ops.box_overlaps import box_area, box_iou
from sightline.ops.priors import SIZE_BINS, Priors


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


def prior_extent(priors: Priors, *, height: int, width: int) -> dict[str, Any]:
    """Return the range of the prior centres on each level, and if they span the padded input.

    They do if no pixel is more than a stride away from the range of the centres, on any side.
    """
    levels = []
    for stride, rows in zip(priors.strides, priors.level_slices, strict=True):
        (left, top), (right, bottom) = (corner.tolist() for corner in torch.aminmax(priors.centres[rows], dim=0))
        gap = max(left, top, width - right, height - bottom)
        centres = {"x_px": [left, right], "y_px": [top, bottom]}
        levels.append({"stride": stride, **centres, "is_spanned": gap <= stride})
    return {"levels": levels, "is_spanned": all(level["is_spanned"] for level in levels)}


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
