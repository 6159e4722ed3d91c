"""A sample on one sheet: cards for each stage, the numbers above, the colours of the classes below."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from sightline.pictures import INK, PAGE, Lines, draw_legend, fit_text, render_clouds
from sightline.view.panels import ImagePanel
from sightline.view.stages import ClassColoring, Coloring, Stage, ViewedSample

__all__ = ["MOST_DRAWN", "Tile", "draw_sheet", "make_tiles", "subsample"]

MOST_DRAWN = 60_000
"""Points of a cloud on a card: more lie behind one another, and cost seconds."""
_FAINT = (108, 117, 130)
_TITLE_PX, _TEXT_PX, _LINE_PX, _MARGIN_PX = 22, 15, 24, 16
_OF_PREDICTIONS = ("ground truth", "prediction", "error")


class Tile(NamedTuple):
    """A cloud in one colouring or, where there is one, a flat picture of its stage; and what stands below it."""

    cloud: Stage
    coloring: Coloring
    caption: str
    panel: ImagePanel | None = None


def make_tiles(subject: ViewedSample) -> list[Tile]:
    """Every stage in its first colouring, the raw one by its classes too, predictions by truth, prediction and error.

    The flat pictures of a stage follow it.
    """
    tiles: list[Tile] = []
    has_predictions = any(cloud.coloring(_OF_PREDICTIONS[-1]) for cloud in subject.stages)
    for place, cloud in enumerate(subject.stages):
        first, count = cloud.colorings[0], len(cloud.points)
        if cloud.stage == "prediction":
            drawn = [each for each in cloud.colorings if each.name in _OF_PREDICTIONS]
            if drawn or not cloud.is_flat:
                tiles += [Tile(cloud, each, each.name) for each in drawn] or [Tile(cloud, first, cloud.description)]
            tiles += [Tile(cloud, first, panel.name, panel) for panel in cloud.panels]
            continue
        if cloud.is_flat:
            tiles += [Tile(cloud, first, panel.name, panel) for panel in cloud.panels]
            continue
        is_same = place > 0 and count == len(subject.stages[place - 1].points)
        tiles.append(Tile(cloud, first, cloud.stage if is_same else f"{cloud.stage} ({count:,})"))
        classes = next((each for each in cloud.colorings if isinstance(each, ClassColoring)), first)
        if place == 0 and classes is not first and not has_predictions:
            tiles.append(Tile(cloud, classes, f"{cloud.stage}: {classes.name}"))
        tiles += [Tile(cloud, first, panel.name, panel) for panel in cloud.panels]
    return tiles


def draw_sheet(subject: ViewedSample, *, hidden: Sequence[str] = (), tile_px: int = 300) -> np.ndarray:
    """The sheet of a sample, (H, W, 3) uint8; points of the classes in `hidden` are left out, and the sheet notes it.

    Of clouds above `MOST_DRAWN` points as many are drawn, chosen evenly, the same each time.
    """
    tiles = make_tiles(subject)
    columns = max(min(4, len(tiles)), *(len(group) for group in _by_stage(tiles)))
    places = [_drawn(tile, hidden) for tile in _in_rows(tiles, columns)]
    cards = render_clouds(
        [place.content for place in places],
        captions=[place.caption for place in places],
        is_right=[place.is_right for place in places],
        colors=[place.colors for place in places],
        lines=[place.lines for place in places],
        up_axis=subject.up_axis,
        columns=columns,
        tile_px=tile_px,
    )
    width = max(cards.shape[1], 2 * tile_px)
    title = _band(_title(subject, tiles, hidden), width)
    legend = draw_legend([(f"{name}  {count:,}", color) for name, color, count in _classes(tiles)], width)
    page = np.full((len(title) + len(cards) + len(legend), width, 3), PAGE, dtype=np.uint8)
    page[: len(title)] = title
    page[len(title) : len(title) + len(cards), : cards.shape[1]] = cards
    page[len(title) + len(cards) :] = legend
    return page


class _Place(NamedTuple):
    """What `render_clouds` takes for one place of the sheet; by default for an empty one."""

    content: np.ndarray | None = None
    caption: str = ""
    is_right: bool | None = None
    colors: np.ndarray | None = None
    lines: tuple[Lines, ...] = ()


def _drawn(tile: Tile | None, hidden: Sequence[str]) -> _Place:
    if tile is None:
        return _Place()
    if tile.panel is not None:
        return _Place(tile.panel.pixels, tile.caption)
    rows = subsample(_visible(tile.cloud, hidden), MOST_DRAWN)
    lines = tuple(each.lines() for each in tile.cloud.skeletons if each.name not in hidden)
    return _Place(tile.cloud.points[rows], tile.caption, tile.cloud.is_right, tile.coloring.colors()[rows], lines)


def _by_stage(tiles: Sequence[Tile]) -> list[list[Tile]]:
    return [list(group) for _, group in groupby(tiles, key=lambda tile: id(tile.cloud))]


def _in_rows(tiles: Sequence[Tile], columns: int) -> list[Tile | None]:
    """The tiles in their order, so many in a row; the cards of a stage stay together, the rest of a row is empty."""
    places: list[Tile | None] = []
    for group in _by_stage(tiles):
        left = -len(places) % columns
        places += [*[None] * (left if len(group) > left else 0), *group]
    return places


def subsample(rows: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of these rows, chosen evenly by chance but always the same of as many, in their order."""
    if len(rows) <= count:
        return rows
    chosen = np.random.Generator(np.random.PCG64(len(rows))).permutation(len(rows))[:count]
    return rows[np.sort(chosen)]


def _visible(cloud: Stage, hidden: Sequence[str]) -> np.ndarray:
    """The rows of points that are finite and of no hidden class, by the first colouring that has it: by the truth."""
    is_seen = np.isfinite(cloud.points).all(axis=1)
    for name in hidden:
        of_class = next((e for e in cloud.colorings if isinstance(e, ClassColoring) and name in e.class_names), None)
        if of_class is not None:
            is_seen &= of_class.codes != of_class.class_names.index(name)
    return np.flatnonzero(is_seen)


def _title(subject: ViewedSample, tiles: Sequence[Tile], hidden: Sequence[str]) -> list[str]:
    """The name with its class; the raw stage's numbers; the descriptions of drawn stages and of the prediction; what is
    not drawn."""
    whole = next((str(subject.facts[key]) for key in ("class", "category") if key in subject.facts), "")
    first, last = subject.stages[0], subject.stages[-1]
    lines = [f"{subject.name}{f': {whole}' if whole else ''}", f"{first.stage}: {', '.join(first.lines())}"]
    lines += [
        f"{cloud.stage}: {cloud.description}"
        for cloud in subject.stages[1:]
        if cloud.panels and cloud.stage != "prediction"
    ]
    if last.stage == "prediction":
        lines.append(f"prediction: {last.description}")
    notes = [f"without {', '.join(hidden)}"] if hidden else []
    if any(len(tile.cloud.points) > MOST_DRAWN for tile in tiles if tile.panel is None):
        notes.append(f"at most {MOST_DRAWN:,} points are drawn of a cloud")
    return [*lines, "; ".join(notes)] if notes else lines


def _classes(tiles: Sequence[Tile]) -> list[tuple[str, np.ndarray, int]]:
    """Name, colour and number of points of the classes on the tiles, each class once: of the first tile that has it."""
    found: dict[str, tuple[str, np.ndarray, int]] = {}
    for tile in tiles:
        if isinstance(tile.coloring, ClassColoring):
            for name, color, count in tile.coloring.legend():
                found.setdefault(name, (name, color, count))
    return list(found.values())


def _band(lines: Sequence[str], width: int) -> np.ndarray:
    """Lines of text, the first larger, cut short with dots where the sheet is too narrow."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (width, 2 * _MARGIN_PX + _LINE_PX * len(lines)), PAGE)
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        size_px = _TEXT_PX if number else _TITLE_PX
        place = (_MARGIN_PX, _MARGIN_PX + _LINE_PX * (number + 0.5))
        text, font = fit_text(draw, line, width - 2 * _MARGIN_PX, size_px=size_px)
        draw.text(place, text, fill=_FAINT if number else INK, font=font, anchor="lm")
    return np.asarray(image)
