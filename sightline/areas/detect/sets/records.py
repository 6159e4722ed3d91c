"""Samples of all data sets of images with boxes: their fields, units and frames.

Checks of box coordinates before preparation: another coordinate form, and duplicates; a canvas for the images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

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


BoxForm = Literal["corner, size", "middle, size", "two corners"]
"""Coordinate form of a layout: the four numbers that state a box."""
_FORM_TEXTS: dict[BoxForm, str] = {
    "corner, size": "left, top, width, height",
    "middle, size": "middle x, middle y, width, height",
    "two corners": "left, top, right, bottom",
}
_BEYOND_PX = 1.0
_MIN_EXPLAINED, _MAX_REMAINING = 0.05, 0.33
"""Another form is likely if it brings 5 % of all boxes into the images and leaves a third outside at most."""


class ShownBoxes(NamedTuple):
    """Boxes (N, 4), left, top, right, bottom in pixels, in the order of their images.

    `limits` (N, 2) are width and height of each box's image, `images` (N,) the image's index, `labels` (N,) the class.
    """

    boxes: np.ndarray
    limits: np.ndarray
    images: np.ndarray
    labels: np.ndarray


def box_notes(shown: ShownBoxes, names: Sequence[str], form: BoxForm) -> list[str]:
    """Return notes on boxes that look like another coordinate form, and on duplicate boxes.

    `names` are the names of the images. Boxes may reach beyond images, as boxes of whole people do. Relative
    coordinates (shares of the image's sides) stay inside the image if x and y are exchanged, so this is not reported.
    """
    return [*_note_misread(shown, names, form), *_note_repeated(shown, names)]


def _note_misread(shown: ShownBoxes, names: Sequence[str], form: BoxForm) -> Iterator[str]:
    beyond_mask = _beyond_mask(shown.boxes, shown.limits)
    count, beyond = len(beyond_mask), int(beyond_mask.sum())
    if count and shown.boxes.min() >= 0 and shown.boxes.max() <= 1:
        yield f"all {count} boxes lie in the first pixel of their images: shares of their sides? export them in pixels"
    remaining = {
        description: int(_beyond_mask(boxes, shown.limits).sum())
        for description, boxes in _iterate_forms(shown.boxes, form)
    }
    likely = min(remaining, key=remaining.__getitem__)
    expected = remaining[likely] + _MIN_EXPLAINED * count
    if beyond > max(2, expected + 3 * math.sqrt(expected)) and remaining[likely] <= _MAX_REMAINING * beyond:
        first = names[shown.images[int(beyond_mask.argmax())]]
        yield (
            f"{beyond} of {count} boxes reach beyond their images, first in {first}: read as {_FORM_TEXTS[form]}, they "
            f"look like {likely}: read so, {remaining[likely]} do; convert them, or export them again"
        )


def _note_repeated(shown: ShownBoxes, names: Sequence[str]) -> Iterator[str]:
    rows = np.column_stack([shown.images, shown.labels, shown.boxes])
    _, first, counts = np.unique(rows, axis=0, return_index=True, return_counts=True)
    if (counts > 1).any():
        row = int(first[counts > 1].min())
        box = ", ".join(f"{corner:g}" for corner in shown.boxes[row])
        yield (
            f"{int((counts - 1).sum())} boxes are there once more with the same class, first in "
            f"{names[shown.images[row]]}: {box} (left, top, right, bottom); keep one of each"
        )


def _iterate_forms(boxes: np.ndarray, form: BoxForm) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the boxes (N, 4) for every other form of the stated numbers, also with x and y exchanged."""
    first, last = boxes[:, :2], boxes[:, 2:]
    stated = {
        "corner, size": (first, last - first),
        "middle, size": ((first + last) / 2, last - first),
        "two corners": (first, last),
    }[form]
    readings: dict[BoxForm, tuple[np.ndarray, np.ndarray]] = {
        "two corners": stated,
        "corner, size": (stated[0], stated[0] + stated[1]),
        "middle, size": (stated[0] - stated[1] / 2, stated[0] + stated[1] / 2),
    }
    for other, corners in readings.items():
        if other != form:
            yield _FORM_TEXTS[other], np.concatenate(corners, axis=1)
    for other, corners in readings.items() if form != "middle, size" else ():
        yield (
            f"{_FORM_TEXTS[other]} with x and y exchanged",
            np.concatenate([corner[:, ::-1] for corner in corners], axis=1),
        )


def _beyond_mask(boxes: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Mask (N,) of boxes (N, 4) that are empty or reach beyond their image."""
    outside_mask = (boxes < -_BEYOND_PX) | (boxes > np.tile(limits, 2) + _BEYOND_PX)
    inverted_mask = boxes[:, 2:] <= boxes[:, :2]
    return np.asarray(np.concatenate([outside_mask, inverted_mask], axis=1).any(axis=1))


_SMALLEST_BOX_PX = 16.0
"""Side on the canvas that nine of ten boxes should have: two cells of a detector's finest level."""
_MIN_LONG_PX, _MAX_LONG_PX = 320, 1344
_MULTIPLE = 32
"""Stride of the coarsest level that backbones compute."""
_WORDS = "transforms.train.2.{side}={px} transforms.evaluate.0.{side}={px}"
"""Position of `fit_image` in the presets `configs/detect/photos_*.yaml`."""


def propose_canvas(sizes_px: np.ndarray, boxes: np.ndarray) -> dict[str, Any]:
    """Propose height and width from image sizes (N, 2), height first, and corners of boxes (B, 4) in their pixels.

    The canvas has the images' median ratio of sides. It is as small as nine of ten boxes allow, never larger than the
    images, and its sides are multiples of 32. Returns also the overrides of the presets; {} without boxes.
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
    words = " ".join(_WORDS.format(side=side, px=px) for side, px in canvas.items())
    return {
        **canvas,
        "small_box_px": round(small * scale, 1),
        "for_configs_detect_photos": words,
    }


def _round_up(length: float) -> int:
    return math.ceil(length / _MULTIPLE - 1e-9) * _MULTIPLE
