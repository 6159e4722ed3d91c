"""Images with boxes drawn on them, by Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

__all__ = ["Box", "draw_boxes"]

Style = Literal["solid", "dashed", "hatched"]
Color = tuple[int, int, int]
Place = tuple[int, int]
_DASH_PX = 6
_HATCH_PX = 9
_LEAST_SIDE_PX = 360
"""Smaller images are drawn enlarged by a whole number, so that lines and captions hide less of them."""


@dataclass(frozen=True)
class Box:
    """A box (left, top, right, bottom) in pixels of the image, its colour, and what is written above it."""

    corners: tuple[float, float, float, float]
    color: Color
    caption: str = ""
    style: Style = "solid"


def draw_boxes(image: np.ndarray, boxes: Sequence[Box]) -> np.ndarray:
    """`image` (H, W, 3) uint8, enlarged where it is small, with the boxes in their order; the first lie lowest.

    `hatched` boxes are filled with slanted lines: regions that do not count.
    """
    from PIL import Image, ImageDraw

    factor = max(1, -(-_LEAST_SIDE_PX // max(image.shape[:2])))
    canvas = Image.fromarray(image).resize((image.shape[1] * factor, image.shape[0] * factor), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(canvas)
    for box in boxes:
        left, top, right, bottom = (round(corner * factor) for corner in box.corners)
        right, bottom = max(right - 1, left), max(bottom - 1, top)
        if box.style == "hatched":
            _hatch(canvas, (left, top, right, bottom), box.color)
        if box.style == "dashed":
            for start, end in _sides(left, top, right, bottom):
                _dash(draw, start, end, box.color)
        else:
            draw.rectangle((left, top, right, bottom), outline=box.color, width=1 if factor == 1 else 2)
        if box.caption:
            place = (left + 1, max(top - 11, 0))
            draw.rectangle(draw.textbbox(place, box.caption), fill=(20, 20, 20))
            draw.text(place, box.caption, fill=box.color)
    return np.asarray(canvas)


def _sides(left: int, top: int, right: int, bottom: int) -> list[tuple[Place, Place]]:
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return list(zip(corners, [*corners[1:], corners[0]], strict=True))


def _dash(draw: ImageDraw.ImageDraw, start: Place, end: Place, color: Color) -> None:
    """A line of dashes as long as the gaps between them."""
    along = np.subtract(end, start)
    length = float(np.hypot(*along))
    for place in np.arange(0, length, 2 * _DASH_PX):
        stop = min(place + _DASH_PX, length)
        ends = np.add(start, np.outer((place, stop), along / length))
        draw.line(ends.ravel().tolist(), fill=color)


def _hatch(canvas: Image.Image, corners: tuple[int, int, int, int], color: Color) -> None:
    """Slanted lines inside the corners."""
    from PIL import Image

    left, top, right, bottom = np.clip(corners, 0, [canvas.width, canvas.height] * 2).tolist()
    row, column = np.mgrid[: canvas.height, : canvas.width]
    is_inside = (row >= top) & (row < bottom) & (column >= left) & (column < right)
    canvas.paste(color, mask=Image.fromarray((is_inside & ((row + column) % _HATCH_PX == 0)).astype(np.uint8) * 255))
