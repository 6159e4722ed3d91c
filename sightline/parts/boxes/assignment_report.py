"""Report of assignments: positive priors of each box and level, for one image and as a table over many."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from sightline.contract.types import PrintedTable
from sightline.ops.boxes.overlaps import box_area
from sightline.ops.boxes.priors import IGNORED, Priors
from sightline.parts.boxes.assigner import Assignment

_SIZES = {"px": (0.0, 16.0, 32.0, 64.0, 128.0, 256.0, math.inf), "m": (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, math.inf)}
"""Unit -> bounds of box sizes (roots of areas) in the report; octaves, as the levels of a pyramid."""


def report_assignment(assignment: Assignment, priors: Priors, boxes: Tensor, is_ignored: Tensor) -> dict[str, Any]:
    """Count the positive priors of one image, per box and per level; list boxes (M, D) without a prior.

    `positives_per_box` and `box_px`, the roots of areas, have an entry for each of `boxes` (M, 4), 0 and -1 for ignore
    regions; for boxes in space (M, 7) it is `box_m`, of areas from above. A prior of two boxes counts for both.
    `unmatched_boxes` are the indices of boxes that are not regions and have none. `num_ambiguous` priors were claimed
    by several boxes, `num_ignored` ones are counted by no loss.
    """
    unit, areas = ("m", boxes[:, 3] * boxes[:, 4]) if boxes.shape[1] == 7 else ("px", box_area(boxes))
    is_positive = assignment.matched >= 0
    per_box = assignment.matched[is_positive].bincount(minlength=len(boxes))
    if (second := assignment.second_matched) is not None:
        per_box += second[second >= 0].bincount(minlength=len(boxes))
    return {
        "num_boxes": int((~is_ignored).sum()),
        "num_positive": int(is_positive.sum()),
        "num_ignored": int((assignment.matched == IGNORED).sum()),
        "num_ambiguous": int((assignment.num_claims > 1).sum()),
        "positives_per_box": per_box.tolist(),
        "positives_per_level": priors.prior_level[is_positive].bincount(minlength=len(priors.strides)).tolist(),
        "unmatched_boxes": ((per_box == 0) & ~is_ignored).nonzero().flatten().tolist(),
        f"box_{unit}": areas.sqrt().masked_fill(is_ignored, -1).tolist(),
    }


def summarise_assigners(figures: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], PrintedTable] | None:
    """Summarise the figures of viewed stages: a row for each assigner over all samples, and the same as a table.

    None if no stage shows an assignment.
    """
    reports = [stage["assigners"] for stage in figures if "assigners" in stage]
    if not reports:
        return None
    rows = compare_assigners({name: [images[name] for images in reports] for name in reports[0]})
    counts = ("assigner", "boxes", "unmatched", "positives", "ambiguous")
    unit = _unit_of(reports[0].values())
    sizes = [f"{size} {unit} ({group['boxes']})" for size, group in rows[0]["of_size"].items()]
    cells = []
    for row in rows:
        means = [f"{group['positives']:.1f}" for group in row["of_size"].values()]
        cells.append((*map(row.get, counts), " ".join(map(str, row["per_level"])), *means))
    title = f"assignment, {len(reports)} images; on the right: positives a box, by its size"
    return {"assigners": rows}, PrintedTable(title, (*counts, "per level", *sizes), cells)


def compare_assigners(reports: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return a table row per assigner from its reports of the same images.

    `of_size` has, for each range of sizes in pixels, or metres, the number of boxes and the mean of their positives.
    """
    rows, unit = [], _unit_of(itertools.chain(*reports.values()))
    for name, image_reports in reports.items():
        pairs = [
            pair
            for report in image_reports
            for pair in zip(report[f"box_{unit}"], report["positives_per_box"], strict=True)
        ]
        of_size = {}
        for low, high in pairwise(_SIZES[unit]):
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
                "of_size": of_size,
            }
        )
    return rows


def _unit_of(reports: Iterable[Mapping[str, Any]]) -> str:
    """Return the unit of the sizes in reports: of boxes in space metres, else pixels."""
    return "m" if any("box_m" in report for report in reports) else "px"
