"""Fields of samples with boxes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sightline.contract.types import Field

BOX_OFFSETS = "box_offsets"


def make_box_fields(num_sides: int, *, unit: str, frame: str, truth_frame: str) -> dict[str, Field]:
    """Make the fields of a sample's boxes of `num_sides` numbers: `boxes`, `label`, `is_ignored` and `truth`.

    4 numbers of a box in an image are left, top, right, bottom; 7 of one in space are x, y, z, dx, dy, dz in metres,
    and the yaw in radians. `truth` has three more columns: class, size as stated, 1 if ignored.
    """
    truth = Field(f"labels {num_sides + 3}", "float64", unit, truth_frame, collate="concatenate", is_exact=True)
    return {
        "boxes": Field(f"boxes {num_sides}", "float32", unit, frame, collate="concatenate", offsets=BOX_OFFSETS),
        "label": Field("boxes", "int64", collate="concatenate", offsets=BOX_OFFSETS),
        "is_ignored": Field("boxes", "bool", collate="concatenate", offsets=BOX_OFFSETS),
        "truth": replace(truth, offsets="truth_offsets"),
    }


_IMAGE_BOXES = make_box_fields(4, unit="px", frame="image", truth_frame="file")
BOX_FIELDS: Mapping[str, Field] = {
    "image": Field("height width 3", "uint8", low=0, high=255),
    **{name: _IMAGE_BOXES[name] for name in ("boxes", "label", "is_ignored")},
    "to_canvas": Field("2 3", "float64", "px", "image"),
    "file_px": Field("2", "int64", "px", "file", low=1),
    "truth": _IMAGE_BOXES["truth"],
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
"""Fields of a sample of an image with boxes. `boxes` with their classes are the training targets and are transformed
with the pixels; `truth` is the ground truth for scoring, in pixels of the file: left, top, right, bottom, class, area,
is ignored, one row per box. The class of an ignored box is -1 if detections of every class may lie in it.
`truth_visible` is the visible share of each box, NaN if the set does not state it. `file_px` are height and width of
the image in its file."""
