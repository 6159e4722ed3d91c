"""Samples of all data sets of images with boxes: their fields, units and frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sightline.types import Field, Sample

__all__ = ["BOX_FIELDS", "BoxRecord", "box_facts", "ground_truth_rows", "make_sample", "visible_fractions"]

BOX_OFFSETS = "box_offsets"
BOX_FIELDS: Mapping[str, Field] = {
    "image": Field("height width 3", "uint8", low=0, high=255),
    "boxes": Field("boxes 4", "float32", "px", "image", collate="concatenate", offsets=BOX_OFFSETS),
    "label": Field("boxes", "int64", collate="concatenate", offsets=BOX_OFFSETS),
    "is_ignored": Field("boxes", "bool", collate="concatenate", offsets=BOX_OFFSETS),
    "to_canvas": Field("2 3", "float64", "px", "image"),
    "file_px": Field("2", "int64", "px", "file", low=1),
    "truth": Field("labels 7", "float64", "px", "file", collate="concatenate", offsets="truth_offsets", is_exact=True),
    "truth_visible": Field(
        *("labels", "float64"),
        low=0,
        high=1,
        collate="concatenate",
        offsets="truth_offsets",
        is_exact=True,
        may_be_nan=True,
    ),
}
"""Fields of a sample. `boxes` with their classes are the training targets and are transformed with the pixels; `truth`
is the ground truth for scoring, in pixels of the file: left, top, right, bottom, class, area, is ignored, one row per
box. The class of an ignored box is -1 if detections of every class may lie in it. `truth_visible` is the visible share
of each box, NaN if the set does not state it. `file_px` are height and width of the image in its file."""


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
