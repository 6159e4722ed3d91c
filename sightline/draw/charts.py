"""Charts as SVG text without a plotting library: any browser draws it and any diff shows it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal, NamedTuple, TypeAlias

from sightline.contract.errors import escape_to_one_line

WIDTH, HEIGHT = 300, 210
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 30, 40
FONT_SIZE = 11
COLORS = ("#8a929e", "#2f6fb4", "#c8502f", "#2e8b57", "#8e6cc0", "#b08a3e", "#2ab3b8", "#e0679f", "#6b7a1e", "#1d2f6f")
INK, FAINT = "#2b3038", "#e3e7ec"
Scale: TypeAlias = Literal["logarithmic", "linear"]
_SMALL_FONT_SIZE = 10
_LETTER = 0.65
"""Width of a letter of a tick at most, of the size of its font."""
_LEAST_SPAN = 1e-9
"""Smallest span of a linear axis, of its largest value: ticks of twelve digits could not divide a smaller one."""
MAX_DOTS = 24
"""Maximal number of points of a curve that is drawn with dots, and of ticks at each of its points."""


@dataclass(frozen=True)
class Series:
    """Curve: name and points (x, y) in order of x, above zero for a logarithmic axis.

    `ranges` are the lowest and highest y of each x. Without a line its points alone are drawn.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    ranges: tuple[tuple[float, float], ...] = ()
    has_line: bool = True


@dataclass(frozen=True)
class ChartPanel:
    """Panel of a chart: curves on one pair of axes."""

    title: str
    x_title: str
    series: tuple[Series, ...]
    x_scale: Scale = "logarithmic"
    y_scale: Scale = "logarithmic"


class Element(NamedTuple):
    """Element of a drawing: its name in SVG, its text or None, and its attributes in SVG's words."""

    name: str
    text: str | None
    attributes: Mapping[str, object]

    def to_svg(self) -> list[str]:
        """Return the line of the element: underscores of an attribute's name become hyphens, floats have six digits."""
        written = "".join(
            f' {key.replace("_", "-")}="{escape(f"{value:g}" if isinstance(value, float) else str(value))}"'
            for key, value in self.attributes.items()
        )
        if self.text is None:
            return [f"<{self.name}{written}/>"]
        shown = escape(escape_to_one_line(self.text))  # XML has no control characters
        return [f"<{self.name}{written}>{shown}</{self.name}>"]


class Group(NamedTuple):
    """Elements of a drawing that are moved to a position."""

    x: int
    y: int
    elements: Sequence[Element | Group]

    def to_svg(self) -> list[str]:
        """Return the lines of the group."""
        lines = [line for element in self.elements for line in element.to_svg()]
        return [f'<g transform="translate({self.x} {self.y})">', *lines, "</g>"]


class Drawing:
    """Elements in drawing order, which `encode` writes as deterministic SVG, and `render_drawing` draws as pixels."""

    def __init__(self) -> None:
        self.elements: list[Element | Group] = []

    def add(self, name: str, text: str | None = None, /, **attributes: object) -> None:
        """Add an element with its text."""
        self.elements.append(Element(name, text, attributes))

    def add_group(self, x: int, y: int, drawing: Drawing) -> None:
        """Add the elements of another drawing, moved to a position."""
        self.elements.append(Group(x, y, drawing.elements))

    def encode(self, width: float, height: float, title: str = "", /, **attributes: object) -> str:
        """Encode as an SVG document on white paper, with a title if it is given; `attributes` are the root's."""
        size = {"width": width, "height": height}
        view = {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {width:g} {height:g}"}
        (root,) = Element("svg", None, {**view, **size, **attributes}).to_svg()
        paper = Element("rect", None, {**size, "fill": "#ffffff"})
        first = [Element("title", title, {})] if title else []
        lines = [line for element in (*first, paper, *self.elements) for line in element.to_svg()]
        return "\n".join([root.removesuffix("/>") + ">", *lines, "</svg>"]) + "\n"


CHART_STYLE = {"font_family": "system-ui, sans-serif", "font_size": FONT_SIZE, "fill": INK}
"""Attributes of a chart's root element."""


def render_svg(
    rows: Sequence[Sequence[ChartPanel | None]], *, panel_width: int = WIDTH, panel_height: int = HEIGHT
) -> str:
    """Render panels as an SVG grid, empty for None, with the names of the curves above; deterministic text."""
    drawing, width, height = draw_chart(rows, panel_width=panel_width, panel_height=panel_height)
    return drawing.encode(width, height, **CHART_STYLE)


def draw_chart(
    rows: Sequence[Sequence[ChartPanel | None]], *, panel_width: int = WIDTH, panel_height: int = HEIGHT
) -> tuple[Drawing, int, int]:
    """Draw panels as `render_svg` does: return the drawing, its width and its height."""
    columns = max((len(row) for row in rows), default=0)
    names = list(dict.fromkeys(s.name for row in rows for panel in row if panel for s in panel.series))
    width = max(1, columns) * panel_width
    room = max([130, *(46 + 7 * len(name) for name in names)])  # a name's line, its gap, and its letters at most
    beside = max(1, (width - LEFT) // room)
    head = 34 + 18 * max(0, -(-len(names) // beside) - 1)
    drawing = Drawing()
    for index, name in enumerate(names):
        x, y = LEFT + room * (index % beside), 20 + 18 * (index // beside)
        drawing.add("line", x1=x, y1=y, x2=x + 22, y2=y, stroke=_series_color(names, name), stroke_width=2.5)
        drawing.add("text", name, x=x + 28, y=y + 4, font_size=12)
    for row_index, row in enumerate(rows):
        for column, panel in enumerate(row):
            if panel is not None:
                drawn = _draw_panel(panel, names, panel_width, panel_height)
                drawing.add_group(column * panel_width, row_index * panel_height + head, drawn)
    return drawing, width, len(rows) * panel_height + head


def _draw_panel(panel: ChartPanel, names: Sequence[str], width: int, height: int) -> Drawing:
    points = [point for series in panel.series for point in series.points]
    heights = [y for _, y in points] + [end for series in panel.series for both in series.ranges for end in both]
    values = [x for x, _ in points]
    ticks, upward = _make_axis(heights, panel.y_scale, height - BOTTOM, TOP)
    texts = _format_ticks(ticks, panel.y_scale)
    margin = max(LEFT, math.ceil(6 + _LETTER * FONT_SIZE * max(map(len, texts))))
    x_ticks, across = _make_axis(values, panel.x_scale, margin, width - RIGHT, at_values=len(set(values)) <= MAX_DOTS)
    drawing = Drawing()
    drawing.add("text", panel.title, x=margin, y=18, font_weight=600)
    for tick, text in zip(ticks, texts, strict=True):
        y = upward(tick)
        drawing.add("line", x1=margin, y1=f"{y:.1f}", x2=width - RIGHT, y2=f"{y:.1f}", stroke=FAINT)
        drawing.add("text", text, x=margin - 6, y=f"{y + 4:.1f}", text_anchor="end")
    for x, text in _arrange_labels([across(x) for x in x_ticks], _format_ticks(x_ticks, panel.x_scale), width):
        position = {"x": f"{x:.1f}", "y": height - BOTTOM + 15}
        drawing.add("text", text, **position, text_anchor="middle", font_size=_SMALL_FONT_SIZE)
    middle = (margin + width - RIGHT) / 2
    drawing.add("text", panel.x_title, x=f"{middle:.1f}", y=height - BOTTOM + 29, text_anchor="middle")
    for series in panel.series:
        color = _series_color(names, series.name)
        positions = [(f"{across(x):.1f}", f"{upward(y):.1f}") for x, y in series.points]
        if series.has_line:
            line = " ".join(map(",".join, positions))
            drawing.add("polyline", points=line, fill="none", stroke=color, stroke_width=2)
        for (left, _), (low, high) in zip(positions, series.ranges, strict=False):
            ends = {"y1": f"{upward(low):.1f}", "y2": f"{upward(high):.1f}"}
            drawing.add("line", x1=left, x2=left, **ends, stroke=color, stroke_width=1.5)
        if len(positions) <= MAX_DOTS or not series.has_line:
            for left, top in positions:
                drawing.add("circle", cx=left, cy=top, r=3, fill=color)
    return drawing


def _format_ticks(ticks: Sequence[float], scale: Scale) -> list[str]:
    """Format the ticks of an axis: those of a linear one exactly, those of a logarithmic one with six digits."""
    return [f"{tick:.{6 if scale == 'logarithmic' else 12}g}" for tick in ticks]


def _arrange_labels(positions: Sequence[float], texts: Sequence[str], width: int) -> list[tuple[float, str]]:
    """Place the texts below an x axis within the panel, without those that would touch the one before."""
    labels: list[tuple[float, str]] = []
    taken = -math.inf
    for position, text in zip(positions, texts, strict=True):
        half = _LETTER * _SMALL_FONT_SIZE * len(text) / 2
        middle = min(position, width - half)
        if middle - half >= taken:
            labels.append((middle, text))
            taken = middle + half
    return labels


def _powers_of_ten(values: Sequence[float]) -> list[float]:
    """List powers of ten from below the lowest to above the highest value, at least two of them."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return [10.0**power for power in range(low, max(high, low + 1) + 1)]


def _make_axis(
    values: Sequence[float], scale: Scale, start: float, end: float, *, at_values: bool = False
) -> tuple[list[float], Callable[[float], float]]:
    """Return an axis's ticks, and the function from a value to its position from `start` to `end`.

    Linear axes have even steps. Logarithmic ones have powers of ten, or with `at_values` the values themselves.
    """
    if scale == "linear":
        ticks = _make_even_ticks(values)
        low, span = ticks[0], ticks[-1] - ticks[0]
        return ticks, lambda value: start + (value - low) / span * (end - start)
    ticks = sorted(set(values)) if at_values else _powers_of_ten(values)
    low, span = ticks[0], math.log(ticks[-1] / ticks[0]) or 1.0
    return ticks, lambda value: start + math.log(value / low) / span * (end - start)


def _make_even_ticks(values: Sequence[float]) -> list[float]:
    """List multiples of 1, 2 or 5 times a power of ten around the values, three to seven of them.

    A single value has no span to show, so its axis begins at 0.
    """
    low, high = min(values), max(values)
    if high - low <= _LEAST_SPAN * max(abs(low), abs(high)):  # but for rounding, as 0.3 and 0.1 + 0.2
        low, high = min(low, 0.0), max(high, 0.0)
    rough = ((high - low) or 1.0) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{multiple * step:.12g}") for multiple in range(first, max(last, first + 1) + 1)]


def _series_color(names: Sequence[str], name: str) -> str:
    return COLORS[names.index(name) % len(COLORS)]
