"""Pictures of detections with the labels that they match."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.areas.detect.metrics.box_errors import KINDS, classify_errors
from sightline.contract.types import Batch
from sightline.draw.boxes import COLORS, DrawnBox, Style, draw_boxes, name_class
from sightline.draw.pictures import Picture, normalize_to_uint8
from sightline.ops.points.affine_maps import warp_boxes
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
