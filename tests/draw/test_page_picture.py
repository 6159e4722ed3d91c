"""Blocks of a page as one picture: sizes, what is written, and lines of charts where their SVG has them."""

from __future__ import annotations

import numpy as np
import pytest

from sightline.draw.charts import COLORS, ChartPanel, Drawing, Series, draw_chart
from sightline.draw.page import PageBlock, PageChart, PageClouds, PageFigures, PageImage, PageTable, PageText
from sightline.draw.page_picture import WIDTH_PX, draw_page
from sightline.draw.raster import render_drawing

PANEL = ChartPanel("loss", "step", (Series("train", ((0.0, 0.0), (10.0, 10.0))),), "linear", "linear")


def ink_of(pixels: np.ndarray) -> np.ndarray:
    """Mask (H, W) of what is not paper."""
    return np.asarray((pixels != 255).any(axis=2))


def color_of(text: str) -> np.ndarray:
    return np.array([int(text[start : start + 2], 16) for start in (1, 3, 5)])


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_elements_are_where_the_svg_has_them(scale: float) -> None:
    """Centres of a moved square of lines, of a dot and of a text, to a pixel."""
    inner, drawing = Drawing(), Drawing()
    inner.add("polyline", points="0,0 40,0 40,40 0,40 0,0", fill="none", stroke="#ff0000", stroke_width=2)
    inner.add("circle", cx=20, cy=20, r=6, fill="#0000ff")
    drawing.add_group(30, 10, inner)
    drawing.add("line", x1=100, y1=5, x2=100, y2=55, stroke="#00ff00", stroke_width=2)
    drawing.add("text", "mmm", x=150, y=30, text_anchor="middle", fill="#000000")
    pixels = render_drawing(drawing, 200, 60, scale=scale)
    assert pixels.shape == (round(60 * scale), round(200 * scale), 3)
    for color, centre, size in (("#ff0000", (50, 30), 40), ("#0000ff", (50, 30), 12), ("#00ff00", (100, 30), 50)):
        rows, columns = np.nonzero((pixels == color_of(color)).all(axis=2))
        middle = np.array([columns.min() + columns.max() + 1, rows.min() + rows.max() + 1]) / 2 / scale
        np.testing.assert_allclose(middle, centre, atol=1)
        assert abs(np.ptp(rows) / scale - size) < 4
    rows, columns = np.nonzero((pixels < 100).all(axis=2))
    assert abs((columns.min() + columns.max() + 1) / 2 / scale - 150) < 1
    assert rows.max() / scale < 30 < rows.max() / scale + 2  # letters stand on the line that SVG gives


def test_a_curve_is_drawn_in_its_color_from_its_first_to_its_last_point() -> None:
    drawing, width, height = draw_chart([[PANEL]])
    pixels = render_drawing(drawing, width, height)
    rows, columns = np.nonzero((abs(pixels[34:].astype(int) - color_of(COLORS[0])) < 3).all(axis=2))
    assert np.corrcoef(columns, rows)[0, 1] < -0.99  # the line rises, from the lower left
    assert np.ptp(columns) > 0.6 * width


def test_elements_that_are_not_of_charts_are_refused() -> None:
    drawing = Drawing()
    drawing.add("path", d="M0 0 H5")
    with pytest.raises(ValueError, match="found 'path'"):
        render_drawing(drawing, 10, 10)


def test_blocks_stand_side_by_side_and_images_are_equally_high() -> None:
    images = [PageImage(np.full((100, 100 * grey, 3), grey, np.uint8), "") for grey in (1, 3)]
    pixels = draw_page("", [images])
    heights, widths, ends = [], [], []
    for grey in (1, 3):
        rows, columns = np.nonzero((pixels == grey).all(axis=2))
        heights.append(np.ptp(rows))
        widths.append(np.ptp(columns))
        ends.append((columns.min(), columns.max()))
    assert heights[0] == heights[1] == pytest.approx(widths[0], abs=1)
    assert widths[1] == pytest.approx(3 * widths[0], rel=0.02)
    assert ends[0][1] < ends[1][0]
    assert ends[1][1] < WIDTH_PX


def test_a_wide_image_beside_a_narrow_one_is_whole() -> None:
    """Its right border is drawn, though the narrow one takes room for its caption."""
    wide = np.zeros((50, 500, 3), np.uint8)
    wide[:, -20:] = (255, 0, 0)
    for images in ([wide, wide[:, :10]], [wide[:, :10], wide]):
        pixels = draw_page("", [[PageImage(image, "") for image in images]])
        assert ((pixels[..., 0] > 200) & (pixels[..., 1] < 50)).any()


@pytest.mark.parametrize(
    "block",
    [
        PageText("plain", ["word " * 200]),
        PageText("notes", ["x" * 300, "–"]),
        PageFigures([("12.34 %", "a name of a figure that is long " * 9, "")]),
        PageTable(["class", *"abcdefgh"], [["a" * 99, *["0.123456"] * 8]] * 3),
        PageTable(["", ""], [["\x1b[31m", "é" * 200]], is_numeric=False),
        PageChart([[PANEL] * 9]),
        PageImage(np.zeros((4000, 10, 3), np.uint8), "caption " * 50),
        PageImage(np.zeros((1, 5000, 3), np.uint8), "c"),
    ],
)
@pytest.mark.parametrize("times", [1, 3])
def test_whatever_is_long_stays_within_the_margins(block: PageBlock, times: int) -> None:
    pixels = draw_page("t" * 400, [[block] * times])
    assert pixels.shape[1:] == (WIDTH_PX, 3)
    assert len(pixels) < 2 * WIDTH_PX
    ink = ink_of(pixels)
    assert ink.any()
    assert not ink[:, :38].any()
    assert not ink[:, -38:].any()
    assert not ink[-20:].any()


def test_every_cell_of_a_table_is_written() -> None:
    """A picture with a cell changed differs there, and there alone: below and right of the cells before it."""
    cells = [["a", "1", "2"], ["b", "3", "4"]]
    before = draw_page("", [[PageTable(["class", "x", "y"], cells)]])
    places = []
    for row in range(2):
        for column in range(3):
            changed = [[*line] for line in cells]
            changed[row][column] = "7"
            after = draw_page("", [[PageTable(["class", "x", "y"], changed)]])
            rows, columns = np.nonzero((before != after).any(axis=2))
            places.append((rows.mean(), columns.mean()))
    heights = [place[0] for place in places]
    assert np.ptp(heights[:3]) < 6
    assert places[0][1] < places[1][1] < places[2][1]
    assert all(lower[0] - upper[0] > 20 for upper, lower in zip(places[:3], places[3:], strict=True))


def test_a_block_of_pages_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="kind 'clouds'"):
        draw_page("", [[PageClouds({})]])
