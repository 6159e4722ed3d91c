"""Pictures of a LiDAR frame with 3D boxes: from above with headings, and the lines of boxes in the turning cloud."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from sightline.draw.boxes import Color, name_class
from sightline.draw.pictures import INK, draw_legend, label_colors
from sightline.store.boxes3d.box_table import BoxTable
from sightline.view.skeletons import JointFigure

if TYPE_CHECKING:
    from PIL import ImageDraw

__all__ = ["BoxLayer", "draw_from_above", "draw_layers", "list_box_figures", "list_corners"]

_LONGER_PX, _MAX_PX_PER_M = 1200, 24.0
"""Longer side of a picture, and its largest scale."""
_SHARPNESS = 2
"""Pixels drawn per pixel of the picture, along each side."""
_DOT_PX = 3
"""Of these pixels, sides of the dot of a point."""
_PAPER, _RING, _RING_TEXT = (252, 252, 252), (205, 212, 221), (128, 137, 150)
_LOW_GREY, _HIGH_GREY = 200.0, 70.0
"""Greys of the lowest and the highest points."""
_MARGIN_M, _LEAST_SIDE_M = 4.0, 16.0
_RING_STEPS_M = (5, 10, 20, 50, 100)
_UNNAMED = "region of no class"


@dataclass(frozen=True, eq=False)
class BoxLayer:
    """Boxes (M, 7) of a picture from above, each with its color and a caption, dashed or not; with their `legend`."""

    boxes: np.ndarray
    colors: Sequence[Color]
    captions: Sequence[str]
    is_dashed: np.ndarray
    legend: Sequence[tuple[str, Color]] = ()

    @classmethod
    def from_table(cls, table: BoxTable, *, word: str = "", color: Color | None = None) -> BoxLayer:
        """Make a layer of a table, captioned by scores; `word` leads the classes in the legend.

        Boxes have the colour of their class and ignored ones are grey and dashed; with a `color` all have it, and one
        entry of the legend.
        """
        labels = np.where(table.is_ignored, -1, table.label)
        colors: list[Color] = [tuple(each) for each in label_colors(labels).tolist()] if color is None else []
        captions = ["" if np.isnan(score) else f"{score:.2f}" for score in table.score.tolist()]
        legend = [(f"{word}  {len(table)}", color)] if color is not None else _count_classes(table, colors, word)
        if color is not None and (num_ignored := int(table.is_ignored.sum())):
            legend = [(f"{word}  {len(table) - num_ignored}, and {num_ignored} ignored (dashed)", color)]
        return cls(table.boxes, colors or [color or INK] * len(table), captions, table.is_ignored, legend)


def draw_from_above(points: np.ndarray, table: BoxTable, predictions: BoxTable | None = None) -> np.ndarray:
    """Draw a frame from above (`draw_layers`): its boxes in the colours of their classes, ignored ones grey and dashed.

    Next to predictions, which have the colours of their classes and carry their scores, all labels are dark.
    """
    if predictions is None:
        return draw_layers(points, [BoxLayer.from_table(table)])
    labels = BoxLayer.from_table(table, word="labels", color=INK)
    return draw_layers(points, [labels, BoxLayer.from_table(predictions, word="predicted ")])


def draw_layers(points: np.ndarray, layers: Sequence[BoxLayer]) -> np.ndarray:
    """Draw a frame from above, x to the right and y up: points (N, 3) and boxes, the last on top, (H, W, 3) uint8.

    Points are the darker the higher they are. An arrow shows where a box heads. The sensor is the triangle at the
    origin, with rings at its distances. The picture covers all boxes near points and nine tenths of the points along
    either axis; the legend also counts boxes that lie outside or are not finite.
    """
    from PIL import Image, ImageDraw

    points = points[np.isfinite(points).all(axis=1)]
    low, high = _choose_window(points, [layer.boxes for layer in layers])
    scale = min(_LONGER_PX / (high - low).max(), _MAX_PX_PER_M) * _SHARPNESS
    width, height = (np.ceil((high - low) * scale / _SHARPNESS).astype(int) * _SHARPNESS).tolist()

    def to_pixels(places: np.ndarray) -> np.ndarray:
        pixels: np.ndarray = (places[..., :2] - low) * scale
        pixels[..., 1] = height - pixels[..., 1]
        return pixels

    canvas = Image.new("RGB", (width, height), _PAPER)
    _draw_rings(ImageDraw.Draw(canvas), to_pixels(np.zeros(2)), scale, (width, height))
    canvas = Image.fromarray(_draw_points(np.array(canvas), to_pixels(points), points[:, 2]))
    draw = ImageDraw.Draw(canvas)
    _draw_sensor(draw, to_pixels)
    legend: list[tuple[str, Color]] = []
    for layer in layers:
        is_seen = _mask_seen(layer.boxes, low, high)
        corners, heads = list_corners(layer.boxes), _list_heads(layer.boxes, least_m=10 * _SHARPNESS / scale)
        for row in np.flatnonzero(is_seen)[np.argsort(~layer.is_dashed[is_seen], kind="stable")].tolist():
            style = (layer.colors[row], layer.is_dashed[row])
            _draw_box(draw, to_pixels(corners[row, :4]), to_pixels(heads[row]), *style)
            if layer.captions[row]:
                place = to_pixels(corners[row, :4]).min(axis=0)
                _draw_text(draw, layer.captions[row], place, layer.colors[row])
        num_outside = int((~is_seen).sum())
        legend += [*layer.legend, *([(f"outside of the picture  {num_outside}", _PAPER)] if num_outside else [])]
    small = np.asarray(canvas.resize((width // _SHARPNESS, height // _SHARPNESS), Image.Resampling.BOX))
    below = draw_legend(legend, small.shape[1])
    return np.concatenate([small, below])


def list_corners(boxes: np.ndarray) -> np.ndarray:
    """Return the corners (M, 8, 3) of boxes (M, 7): those of the bottom, front left first and around, then the top."""
    signs = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    cosine, sine = np.cos(boxes[:, 6:]), np.sin(boxes[:, 6:])
    along, left = (signs[:, axis] * boxes[:, 3 + axis, None] / 2 for axis in range(2))
    x, y = boxes[:, :1] + cosine * along - sine * left, boxes[:, 1:2] + sine * along + cosine * left
    heights = [boxes[:, 2:3] + sign * boxes[:, 5:6] / 2 for sign in (-1, 1)]
    return np.concatenate([np.stack([x, y, np.broadcast_to(z, x.shape)], axis=2) for z in heights], axis=1)


def list_box_figures(table: BoxTable, *, word: str = "boxes", color: Color | None = None) -> tuple[JointFigure, ...]:
    """Return the edges of the boxes as figures for the turning cloud, one per class and one of all that are ignored.

    A line from the middle of a box leads out of its front. Names begin with `word`; `color` replaces that of classes.
    """
    boxes = table.boxes
    ends = np.concatenate([boxes[:, None, :3], _list_heads(boxes, least_m=0.8)[:, 2:]], axis=1)
    joints = np.concatenate([list_corners(boxes), ends], axis=1)
    groups = np.where(table.is_ignored, -2, table.label)
    is_finite = np.isfinite(boxes).all(axis=1)
    figures = []
    for group in np.unique(groups[is_finite]).tolist():
        rows = np.flatnonzero((groups == group) & is_finite)
        name = "ignored" if group == -2 else name_class(group, table.class_names) or _UNNAMED
        bones = tuple((10 * box + a, 10 * box + b) for box in range(len(rows)) for a, b in _EDGES)
        places = joints[rows].reshape(-1, 3)
        shown = label_colors(np.array(max(group, -1))) if color is None else np.array(color, dtype=np.uint8)
        figures.append(
            JointFigure(
                *(f"{word}: {name}", places, np.ones(len(places), dtype=bool), bones, shown),
                num_objects=len(rows),
            )
        )
    return tuple(figures)


_EDGES = (
    *((side, (side + 1) % 4) for side in range(4)),
    *((4 + side, 4 + (side + 1) % 4) for side in range(4)),
    *((side, 4 + side) for side in range(4)),
    (8, 9),
)
"""Edges of a box between its corners, and the line that leads out of its front."""


def _list_heads(boxes: np.ndarray, *, least_m: float) -> np.ndarray:
    """Return the arrows (M, 3, 3) before the fronts of boxes: both ends of the base, and the tip, at half height."""
    ahead = np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6]), np.zeros(len(boxes))], axis=1)
    left = np.stack([-ahead[:, 1], ahead[:, 0], ahead[:, 2]], axis=1)
    front = boxes[:, :3] + ahead * boxes[:, 3:4] / 2
    length = np.maximum(0.25 * boxes[:, 3:4], least_m)
    base = np.minimum(0.45 * boxes[:, 4:5], length)
    return np.stack([front + left * base, front - left * base, front + ahead * length], axis=1)


def _choose_window(points: np.ndarray, layers: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Choose the lowest and the highest x and y of the picture: around boxes near points, most points, the origin."""
    corners = np.concatenate([list_corners(boxes[np.isfinite(boxes).all(axis=1)]) for boxes in layers])
    corners = corners.reshape(-1, 3)[:, :2]
    if len(points):
        far = np.quantile(points[:, :2], (0.001, 0.999), axis=0) + np.array([[-10.0], [10.0]])
        corners = corners[((corners >= far[0]) & (corners <= far[1])).all(axis=1)]
        corners = np.concatenate([corners, np.quantile(points[:, :2], (0.05, 0.95), axis=0)])
    corners = np.concatenate([corners, np.zeros((1, 2))])
    low, high = corners.min(axis=0) - _MARGIN_M, corners.max(axis=0) + _MARGIN_M
    more = np.maximum(_LEAST_SIDE_M - (high - low), 0) / 2
    return low - more, high + more


def _mask_seen(boxes: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    middle = boxes[:, :2]
    return np.isfinite(boxes).all(axis=1) & ((middle >= low) & (middle <= high)).all(axis=1)


def _count_classes(table: BoxTable, colors: Sequence[Color], word: str) -> list[tuple[str, Color]]:
    """List the legend's entries of a table: the number of boxes per class, and of ignored ones."""
    groups, entries = np.where(table.is_ignored, -2, table.label), []
    for group in sorted(set(groups.tolist()), key=lambda group: (group < 0, group)):
        rows = np.flatnonzero(groups == group)
        name = "ignored" if group == -2 else name_class(group, table.class_names) or _UNNAMED
        entries.append((f"{word}{name}  {len(rows)}", colors[rows[0]]))
    return entries


def _draw_points(pixels: np.ndarray, places: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Draw points as dots of `_DOT_PX` pixels, the highest on top."""
    if not len(places):
        return pixels
    low, high = np.quantile(heights, (0.02, 0.98))
    share = np.clip((heights - low) / max(high - low, 1e-6), 0, 1)
    grey = (_LOW_GREY + (_HIGH_GREY - _LOW_GREY) * share).astype(np.uint8)
    order = np.argsort(heights, kind="stable")
    column, row = np.clip(np.floor(places[order]), -9, 1e6).astype(np.int64).T
    for down in range(_DOT_PX):
        for right in range(_DOT_PX):
            x, y = column + right, row + down
            is_inside = (x >= 0) & (x < pixels.shape[1]) & (y >= 0) & (y < pixels.shape[0])
            pixels[y[is_inside], x[is_inside]] = grey[order][is_inside, None]
    return pixels


def _draw_rings(draw: ImageDraw.ImageDraw, middle: np.ndarray, scale: float, size: tuple[int, int]) -> None:
    """Draw rings around the sensor, with their distances at their tops and to the right."""
    from PIL import ImageFont

    x, y = middle.tolist()
    farthest = float(np.hypot(max(x, size[0] - x), max(y, size[1] - y)) / scale)
    step = next((step for step in _RING_STEPS_M if farthest / step <= 6), _RING_STEPS_M[-1])
    font = ImageFont.load_default(12 * _SHARPNESS)
    for distance in range(step, int(farthest) + step, step):
        radius = distance * scale
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=_RING, width=_SHARPNESS)
        for side in (-1, 1):
            draw.text((x + side * radius + 3 * _SHARPNESS, y), f"{distance} m", fill=_RING_TEXT, font=font, anchor="ls")


def _draw_sensor(draw: ImageDraw.ImageDraw, to_pixels: Callable[[np.ndarray], np.ndarray]) -> None:
    corners = to_pixels(np.array([[1.2, 0.0], [-0.6, 0.6], [-0.6, -0.6]]))
    draw.polygon([*map(tuple, corners.tolist())], fill=INK)


def _draw_box(
    draw: ImageDraw.ImageDraw, corners: np.ndarray, head: np.ndarray, color: Color, is_ignored: np.bool_
) -> None:
    """Draw the outline of a box (4, 2), dashed if it is ignored, and its arrow (3, 2), with a pale rim."""
    width = 2 * _SHARPNESS
    sides = [*pairwise([*corners, corners[0]])]
    if not is_ignored:
        for start, end in sides:
            draw.line([*start, *end], fill=_PAPER, width=width + 2 * _SHARPNESS)
    for start, end in sides:
        for first, last in _split_line(start, end) if is_ignored else [(start, end)]:
            draw.line([*first, *last], fill=color, width=width)
    for x, y in corners.tolist() if not is_ignored else ():
        draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=color)
    draw.polygon([*map(tuple, head.tolist())], fill=color, outline=_PAPER)


def _split_line(start: np.ndarray, end: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Split a line into dashes that are as long as the gaps between them, with a dash at either end."""
    num_dashes = max(1, round(float(np.hypot(*(end - start))) / (8 * _SHARPNESS)))
    shares = np.arange(2 * num_dashes) / (2 * num_dashes - 1)
    ends = start + shares[:, None] * (end - start)
    return [(ends[2 * dash], ends[2 * dash + 1]) for dash in range(num_dashes)]


def _draw_text(draw: ImageDraw.ImageDraw, text: str, place: np.ndarray, color: Color) -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(11 * _SHARPNESS)
    x, y = place.tolist()
    draw.text((x, y - 2 * _SHARPNESS), text, fill=color, font=font, anchor="ls", stroke_width=2, stroke_fill=_PAPER)
