"""Pictures of priors, and of the boxes of an image by the priors or predictions that they are assigned to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.draw.boxes import Color, DrawnBox, Mark, Style, draw_boxes, name_class
from sightline.draw.pictures import Picture
from sightline.ops.boxes.overlaps import box_area, box_iou
from sightline.ops.boxes.priors import IGNORED, Priors
from sightline.parts.boxes.assigner import Assignment
from sightline.parts.boxes.assignment_report import report_assignment

LEVEL_COLORS: tuple[Color, ...] = ((240, 228, 66), (86, 180, 233), (230, 159, 0), (0, 190, 140), (204, 121, 167))
"""Colours of levels, from the finest to the coarsest. Source: Okabe and Ito 2008, distinct to colour-blind readers."""
BOX_COLORS: tuple[Color, ...] = (*LEVEL_COLORS, (70, 130, 255), (170, 255, 90), (255, 170, 200))
"""Colours of assigned boxes, in turn; none is near the red of those that are not."""
_LABEL, _UNMATCHED, _IGNORED, _PAPER = (255, 255, 255), (230, 45, 30), (160, 166, 174), 224
_MAX_PX = 900
_IGNORED_RADIUS = 0.7


class ImageBoxes(NamedTuple):
    """Boxes (G, 4) of an image in its pixels, `is_ignored` (G,), labels (G,), and the names of the classes."""

    boxes: Tensor
    is_ignored: Tensor
    label: Tensor
    class_names: Sequence[str] = ()

    def name(self, box: int) -> str:
        """Return the name of a box's class."""
        return name_class(int(self.label[box]), self.class_names)

    def draw_ignored(self) -> list[DrawnBox]:
        """Build the drawn ignore regions."""
        return [DrawnBox(tuple(row), _IGNORED, style="hatched") for row in self.boxes[self.is_ignored].tolist()]


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
            sides = box_area(anchors).sqrt()
            caption += f"; {count} anchors, roots of areas {sides.min():.0f} to {sides.max():.0f} px"
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


# --- priors and their boxes -------------------------------------------------------------------------------------------


def show_assignments(
    pixels: np.ndarray,
    priors: Priors,
    image: ImageBoxes,
    assigners: Mapping[str, Callable[[Priors, Tensor, Tensor], Assignment]],
    remarks: Mapping[str, str] | None = None,
) -> tuple[list[Picture], dict[str, Any]]:
    """Draw the assignment of the boxes of an image by each assigner, and report it, by name.

    A box has a colour of its own, its name and the number of its priors; one without any is crossed in red. Dots of its
    colour are at the centres of its priors, larger on coarser levels, and smaller ones within where several boxes have
    priors of one cell; small grey dots are at priors that no loss counts. Of many boxes, those without a prior are
    named first. `remarks` are what there is to say about an assigner: a word or two, "; ", and why.
    """
    pictures, reports = [], {}
    for name, assigner in assigners.items():
        assignment = assigner(priors, image.boxes, image.is_ignored)
        reports[name] = report_assignment(assignment, priors, image.boxes, image.is_ignored)
        picture = _draw_assignment(pixels, priors, image, assignment, reports[name])
        caption = _describe_assignment(reports[name], priors, (remarks or {}).get(name, ""))
        pictures.append(Picture(name, picture, caption))
    return pictures, reports


def _draw_assignment(
    pixels: np.ndarray, priors: Priors, image: ImageBoxes, assignment: Assignment, report: Mapping[str, Any]
) -> np.ndarray:
    kind, unmatched, counts = priors.kind.removesuffix("s"), report["unmatched_boxes"], report["positives_per_box"]
    drawn, crossed = image.draw_ignored(), []
    for box in (~image.is_ignored).nonzero().flatten().tolist():
        corners = tuple(image.boxes[box].tolist())
        if box in unmatched:
            crossed.append(DrawnBox(corners, _UNMATCHED, f"{image.name(box)}: none".lstrip(": "), "crossed"))
        else:
            drawn.append(DrawnBox(corners, _box_color(box), f"{image.name(box)}: {counts[box]}".lstrip(": ")))
    legend: dict[str, Color] = {}
    if report["num_positive"]:
        legend[f"{kind} in the colour of its box, larger on coarser levels"] = _box_color(int(assignment.matched.max()))
    if report["num_ambiguous"]:
        legend["claimed by several (white rim)"] = _LABEL
    if report["num_ignored"]:
        legend["ignored"] = _IGNORED
    if crossed:
        legend[f"box without {_with_article(kind)} (crossed)"] = _UNMATCHED
    marks = [*_mark_ignored(assignment, priors), *_mark_positives(assignment, priors)]
    return draw_boxes(pixels, [*drawn, *crossed], marks=marks, legend=legend)


def _describe_assignment(report: Mapping[str, Any], priors: Priors, remark: str) -> str:
    """Describe an assignment: the first part is the caption of its picture in short."""
    short, _, more = remark.partition("; ")
    matched = _count_unmatched(len(report["unmatched_boxes"]), report["num_boxes"])
    parts = [
        f"{matched} ({short})" if short else matched,
        f"{report['num_positive']:,} of {len(priors):,} {priors.kind} positive, {report['num_ignored']:,} ignored",
        more,
    ]
    return "; ".join(part for part in parts if part)


def _count_unmatched(num_unmatched: int, num_boxes: int) -> str:
    if not num_boxes:
        return "no boxes"
    return f"{num_unmatched} of {num_boxes} boxes not assigned" if num_unmatched else "all boxes assigned"


def _mark_positives(assignment: Assignment, priors: Priors) -> list[Mark]:
    """Mark the cells of positive priors, coarse levels larger and below: a ring for each box that has priors there.

    The rim is white where boxes contend for a prior.
    """
    owners: defaultdict[tuple[int, float, float], list[int]] = defaultdict(list)
    contested = set()
    second = () if assignment.second_matched is None else (assignment.second_matched,)
    for matched in (assignment.matched, *second):
        for prior in (matched >= 0).nonzero().flatten().tolist():
            cell = (int(priors.prior_level[prior]), *priors.centres[prior].tolist())
            owners[cell] += [box for box in [int(matched[prior])] if box not in owners[cell]]
            contested |= {cell} if assignment.num_claims[prior] > 1 else set()
    marks = []
    for cell in sorted(owners, reverse=True):
        level, x, y = cell
        for number, box in enumerate(owners[cell]):
            radius = (1.5 + 0.5 * level) * (1 - number / len(owners[cell]))
            rim: dict[str, Color] = {"ring": _LABEL} if cell in contested and not number else {}
            marks.append(Mark((x, y), _box_color(box), radius, **rim))
    return marks


def _mark_ignored(assignment: Assignment, priors: Priors) -> list[Mark]:
    """Mark the cells of the priors that no loss counts."""
    centres = priors.centres[assignment.matched == IGNORED].unique(dim=0)
    return [Mark((x, y), _IGNORED, _IGNORED_RADIUS) for x, y in centres.tolist()]


# --- predictions and their boxes --------------------------------------------------------------------------------------


def show_labels(pixels: np.ndarray, image: ImageBoxes, caption: str) -> Picture:
    """Draw the boxes of an image, each in its colour and with its name, where no matching is known."""
    rows = (~image.is_ignored).nonzero().flatten().tolist()
    drawn = [DrawnBox(tuple(image.boxes[box].tolist()), _box_color(box), image.name(box)) for box in rows]
    return Picture("matching", draw_boxes(pixels, [*image.draw_ignored(), *drawn]), caption)


def show_matching(
    pixels: np.ndarray, image: ImageBoxes, predicted: Tensor, pairs: tuple[Tensor, Tensor]
) -> tuple[Picture, dict[str, Any]]:
    """Draw the boxes of an image with the predicted box that each is matched to, dashed in its colour; report the IoUs.

    `predicted` (Q, 4) are boxes in pixels of the image; `pairs` are rows of it, and of the boxes that are not ignored.
    """
    queries, rows = pairs[0].tolist(), (~image.is_ignored).nonzero().flatten()[pairs[1]].tolist()
    iou = [float(box_iou(predicted[q, None], image.boxes[row, None])) for q, row in zip(queries, rows, strict=True)]
    unmatched = sorted({*(~image.is_ignored).nonzero().flatten().tolist()} - {*rows})
    drawn = image.draw_ignored()
    for query, row, overlap in zip(queries, rows, iou, strict=True):
        drawn.append(DrawnBox(tuple(predicted[query].tolist()), _box_color(row), style="dashed"))
        caption = f"{image.name(row)}: IoU {overlap:.2f}".lstrip(": ")
        drawn.append(DrawnBox(tuple(image.boxes[row].tolist()), _box_color(row), caption))
    for row in unmatched:
        drawn.append(DrawnBox(tuple(image.boxes[row].tolist()), _UNMATCHED, f"{image.name(row)}: none", "crossed"))
    legend = {"matched prediction (dashed)": _box_color(rows[0])} if rows else {}
    count = len(rows) + len(unmatched)
    text = _count_unmatched(len(unmatched), count)
    text += f"; one of {len(predicted)} predictions each, IoU {min(iou):.2f} to {max(iou):.2f}" if iou else ""
    picture = Picture("matching", draw_boxes(pixels, drawn, legend=legend), text)
    return picture, {"num_boxes": count, "num_queries": len(predicted), "iou": iou}


# --- colours, room ----------------------------------------------------------------------------------------------------


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


def _box_color(box: int) -> Color:
    return BOX_COLORS[box % len(BOX_COLORS)]


def _with_article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
