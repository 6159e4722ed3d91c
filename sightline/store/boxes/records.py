"""Samples of all data sets of images with boxes: their fields, units and frames; and a canvas for the images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sightline.contract.types import Sample


@dataclass(frozen=True)
class BoxRecord:
    """Boxes of one image in pixels of its file: (G, 4) left, top, right, bottom, half-open, not rounded.

    `boxes` are trained on, `scored` are scored (for example full boxes of people, or visible ones). An ignored box is
    neither a target nor background; its class is that of the detections that may lie in it, -1 for all classes.
    `is_scored_ignored` are the ignore marks of the scored boxes if they differ (a hidden head of a visible person).
    `visible` (G,) is the visible share of the object, 0 to 1, NaN if the set does not state it. All arrays are
    read-only.
    """

    boxes: np.ndarray
    scored: np.ndarray
    label: np.ndarray
    is_ignored: np.ndarray
    area: np.ndarray
    is_scored_ignored: np.ndarray | None = None
    visible: np.ndarray | None = None

    def __post_init__(self) -> None:
        for array in vars(self).values():
            if array is not None:
                array.flags.writeable = False


def make_sample(image: np.ndarray, record: BoxRecord) -> Sample:
    """Build a sample as new tensors; changes to it do not reach the record.

    Empty boxes, which clipping makes of boxes outside the image, are left out of `boxes`; `truth` contains all.
    """
    has_extent = (record.boxes[:, 2:] > record.boxes[:, :2]).all(axis=1)
    return {
        "image": torch.from_numpy(image.copy()),
        "boxes": torch.from_numpy(record.boxes[has_extent].astype(np.float32)),
        "label": torch.from_numpy(np.maximum(record.label[has_extent], 0).astype(np.int64)),
        "is_ignored": torch.from_numpy(record.is_ignored[has_extent]),
        "to_canvas": torch.eye(3, dtype=torch.float64)[:2],
        "file_px": torch.tensor(image.shape[:2]),
        "truth": torch.from_numpy(ground_truth_rows(record)),
        "truth_visible": torch.from_numpy(visible_fractions(record)),
    }


def ground_truth_rows(record: BoxRecord) -> np.ndarray:
    """Return the ground truth for scoring, as in the field `truth`: (G, 7) float64."""
    is_ignored = record.is_ignored if record.is_scored_ignored is None else record.is_scored_ignored
    columns = (record.scored, record.label[:, None], record.area[:, None], is_ignored[:, None])
    return np.concatenate([column.astype(np.float64) for column in columns], axis=1)


def visible_fractions(record: BoxRecord) -> np.ndarray:
    """Return the visible share of each scored box, as in the field `truth_visible`: (G,) float64."""
    return np.full(len(record.label), np.nan) if record.visible is None else record.visible.astype(np.float64)


def box_facts(class_names: tuple[str, ...], box_type: str) -> dict[str, Any]:
    """Return the facts of a set of images with boxes; `box_type` names the scored boxes."""
    return {"num_classes": len(class_names), "class_names": class_names, "in_channels": 3, "box_type": box_type}


_SMALLEST_BOX_PX = 16.0
"""Side on the canvas that nine of ten boxes should have: two cells of a detector's finest level."""
_MIN_LONG_PX, _MAX_LONG_PX = 320, 1344
_MULTIPLE = 32
"""Stride of the coarsest level that backbones compute."""


def propose_canvas(sizes_px: np.ndarray, boxes: np.ndarray) -> dict[str, Any]:
    """Propose height and width from image sizes (N, 2), height first, and corners of boxes (B, 4) in their pixels.

    The canvas has the images' median ratio of sides. It is as small as nine of ten boxes allow, never larger than the
    images, and its sides are multiples of 32. Returns also the override of a config; {} without boxes.
    """
    sides = np.sqrt(np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1))
    sides = sides[sides > 0]
    if not len(sides):
        return {}
    height, width = (float(side) for side in np.median(sizes_px, axis=0))
    small = float(np.quantile(sides, 0.1))
    long_px = max(height, width)
    scale = min(1.0, max(_SMALLEST_BOX_PX / small, _MIN_LONG_PX / long_px), _MAX_LONG_PX / long_px)
    canvas = {"height": _round_up(height * scale), "width": _round_up(width * scale)}
    return {
        **canvas,
        "small_box_px": round(small * scale, 1),
        "for_config": "imgsz={width}x{height}".format(**canvas),
    }


def _round_up(length: float) -> int:
    return math.ceil(length / _MULTIPLE - 1e-9) * _MULTIPLE
