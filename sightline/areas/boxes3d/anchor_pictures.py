"""Boxes of a frame by the anchors that find them: without any, or by a little overlap, or as the config intends."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.areas.boxes3d.anchors import AnchorAssigner, Anchors
from sightline.areas.boxes3d.pictures import BoxLayer, draw_layers
from sightline.draw.boxes import Color
from sightline.draw.pictures import Picture, label_colors
from sightline.store.boxes3d.box_table import BoxTable

__all__ = ["show_anchors"]

_NONE, _WEAK, _IGNORED = (230, 45, 30), (190, 40, 140), (160, 166, 174)


def show_anchors(
    points: np.ndarray, table: BoxTable, anchors: Anchors, assigner: AnchorAssigner, matched: Tensor
) -> tuple[Picture, dict[str, Any]]:
    """Draw a frame from above with its boxes by their anchors, and report each class.

    `matched` (A,) is the box of each anchor, below 0 for none. Each box carries the largest overlap that an anchor of
    its class reaches. A box is red if no anchor has to find it, which no training mends, and purple if its best overlap
    is below `positive`, so that its best anchors alone have to; the best anchor of both is drawn dashed. The report
    counts boxes that are not ignored, and states the least overlap.
    """
    boxes = torch.tensor(table.boxes)
    num_anchors = np.bincount(matched[matched >= 0].numpy(), minlength=len(table))
    best, anchor = (found.numpy() for found in assigner.find_best(anchors.boxes, boxes, torch.tensor(table.label)))
    positive = np.array([*anchors.positive, np.inf])[table.label]
    is_counted = ~table.is_ignored & (table.label >= 0)
    has_none, is_weak = is_counted & (num_anchors == 0), is_counted & (num_anchors > 0) & (best < positive)
    colors: list[Color] = [tuple(color) for color in label_colors(table.label).tolist()]
    for kind, color in ((has_none, _NONE), (is_weak, _WEAK), (~is_counted, _IGNORED)):
        for row in np.flatnonzero(kind).tolist():
            colors[row] = color
    captions = [f"{value:.2f}" if counts else "" for value, counts in zip(best.tolist(), is_counted, strict=True)]
    legend: list[tuple[str, Color]] = [
        (f"no anchor finds it  {has_none.sum()}", _NONE),
        (f"best anchor (dashed) overlaps too little  {is_weak.sum()}", _WEAK),
        *((f"ignored  {(~is_counted).sum()}", _IGNORED) for _ in range(bool((~is_counted).any()))),
    ]
    report: dict[str, Any] = {}
    for number, name in enumerate(table.class_names):
        rows = is_counted & (table.label == number)
        if not rows.any():
            continue
        shown: Color = tuple(label_colors(np.array([number]))[0].tolist())
        legend.append((f"{name}, from {anchors.positive[number]:g}  {(rows & ~has_none & ~is_weak).sum()}", shown))
        report[name] = {
            "boxes": int(rows.sum()),
            "without_anchor": int((rows & has_none).sum()),
            "below_positive": int((rows & is_weak).sum()),
            "least_overlap": float(best[rows].min()),
            "anchors_per_box": float(num_anchors[rows].mean()),
        }
    poor = np.flatnonzero(has_none | is_weak)
    drawn = anchors.boxes[torch.from_numpy(anchor[poor])].numpy().reshape(-1, 7)
    dashed = BoxLayer(drawn, [colors[row] for row in poor.tolist()], [""] * len(poor), np.ones(len(poor), dtype=bool))
    layers = [dashed, BoxLayer(table.boxes, colors, captions, ~is_counted, legend)]
    caption = (
        f"{is_counted.sum()} boxes with the best overlap of an anchor; {has_none.sum()} without an anchor, "
        f"{is_weak.sum()} found by the best anchor alone"
    )
    return Picture("boxes by their anchors", draw_layers(points, layers), caption, is_drawing=True), report
