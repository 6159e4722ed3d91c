"""Boxes that are not left, top, right, bottom in pixels; width and height of images or of the canvas exchanged."""

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
_SHARES, _SHARES_PX, _FEWEST = "shares of the image's sides", 1.5, 5
_MOST_OUTSIDE, _MOST_GAIN = 0.05, 0.15
_EXPLAINED, _LEFT, _FEWEST_IMAGES = 0.05, 0.33, 16
"""Another reading is likely right that brings 5 % of all boxes into the images, and leaves a third of those beyond.

Of few images this is not judged where corners are in order: the feet of one crowd may all be cut off.
"""


@check("G31", "broken-boxes", "preflight", config_path="data")
def broken_boxes(context: Context) -> list[Finding]:
    """Boxes have their corners in order, and no other reading of them lies in the images far more often.

    Both those that are trained on and those that are scored; they may reach beyond an image, as whole figures do.
    """
    tables = [(survey, field) for survey in context.statistics if survey.boxed for field in ("truth", "boxes")]
    found = [_of_boxes(context, survey, *_boxes_of(survey, field)) for survey, field in tables]
    return [finding for finding in found if finding is not None]


def _boxes_of(survey: PartStatistics, field: str) -> tuple[Tensor, Tensor]:
    """Boxes (N, 4) of a part that are not ignored, float64, and width, height, width, height of their images."""
    boxes, limits = [], []
    for sample in survey.boxed:
        is_ignored, size = sample["is_ignored"], sample["image_px"]
        if field == "truth":
            is_ignored, size = sample[field][:, 6] > 0, sample["file_px"]
        boxes.append(sample[field][~is_ignored][:, :4].double())
        limits.append(size.flip(0).repeat(2).expand(len(boxes[-1]), 4).double())
    return torch.cat(boxes), torch.cat(limits)


def _of_boxes(context: Context, survey: PartStatistics, boxes: Tensor, limit: Tensor) -> Finding | None:
    if not len(boxes):
        return None
    first, last = boxes.split(2, dim=1)
    readings = {  # what the numbers may be instead, the cause, where the boxes then are, and in what images
        "left, top, width, height": ("assign.box_format", (first, first + last), limit),
        "middle and width, height": ("assign.box_format", (first - last / 2, first + last / 2), limit),
        "left, top, left + right, top + bottom": ("assign.box_format", (first, last - first), limit),
        "middle, middle + width and height": ("assign.box_format", (1.5 * first - last / 2, (first + last) / 2), limit),
        "right, bottom, left, top": ("assign.box_format", (last, first), limit),
        "top, left, bottom, right": ("cfg.axis_swap", (first.flip(1), last.flip(1)), limit),
        "those of images of width x height": ("cfg.axis_swap", (first, last), limit[:, [1, 0, 3, 2]]),
        _SHARES: ("data.normalisation", (limit[:, :2] * first, limit[:, :2] * last), limit),
    }
    count, turned = len(boxes), int((last <= first).any(dim=1).sum())
    left = {what: _num_unsound(torch.cat(read, dim=1), within) for what, (_, read, within) in readings.items()}
    is_shares = count >= _FEWEST and float(boxes.max()) <= _SHARES_PX
    likely = _SHARES if is_shares else min(left, key=left.__getitem__)
    unsound, limited = _num_unsound(boxes, limit), left[likely] / count + _EXPLAINED
    is_explained = is_shares or (is_significantly_above(unsound, count, limited) and left[likely] <= _LEFT * unsound)
    outside = int((ioa(boxes, torch.cat([0 * limit[:, :2], limit[:, 2:]], dim=1)) < 0.5).sum()) - turned
    is_beside = is_explained or is_significantly_above(outside, count, _MOST_OUTSIDE)
    if not (turned or is_shares or (is_beside and len(survey.boxed) >= _FEWEST_IMAGES)):
        return None
    measured = (
        f"{turned} of {count} boxes have right <= left or bottom <= top, {outside} others are mostly outside, "
        f"coordinates reach {float(boxes.max()):.4g} px, in {survey.coverage_text}"
    )
    return broken_boxes.finding(
        context,
        f"boxes look like {likely}" if is_explained else "boxes are the wrong way round, or beside their images",
        split=survey.part.split,
        severity="error" if turned or is_shares else "warning",
        causes=[readings[likely][0]] if is_explained else ["data.corrupt_sample", "assign.box_format"],
        measured=measured,
        expected="left < right and top < bottom, in pixels of the image",
        action="look at `sightline view`, and convert boxes where the data set reads them",
        evidence={"field": "boxes"},
    )


def _num_unsound(boxes: Tensor, limit: Tensor) -> int:
    is_beyond = (boxes < -_BEYOND_PX) | (boxes > limit + _BEYOND_PX)
    return int((is_beyond.any(dim=1) | (boxes[:, 2:] <= boxes[:, :2]).any(dim=1)).sum())


@check(
    "G32", "swapped-canvas", "preflight", severity="warning", causes=("cfg.axis_swap",), config_path="transforms.train"
)
def swapped_canvas(context: Context) -> list[Finding]:
    """Exchanging its sides does not let images fill 15 % more of the canvas, each in its own ratio."""
    if context.assignments is None:
        return []
    height, width = context.first_outputs[0]["image"].shape[2:]
    ratios = context.assignments.file_px[:, 1] / context.assignments.file_px[:, 0]
    shapes = (width / height, height / width)
    filled, otherwise = (float(torch.minimum(ratios / each, each / ratios).mean()) for each in shapes)
    if otherwise - filled <= _MOST_GAIN:
        return []
    return [
        swapped_canvas.finding(
            context,
            "images would fill the canvas far better if its width and height were exchanged",
            measured=f"{filled:.0%} of height {height} and width {width}, of {len(ratios)} training images",
            expected=f"{otherwise:.0%}, with height {width} and width {height}",
            action="exchange height and width in transforms.train and transforms.evaluate",
        )
    ]
