"""The samples of all data sets of images with boxes: what stands in them, and in whose pixels."""

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
"""The fields of a sample: `boxes` with their classes are trained on and move with the pixels; `truth` is scored against
and stays as it is in the file: left, top, right, bottom, class, area and whether it is ignored, one row a box. The
class of an ignored box is -1 where detections of every class may lie in it. `truth_visible` is the share of each that
others do not hide, NaN where the set does not state it. `file_px` are height and width of the image
in its file."""


@dataclass(frozen=True)
class BoxRecord:
    """The boxes of one image, in pixels of its file, half-open and not rounded: (G, 4) left, top, right, bottom.

    `boxes` are trained on, `scored` are what is scored: of a person the whole figure, or what is visible of it. An
    ignored box is neither a target nor background; its class is that of the detections that may lie in it, -1 for those
    of all classes. `is_scored_ignored` is about the scored boxes, where these are ignored for other reasons (a head
    that does not show, of a person who does). `visible` (G,) is the share of the whole figure that shows, 0 to 1, NaN
    where the set does not state it. All arrays are read-only.
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
    """A sample of its own: nothing that is done to it reaches the record.

    Boxes without extent, as clipping leaves of those outside the image, are not among `boxes`; `truth` has them all.
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
    """What is scored, as the field `truth` has it: (G, 7) float64."""
    is_ignored = record.is_ignored if record.is_scored_ignored is None else record.is_scored_ignored
    columns = (record.scored, record.label[:, None], record.area[:, None], is_ignored[:, None])
    return np.concatenate([column.astype(np.float64) for column in columns], axis=1)


def visible_fractions(record: BoxRecord) -> np.ndarray:
    """The share of each scored box that is visible, as the field `truth_visible` has it: (G,) float64."""
    return np.full(len(record.label), np.nan) if record.visible is None else record.visible.astype(np.float64)


def box_facts(class_names: tuple[str, ...], box_type: str) -> dict[str, Any]:
    """The facts that every set of images with boxes states; `box_type` are the boxes that are scored."""
    return {"num_classes": len(class_names), "class_names": class_names, "in_channels": 3, "box_type": box_type}
