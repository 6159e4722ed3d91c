"""Pictures of the targets of priors: the anchors of a cell, and the assignment by each assigner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.assigners.base import Assignment
from sightline.assigners.report import timed_report
from sightline.box_pictures import Color, DrawnBox, Mark, Style, draw_boxes
from sightline.geometry.boxes.overlaps import box_areas
from sightline.geometry.boxes.priors import Priors
from sightline.pictures import Picture

__all__ = ["LEVEL_COLORS", "show_assignments", "show_priors"]

LEVEL_COLORS: tuple[Color, ...] = ((240, 228, 66), (86, 180, 233), (230, 159, 0), (0, 190, 140), (204, 121, 167))
"""Colours of levels, from the finest to the coarsest. Source: Okabe and Ito 2008, distinct to colour-blind readers."""
_LABEL, _UNMATCHED, _IGNORED, _PAPER = (255, 255, 255), (230, 45, 30), (160, 166, 174), 224
_MAX_PX = 900


def show_priors(pixels: np.ndarray, priors: Priors, boxes: Tensor) -> list[Picture]:
    """Draw, for each level, the anchors of the central cell, over an image (H, W, 3) uint8 and its `boxes` (G, 4).

    The image gets the margin that they need. Of points, all of the level are drawn.
    """
    pictures = []
    levels = zip(priors.strides, priors.maps, priors.level_slices, priors.priors_per_cell, strict=True)
    for level, (stride, (height, width), rows, count) in enumerate(levels):
        first, color = rows.start + (height // 2 * width + width // 2) * count, _level_color(level)
        anchors, points, caption = boxes[:0], priors.coordinates[rows], f"{height} x {width} cells"
        if priors.kind == "anchors":
            anchors, points = priors.coordinates[first : first + count], boxes[:0, :2]
            sides = box_areas(anchors).sqrt()
            caption += f", {count} anchors, roots of areas {sides.min():.0f} to {sides.max():.0f} px"
        paper, shift, step = _add_margin(pixels, anchors)
        cell = torch.cat([priors.centres[first] - stride / 2, priors.centres[first] + stride / 2])[None]
        kinds: list[tuple[Tensor, Color, Style]] = [(boxes, _LABEL, "solid"), (anchors, color, "solid")]
        kinds.append((cell, _LABEL, "dashed"))
        moved = [(((corners + shift) / step).tolist(), paint, style) for corners, paint, style in kinds]
        drawn = [DrawnBox(tuple(row), paint, "", style) for rows_of, paint, style in moved for row in rows_of]
        marks = [Mark((x, y), color) for x, y in ((points + shift[:2]) / step).tolist()]
        legend = {f"{priors.kind}, a cell (dashed)": color, "boxes": _LABEL}
        pictures.append(Picture(f"stride {stride}", draw_boxes(paper, drawn, marks=marks, legend=legend), caption))
    return pictures


def show_assignments(
    pixels: np.ndarray,
    priors: Priors,
    boxes: Tensor,
    is_ignored: Tensor,
    assigners: Mapping[str, Callable[[Priors, Tensor, Tensor], Assignment]],
) -> tuple[list[Picture], dict[str, Any]]:
    """Draw the assignment of the `boxes` (G, 4) of an image by each assigner, and report it, by name."""
    pictures, reports = [], {}
    for name, assigner in assigners.items():
        assignment, reports[name] = timed_report(assigner, priors, boxes, is_ignored)
        unmatched = reports[name]["unmatched_boxes"]
        drawn = [
            DrawnBox(tuple(row), _IGNORED, style="hatched") if hidden else DrawnBox(tuple(row), _LABEL)
            for row, hidden in zip(boxes.tolist(), is_ignored.tolist(), strict=True)
        ]
        drawn += [DrawnBox(tuple(boxes[box].tolist()), _UNMATCHED, style="crossed") for box in unmatched]
        legend = {f"stride {stride}": _level_color(level) for level, stride in enumerate(priors.strides)}
        legend |= {"claimed by several (white rim)": _LABEL, "unmatched (crossed)": _UNMATCHED, "ignored": _IGNORED}
        picture = draw_boxes(pixels, drawn, marks=_mark_positives(assignment, priors), legend=legend)
        caption = f"{reports[name]['num_positive']} positives, {len(unmatched)} unmatched"
        pictures.append(Picture(name, picture, caption))
    return pictures, reports


def _mark_positives(assignment: Assignment, priors: Priors) -> list[Mark]:
    """Mark the centre of each positive prior, coarse levels larger and below, with a white rim where contested."""
    marks = []
    for prior in (assignment.matched >= 0).nonzero().flatten().flip(0).tolist():
        level, (x, y) = int(priors.prior_level[prior]), priors.centres[prior].tolist()
        rim: dict[str, Color] = {"ring": _LABEL} if assignment.num_candidates[prior] > 1 else {}
        marks.append(Mark((x, y), _level_color(level), 1.5 + 0.5 * level, **rim))
    return marks


def _add_margin(pixels: np.ndarray, room: Tensor) -> tuple[np.ndarray, Tensor, int]:
    """Add the margin to an image that the corners in `room` (R, 4) need; keep every `step`-th pixel.

    The corners (4,) of a box on the result are those on the image plus `shift`, divided by `step`.
    """
    image = room.new_tensor([[0, 0, pixels.shape[1], pixels.shape[0]]])
    extent = torch.cat([room, image])
    left_px, top_px = (-extent[:, :2].amin(0)).ceil().long().tolist()
    right_px, bottom_px = (extent - image)[:, 2:].amax(0).ceil().long().tolist()
    paper = np.pad(pixels, ((top_px, bottom_px), (left_px, right_px), (0, 0)), constant_values=_PAPER)
    step = -(-max(paper.shape) // _MAX_PX)
    return np.ascontiguousarray(paper[::step, ::step]), room.new_tensor([left_px, top_px, left_px, top_px]), step


def _level_color(level: int) -> Color:
    return LEVEL_COLORS[min(level, len(LEVEL_COLORS) - 1)]
