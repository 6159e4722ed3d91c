"""Checks of boxes: broken ones, and those that no prior is assigned to."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from sightline.compute.geometry.boxes.overlaps import box_areas, box_sizes, ioa
from sightline.compute.geometry.boxes.priors import BACKGROUND
from sightline.engine.device import to_device
from sightline.workbench.check.context import Context, assignments, check, surveys
from sightline.workbench.check.core.assigned_boxes import AssignedBoxes, is_significantly_above
from sightline.workbench.check.core.finding import Fault, Hypothesis, explain
from sightline.workbench.check.core.sample_statistics import PartStatistics

_BEYOND_PX = 1.0
_SHARES, _MAX_SHARES_PX, _MIN_BOXES = "shares of the image's sides", 1.5, 5
_MAX_OUTSIDE, _MAX_GAIN = 0.05, 0.15
_MIN_EXPLAINED, _MAX_LEFT, _MIN_IMAGES, _MIN_IMAGES_OF_FORMAT = 0.05, 0.33, 16, 4
"""Another reading is likely right if it brings 5 % of all boxes into the images and leaves at most a third outside.

Fewer images are not judged if corners are in order: the feet of one crowd may all be cut off, which exchanged axes may
explain. Another format of boxes would explain them only if most boxes began near the origin: four images are enough.
"""


@check(
    "G31",
    "broken-boxes",
    "preflight",
    each=surveys,
    config_path="data",
    expected="left < right and top < bottom, in pixels of the image",
    action="look at `sightline view`, and convert boxes where the data set reads them",
)
def broken_boxes(context: Context, survey: PartStatistics) -> Iterator[Fault]:
    """Corners of boxes are in order, and no other box format puts far more of the boxes into their images.

    Finds: Boxes that are not xyxy in pixels (left, top, right, bottom); exchanged sides of images or of the canvas.

    Trained and scored boxes are checked; boxes may extend beyond an image, as those of partly visible people do.
    """
    for field in ("truth", "boxes") if survey.boxed else ():
        boxes, limit = _collect_boxes(survey, field)
        if len(boxes):
            yield from _box_faults(survey, boxes, limit)


def _collect_boxes(survey: PartStatistics, field: str) -> tuple[Tensor, Tensor]:
    """Collect a part's boxes (N, 4) that are not ignored, and (W, H, W, H) of their images; float64."""
    boxes, limits = [], []
    for sample in survey.boxed:
        is_ignored, size = sample["is_ignored"], sample["image_px"]
        if field == "truth":
            is_ignored, size = sample[field][:, 6] > 0, sample["file_px"]
        boxes.append(sample[field][~is_ignored][:, :4].double())
        limits.append(size.flip(0).repeat(2).expand(len(boxes[-1]), 4).double())
    return torch.cat(boxes), torch.cat(limits)


def _iter_readings(boxes: Tensor, limit: Tensor) -> Iterator[Hypothesis]:
    """Yield other formats that boxes may have, with the number of boxes that are unsound if read so."""
    first, last = boxes.split(2, dim=1)
    for cause, text, corners, sizes in (
        ("assign.box_format", "left, top, width, height", (first, first + last), limit),
        ("assign.box_format", "centre, width and height", (first - last / 2, first + last / 2), limit),
        ("assign.box_format", "corners that were read as left, top, width, height", (first, last - first), limit),
        ("assign.box_format", "centre, centre + width and height", (1.5 * first - last / 2, (first + last) / 2), limit),
        ("assign.box_format", "right, bottom, left, top", (last, first), limit),
        ("cfg.axis_swap", "top, left, bottom, right", (first.flip(1), last.flip(1)), limit),
        ("cfg.axis_swap", "boxes of images with width and height exchanged", (first, last), limit[:, [1, 0, 3, 2]]),
        ("data.normalisation", _SHARES, (limit[:, :2] * first, limit[:, :2] * last), limit),
    ):
        yield Hypothesis(cause, text, _count_unsound(torch.cat(corners, dim=1), sizes))


def _box_faults(survey: PartStatistics, boxes: Tensor, limit: Tensor) -> Iterator[Fault]:
    count, num_unsound, highest = len(boxes), _count_unsound(boxes, limit), float(boxes.max())
    num_reversed = int((boxes[:, 2:] <= boxes[:, :2]).any(dim=1).sum())
    readings = explain(0, math.inf, _iter_readings(boxes, limit), likeness=lambda found, predicted: found - predicted)
    is_shares = count >= _MIN_BOXES and highest <= _MAX_SHARES_PX
    likely = next(reading for reading in readings if reading.text == _SHARES or not is_shares)
    num_left = likely.hypothesis.prediction
    is_explained = is_shares or (
        is_significantly_above(num_unsound, count, num_left / count + _MIN_EXPLAINED)
        and num_left <= _MAX_LEFT * num_unsound
    )
    num_outside = int((ioa(boxes, torch.cat([0 * limit[:, :2], limit[:, 2:]], dim=1)) < 0.5).sum()) - num_reversed
    is_outside = is_explained or is_significantly_above(num_outside, count, _MAX_OUTSIDE)
    causes = [likely.cause] if is_explained else ["data.corrupt_sample", "assign.box_format"]
    min_images = _MIN_IMAGES_OF_FORMAT if causes == ["assign.box_format"] else _MIN_IMAGES
    if num_reversed or is_shares or (is_outside and len(survey.boxed) >= min_images):
        yield Fault(
            f"boxes look like {likely.text}"
            if is_explained
            else "corners are in the wrong order, or outside their images",
            severity="error" if num_reversed or is_shares else "warning",
            causes=causes,
            measured=f"{num_reversed} of {count} boxes have right <= left or bottom <= top, {num_outside} others are "
            f"mostly outside, coordinates reach {highest:.4g} px, in {survey.coverage_text}",
            evidence={"field": "boxes"},
        )


def _count_unsound(boxes: Tensor, limit: Tensor) -> int:
    is_beyond = (boxes < -_BEYOND_PX) | (boxes > limit + _BEYOND_PX)
    return int((is_beyond.any(dim=1) | (boxes[:, 2:] <= boxes[:, :2]).any(dim=1)).sum())


@check(
    "G32",
    "swapped-canvas",
    "preflight",
    each=assignments,
    severity="warning",
    causes=("cfg.axis_swap",),
    config_path="transforms.train",
    action="exchange height and width in transforms.train and transforms.evaluate",
)
def swapped_canvas(context: Context, assigned: AssignedBoxes) -> Fault | None:
    """Images, scaled to fit, would not fill 15 % more of a canvas with height and width exchanged.

    Finds: Boxes that are not xyxy in pixels (left, top, right, bottom); exchanged sides of images or of the canvas.
    """
    height, width = context.first_outputs[0]["image"].shape[2:]
    ratios = assigned.file_px[:, 1] / assigned.file_px[:, 0]
    shapes = (width / height, height / width)
    filled, filled_if_swapped = (float(torch.minimum(ratios / shape, shape / ratios).mean()) for shape in shapes)
    if filled_if_swapped - filled <= _MAX_GAIN:
        return None
    return Fault(
        "images would fill the canvas far better if its width and height were exchanged",
        measured=f"{filled:.0%} of height {height} and width {width}, of {len(ratios)} training images",
        expected=f"{filled_if_swapped:.0%}, with height {width} and width {height}",
    )


_MIN_IOU, _MAX_UNCOVERED, _MIN_ASSIGNED_BOXES = 0.3, 0.02, 5
_MAX_AVOIDABLE = 0.03
"""Share of boxes left unmatched although a free prior overlaps them; up to 0.019 with the shipped assigners."""


@check(
    "G29",
    "anchor-coverage",
    "preflight",
    each=assignments,
    severity="warning",
    causes=("assign.anchor_coverage", "cfg.axis_swap", "assign.box_format"),
    config_path="task.anchors",
    expected=f"at most {_MAX_UNCOVERED:.0%}",
    action="set base_strides, scales and ratios (height over width) of task.anchors to the boxes on the canvas",
)
def anchor_coverage(context: Context, assigned: AssignedBoxes) -> Fault | None:
    """No more than 2 % of the boxes lack an anchor with an IoU of 0.3; boxes smaller than a cell are not counted.

    Finds: Boxes without a fitting or an assigned prior, levels without a positive, ignored boxes that are learned.

    No anchors would fit such small boxes: the canvas is too small for them.
    """
    if assigned.priors.kind != "anchors":
        return None
    is_counted = box_areas(assigned.boxes) >= assigned.priors.strides[0] ** 2
    missed = assigned.boxes[is_counted & (assigned.best_iou.amax(dim=1) < _MIN_IOU)]
    share = len(missed) / max(1, int(is_counted.sum()))
    if not is_significantly_above(len(missed), int(is_counted.sum()), _MAX_UNCOVERED):
        return None
    width, height = box_sizes(missed).median(dim=0).values.tolist()
    sides = " to ".join(f"{float(edge):.0f}" for edge in box_areas(assigned.priors.coordinates).sqrt().aminmax())
    measured = (
        f"best IoU below {_MIN_IOU:g} for {len(missed)} boxes of a cell or more, of median width {width:.0f} "
        f"and height {height:.0f} px, of {assigned.looked_at}; anchors have sides of {sides} px"
    )
    return Fault(f"no anchor fits {share:.0%} of the boxes", measured=measured)


@check(
    "G30",
    "unmatched-boxes",
    "preflight",
    each=assignments,
    severity="warning",
    causes=("assign.unmatched_gt", "assign.anchor_coverage", "loss.negatives"),
    config_path="task.assigner",
    action="look at the thresholds of the assigner, and at boxes on the canvas (`sightline view`); max_iou with "
    "low_quality: guarantee gives every box a prior",
)
def unmatched_boxes(context: Context, assigned: AssignedBoxes) -> Iterator[Fault]:
    """Priors are both positive and negative, boxes with a free prior get one, levels with boxes have positives.

    Finds: Boxes without a fitting or an assigned prior, levels without a positive, ignored boxes that are learned.

    Boxes without a prior are only a note if no free prior overlaps them.
    """
    if not len(assigned.boxes):
        return
    positives, negatives = assigned.positives.sum(dim=0).tolist(), assigned.negatives.sum(dim=0).tolist()
    levels = (
        f"by level: positives {positives}, negatives {negatives}, boxes of its size "
        f"{assigned.num_boxes_of_level}; {assigned.looked_at}"
    )
    if not sum(positives) or not sum(negatives):
        role = "is background" if sum(positives) else "is assigned a box"
        yield Fault(f"no prior {role}", severity="error", measured=levels, expected="positives and negatives")
        return
    pairs = zip(assigned.priors.strides, assigned.num_boxes_of_level, positives, strict=True)
    idle = [
        str(stride)
        for stride, num_sized, num_positives in pairs
        if num_sized >= _MIN_ASSIGNED_BOXES and not num_positives
    ]
    if idle:
        summary = f"levels of stride {', '.join(idle)} never get a positive, although boxes have that size"
        yield Fault(summary, measured=levels, expected="positives on each of these levels")
    unmatched = int(assigned.is_unmatched.sum())
    avoidable = int((assigned.is_unmatched & (assigned.best_free >= _MIN_IOU)).sum())
    is_fault = is_significantly_above(avoidable, len(assigned.boxes), _MAX_AVOIDABLE)
    if is_fault or is_significantly_above(unmatched, len(assigned.boxes), _MAX_AVOIDABLE):
        yield Fault(
            f"{unmatched / len(assigned.boxes):.0%} of the boxes are not assigned to any prior",
            severity="warning" if is_fault else "note",
            measured=f"{unmatched} of {assigned.looked_at}, {avoidable} with an IoU of {_MIN_IOU:g} with a free prior",
            expected=f"at most {_MAX_AVOIDABLE:.0%} without a prior although a free one overlaps them",
        )


@check(
    "G30",
    "ignored-regions",
    "preflight",
    each=assignments,
    causes=("assign.ignore", "data.ignore_handling"),
    config_path="task.assigner",
)
def ignored_regions(context: Context, assigned: AssignedBoxes) -> Iterator[Fault]:
    """Priors in ignored regions are neither positive nor background; training ignores what scoring ignores.

    Finds: Boxes without a fitting or an assigned prior, levels without a positive, ignored boxes that are learned.
    """
    task, batch = context.built.job.task, to_device(context.first_outputs[0], torch.device("cpu"))
    count, size_px = len(batch["image"]), [float(side) for side in batch["image"].shape[:1:-1]]
    batch |= {"boxes": torch.tensor([[0.0, 0.0, *size_px]]).repeat(count, 1), "box_offsets": torch.arange(count + 1)}
    batch |= {"label": torch.zeros(count, dtype=torch.int64), "is_ignored": torch.ones(count, dtype=torch.bool)}
    prior_boxes = task.get_priors(batch["image"]).to_boxes(0)  # type: ignore[attr-defined]
    is_inside = (prior_boxes >= 0).all(dim=1) & (prior_boxes < prior_boxes.new_tensor(size_px * 2)).all(dim=1)
    target = task.context(context.built.job.model, batch)["target"]  # type: ignore[attr-defined]
    num_learned = int(((target >= 0) | (is_inside & (target == BACKGROUND))).sum())
    if num_learned:
        yield Fault(
            "priors inside an ignored region are learned as background, or as its boxes",
            measured=f"{num_learned} of {target.numel()} priors, {int((target >= 0).sum())} of them with a box, where "
            "all of the image is one ignored region",
            expected="the target -2, which no loss reads",
            action="derive the assigner from Assigner and define `match` alone, which does not receive the regions",
        )
    for survey in context.statistics:
        num_scored = sum(int((sample["truth"][:, 6] > 0).sum()) for sample in survey.boxed)
        if num_scored >= _MIN_ASSIGNED_BOXES and not any(sample["is_ignored"].any() for sample in survey.boxed):
            yield Fault(
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
