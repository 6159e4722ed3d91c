"""Checks of boxes: broken ones, and those that no prior is assigned to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sightline.contract.types import ComponentConfig
from sightline.doctor.attempts import MissingError, attempt
from sightline.doctor.evidence import Evidence
from sightline.engine.device import to_device
from sightline.ops.box_overlaps import box_area, box_sizes, ioa, iou
from sightline.ops.priors import BACKGROUND
from sightline.parts.tasks.distillation import unwrap_distillation
from sightline.workbench.check.context import Context, assignments, check, surveys
from sightline.workbench.check.core.assigned_boxes import AssignedBoxes, is_significantly_above
from sightline.workbench.check.core.finding import Explanation, Fault, Hypothesis, explain
from sightline.workbench.check.core.sample_statistics import PartStatistics
from sightline.workbench.check.loss_subjects import LossSubject, make_loss_subjects

_BEYOND_PX = 1.0
_SHARES, _MAX_SHARES_PX, _MIN_BOXES = "shares of the image's sides", 1.5, 5
_FROM_CENTRE = "centre, centre + width and height"
_MAX_OUTSIDE, _MAX_GAIN = 0.05, 0.15
_MIN_EXPLAINED, _MAX_LEFT, _MIN_IMAGES, _FEW_IMAGES, _MAX_OUTSIDE_OF_FEW = 0.05, 0.33, 16, 4, 0.5
"""Another reading is likely right if it brings 5 % of all boxes into the images and leaves at most a third outside.

Fewer images are not judged if corners are in order: the feet of one crowd may all be cut off, which exchanged axes may
explain. Four images are enough if half of the boxes are mostly outside, where feet that are cut off leave no box. They
are for another format of boxes, too, which would explain cut feet only if most boxes began near the origin. Not for
corners that are centres: read so every box shrinks to its upper left, and feet that are cut off are inside.
"""


@check(
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


def _iter_readings(
    boxes: Tensor, limit: Tensor, count: Callable[[Tensor, Tensor], int] | None = None
) -> Iterator[Hypothesis]:
    """Yield other formats that boxes may have, with the `count` of those that are unsound if read so."""
    count = count or _count_unsound
    first, last = boxes.split(2, dim=1)
    for cause, text, corners, sizes in (
        ("assign.box_format", "left, top, width, height", (first, first + last), limit),
        ("assign.box_format", "centre, width and height", (first - last / 2, first + last / 2), limit),
        ("assign.box_format", "corners that were read as left, top, width, height", (first, last - first), limit),
        ("assign.box_format", _FROM_CENTRE, (1.5 * first - last / 2, (first + last) / 2), limit),
        ("assign.box_format", "right, bottom, left, top", (last, first), limit),
        ("cfg.axis_swap", "top, left, bottom, right", (first.flip(1), last.flip(1)), limit),
        ("cfg.axis_swap", "boxes of images with width and height exchanged", (first, last), limit[:, [1, 0, 3, 2]]),
        ("data.normalisation", _SHARES, (limit[:, :2] * first, limit[:, :2] * last), limit),
    ):
        yield Hypothesis(cause, text, count(torch.cat(corners, dim=1), sizes))


def _box_faults(survey: PartStatistics, boxes: Tensor, limit: Tensor) -> Iterator[Fault]:
    count, highest = len(boxes), float(boxes.max())
    num_reversed = int((boxes[:, 2:] <= boxes[:, :2]).any(dim=1).sum())
    is_shares = count >= _MIN_BOXES and highest <= _MAX_SHARES_PX
    likely, is_explained = _find_reading(boxes, limit, is_shares=is_shares)
    num_outside = _count_outside(boxes, limit) - num_reversed
    is_outside = is_explained or is_significantly_above(num_outside, count, _MAX_OUTSIDE)
    causes = [likely.cause] if is_explained else ["data.corrupt_sample", "assign.box_format"]
    is_format = causes == ["assign.box_format"] and likely.text != _FROM_CENTRE
    min_images = _FEW_IMAGES if is_format or num_outside > _MAX_OUTSIDE_OF_FEW * count else _MIN_IMAGES
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


def _find_reading(boxes: Tensor, limit: Tensor, *, is_shares: bool = False) -> tuple[Explanation, bool]:
    """Return the likeliest other format of boxes, and True if it brings far more of them into their images."""
    readings = explain(0, math.inf, _iter_readings(boxes, limit), likeness=lambda found, predicted: found - predicted)
    likely = next(reading for reading in readings if reading.text == _SHARES or not is_shares)
    num_left, num_unsound = likely.hypothesis.prediction, _count_unsound(boxes, limit)
    is_explained = is_shares or (
        is_significantly_above(num_unsound, len(boxes), num_left / len(boxes) + _MIN_EXPLAINED)
        and num_left <= _MAX_LEFT * num_unsound
    )
    return likely, is_explained


def _count_outside(boxes: Tensor, limit: Tensor) -> int:
    """Count the boxes that lie mostly outside their images; corners in the wrong order enclose nothing."""
    is_reversed = (boxes[:, 2:] <= boxes[:, :2]).any(dim=1)
    return int((is_reversed | (ioa(boxes, torch.cat([0 * limit[:, :2], limit[:, 2:]], dim=1)) < 0.5)).sum())


def _count_unsound(boxes: Tensor, limit: Tensor) -> int:
    is_beyond = (boxes < -_BEYOND_PX) | (boxes > limit + _BEYOND_PX)
    return int((is_beyond.any(dim=1) | (boxes[:, 2:] <= boxes[:, :2]).any(dim=1)).sum())


@check(
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
    filled, filled_if_swapped = _measure_fill(context, assigned)
    if filled_if_swapped - filled <= _MAX_GAIN:
        return None
    return Fault(
        "images would fill the canvas far better if its width and height were exchanged",
        measured=f"{filled:.0%} of height {height} and width {width}, of {len(assigned.file_px)} training images",
        expected=f"{filled_if_swapped:.0%}, with height {width} and width {height}",
    )


def _measure_fill(context: Context, assigned: AssignedBoxes) -> tuple[float, float]:
    """Return the share of the canvas that images fill, and that they would fill of one with exchanged sides."""
    height, width = context.first_outputs[0]["image"].shape[2:]
    ratios = assigned.file_px[:, 1] / assigned.file_px[:, 0]
    shapes = (width / height, height / width)
    filled, swapped = (float(torch.minimum(ratios / shape, shape / ratios).mean()) for shape in shapes)
    return filled, swapped


_MIN_IOU, _MAX_UNCOVERED, _MIN_ASSIGNED_BOXES = 0.3, 0.02, 5
_MAX_AVOIDABLE = 0.03
"""Share of boxes left unmatched although a free prior overlaps them; up to 0.019 with the shipped assigners."""


@check(
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
    is_counted = box_area(assigned.boxes) >= assigned.priors.strides[0] ** 2
    missed = assigned.boxes[is_counted & (assigned.best_iou.amax(dim=1) < _MIN_IOU)]
    share = len(missed) / max(1, int(is_counted.sum()))
    if not is_significantly_above(len(missed), int(is_counted.sum()), _MAX_UNCOVERED):
        return None
    width, height = box_sizes(missed).median(dim=0).values.tolist()
    sides = " to ".join(f"{float(edge):.0f}" for edge in box_area(assigned.priors.coordinates).sqrt().aminmax())
    measured = (
        f"best IoU below {_MIN_IOU:g} for {len(missed)} boxes of a cell or more, of median width {width:.0f} "
        f"and height {height:.0f} px, of {assigned.looked_at}; anchors have sides of {sides} px"
    )
    causes, text = _explain_misfits(context, assigned)
    return Fault(f"no anchor fits {share:.0%} of the boxes{text}", causes=causes, measured=measured)


def _explain_misfits(context: Context, assigned: AssignedBoxes) -> tuple[tuple[str, ...], str]:
    """Return the causes of boxes that no anchor fits, and what tells them: another shape of the canvas, or of boxes."""
    causes = anchor_coverage.causes
    filled, filled_if_swapped = _measure_fill(context, assigned)
    if filled_if_swapped - filled > _MAX_GAIN:
        return ("cfg.axis_swap", *causes), ", on a canvas with width and height exchanged"
    boxes, limit = _collect_boxes(context.statistics[0], "boxes")  # as they are read: transforms may cut them
    if not len(boxes):
        return (), ""
    num_outside = _count_outside(boxes, limit)
    likely = min(_iter_readings(boxes, limit, _count_outside), key=lambda reading: reading.prediction)
    if is_significantly_above(num_outside, len(boxes), _MAX_OUTSIDE):
        if likely.prediction <= _MAX_LEFT * num_outside:
            return (likely.cause, *causes), f", which look like {likely.text}"
        text = f"; {num_outside} of {len(boxes)} lie mostly outside their images"
        return ("data.corrupt_sample", "assign.box_format", *causes), text
    return (), ""


_MIN_IDLE, _MIN_CROWDED, _MIN_CROWDED_BOXES = 2, 0.5, 20
"""Levels without a point, share of the lowest level's points in all, and boxes: one level may be idle by chance."""


@check(
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

    Boxes without a prior are only a note if no free prior overlaps them, and so are levels of FCOS without a point.
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
        causes = ("loss.negatives", "assign.unmatched_gt") if sum(positives) else ()
        yield Fault(
            f"no prior {role}", severity="error", causes=causes, measured=levels, expected="positives and negatives"
        )
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
    yield from _find_untrained_levels(context, assigned)
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


def _find_untrained_levels(context: Context, assigned: AssignedBoxes) -> Iterator[Fault]:
    """Yield a note if the upper levels of FCOS train no point, and most points are those of the lowest."""
    assigner = context.config.task.arguments.get("assigner")
    positives, priors = assigned.positives.sum(dim=0), assigned.priors
    num_idle = len(positives) - 1 - int(positives.nonzero().max())
    is_crowded = positives[0] >= _MIN_CROWDED * positives.sum() and len(assigned.boxes) >= _MIN_CROWDED_BOXES
    if not isinstance(assigner, ComponentConfig) or assigner.name != "fcos" or num_idle < _MIN_IDLE or not is_crowded:
        return
    counts = [len(assigned.file_px) * (rows.stop - rows.start) for rows in priors.level_slices]
    low, high = box_sizes(assigned.boxes).amax(dim=1).quantile(torch.tensor([0.05, 0.95])).tolist()
    yield Fault(
        f"levels of stride {', '.join(map(str, priors.strides[-num_idle:]))} train no point: their ranges are those of "
        "larger boxes",
        severity="note",
        causes=("assign.anchor_coverage",),
        measured=f"positives by level {positives.tolist()} of {counts} points, in {assigned.looked_at}, whose longer "
        f"sides are {low:.0f} to {high:.0f} px (nine of ten)",
        expected="positives on each level",
        action="set task.assigner.limits_px to the boxes on the canvas, or take a larger canvas; the published limits "
        "are for images of 800 pixels",
    )


@check(
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


_MIN_DECODED_IOU, _CERTAIN = 0.95, 50.0


def box_losses(context: Context) -> list[LossSubject]:
    """List the losses of codes whose best values are known."""
    return [loss for loss in make_loss_subjects(context) if loss.term.wanted]


@check(
    "decoded-boxes",
    "preflight",
    each=box_losses,
    causes=("assign.codec", "assign.box_format", "eval.decode"),
    config_path="task",
    expected="the labelled boxes",
    action="decode by the inverse of what the loss encodes: with the same deviations, order and priors",
)
def decoded_boxes(context: Context, loss: LossSubject) -> Fault | None:
    """The codes at which a loss of boxes is least are decoded to the labelled boxes.

    Finds: Detections decoded with other deviations, another order or other priors than training encodes boxes with.
    """
    task, batch = unwrap_distillation(context.built.job.task), context.dry_run.batch
    evidence = Evidence({"subject": loss.subject, "term": loss.term}, math.inf)
    aims = attempt("aims", evidence.get, {"name": "aims"})
    codes, is_valid = loss.term.wanted["codes"]
    if isinstance(aims, MissingError) or codes.ndim != 3 or not all(aim.is_least for aim in aims):
        return None
    has_box, boxes = is_valid.any(dim=2), loss.subject.batches[0].target["matched_boxes"]
    for image in has_box.any(dim=1).nonzero().flatten().tolist()[:1]:
        scores = torch.where(has_box[image], _CERTAIN, -_CERTAIN)
        outputs = {"logits": scores[None, :, None], "codes": codes[image : image + 1]}
        outputs |= {name: scores[None] for name in ("objectness", "centreness") if name in context.dry_run.seen_outputs}
        priors = task.get_priors(batch["image"].to(boxes.device))
        decoded = task.selection.decode(outputs, 0, priors)
        is_wanted = has_box[image, decoded.proposal]  # a `min_score` of 0 selects the others, too
        index = decoded.proposal[is_wanted]
        found, wanted = decoded.detections[is_wanted, :4].double(), boxes[image, index].double()
        overlap = float(iou(found, wanted).median()) if len(found) else 0.0
        if overlap < _MIN_DECODED_IOU:
            return Fault(
                f"codes at which the loss '{loss.name}' is least are decoded to other boxes",
                measured=f"median IoU {overlap:.2f} with the boxes of {len(found)} priors; widths "
                f"{_ratio(found, wanted)} times theirs; largest code {float(codes[image, index].abs().max()):.3g}",
                evidence={"field": "codes"},
            )
    return None


def _ratio(found: Tensor, wanted: Tensor) -> str:
    ratio = box_sizes(found)[:, 0] / box_sizes(wanted)[:, 0]
    return " to ".join(f"{float(value):.3g}" for value in ratio.aminmax()) if len(ratio) else "none"
