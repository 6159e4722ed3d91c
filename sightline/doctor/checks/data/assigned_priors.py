"""Boxes without a fitting or an assigned prior, levels without a positive, ignored boxes that are learned."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sightline.doctor.context import Context, check
from sightline.doctor.core.assigned_boxes import is_significantly_above
from sightline.doctor.core.finding import Finding
from sightline.engine.device import to_device
from sightline.geometry.boxes.overlaps import box_areas, box_sizes
from sightline.geometry.boxes.priors import BACKGROUND

__all__ = ["anchor_coverage", "ignored_regions", "unmatched_boxes"]

_MIN_IOU, _MAX_UNCOVERED, _MIN_BOXES = 0.3, 0.02, 5
_MAX_AVOIDABLE = 0.03
"""Share of boxes left unmatched although a free prior overlaps them; up to 0.019 with the shipped assigners."""


@check(
    "G29",
    "anchor-coverage",
    "preflight",
    severity="warning",
    causes=("assign.anchor_coverage", "cfg.axis_swap", "assign.box_format"),
    config_path="task.anchors",
    expected=f"at most {_MAX_UNCOVERED:.0%}",
    action="set base_strides, scales and ratios (height over width) of task.anchors to the boxes on the canvas",
)
def anchor_coverage(context: Context) -> list[Finding]:
    """No more than 2 % of the boxes lack an anchor with an IoU of 0.3; boxes smaller than a cell are not counted.

    Finds: Boxes without a fitting or an assigned prior, levels without a positive, ignored boxes that are learned.

    No anchors would fit such small boxes: the canvas is too small for them.
    """
    assignments = context.assignments
    if assignments is None or assignments.priors.kind != "anchors":
        return []
    is_counted = box_areas(assignments.boxes) >= assignments.priors.strides[0] ** 2
    missed = assignments.boxes[is_counted & (assignments.best_iou.amax(dim=1) < _MIN_IOU)]
    share = len(missed) / max(1, int(is_counted.sum()))
    if not is_significantly_above(len(missed), int(is_counted.sum()), _MAX_UNCOVERED):
        return []
    width, height = box_sizes(missed).median(dim=0).values.tolist()
    sides = " to ".join(f"{float(edge):.0f}" for edge in box_areas(assignments.priors.coordinates).sqrt().aminmax())
    measured = (
        f"best IoU below {_MIN_IOU:g} for {len(missed)} boxes of a cell or more, of median width {width:.0f} "
        f"and height {height:.0f} px, of {assignments.looked_at}; anchors have sides of {sides} px"
    )
    return [anchor_coverage.finding(context, f"no anchor fits {share:.0%} of the boxes", measured=measured)]


@check(
    "G30",
    "unmatched-boxes",
    "preflight",
    severity="warning",
    causes=("assign.unmatched_gt", "assign.anchor_coverage", "loss.negatives"),
    config_path="task.assigner",
    action="look at the thresholds of the assigner, and at boxes on the canvas (`sightline view`); max_iou with "
    "low_quality: guarantee gives every box a prior",
)
def unmatched_boxes(context: Context) -> Iterator[Finding]:
    """Priors are both positive and negative, boxes with a free prior get one, levels with boxes have positives.

    Finds: Boxes without a fitting or an assigned prior, levels without a positive, ignored boxes that are learned.

    Boxes without a prior are only a note if no free prior overlaps them.
    """
    assignments = context.assignments
    if assignments is None or not len(assignments.boxes):
        return
    positives, negatives = assignments.positives.sum(dim=0).tolist(), assignments.negatives.sum(dim=0).tolist()
    levels = (
        f"by level: positives {positives}, negatives {negatives}, boxes of its size "
        f"{assignments.num_boxes_of_level}; {assignments.looked_at}"
    )
    if not sum(positives) or not sum(negatives):
        role = "is background" if sum(positives) else "is assigned a box"
        yield unmatched_boxes.finding(
            context, f"no prior {role}", severity="error", measured=levels, expected="positives and negatives"
        )
        return
    pairs = zip(assignments.priors.strides, assignments.num_boxes_of_level, positives, strict=True)
    idle = [str(stride) for stride, num_sized, num_positives in pairs if num_sized >= _MIN_BOXES and not num_positives]
    if idle:
        summary = f"levels of stride {', '.join(idle)} never get a positive, although boxes have that size"
        yield unmatched_boxes.finding(context, summary, measured=levels, expected="positives on each of these levels")
    unmatched = int(assignments.is_unmatched.sum())
    avoidable = int((assignments.is_unmatched & (assignments.best_free >= _MIN_IOU)).sum())
    is_fault = is_significantly_above(avoidable, len(assignments.boxes), _MAX_AVOIDABLE)
    if is_fault or is_significantly_above(unmatched, len(assignments.boxes), _MAX_AVOIDABLE):
        yield unmatched_boxes.finding(
            context,
            f"{unmatched / len(assignments.boxes):.0%} of the boxes are not assigned to any prior",
            severity="warning" if is_fault else "note",
            measured=f"{unmatched} of {assignments.looked_at}, {avoidable} with an IoU of {_MIN_IOU:g} with a free "
            "prior",
            expected=f"at most {_MAX_AVOIDABLE:.0%} without a prior although a free one overlaps them",
        )


@check(
    "G30", "ignored-regions", "preflight", causes=("assign.ignore", "data.ignore_handling"), config_path="task.assigner"
)
def ignored_regions(context: Context) -> Iterator[Finding]:
    """Priors in ignored regions are neither positive nor background; training ignores what scoring ignores.

    Finds: Boxes without a fitting or an assigned prior, levels without a positive, ignored boxes that are learned.
    """
    if context.assignments is None:
        return
    task, batch = context.built.job.task, to_device(context.first_outputs[0], torch.device("cpu"))
    count, size_px = len(batch["image"]), [float(side) for side in batch["image"].shape[:1:-1]]
    batch |= {"boxes": torch.tensor([[0.0, 0.0, *size_px]]).repeat(count, 1), "box_offsets": torch.arange(count + 1)}
    batch |= {"label": torch.zeros(count, dtype=torch.int64), "is_ignored": torch.ones(count, dtype=torch.bool)}
    prior_boxes = task.get_priors(batch["image"]).to_boxes(0)  # type: ignore[attr-defined]
    is_inside = (prior_boxes >= 0).all(dim=1) & (prior_boxes < prior_boxes.new_tensor(size_px * 2)).all(dim=1)
    target = task.context(context.built.job.model, batch)["target"]  # type: ignore[attr-defined]
    num_learned = int(((target >= 0) | (is_inside & (target == BACKGROUND))).sum())
    if num_learned:
        yield ignored_regions.finding(
            context,
            "priors inside an ignored region are learned as background, or as its boxes",
            measured=f"{num_learned} of {target.numel()} priors, {int((target >= 0).sum())} of them with a box, where "
            "all of the image is one ignored region",
            expected="the target -2, which no loss reads",
            action="derive the assigner from Assigner and define `match` alone, which does not receive the regions",
        )
    for survey in context.statistics:
        num_scored = sum(int((sample["truth"][:, 6] > 0).sum()) for sample in survey.boxed)
        if num_scored >= _MIN_BOXES and not any(sample["is_ignored"].any() for sample in survey.boxed):
            yield ignored_regions.finding(
                context,
                "scored labels have ignored boxes, training labels have none: their regions are learned as background",
                severity="warning",
                causes=("data.ignore_handling",),
                at="data",
                split=survey.part.split,
                measured=f"{num_scored} ignored boxes in 'truth', 0 in 'boxes', of {survey.coverage_text}",
                expected="the same ignored boxes in both",
                action="keep ignored boxes in 'boxes', and set is_ignored for them",
                evidence={"field": "is_ignored"},
            )
