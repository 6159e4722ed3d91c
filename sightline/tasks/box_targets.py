"""Pictures of what priors are to predict: the anchors of a cell, and what each assigner gives to the boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.assigners.base import Assigner, Assignment
from sightline.assigners.report import timed_report
from sightline.box_pictures import Box, Color, Mark, Style, draw_boxes
from sightline.geometry.boxes.affine import moved_boxes
from sightline.geometry.boxes.overlaps import box_areas
from sightline.geometry.boxes.priors import Priors
from sightline.pictures import Picture

__all__ = ["LEVEL_COLORS", "show_assignments", "show_priors"]

LEVEL_COLORS: tuple[Color, ...] = ((240, 228, 66), (86, 180, 233), (230, 159, 0), (0, 190, 140), (204, 121, 167))
"""From the finest level to the coarsest. Source: Okabe and Ito 2008, colours that colour-blind readers tell apart."""
_LABEL, _UNMATCHED, _IGNORED, _PAPER = (255, 255, 255), (230, 45, 30), (160, 166, 174), 224
_MOST_PX = 900


def show_priors(pixels: np.ndarray, priors: Priors, boxes: Tensor) -> list[Picture]:
    """For each level its anchors of the cell in the middle, over an image (H, W, 3) uint8 and its `boxes` (G, 4).

    Around the image is as much room as they need. Of points, all of the level are shown.
    """
    pictures = []
    levels = zip(priors.strides, priors.maps, priors.levels, priors.num_per_cell, strict=True)
    for place, (stride, (height, width), rows, count) in enumerate(levels):
        first = rows.start + (height // 2 * width + width // 2) * count
        color, own, marks = _color_of(place), boxes[:0], []
        caption = f"{height} x {width} cells"
        if priors.kind == "anchors":
            own = priors.rows[first : first + count]
            sides = box_areas(own).sqrt()
            caption += f", {count} anchors, roots of areas {sides.min():.0f} to {sides.max():.0f} px"
        else:
            marks = [Mark((x, y), color) for x, y in priors.rows[rows].tolist()]
        cell = torch.cat([priors.centres[first] - stride / 2, priors.centres[first] + stride / 2])
        drawn = [_box(box, _LABEL) for box in boxes] + [_box(box, color) for box in own]
        drawn.append(_box(cell, _LABEL, "dashed"))
        legend = {f"{priors.kind} of a cell (dashed)" if len(own) else priors.kind: color, "boxes": _LABEL}
        picture = _with_room(pixels, own, drawn, marks, legend)
        pictures.append(Picture(f"stride {stride}", picture, caption))
    return pictures


def show_assignments(
    pixels: np.ndarray, priors: Priors, boxes: Tensor, is_ignored: Tensor, assigners: Mapping[str, Assigner]
) -> tuple[list[Picture], dict[str, Any]]:
    """A picture of what each assigner makes of the `boxes` (G, 4) of an image, and its report by its name."""
    pictures, reports = [], {}
    for name, assigner in assigners.items():
        assignment, reports[name] = timed_report(assigner, priors, boxes, is_ignored)
        unmatched = reports[name]["unmatched_boxes"]
        kinds: list[tuple[Color, Style]] = [(_IGNORED, "hatched") if each else (_LABEL, "solid") for each in is_ignored]
        for box in unmatched:
            kinds[box] = _UNMATCHED, "crossed"
        drawn = [_box(row, *kind) for row, kind in zip(boxes, kinds, strict=True)]
        drawn.sort(key=lambda box: box.style == "crossed")
        legend = {f"stride {stride}": _color_of(place) for place, stride in enumerate(priors.strides)}
        legend |= {"claimed by several (white rim)": _LABEL, "unmatched (crossed)": _UNMATCHED, "ignored": _IGNORED}
        picture = draw_boxes(pixels, drawn, marks=_positives(assignment, priors), legend=legend)
        caption = f"{reports[name]['num_positive']} positives, {len(unmatched)} unmatched"
        pictures.append(Picture(name, picture, caption))
    return pictures, reports


def _positives(assignment: Assignment, priors: Priors) -> list[Mark]:
    """A dot at the centre of each positive prior, of coarse levels larger and below; a white rim where contested."""
    marks = []
    for prior in (assignment.matched >= 0).nonzero().flatten().flip(0).tolist():
        level, (x, y) = int(priors.level[prior]), priors.centres[prior].tolist()
        rim: dict[str, Color] = {"ring": _LABEL} if assignment.num_claims[prior] > 1 else {}
        marks.append(Mark((x, y), _color_of(level), 1.5 + 0.5 * level, **rim))
    return marks


def _with_room(
    pixels: np.ndarray, room: Tensor, boxes: Sequence[Box], marks: Sequence[Mark], legend: Mapping[str, Color]
) -> np.ndarray:
    """Boxes over an image with as much paper around it as the corners in `room` (R, 4) need, shrunk where large."""
    height, width = pixels.shape[:2]
    corners = torch.cat([room, room.new_tensor([[0, 0, width, height]])]).double()
    left, top = (-corners[:, :2].amin(0)).ceil().long().tolist()
    right, bottom = (corners[:, 2:].amax(0).ceil().long() - torch.tensor([width, height])).tolist()
    paper = np.pad(pixels, ((top, bottom), (left, right), (0, 0)), constant_values=_PAPER)
    step = -(-max(paper.shape) // _MOST_PX)
    to_paper = torch.tensor([[1 / step, 0, left / step], [0, 1 / step, top / step]], dtype=torch.float64)
    moved = [_box(moved_boxes(torch.tensor(box.corners), to_paper), box.color, box.style) for box in boxes]
    marks = [replace(mark, place=((mark.place[0] + left) / step, (mark.place[1] + top) / step)) for mark in marks]
    return draw_boxes(np.ascontiguousarray(paper[::step, ::step]), moved, marks=marks, legend=legend)


def _box(corners: Tensor, color: Color, style: Style = "solid") -> Box:
    left, top, right, bottom = corners.tolist()
    return Box((left, top, right, bottom), color, style=style)


def _color_of(level: int) -> Color:
    return LEVEL_COLORS[min(level, len(LEVEL_COLORS) - 1)]
