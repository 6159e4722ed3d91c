"""Curves on a logarithmic axis as an SVG file, written out by hand: text that any browser draws, any diff shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Panel", "Series", "render_svg"]

WIDTH, HEIGHT = 300, 210
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 30, 40
COLORS = ("#8a929e", "#2f6fb4", "#c8502f", "#2e8b57")
INK, FAINT = "#2b3038", "#e3e7ec"


@dataclass(frozen=True)
class Series:
    """A curve: its name, and (x, y) in order of x, both above zero; `ranges` are the lowest and highest y of each x."""

    name: str
    points: tuple[tuple[float, float], ...]
    ranges: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Panel:
    """Curves on one pair of axes, both logarithmic; or y in even steps, where values below zero are right as well."""

    title: str
    x_title: str
    series: tuple[Series, ...]
    is_even: bool = False


def render_svg(rows: Sequence[Sequence[Panel | None]]) -> str:
    """The panels as a grid, left out where there is None, the names of the curves above. The same panels, same text."""
    columns = max((len(row) for row in rows), default=0)
    width, height = max(1, columns) * WIDTH, len(rows) * HEIGHT + 34
    names = list(dict.fromkeys(s.name for row in rows for panel in row if panel for s in panel.series))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="11" fill="{INK}">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for index, name in enumerate(names):
        x = LEFT + 130 * index
        parts.append(
            f'<line x1="{x}" y1="20" x2="{x + 22}" y2="20" stroke="{_color(names, name)}" stroke-width="2.5"/>'
        )
        parts.append(f'<text x="{x + 28}" y="24" font-size="12">{escape(name)}</text>')
    for row_index, row in enumerate(rows):
        for column, panel in enumerate(row):
            if panel is not None:
                parts.append(f'<g transform="translate({column * WIDTH} {row_index * HEIGHT + 34})">')
                parts += [*_draw(panel, names), "</g>"]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _draw(panel: Panel, names: Sequence[str]) -> list[str]:
    points = [point for series in panel.series for point in series.points]
    xs = sorted({x for x, _ in points})
    heights = [y for _, y in points] + [end for series in panel.series for both in series.ranges for end in both]
    ticks = _even_steps(heights) if panel.is_even else _decades(heights)
    across = _scale(xs[0], xs[-1], LEFT, WIDTH - RIGHT)
    upward = (_even_scale if panel.is_even else _scale)(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)
    parts = [f'<text x="{LEFT}" y="18" font-weight="600">{escape(panel.title)}</text>']
    for tick in ticks:
        y = upward(tick)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="{FAINT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    parts += [
        f'<text x="{across(x):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle" font-size="10">{x:g}</text>'
        for x in xs
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle:.1f}" y="{HEIGHT - BOTTOM + 29}" text-anchor="middle">{escape(panel.x_title)}</text>'
    )
    for series in panel.series:
        color = _color(names, series.name)
        places = [(across(x), upward(y)) for x, y in series.points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
        for (x, _), (low, high) in zip(places, series.ranges, strict=False):
            ends = f'y1="{upward(low):.1f}" y2="{upward(high):.1f}"'
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" {ends} stroke="{color}" stroke-width="1.5"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in places]
    return parts


def _decades(values: Sequence[float]) -> list[float]:
    """Powers of ten from below the least to above the largest value, at least two of them."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return [10.0**power for power in range(low, max(high, low + 1) + 1)]


def _even_steps(values: Sequence[float]) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from below the least to above the largest value, three to seven."""
    low, high = min(values), max(values)
    rough = (high - low or abs(high) or 1.0) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(place * step, 12) for place in range(first, max(last, first + 1) + 1)]


def _even_scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = math.log(high / low) or 1.0
    return lambda value: start + math.log(value / low) / span * (end - start)


def _color(names: Sequence[str], name: str) -> str:
    return COLORS[names.index(name) % len(COLORS)]
