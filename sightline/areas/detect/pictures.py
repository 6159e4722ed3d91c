"""Pictures of detections with the labels that they match, and of priors and the boxes that they are assigned to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.areas.detect.metrics.box_errors import KINDS, classify_errors
from sightline.contract.types import Batch
from sightline.draw.boxes import COLORS, Color, DrawnBox, Mark, Style, draw_boxes, name_class
from sightline.draw.pictures import Picture, normalize_to_uint8
from sightline.ops.boxes.overlaps import box_area
from sightline.ops.boxes.priors import Priors
from sightline.ops.points.affine_maps import warp_boxes
from sightline.parts.boxes.assigner import Assignment
from sightline.parts.boxes.assignment_report import report_assignment
from sightline.parts.metrics.box_groups import DetectionColumn, LabelColumn

_LEGEND = {"found": "found (TP)", "missed": "missed (FN)", "truth": "label of a wrong box"}
_NUM_SHOWN = 4
MIN_DRAWN_SCORE = 0.3
"""Minimal score of a drawn detection, by default."""


def get_image_pixels(batch: Batch, index: int, pixels: np.ndarray | None) -> np.ndarray:
    """Return the pixels (H, W, 3) uint8 of an image of a batch: for the first those given, if they have its size.

    Other images are scaled from their lowest to their highest value: their normalisation is unknown.
    """
    image = batch["image"][index].float().cpu().permute(1, 2, 0).numpy()
    return pixels if pixels is not None and index == 0 and pixels.shape == image.shape else normalize_to_uint8(image)


def show_detections(
    batch: Batch,
    predictions: Mapping[str, Any],
    *,
    class_names: Sequence[str] = (),
    least_score: float = MIN_DRAWN_SCORE,
    pixels: np.ndarray | None = None,
) -> list[Picture]:
    """Draw the first images of a batch with detections: true positives blue, false ones in the colour of their kind.

    Kinds are those of the metric `box_errors` among the drawn detections: a true positive has an IoU of at least 0.5
    with a label of its class. Missed labels are yellow, other unmatched ones green, ignored ones, and detections in
    them, grey. The highest-scoring are drawn on top. Captions are the class, and a detection's score. `pixels` as in
    `get_image_pixels`.
    """
    detections, truth = predictions["detections"], batch["truth"]
    rows = zip(
        pairwise(predictions["detection_offsets"].tolist()), pairwise(batch["truth_offsets"].tolist()), strict=True
    )
    pictures = []
    for index, ((first, last), (begin, end)) in enumerate(list(rows)[:_NUM_SHOWN]):
        image_detections = detections[first:last].double().cpu()
        drawn_detections, hidden = (
            image_detections[image_detections[:, 4] >= least_score],
            image_detections[image_detections[:, 4] < least_score],
        )
        labels, to_canvas = truth[begin:end].double().cpu(), batch["to_canvas"][index].cpu()
        drawn, counts = _color_by_kind(drawn_detections, labels, to_canvas, class_names)
        wrong = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if kind in counts)
        texts = [f"{counts['found']} found"] if "found" in counts else []
        texts += [f"errors: {wrong}"] if wrong else []
        if len(hidden):
            texts.append(f"{len(hidden)} below the score {least_score:.3g} not drawn, up to {hidden[:, 4].max():.2g}")
        caption, legend = "; ".join(texts), {_LEGEND.get(kind, kind): COLORS[kind] for kind in COLORS if kind in counts}
        image = draw_boxes(get_image_pixels(batch, index, pixels), drawn, legend=legend)
        pictures.append(Picture(f"detections_{index}", image, caption))
    return pictures


def _color_by_kind(
    detections: Tensor, truth: Tensor, to_canvas: Tensor, class_names: Sequence[str]
) -> tuple[list[DrawnBox], Counter[str]]:
    """Colour detections (D, 6) and truth (G, 7) of a file by kind: boxes on the canvas, and their number by kind."""
    rows, labels = (
        torch.nn.functional.pad(rows_of_boxes, (1, 0)) for rows_of_boxes in (detections, truth)
    )  # all of image 0
    classes = torch.cat([rows[:, DetectionColumn.CLASS], labels[:, LabelColumn.CLASS]]).tolist()
    errors = classify_errors(rows, labels, int(max([len(class_names) - 1, *classes])) + 1)
    counts: Counter[str] = Counter()

    def box(row: np.ndarray, kind: str, caption: str = "", style: Style = "solid") -> DrawnBox:
        counts[kind] += 1
        corners = warp_boxes(torch.from_numpy(row[DetectionColumn.BOX]), to_canvas).tolist()
        return DrawnBox(tuple(corners), COLORS[kind], caption, style)

    boxes = [box(row, "ignored", style="hatched") for row in errors.labels[~errors.is_real]]
    is_lost = errors.is_real & ~errors.is_label_matched
    for kind, mask in (("truth", is_lost & ~errors.is_missed), ("missed", errors.is_missed)):
        for row in errors.labels[mask]:
            boxes.append(box(row, kind, name_class(int(row[LabelColumn.CLASS]), class_names), "dashed"))
    kinds = np.where(errors.is_hidden, "ignored", np.array([*KINDS, "found"])[errors.kind]).tolist()
    for row, kind in reversed([*zip(errors.detections, kinds, strict=True)]):  # the first are drawn lowest
        label, score = row[[DetectionColumn.CLASS, DetectionColumn.SCORE]].tolist()
        boxes.append(box(row, kind, name_class(int(label), class_names, score)))
    return boxes, counts


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
            sides = box_area(anchors).sqrt()
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
        assignment = assigner(priors, boxes, is_ignored)
        reports[name] = report_assignment(assignment, priors, boxes, is_ignored)
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
        rim: dict[str, Color] = {"ring": _LABEL} if assignment.num_claims[prior] > 1 else {}
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
