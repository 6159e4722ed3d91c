"""What boxes look like before they are prepared: read as other numbers than they are, or there twice."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

__all__ = ["BoxForm", "ShownBoxes", "box_notes"]

BoxForm = Literal["corner, size", "middle, size", "two corners"]
"""The four numbers by which a layout states a box."""
_WORDS: dict[BoxForm, str] = {
    "corner, size": "left, top, width, height",
    "middle, size": "middle x, middle y, width, height",
    "two corners": "left, top, right, bottom",
}
_BEYOND_PX = 1.0
_EXPLAINED, _LEFT = 0.05, 0.33
"""Another reading is likely right that brings 5 % of all boxes into the images, and leaves a third of those beyond."""


class ShownBoxes(NamedTuple):
    """Boxes (N, 4) left, top, right, bottom in pixels as they are read, in the order of their images.

    `limits` (N, 2) are width and height of the image of each, `images` (N,) its place, `labels` (N,) their classes.
    """

    boxes: np.ndarray
    limits: np.ndarray
    images: np.ndarray
    labels: np.ndarray


def box_notes(shown: ShownBoxes, names: Sequence[str], form: BoxForm) -> list[str]:
    """A line on boxes that another reading explains better, and one on those that are there twice.

    `names` are those of the images. Boxes may reach beyond images, as whole figures do. In shares of the image's sides
    an exchange of x and y leaves every box inside, so nothing is said of it.
    """
    return [*_note_misread(shown, names, form), *_note_repeated(shown, names)]


def _note_misread(shown: ShownBoxes, names: Sequence[str], form: BoxForm) -> Iterator[str]:
    is_beyond = _is_beyond(shown.boxes, shown.limits)
    count, beyond = len(is_beyond), int(is_beyond.sum())
    left = {what: int(_is_beyond(read, shown.limits).sum()) for what, read in _read_otherwise(shown.boxes, form)}
    likely = min(left, key=left.__getitem__)
    expected = left[likely] + _EXPLAINED * count
    if beyond > max(2, expected + 3 * math.sqrt(expected)) and left[likely] <= _LEFT * beyond:
        first = names[shown.images[int(is_beyond.argmax())]]
        yield (
            f"{beyond} of {count} boxes reach beyond their images, first in {first}: read as {_WORDS[form]}, they look "
            f"like {likely}, as which {left[likely]} do; convert them, or export them again"
        )


def _note_repeated(shown: ShownBoxes, names: Sequence[str]) -> Iterator[str]:
    rows = np.column_stack([shown.images, shown.labels, shown.boxes])
    _, first, counts = np.unique(rows, axis=0, return_index=True, return_counts=True)
    if (counts > 1).any():
        place = int(first[counts > 1].min())
        box = ", ".join(f"{each:g}" for each in shown.boxes[place])
        yield (
            f"{int((counts - 1).sum())} boxes are there once more with the same class, first in "
            f"{names[shown.images[place]]}: {box} (left, top, right, bottom); keep one of each"
        )


def _read_otherwise(boxes: np.ndarray, form: BoxForm) -> Iterator[tuple[str, np.ndarray]]:
    """The boxes that the stated numbers are in other forms, and with x and y exchanged."""
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
            yield _WORDS[other], np.concatenate(corners, axis=1)
    for other, corners in readings.items() if form != "middle, size" else ():
        yield f"{_WORDS[other]} with x and y exchanged", np.concatenate([each[:, ::-1] for each in corners], axis=1)


def _is_beyond(boxes: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Whether a box has no extent, or reaches beyond its image."""
    is_beyond = (boxes < -_BEYOND_PX) | (boxes > np.tile(limits, 2) + _BEYOND_PX)
    is_turned = boxes[:, 2:] <= boxes[:, :2]
    return np.asarray(np.concatenate([is_beyond, is_turned], axis=1).any(axis=1))
