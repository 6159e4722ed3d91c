"""Blocks of a page as one picture, with Pillow alone: what is shown where no browser opens the page."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from sightline.contract.errors import escape_to_one_line
from sightline.draw.charts import draw_chart
from sightline.draw.page import PageBlock, PageChart, PageFigures, PageImage, PageTable, PageText
from sightline.draw.pictures import INK, fit_text
from sightline.draw.raster import render_drawing

WIDTH_PX = 1600
"""Width of a picture: a slide's, of which a chat shows enough to read its figures."""
_MARGIN_PX, _GAP_PX, _CELL_PX = 40, 36, 24
_TITLE_PX, _HEADING_PX, _VALUE_PX, _TEXT_PX, _NOTE_PX = 38, 24, 72, 19, 17
_LINE = 1.45
"""Height of a line, of the size of its font."""
_BOLD_PX = 0.6
_MAX_CHART_SCALE = 1.3
_MAX_IMAGE_PX = 560
"""Maximum height of an image: larger ones are reduced, so that the picture is not longer than wide by much."""
_MIN_CAPTION_PX, _MAX_CAPTION_LINES = 320, 3
_MIN_SMOOTH_PX = 100
"""Sides from which on an image is smoothed; the pixels of smaller ones are seen."""
_FAINT, _PAPER, _RULE = (108, 117, 130), (255, 255, 255), (216, 222, 230)


def draw_page(title: str, rows: Sequence[Sequence[PageBlock]]) -> np.ndarray:
    """Draw a title and rows of blocks that stand side by side, (H, `WIDTH_PX`, 3) uint8.

    The images of a row are equally high, other blocks as wide as their texts. Texts that are too long for their cell
    are written smaller, then cut with dots. Raises ValueError for a block that only a page shows, as clouds that turn.
    """
    width = WIDTH_PX - 2 * _MARGIN_PX
    heading = _write_lines([title], width, _TITLE_PX, INK, is_bold=True)
    bands = [heading, *(_draw_row(row, width) for row in rows if row)]
    tops = [*accumulate((len(band) + _GAP_PX for band in bands), initial=_MARGIN_PX)]
    page = np.full((tops[-1] - _GAP_PX + _MARGIN_PX, WIDTH_PX, 3), _PAPER, dtype=np.uint8)
    for top, band in zip(tops, bands, strict=False):
        page[top : top + len(band), _MARGIN_PX : _MARGIN_PX + width] = band
    return page


def _draw_row(blocks: Sequence[PageBlock], width: int) -> np.ndarray:
    """Draw blocks side by side, (H, width, 3)."""
    room = width - _GAP_PX * (len(blocks) - 1)
    images = [block.pixels for block in blocks if isinstance(block, PageImage)]
    if len(images) == len(blocks):
        ratios = [pixels.shape[1] / len(pixels) for pixels in images]
        height = min(room / sum(ratios), _MAX_IMAGE_PX)
        wanted = [max(height * ratio, _MIN_CAPTION_PX) for ratio in ratios]
    else:
        wanted = [_measure_block(block, room) for block in blocks]
    widths = [int(share) for share in _share_room(wanted, room)]
    drawn = [_draw_block(block, block_width) for block, block_width in zip(blocks, widths, strict=True)]
    height = max(map(len, drawn))
    shown = [_fill(pixels, height, block_width + _GAP_PX) for pixels, block_width in zip(drawn, widths, strict=True)]
    return _fill(np.concatenate(shown, axis=1)[:, :width], height, width)


def _fill(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the pixels on paper of a height and a width, in its upper left."""
    paper = np.full((height, width, 3), _PAPER, dtype=np.uint8)
    paper[: len(pixels), : pixels.shape[1]] = pixels
    return paper


def _measure_block(block: PageBlock, room: int) -> float:
    """Measure the width that a block needs, in pixels: a table and figures that of their texts, others all room."""
    if isinstance(block, PageTable):
        return sum(_measure_columns(block)) + 1
    if isinstance(block, PageFigures):
        return sum(_measure_figures(block)) + 1
    return room


def _measure_columns(block: PageTable) -> list[float]:
    rows = [block.head, *block.rows]
    return [max(_measure(str(row[column])) for row in rows) + _CELL_PX for column in range(len(block.head))]


def _measure_figures(block: PageFigures) -> list[float]:
    sizes = (_VALUE_PX, _TEXT_PX, _NOTE_PX)
    return [
        max(_measure(text, size) for text, size in zip(figure, sizes, strict=True)) + _CELL_PX
        for figure in block.figures
    ]


def _draw_block(block: PageBlock, width: int) -> np.ndarray:
    drawers: dict[type[PageBlock], Callable[[Any, int], np.ndarray]] = {
        PageText: _draw_text,
        PageFigures: _draw_figures,
        PageTable: _draw_table,
        PageChart: _draw_chart,
        PageImage: _draw_image,
    }
    if type(block) not in drawers:
        raise ValueError(f"draw_page: found a block of the kind '{block.kind}', which only a page shows")
    return drawers[type(block)](block, width)


def _draw_text(block: PageText, width: int) -> np.ndarray:
    if block.style == "notes":
        return _write_lines([f"· {line}" for line in block.lines], width, _NOTE_PX, _FAINT)
    size_px = _HEADING_PX if block.style == "heading" else _TEXT_PX
    return _write_lines(block.lines, width, size_px, INK, is_bold=block.style != "plain")


def _draw_figures(block: PageFigures, width: int) -> np.ndarray:
    """Draw figures side by side: the value, below it its name and the line about it."""
    columns = []
    for (value, name, about), share in zip(block.figures, _share_room(_measure_figures(block), width), strict=True):
        room = int(share)
        lines = [_write_lines([value], room, _VALUE_PX, INK), _write_lines([name], room, _TEXT_PX, INK)]
        lines += [_write_lines([about], room, _NOTE_PX, _FAINT)] if about else []
        columns.append(np.concatenate(lines))
    height = max(map(len, columns))
    return np.concatenate([_fill(column, height, column.shape[1]) for column in columns], axis=1)


def _draw_table(block: PageTable, width: int) -> np.ndarray:
    """Draw the head and the rows of a table; columns are as wide as their texts, and share what room there is."""
    from PIL import Image, ImageDraw

    assert not block.marked, "rows of a picture do not stand out"
    assert not len(block.shares), "cells of a picture are not shaded"
    has_head = any(block.head)
    rows = [*([block.head] if has_head else []), *block.rows]
    line_px = round(_LINE * _TEXT_PX) + 4
    image = Image.new("RGB", (width, line_px * len(rows)), _PAPER)
    draw = ImageDraw.Draw(image)
    widths = _share_room(_measure_columns(block), width)
    lefts = [*accumulate(widths, initial=0.0)]
    for number, row in enumerate(rows):
        middle, is_head = line_px * (number + 0.45), has_head and number == 0
        for column, cell in enumerate(row):
            text, font = fit_text(draw, _to_font(str(cell)), widths[column] - _CELL_PX, size_px=_TEXT_PX)
            is_right = block.is_numeric and column > 0
            left = lefts[column + 1] - _CELL_PX if is_right else lefts[column]
            fill = _FAINT if is_head or (not block.is_numeric and column == 0) else INK
            draw.text((left, middle), text, fill, font, "rm" if is_right else "lm")
        draw.line((0, line_px * (number + 1) - 1, lefts[-1] - _CELL_PX, line_px * (number + 1) - 1), _RULE)
    return np.asarray(image)


def _share_room(wanted: Sequence[float], room: float) -> list[float]:
    """Return the widths of columns: as wanted where that fits into the room, else the widest ones are cut alike."""
    left, widths = room, [0.0] * len(wanted)
    for number, index in enumerate(sorted(range(len(wanted)), key=wanted.__getitem__)):
        widths[index] = min(wanted[index], left / (len(wanted) - number))
        left -= widths[index]
    return widths


def _draw_chart(block: PageChart, width: int) -> np.ndarray:
    drawing, chart_width, chart_height = draw_chart(
        block.rows, panel_width=block.panel_width, panel_height=block.panel_height
    )
    scale = min(width / chart_width, _MAX_CHART_SCALE)
    return render_drawing(drawing, chart_width, chart_height, scale=scale)[:, :width]


def _draw_image(block: PageImage, width: int) -> np.ndarray:
    """Draw an image as large as fits into the width and `_MAX_IMAGE_PX`, and its caption."""
    from PIL import Image

    height_px, width_px = block.pixels.shape[:2]
    scale = min(width / width_px, _MAX_IMAGE_PX / height_px)
    size = (max(1, int(scale * width_px)), max(1, int(scale * height_px)))
    resampling = Image.Resampling.NEAREST if min(height_px, width_px) < _MIN_SMOOTH_PX else Image.Resampling.LANCZOS
    pixels = np.asarray(Image.fromarray(block.pixels).resize(size, resampling))
    pixels = _fill(pixels, len(pixels), width)
    if not block.caption:
        return pixels
    return np.concatenate([pixels, _write_lines([block.caption], width, _NOTE_PX, _FAINT, most=_MAX_CAPTION_LINES)])


# --- text -------------------------------------------------------------------------------------------------------------


def _write_lines(
    lines: Sequence[str],
    width: int,
    size_px: int,
    color: tuple[int, int, int],
    *,
    is_bold: bool = False,
    most: int | None = None,
) -> np.ndarray:
    """Write lines, wrapped at the width, (H, width, 3); from `most` on, what is left is cut with dots."""
    from PIL import Image, ImageDraw

    wrapped = [part for line in lines for part in _wrap(_to_font(line), width, size_px)]
    if most is not None and len(wrapped) > most:
        wrapped = [*wrapped[: most - 1], " ".join(wrapped[most - 1 :])]
    line_px = round(_LINE * size_px)
    image = Image.new("RGB", (width, line_px * len(wrapped)), _PAPER)
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(wrapped):
        text, font = fit_text(draw, line, width - 2, size_px=size_px)
        place = (1, line_px * (number + 0.5))
        draw.text(place, text, color, font, "lm", stroke_width=_BOLD_PX if is_bold else 0)
    return np.asarray(image)


def _wrap(text: str, width: int, size_px: int) -> list[str]:
    """Wrap a text between words; a word that is wider is a line of its own."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _measure(longer, size_px) > width - 2:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _measure(text: str, size_px: int = _TEXT_PX) -> float:
    """Measure the width of a text in pixels, in the form in which it is written."""
    return float(_load_font(size_px).getlength(_to_font(escape_to_one_line(text))))


@functools.lru_cache(maxsize=8)
def _load_font(size_px: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size_px)


def _to_font(text: str) -> str:
    """Return a text without the dash that Pillow's font does not have."""
    return text.replace("–", "-")
