"""Pages: blocks of text, tables, images, charts and clouds in one self-contained HTML file, by one template.

A page needs no network and forbids every request: its style, scripts and pictures are in the file.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, ClassVar, Literal

import numpy as np

from sightline.contract.errors import escape_to_one_line
from sightline.draw.charts import HEIGHT, WIDTH, ChartPanel, render_svg
from sightline.draw.pictures import encode_png

PHOTO_PX = (1280, 960)
"""Width and height in which a page shows its photos at most."""
_PHOTO_QUALITY, _MIN_PHOTO_PX = 85, 200


class PageBlock:
    """Block of a page; the macro `kind` of page.html renders it."""

    kind: ClassVar[str]


@dataclass(frozen=True)
class PageText(PageBlock):
    """Lines of text: a heading of the blocks that follow, paragraphs, strong ones, or a list of small notes."""

    kind = "text"
    style: Literal["heading", "plain", "strong", "notes"]
    lines: Sequence[str]


@dataclass(frozen=True)
class PageFigures(PageBlock):
    """Figures that stand out, side by side: each a value with its unit, its name, and a line about it."""

    kind = "figures"
    figures: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class PageFolds(PageBlock):
    """Lines of text that open: each a summary, of one line while it is closed, and its details by their names.

    Those in `marked` stand out.
    """

    kind = "folds"
    folds: Sequence[tuple[str, Mapping[str, str]]]
    marked: Collection[int] = ()


@dataclass(frozen=True)
class PageTable(PageBlock):
    """Table; the rows in `marked` stand out, columns after the first hold numbers if `is_numeric`.

    `shares` (rows, columns after the first) from 0 to 1 shade the cells.
    """

    kind = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    marked: Collection[int] = ()
    is_numeric: bool = True
    shares: Sequence[Sequence[float]] = ()

    def to_markdown(self) -> list[str]:
        """Return the lines of the table in Markdown."""
        rows = [self.head, ["---"] * len(self.head), *([str(c).replace("|", "\\|") for c in row] for row in self.rows)]
        return [f"| {' | '.join(row)} |" for row in rows]


@dataclass(frozen=True, eq=False)
class PageImage(PageBlock):
    """Picture (H, W, 3) uint8 with its caption; photos are shown in `PHOTO_PX`, with small losses."""

    kind = "image"
    pixels: np.ndarray
    caption: str
    is_photo: bool = False

    def encode(self) -> str:
        """Encode as a data URL."""
        return encode_picture(self.pixels, photo_px=PHOTO_PX if self.is_photo else None)


@dataclass(frozen=True)
class PageChart(PageBlock):
    """Chart of rows of panels; screen readers get its label. Without panels, nothing is drawn."""

    kind = "chart"
    rows: Sequence[Sequence[ChartPanel | None]]
    panel_width: int = WIDTH
    panel_height: int = HEIGHT

    @property
    def svg(self) -> str:
        return render_svg(self.rows, panel_width=self.panel_width, panel_height=self.panel_height)

    @property
    def label(self) -> str:
        """Return titles, axes and names of all curves."""
        panels = [panel for row in self.rows for panel in row if panel is not None]
        return "; ".join(f"{p.title} by {p.x_title}: {', '.join(s.name for s in p.series)}" for p in panels)


@dataclass(frozen=True)
class PageClouds(PageBlock):
    """Viewer that turns clouds: samples with their stages, as plain values (`sightline.view.page`). One on a page."""

    kind = "clouds"
    data: Mapping[str, Any]

    def encode(self) -> str:
        """Encode as JSON; no class name can end the element that contains it."""
        return json.dumps(self.data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def render_page(title: str, blocks: Sequence[PageBlock]) -> str:
    """Render a page with these blocks in order; a viewer of clouds that is the only block fills the window."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: escape_to_one_line(value) if type(value) is str else value,  # not what is marked safe
    )
    template = environment.from_string(_read_part("page.html"))
    return template.render(title=title, blocks=blocks, read_part=_read_part)


def encode_picture(pixels: np.ndarray, *, photo_px: tuple[int, int] | None = None) -> str:
    """Encode (H, W, 3) uint8 pixels in a data URL: as a PNG, or a photo as WebP of at most `photo_px` (width, height).

    WebP of quality 85 needs a fifth of a PNG's bytes for a photo. Masks need the PNG, which is exact, as do photos of
    so few pixels that each is seen.
    """
    from PIL import Image

    if photo_px is None or max(pixels.shape) < _MIN_PHOTO_PX:
        kind, content = "png", encode_png(pixels)
    else:
        image, stream = Image.fromarray(pixels), io.BytesIO()
        image.thumbnail(photo_px, Image.Resampling.BOX)
        image.save(stream, format="WEBP", quality=_PHOTO_QUALITY, method=2)  # the default takes twice the time
        kind, content = "webp", stream.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _read_part(name: str) -> str:
    return resources.files("sightline.draw").joinpath(name).read_text(encoding="utf-8")
