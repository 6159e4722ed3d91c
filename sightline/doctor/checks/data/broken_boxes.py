"""Boxes that are not xyxy in pixels (left, top, right, bottom); exchanged sides of images or of the canvas."""

from __future__ import annotations

import torch
from torch import Tensor

from sightline.doctor.context import Context, check
from sightline.doctor.core.assigned_boxes import is_significantly_above
from sightline.doctor.core.finding import Finding
from sightline.doctor.core.sample_statistics import PartStatistics
from sightline.geometry.boxes.overlaps import ioa

__all__ = ["broken_boxes", "swapped_canvas"]

_BEYOND_PX = 1.0
_SHARES, _MAX_SHARES_PX, _MIN_BOXES = "shares of the image's sides", 1.5, 5
_MAX_OUTSIDE, _MAX_GAIN = 0.05, 0.15
_MIN_EXPLAINED, _MAX_LEFT, _MIN_IMAGES = 0.05, 0.33, 16
"""Another reading is likely right if it brings 5 % of all boxes into the images and leaves at most a third outside.

Fewer images are not judged if corners are in order: the feet of one crowd may all be cut off.
"""


@check("G31", "broken-boxes", "preflight", config_path="data")
def broken_boxes(context: Context) -> list[Finding]:
    """Corners of boxes are in order, and no other box format puts far more of the boxes into their images.

    Finds: Boxes that are not xyxy in pixels (left, top, right, bottom); exchanged sides of images or of the canvas.

    Trained and scored boxes are checked; boxes may extend beyond an image, as those of partly visible people do.
    """
    tables = [(survey, field) for survey in context.statistics if survey.boxed for field in ("truth", "boxes")]
    findings = [_finding_boxes(context, survey, *_collect_boxes(survey, field)) for survey, field in tables]
    return [finding for finding in findings if finding is not None]


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


def _finding_boxes(context: Context, survey: PartStatistics, boxes: Tensor, limit: Tensor) -> Finding | None:
    if not len(boxes):
        return None
    first, last = boxes.split(2, dim=1)
    readings = {  # possible format -> its cause, the corners of the boxes in it, the sizes of the images
        "left, top, width, height": ("assign.box_format", (first, first + last), limit),
        "centre, width and height": ("assign.box_format", (first - last / 2, first + last / 2), limit),
        "left, top, left + right, top + bottom": ("assign.box_format", (first, last - first), limit),
        "centre, centre + width and height": ("assign.box_format", (1.5 * first - last / 2, (first + last) / 2), limit),
        "right, bottom, left, top": ("assign.box_format", (last, first), limit),
        "top, left, bottom, right": ("cfg.axis_swap", (first.flip(1), last.flip(1)), limit),
        "boxes of images with width and height exchanged": ("cfg.axis_swap", (first, last), limit[:, [1, 0, 3, 2]]),
        _SHARES: ("data.normalisation", (limit[:, :2] * first, limit[:, :2] * last), limit),
    }
    count, num_reversed = len(boxes), int((last <= first).any(dim=1).sum())
    num_left = {
        reading: _count_unsound(torch.cat(corners, dim=1), sizes) for reading, (_, corners, sizes) in readings.items()
    }
    is_shares = count >= _MIN_BOXES and float(boxes.max()) <= _MAX_SHARES_PX
    likely = _SHARES if is_shares else min(num_left, key=num_left.__getitem__)
    num_unsound, max_share = _count_unsound(boxes, limit), num_left[likely] / count + _MIN_EXPLAINED
    is_explained = is_shares or (
        is_significantly_above(num_unsound, count, max_share) and num_left[likely] <= _MAX_LEFT * num_unsound
    )
    num_outside = int((ioa(boxes, torch.cat([0 * limit[:, :2], limit[:, 2:]], dim=1)) < 0.5).sum()) - num_reversed
    is_outside = is_explained or is_significantly_above(num_outside, count, _MAX_OUTSIDE)
    if not (num_reversed or is_shares or (is_outside and len(survey.boxed) >= _MIN_IMAGES)):
        return None
    measured = (
        f"{num_reversed} of {count} boxes have right <= left or bottom <= top, {num_outside} others are mostly "
        f"outside, coordinates reach {float(boxes.max()):.4g} px, in {survey.coverage_text}"
    )
    return broken_boxes.finding(
        context,
        f"boxes look like {likely}" if is_explained else "corners are in the wrong order, or outside their images",
        split=survey.part.split,
        severity="error" if num_reversed or is_shares else "warning",
        causes=[readings[likely][0]] if is_explained else ["data.corrupt_sample", "assign.box_format"],
        measured=measured,
        expected="left < right and top < bottom, in pixels of the image",
        action="look at `sightline view`, and convert boxes where the data set reads them",
        evidence={"field": "boxes"},
    )


def _count_unsound(boxes: Tensor, limit: Tensor) -> int:
    is_beyond = (boxes < -_BEYOND_PX) | (boxes > limit + _BEYOND_PX)
    return int((is_beyond.any(dim=1) | (boxes[:, 2:] <= boxes[:, :2]).any(dim=1)).sum())


@check(
    "G32", "swapped-canvas", "preflight", severity="warning", causes=("cfg.axis_swap",), config_path="transforms.train"
)
def swapped_canvas(context: Context) -> list[Finding]:
    """Images, scaled to fit, would not fill 15 % more of a canvas with height and width exchanged.

    Finds: Boxes that are not xyxy in pixels (left, top, right, bottom); exchanged sides of images or of the canvas.
    """
    if context.assignments is None:
        return []
    height, width = context.first_outputs[0]["image"].shape[2:]
    ratios = context.assignments.file_px[:, 1] / context.assignments.file_px[:, 0]
    shapes = (width / height, height / width)
    filled, filled_if_swapped = (float(torch.minimum(ratios / shape, shape / ratios).mean()) for shape in shapes)
    if filled_if_swapped - filled <= _MAX_GAIN:
        return []
    return [
        swapped_canvas.finding(
            context,
            "images would fill the canvas far better if its width and height were exchanged",
            measured=f"{filled:.0%} of height {height} and width {width}, of {len(ratios)} training images",
            expected=f"{filled_if_swapped:.0%}, with height {width} and width {height}",
            action="exchange height and width in transforms.train and transforms.evaluate",
        )
    ]
