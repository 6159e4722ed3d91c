"""Pictures of detections beside the truth: found, missed, made up, ignored."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.box_pictures import DrawnBox, draw_boxes
from sightline.geometry.boxes.affine import warp_boxes
from sightline.geometry.boxes.overlaps import ioa, iou
from sightline.metrics.average_precision import match_predictions
from sightline.pictures import Picture, normalize_to_uint8
from sightline.types import Batch

__all__ = ["COLORS", "LEAST_SCORE", "pixels_of", "show_detections"]

COLORS = {
    "truth": (0, 190, 140),
    "found": (86, 180, 233),
    "made up": (230, 80, 10),
    "missed": (240, 228, 66),
    "ignored": (160, 166, 174),
}
"""Source: Okabe and Ito 2008, distinct to colour-blind readers."""
_LEGEND = {"found": "found (TP)", "made up": "made up (FP)", "missed": "missed (FN)", "ignored": "ignored"}
_LEVEL = np.array([0.5])
_NUM_SHOWN = 4
LEAST_SCORE = 0.3
"""Of a detection that is drawn, where nobody asks for another."""


def pixels_of(batch: Batch, place: int, given: np.ndarray | None) -> np.ndarray:
    """The pixels (H, W, 3) uint8 of an image of a batch: for the first those given, if they are of its size.

    What is not given is drawn from its lowest value to its highest: nobody knows how images were normalised.
    """
    image = batch["image"][place].float().cpu().permute(1, 2, 0).numpy()
    return given if given is not None and place == 0 and given.shape == image.shape else normalize_to_uint8(image)


def show_detections(
    batch: Batch,
    predictions: Mapping[str, Any],
    *,
    least_score: float = LEAST_SCORE,
    pixels: np.ndarray | None = None,
) -> list[Picture]:
    """The first images of a batch with the detections from a score on: blue found, red made up; missed labels yellow.

    What is found has an IoU of at least 0.5 with a label of its class. Ignored labels, and what lies in them, are grey.
    The highest-scoring lie on top. `pixels` as in `pixels_of`.
    """
    detections, truth = predictions["detections"], batch["truth"]
    rows = zip(
        pairwise(predictions["detection_offsets"].tolist()), pairwise(batch["truth_offsets"].tolist()), strict=True
    )
    pictures = []
    for place, ((first, last), (begin, end)) in enumerate(list(rows)[:_NUM_SHOWN]):
        found = detections[first:last].double().cpu()
        sure, others = found[found[:, 4] >= least_score], found[found[:, 4] < least_score]
        drawn, counts = _compared(sure, truth[begin:end].double().cpu(), batch["to_canvas"][place].cpu())
        caption = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        if len(others):
            caption += f"; {len(others)} below the score {least_score:g} not drawn, up to {others[:, 4].max():.2g}"
        legend = {text: COLORS[kind] for kind, text in _LEGEND.items()}
        image = draw_boxes(pixels_of(batch, place, pixels), drawn, legend=legend)
        pictures.append(Picture(f"detections_{place}", image, caption))
    return pictures


def _compared(detections: Tensor, truth: Tensor, to_canvas: Tensor) -> tuple[list[DrawnBox], dict[str, int]]:
    """Boxes on the canvas, ignored ones first, and how many there are of each kind; those given are of the file."""
    is_ignored = truth[:, 6] > 0
    alike = torch.where(
        is_ignored, ioa(detections[:, None, :4], truth[:, :4]), iou(detections[:, None, :4], truth[:, :4])
    )
    alike = torch.where((detections[:, None, 5] == truth[:, 4]) | (truth[:, 4] < 0), alike, 0)
    crowds = is_ignored.numpy()
    scores = detections[:, 4].numpy()
    matches = match_predictions(
        alike.numpy(),
        scores,
        is_ignored=crowds,
        is_crowd=crowds,
        is_outside_area=np.zeros(len(scores), dtype=bool),
        max_detections=len(scores),
        iou_thresholds=_LEVEL,
    )
    order = np.argsort(-scores, kind="stable")
    found, dropped = matches.is_found[0] & ~matches.is_ignored[0], matches.is_ignored[0]
    assert matches.label is not None
    hit = torch.zeros(len(truth), dtype=torch.bool)
    hit[torch.from_numpy(matches.label[0][found])] = True

    def box(row: Tensor, kind: str, caption: str = "", style: Any = "solid") -> DrawnBox:
        return DrawnBox(tuple(warp_boxes(row[:4], to_canvas).tolist()), COLORS[kind], caption, style)

    boxes = [box(row, "ignored", style="hatched") for row in truth[is_ignored]]
    missed = truth[~is_ignored & ~hit]
    boxes += [box(row, "missed", style="dashed") for row in missed]
    kinds = np.where(found, "found", np.where(dropped, "ignored", "made up"))
    drawn = [box(row, str(kind), f"{row[4]:.2f}") for row, kind in zip(detections[order], kinds, strict=True)]
    boxes += drawn[::-1]  # the first lie lowest
    counts = {kind: int((kinds == kind).sum()) for kind in ("found", "made up")} | {"missed": len(missed)}
    return boxes, counts
