"""Boxes that no prior fits or is to predict, levels without a positive, ignored boxes that are learned."""

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

_LEAST_IOU, _MOST_UNCOVERED, _FEWEST = 0.3, 0.02, 5
_MOST_LEFT_OUT = 0.03
"""Boxes left out although a free prior overlaps them so far; of the shipped assigners up to 0.019."""


@check(
    "G29",
    "anchor-coverage",
    "preflight",
    severity="warning",
    causes=("assign.anchor_coverage", "cfg.axis_swap", "assign.box_format"),
    config_path="task.anchors",
    expected=f"at most {_MOST_UNCOVERED:.0%}",
    action="set base_strides, scales and ratios (height over width) of task.anchors to the boxes on the canvas",
)
def anchor_coverage(context: Context) -> list[Finding]:
    """At most 2 % of the boxes have no anchor with an IoU of 0.3; those smaller than a cell are not counted.

    No anchors help these: the canvas is too small for them.
    """
    found = context.assignments
    if found is None or found.priors.kind != "anchors":
        return []
    is_counted = box_areas(found.boxes) >= found.priors.strides[0] ** 2
    missed = found.boxes[is_counted & (found.best_iou.amax(dim=1) < _LEAST_IOU)]
    share = len(missed) / max(1, int(is_counted.sum()))
    if not is_significantly_above(len(missed), int(is_counted.sum()), _MOST_UNCOVERED):
        return []
    width, height = box_sizes(missed).median(dim=0).values.tolist()
    sides = " to ".join(f"{float(edge):.0f}" for edge in box_areas(found.priors.coordinates).sqrt().aminmax())
    measured = (
        f"best IoU below {_LEAST_IOU:g} for {len(missed)} boxes of a cell or more, half narrower than {width:.0f} "
        f"and lower than {height:.0f} px, of {found.looked_at}; anchors have sides of {sides} px"
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
    """There are positives and negatives, boxes with a free prior get one, and so do levels that have boxes.

    That boxes stay without a prior which none could serve is a note.
    """
    found = context.assignments
    if found is None or not len(found.boxes):
        return
    positives, negatives = found.positives.sum(dim=0).tolist(), found.negatives.sum(dim=0).tolist()
    levels = (
        f"by level: positives {positives}, negatives {negatives}, boxes of its size "
        f"{found.num_boxes_of_level}; {found.looked_at}"
    )
    if not sum(positives) or not sum(negatives):
        what = "is background" if sum(positives) else "is to predict a box"
        yield unmatched_boxes.finding(
            context, f"no prior {what}", severity="error", measured=levels, expected="positives and negatives"
        )
        return
    pairs = zip(found.priors.strides, found.num_boxes_of_level, positives, strict=True)
    idle = [str(stride) for stride, natural, number in pairs if natural >= _FEWEST and not number]
    if idle:
        summary = f"levels of stride {', '.join(idle)} never get a positive, although boxes have their size"
        yield unmatched_boxes.finding(context, summary, measured=levels, expected="positives on each of them")
    unmatched = int(found.is_unmatched.sum())
    avoidable = int((found.is_unmatched & (found.best_free >= _LEAST_IOU)).sum())
    is_fault = is_significantly_above(avoidable, len(found.boxes), _MOST_LEFT_OUT)
    if is_fault or is_significantly_above(unmatched, len(found.boxes), _MOST_LEFT_OUT):
        yield unmatched_boxes.finding(
            context,
            f"{unmatched / len(found.boxes):.0%} of the boxes have no prior that is to predict them",
            severity="warning" if is_fault else "note",
            measured=f"{unmatched} of {found.looked_at}, {avoidable} with an IoU of {_LEAST_IOU:g} with a free prior",
            expected=f"at most {_MOST_LEFT_OUT:.0%} left out that a free prior overlaps",
        )


@check(
    "G30", "ignored-regions", "preflight", causes=("assign.ignore", "data.ignore_handling"), config_path="task.assigner"
)
def ignored_regions(context: Context) -> Iterator[Finding]:
    """Where all of an image is ignored, no prior has a box or is background; training ignores what scores ignore."""
    if context.assignments is None:
        return
    task, batch = context.built.job.task, to_device(context.first_outputs[0], torch.device("cpu"))
    count, corner = len(batch["image"]), [float(side) for side in batch["image"].shape[:1:-1]]
    batch |= {"boxes": torch.tensor([[0.0, 0.0, *corner]]).repeat(count, 1), "box_offsets": torch.arange(count + 1)}
    batch |= {"label": torch.zeros(count, dtype=torch.int64), "is_ignored": torch.ones(count, dtype=torch.bool)}
    squares = task.get_priors(batch["image"]).to_boxes(0)  # type: ignore[attr-defined]
    is_inside = (squares >= 0).all(dim=1) & (squares < squares.new_tensor(corner * 2)).all(dim=1)
    target = task.context(context.built.job.model, batch)["target"]  # type: ignore[attr-defined]
    learned = int(((target >= 0) | (is_inside & (target == BACKGROUND))).sum())
    if learned:
        yield ignored_regions.finding(
            context,
            "priors inside an ignored region are learned as background, or as its boxes",
            measured=f"{learned} of {target.numel()} priors, {int((target >= 0).sum())} of them with a box, where all "
            "of the image is one ignored region",
            expected="the target -2, which no loss reads",
            action="derive the assigner from Assigner and define `match` alone, which is not given the regions",
        )
    for survey in context.statistics:
        scored = sum(int((each["truth"][:, 6] > 0).sum()) for each in survey.boxed)
        if scored >= _FEWEST and not any(each["is_ignored"].any() for each in survey.boxed):
            yield ignored_regions.finding(
                context,
                "what is scored has ignored boxes, what is trained on has none: it is learned as background",
                severity="warning",
                causes=("data.ignore_handling",),
                at="data",
                split=survey.part.split,
                measured=f"{scored} ignored boxes in 'truth', 0 in 'boxes', of {survey.coverage_text}",
                expected="the same ones in both",
                action="keep ignored boxes among 'boxes', and set is_ignored for them",
                evidence={"field": "is_ignored"},
            )
