"""Fields of samples with boxes."""

from __future__ import annotations

from collections.abc import Mapping

from sightline.contract.types import Field

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
