"""Assignment statistics as plain data, for pictures, tables and warnings."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from sightline.areas.detect.assigners.base import BACKGROUND, IGNORED, Assignment
from sightline.contract.types import PrintedTable
from sightline.ops.box_overlaps import box_area, iou
from sightline.ops.priors import Priors

_SIZES_PX = (0.0, 16.0, 32.0, 64.0, 128.0, 256.0, math.inf)
"""Bounds of box sizes (roots of areas) in the report; octaves, as the levels of a pyramid."""


def assignment_report(assignment: Assignment, priors: Priors, boxes: Tensor, is_ignored: Tensor) -> dict[str, Any]:
    """Count the priors of one image by kind, and positives per box and per level; list boxes (M, 4) without a prior.

    `positives_per_box` has an entry for each of `boxes` (M, 4), 0 for ignore regions; `unmatched_boxes` are the indices
    of boxes that are not regions and have none. `num_ambiguous` priors were claimed by several boxes. `mean_iou` is
    that of the positives with their boxes, None for points or without a positive.
    """
    matched = assignment.matched
    is_positive = matched >= 0
    per_box = matched[is_positive].bincount(minlength=len(boxes))
    per_level = priors.prior_level[is_positive].bincount(minlength=len(priors.strides))
    mean = None
    if priors.kind == "anchors" and is_positive.any():
        mean = float(iou(priors.coordinates[is_positive], boxes[matched[is_positive]]).mean())
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


def timed_report(
    assigner: Callable[[Priors, Tensor, Tensor], Assignment], priors: Priors, boxes: Tensor, is_ignored: Tensor
) -> tuple[Assignment, dict[str, Any]]:
    """Assign boxes (M, 4), `is_ignored` (M,), and report, with the CPU time `cpu_ms` and the `box_px` of each box.

    `box_px` are the roots of their areas, -1 for ignore regions. It assigns twice and times the second: at first,
    memory is allocated and kernels are compiled.
    """
    assigner(priors, boxes, is_ignored)
    started = time.process_time()
    assignment = assigner(priors, boxes, is_ignored)
    cpu_ms = 1000 * (time.process_time() - started)
    report = assignment_report(assignment, priors, boxes, is_ignored)
    sizes = box_area(boxes).sqrt().masked_fill(is_ignored, -1).tolist()
    return assignment, {**report, "cpu_ms": cpu_ms, "box_px": sizes}


def summarise_assigners(figures: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], PrintedTable] | None:
    """Summarise the figures of viewed stages: a row for each assigner over all samples, and the same as a table.

    None if no stage shows an assignment.
    """
    reports = [stage["assigners"] for stage in figures if "assigners" in stage]
    if not reports:
        return None
    rows = compare_assigners({name: [images[name] for images in reports] for name in reports[0]})
    counts = ("assigner", "boxes", "unmatched", "positives", "ambiguous")
    sizes = [f"{size} px ({group['boxes']})" for size, group in rows[0]["of_size"].items()]
    cells = []
    for row in rows:
        means = [f"{group['positives']:.1f}" for group in row["of_size"].values()]
        cells.append((*map(row.get, counts), " ".join(map(str, row["per_level"])), f"{row['cpu_ms']:.1f}", *means))
    title = f"assignment, {len(reports)} images; on the right: positives a box, by its size"
    return {"assigners": rows}, PrintedTable(title, (*counts, "per level", "CPU ms an image", *sizes), cells)


def compare_assigners(reports: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return a table row per assigner from its reports of the same images: sums, and the mean time of an image.

    `of_size` has, for each range of sizes in pixels, the number of boxes and the mean of their positives.
    """
    rows = []
    for name, image_reports in reports.items():
        pairs = [
            pair for report in image_reports for pair in zip(report["box_px"], report["positives_per_box"], strict=True)
        ]
        of_size = {}
        for low, high in pairwise(_SIZES_PX):
            counts = [positives for side, positives in pairs if low <= side < high]
            if counts:
                of_size[f"{low:g}-{high:g}"] = {"boxes": len(counts), "positives": sum(counts) / len(counts)}
        levels = [
            sum(level) for level in zip(*(report["positives_per_level"] for report in image_reports), strict=True)
        ]
        rows.append(
            {
                "assigner": name,
                "boxes": sum(side >= 0 for side, _ in pairs),
                "unmatched": sum(len(report["unmatched_boxes"]) for report in image_reports),
                "positives": sum(levels),
                "ambiguous": sum(report["num_ambiguous"] for report in image_reports),
                "per_level": levels,
                "cpu_ms": sum(report["cpu_ms"] for report in image_reports) / len(image_reports),
                "of_size": of_size,
            }
        )
    return rows
