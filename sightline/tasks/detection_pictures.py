"""Pictures of detections and ground truth: true and false positives, missed and ignored labels."""

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

__all__ = ["COLORS", "MIN_DRAWN_SCORE", "get_image_pixels", "show_detections"]

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
    least_score: float = MIN_DRAWN_SCORE,
    pixels: np.ndarray | None = None,
) -> list[Picture]:
    """Draw the first images of a batch with detections: true positives blue, false positives red, missed labels yellow.

    A true positive has an IoU of at least 0.5 with a label of its class. Ignored labels, and detections in them, are
    grey. The highest-scoring are drawn on top. `pixels` as in `get_image_pixels`.
    """
    detections, truth = predictions["detections"], batch["truth"]
    rows = zip(
        pairwise(predictions["detection_offsets"].tolist()), pairwise(batch["truth_offsets"].tolist()), strict=True
    )
    pictures = []
    for index, ((first, last), (begin, end)) in enumerate(list(rows)[:_NUM_SHOWN]):
        image_detections = detections[first:last].double().cpu()
        drawn_detections, others = (
            image_detections[image_detections[:, 4] >= least_score],
            image_detections[image_detections[:, 4] < least_score],
        )
        drawn, counts = _match_boxes(drawn_detections, truth[begin:end].double().cpu(), batch["to_canvas"][index].cpu())
        caption = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        if len(others):
            caption += f"; {len(others)} below the score {least_score:g} not drawn, up to {others[:, 4].max():.2g}"
        legend = {text: COLORS[kind] for kind, text in _LEGEND.items()}
        image = draw_boxes(get_image_pixels(batch, index, pixels), drawn, legend=legend)
        pictures.append(Picture(f"detections_{index}", image, caption))
    return pictures


def _match_boxes(detections: Tensor, truth: Tensor, to_canvas: Tensor) -> tuple[list[DrawnBox], dict[str, int]]:
    """Match detections (D, 6) with truth (G, 7), both of the file: boxes on the canvas, and their number by kind."""
    is_ignored = truth[:, 6] > 0
    overlap = torch.where(
        is_ignored, ioa(detections[:, None, :4], truth[:, :4]), iou(detections[:, None, :4], truth[:, :4])
    )
    overlap = torch.where((detections[:, None, 5] == truth[:, 4]) | (truth[:, 4] < 0), overlap, 0)
    ignored = is_ignored.numpy()
    scores = detections[:, 4].numpy()
    matches = match_predictions(
        overlap.numpy(),
        scores,
        is_ignored=ignored,
        is_crowd=ignored,
        is_outside_area=np.zeros(len(scores), dtype=bool),
        max_detections=len(scores),
        iou_thresholds=_LEVEL,
    )
    order = np.argsort(-scores, kind="stable")
    is_true_positive, is_ignored_detection = matches.is_found[0] & ~matches.is_ignored[0], matches.is_ignored[0]
    assert matches.label is not None
    is_matched = torch.zeros(len(truth), dtype=torch.bool)
    is_matched[torch.from_numpy(matches.label[0][is_true_positive])] = True

    def box(row: Tensor, kind: str, caption: str = "", style: Any = "solid") -> DrawnBox:
        return DrawnBox(tuple(warp_boxes(row[:4], to_canvas).tolist()), COLORS[kind], caption, style)

    boxes = [box(row, "ignored", style="hatched") for row in truth[is_ignored]]
    missed = truth[~is_ignored & ~is_matched]
    boxes += [box(row, "missed", style="dashed") for row in missed]
    kinds = np.where(is_true_positive, "found", np.where(is_ignored_detection, "ignored", "made up"))
    drawn = [box(row, str(kind), f"{row[4]:.2f}") for row, kind in zip(detections[order], kinds, strict=True)]
    boxes += drawn[::-1]  # the first are drawn lowest
    counts = {kind: int((kinds == kind).sum()) for kind in ("found", "made up")} | {"missed": len(missed)}
    return boxes, counts
