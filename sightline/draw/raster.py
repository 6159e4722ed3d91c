"""Drawings as pixels, with Pillow alone: the elements of charts, where no browser draws their SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sightline.contract.errors import escape_to_one_line
from sightline.draw.charts import CHART_STYLE, Drawing, Element, Group

if TYPE_CHECKING:
    from PIL import ImageDraw

_SHARPNESS = 2
"""Factor by which a drawing is larger than its picture before it is reduced: Pillow's lines have hard edges."""
_ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}
_BOLD = 0.02
"""Width of the rim of bold letters, of the size of their font: Pillow has one font."""


def render_drawing(drawing: Drawing, width: int, height: int, *, scale: float = 1.0) -> np.ndarray:
    """Render a drawing on white paper, (`scale` * `height`, `scale` * `width`, 3) uint8.

    Its elements are those of charts: line, polyline, circle, and text in Pillow's font. Raises ValueError for others.
    """
    from PIL import Image, ImageDraw

    size = (round(scale * width), round(scale * height))
    image = Image.new("RGB", (_SHARPNESS * size[0], _SHARPNESS * size[1]), "#ffffff")
    _draw_elements(ImageDraw.Draw(image), drawing.elements, 0.0, 0.0, _SHARPNESS * scale)
    return np.asarray(image.resize(size, Image.Resampling.BOX))


def _draw_elements(
    draw: ImageDraw.ImageDraw, elements: Sequence[Element | Group], left: float, top: float, scale: float
) -> None:
    """Draw elements whose origin is at (`left`, `top`), in the drawing's units."""
    for element in elements:
        if isinstance(element, Group):
            _draw_elements(draw, element.elements, left + element.x, top + element.y, scale)
        else:
            _draw_element(draw, element, left, top, scale)


def _draw_element(draw: ImageDraw.ImageDraw, element: Element, left: float, top: float, scale: float) -> None:
    values: dict[str, Any] = {**CHART_STYLE, **element.attributes}

    def at(x: object, y: object) -> tuple[float, float]:
        return scale * (left + float(str(x))), scale * (top + float(str(y)))

    width = max(1, round(scale * float(values.get("stroke_width", 1.0))))
    if element.name == "line":
        draw.line([at(values["x1"], values["y1"]), at(values["x2"], values["y2"])], values["stroke"], width)
    elif element.name == "polyline":
        places = [at(*pair.split(",")) for pair in values["points"].split()]
        draw.line(places, values["stroke"], width, joint="curve")
    elif element.name == "circle":
        draw.circle(at(values["cx"], values["cy"]), scale * values["r"], values["fill"])
    elif element.name == "text":
        _write(draw, at(values["x"], values["y"]), element.text or "", values, scale)
    else:
        raise ValueError(f"render_drawing: draws the elements of charts, and found '{element.name}'")


def _write(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, values: dict[str, Any], scale: float
) -> None:
    from PIL import ImageFont

    size = scale * values["font_size"]
    rim = _BOLD * size if "font_weight" in values else 0.0
    anchor, font = _ANCHORS[values.get("text_anchor", "start")], ImageFont.load_default(size)
    draw.text(place, escape_to_one_line(text), values["fill"], font, anchor, stroke_width=rim)
