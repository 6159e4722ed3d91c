"""Images with boxes drawn on them, by Pillow alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from sightline.errors import escape_to_one_line
from sightline.pictures import draw_legend

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

__all__ = ["Color", "DrawnBox", "Mark", "draw_boxes"]

Style = Literal["solid", "dashed", "crossed", "hatched"]
Color = tuple[int, int, int]
PixelPosition = tuple[int, int]
_LEAST_SIDE_PX = 360
"""Smaller images are drawn enlarged by a whole number, so that lines and captions hide less of them."""
_SIDE_OF_LINES = 240
"""The longer side of a picture in widths of its lines: they are seen when it is shown small."""
_DARK = (20, 20, 20)


@dataclass(frozen=True)
class DrawnBox:
    """A box (left, top, right, bottom) in pixels of the image, its colour, and what is written above it."""

    corners: tuple[float, ...]
    color: Color
    caption: str = ""
    style: Style = "solid"


@dataclass(frozen=True)
class Mark:
    """A dot at a place (x, y) in pixels of the image; its radius is in widths of lines, `ring` colours its rim."""

    place: tuple[float, float]
    color: Color
    radius: float = 1.0
    ring: Color = _DARK


def draw_boxes(
    image: np.ndarray,
    boxes: Sequence[DrawnBox],
    *,
    marks: Sequence[Mark] = (),
    legend: Mapping[str, Color] | None = None,
) -> np.ndarray:
    """`image` (H, W, 3) uint8, enlarged where it is small, with boxes and marks in their order; the first lie lowest.

    `hatched` boxes are filled with slanted lines: regions that do not count; `crossed` ones are dashed, with diagonals.
    Every line has a dark rim, so that it is seen on any ground. A legend of colours stands below.
    """
    from PIL import Image, ImageDraw

    factor = max(1, -(-_LEAST_SIDE_PX // max(image.shape[:2])))
    canvas = Image.fromarray(image).resize((image.shape[1] * factor, image.shape[0] * factor), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(canvas)
    width = max(1, round(max(canvas.size) / _SIDE_OF_LINES))
    for box in boxes:
        left, top, right, bottom = (round(corner * factor) for corner in box.corners)
        right, bottom = max(right - 1, left), max(bottom - 1, top)
        if box.style == "hatched":
            _hatch(canvas, (left, top, right, bottom), box.color, 7 * width + 2)
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=_DARK, width=width + 2)
        if box.style in ("dashed", "crossed"):
            for start, end in _sides(left, top, right, bottom, is_crossed=box.style == "crossed"):
                _dash(draw, start, end, box.color, width)
        else:
            draw.rectangle((left, top, right, bottom), outline=box.color, width=width)
        if box.caption:
            size_px = max(11, 4 * width)
            place = (left + 1, max(top - size_px, 0))
            caption = escape_to_one_line(box.caption)
            draw.rectangle(draw.textbbox(place, caption, font_size=size_px), fill=_DARK)
            draw.text(place, caption, fill=box.color, font_size=size_px)
    for mark in marks:
        x, y = (value * factor for value in mark.place)
        for radius, color in ((mark.radius * width + width / 2, mark.ring), (mark.radius * width, mark.color)):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    below = draw_legend([*(legend or {}).items()], canvas.width, line_px=11 * width)
    return np.concatenate([np.asarray(canvas), below])


def _sides(
    left: int, top: int, right: int, bottom: int, *, is_crossed: bool
) -> list[tuple[PixelPosition, PixelPosition]]:
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    diagonals = [(corners[0], corners[2]), (corners[1], corners[3])] if is_crossed else []
    return [*zip(corners, [*corners[1:], corners[0]], strict=True), *diagonals]


def _dash(draw: ImageDraw.ImageDraw, start: PixelPosition, end: PixelPosition, color: Color, width: int) -> None:
    """A line of dashes as long as the gaps between them."""
    along = np.subtract(end, start)
    length = float(np.hypot(*along))
    dash_px = 2 * width + 4
    for place in np.arange(0, length, 2 * dash_px):
        stop = min(place + dash_px, length)
        ends = np.add(start, np.outer((place, stop), along / length))
        draw.line(ends.ravel().tolist(), fill=color, width=width)


def _hatch(canvas: Image.Image, corners: tuple[int, int, int, int], color: Color, step_px: int) -> None:
    """Slanted lines inside the corners, each beside a dark one."""
    from PIL import Image

    left, top, right, bottom = np.clip(corners, 0, [canvas.width, canvas.height] * 2).tolist()
    row, column = np.mgrid[: canvas.height, : canvas.width]
    is_inside = (row >= top) & (row < bottom) & (column >= left) & (column < right)
    place = (row + column) % step_px // -(-step_px // 9)
    for number, paint in enumerate((color, _DARK)):
        canvas.paste(paint, mask=Image.fromarray((is_inside & (place == number)).astype(np.uint8) * 255))
