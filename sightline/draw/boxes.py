"""Drawing of boxes and marks on images, with Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from sightline.draw.pictures import draw_legend, fit_text

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

Style = Literal["solid", "dashed", "crossed", "hatched"]
Color = tuple[int, int, int]
PixelPosition = tuple[int, int]
BoxPosition = tuple[int, int, int, int]
_MIN_SIDE_PX = 360
"""Minimal longer side: smaller images are enlarged by a whole number, so that lines and captions hide less."""
_LINE_WIDTHS_PER_SIDE = 240
"""Longer side of a picture in line widths, so that lines are visible when it is shown small."""
_CAPTIONS_PER_SIDE = 32
"""Longer side of a picture in heights of captions: letters of 11 pixels on a card of a sheet, some 360 wide."""
_CAPTIONED_SHARE = 1 / 12
"""Largest share of a picture that captions cover together, so that the image is seen below those of many boxes."""
_MAX_REACH = 10
"""Largest distance of drawn corners from the origin, in longer sides of the picture: Pillow draws every pixel."""
_DARK = (20, 20, 20)
COLORS = {
    "truth": (0, 190, 140),
    "found": (86, 180, 233),
    "localisation": (230, 159, 0),
    "class": (204, 121, 167),
    "both": (255, 255, 255),
    "duplicate": (0, 114, 178),
    "background": (230, 80, 10),
    "missed": (240, 228, 66),
    "ignored": (160, 166, 174),
}
"""Source: Okabe and Ito 2008, distinct to colour-blind readers."""


@dataclass(frozen=True)
class DrawnBox:
    """Box to draw: corners (left, top, right, bottom) in pixels of the image, colour, and caption above it."""

    corners: tuple[float, ...]
    color: Color
    caption: str = ""
    style: Style = "solid"


@dataclass(frozen=True)
class Mark:
    """Dot at `position` (x, y) in pixels of the image; its radius is in line widths, `ring` colours its rim."""

    position: tuple[float, float]
    color: Color
    radius: float = 1.0
    ring: Color = _DARK


def name_class(label: int, class_names: Sequence[str], score: float | None = None) -> str:
    """Name a class, its number if it has no name, with the score of a detection; empty for a negative label."""
    name = "" if label < 0 else class_names[label] if label < len(class_names) else str(label)
    return name if score is None else f"{name} {score:.2f}"


def draw_boxes(
    image: np.ndarray,
    boxes: Sequence[DrawnBox],
    *,
    marks: Sequence[Mark] = (),
    legend: Mapping[str, Color] | None = None,
) -> np.ndarray:
    """Draw boxes and marks in order on an image (H, W, 3) uint8, enlarged if it is small; the first are lowest.

    `hatched` boxes are filled with slanted lines: regions that do not count; `crossed` ones are dashed, with diagonals.
    Every line has a dark rim, so that it is visible on any ground. Captions are drawn over all boxes and marks, within
    the image, from the last box to the first: as many as find room beside each other and cover a twelfth of the image.
    A legend of colours is drawn below. Boxes with a corner of NaN, which a diverged network predicts, are not drawn.
    """
    from PIL import Image, ImageDraw

    factor = max(1, -(-_MIN_SIDE_PX // max(image.shape[:2])))
    canvas = Image.fromarray(image).resize((image.shape[1] * factor, image.shape[0] * factor), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(canvas)
    width = max(1, round(max(canvas.size) / _LINE_WIDTHS_PER_SIDE))
    reach = _MAX_REACH * max(image.shape[:2])
    captioned: list[tuple[DrawnBox, BoxPosition]] = []
    for box in boxes:
        if np.isnan(box.corners).any():
            continue
        corners = np.clip(box.corners, -reach, reach).tolist()
        left_px, top_px, right_px, bottom_px = (round(corner * factor) for corner in corners)
        right_px, bottom_px = max(right_px - 1, left_px), max(bottom_px - 1, top_px)
        if box.style == "hatched":
            _draw_hatching(canvas, (left_px, top_px, right_px, bottom_px), box.color, 7 * width + 2)
        draw.rectangle((left_px - 1, top_px - 1, right_px + 1, bottom_px + 1), outline=_DARK, width=width + 2)
        if box.style in ("dashed", "crossed"):
            for start, end in _list_edges(left_px, top_px, right_px, bottom_px, is_crossed=box.style == "crossed"):
                _draw_dashes(draw, start, end, box.color, width)
        else:
            draw.rectangle((left_px, top_px, right_px, bottom_px), outline=box.color, width=width)
        if box.caption:
            captioned.append((box, (left_px, top_px, right_px, bottom_px)))
    for mark in marks:
        x, y = (value * factor for value in mark.position)
        for radius, color in ((mark.radius * width + width / 2, mark.ring), (mark.radius * width, mark.color)):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    _draw_captions(draw, captioned, canvas.size, round(max(canvas.size) / _CAPTIONS_PER_SIDE))
    below = draw_legend([*(legend or {}).items()], canvas.width, line_px=11 * width)
    return np.concatenate([np.asarray(canvas), below])


def _draw_captions(
    draw: ImageDraw.ImageDraw, captioned: Sequence[tuple[DrawnBox, BoxPosition]], size: PixelPosition, size_px: int
) -> None:
    """Draw the captions of boxes within the image: above the box or, if there is no room, in it or below.

    The last boxes, which are on top, choose first; captions without room are left out, as are those beyond
    `_CAPTIONED_SHARE` of the image, except for the first. Small boxes are not covered by their own caption.
    """
    taken: list[BoxPosition] = []
    covered_px, most_px = 0, _CAPTIONED_SHARE * size[0] * size[1]
    for box, (left_px, top_px, _, bottom_px) in reversed(captioned):
        text, font = fit_text(draw, box.caption, size[0] - 4, size_px=size_px)
        width, height = (math.ceil(end) + 2 for end in draw.textbbox((2, 2), text, font)[2:])
        left, highest = max(0, min(left_px, size[0] - width)), max(0, size[1] - height)
        inside = [top_px, bottom_px - height] if bottom_px - top_px > 3 * height else []
        tops = [top for top in (top_px - height, *inside, bottom_px + 1) if 0 <= top <= highest]
        tops = tops or [max(0, min(top_px, highest))]
        beside = [(y0, y1) for x0, y0, x1, y1 in taken if left < x1 and x0 < left + width]
        top = next((top for top in tops if all(top >= y1 or y0 >= top + height for y0, y1 in beside)), None)
        if top is None or (taken and covered_px + width * height > most_px):
            continue
        covered_px += width * height
        taken.append((left, top, left + width, top + height))
        draw.rectangle((left, top, left + width - 1, top + height - 1), fill=_DARK)
        draw.text((left + 2, top + 2), text, fill=box.color, font=font)


def _list_edges(
    left: int, top: int, right: int, bottom: int, *, is_crossed: bool
) -> list[tuple[PixelPosition, PixelPosition]]:
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    diagonals = [(corners[0], corners[2]), (corners[1], corners[3])] if is_crossed else []
    return [*zip(corners, [*corners[1:], corners[0]], strict=True), *diagonals]


def _draw_dashes(draw: ImageDraw.ImageDraw, start: PixelPosition, end: PixelPosition, color: Color, width: int) -> None:
    """Draw a line of dashes as long as the gaps between them."""
    along = np.subtract(end, start)
    length = float(np.hypot(*along))
    dash_px = 2 * width + 4
    for start_px in np.arange(0, length, 2 * dash_px):
        stop = min(start_px + dash_px, length)
        ends = np.add(start, np.outer((start_px, stop), along / length))
        draw.line(ends.ravel().tolist(), fill=color, width=width)


def _draw_hatching(canvas: Image.Image, corners: tuple[int, int, int, int], color: Color, step_px: int) -> None:
    """Fill the corners with slanted lines, each next to a dark one."""
    from PIL import Image

    left_px, top_px, right_px, bottom_px = np.clip(corners, 0, [canvas.width, canvas.height] * 2).tolist()
    row, column = np.mgrid[: canvas.height, : canvas.width]
    is_inside = (row >= top_px) & (row < bottom_px) & (column >= left_px) & (column < right_px)
    stripe = (row + column) % step_px // -(-step_px // 9)
    for number, paint in enumerate((color, _DARK)):
        canvas.paste(paint, mask=Image.fromarray((is_inside & (stripe == number)).astype(np.uint8) * 255))
