"""Sheet of a sample: a grid of cards for its stages, with the numbers above and the class legend below."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, groupby
from typing import NamedTuple

import numpy as np

from sightline.draw.pictures import INK, PAGE, Frame, Lines, draw_legend, fit_text, render_clouds, render_strips
from sightline.view.drawn_rows import behind_near_walls, near_objects
from sightline.view.panels import ImagePanel, is_strip
from sightline.view.stages import ClassColoring, Coloring, Stage, ViewedSample

MAX_DRAWN = 60_000
"""Maximum of points of a cloud on a card: more hide one another, and take seconds to draw."""
_FAINT = (108, 117, 130)
_TITLE_PX, _TEXT_PX, _LINE_PX, _MARGIN_PX = 22, 15, 24, 16
_PREDICTION_COLORINGS = ("ground truth", "prediction", "error")


_LEFT_OUT = {
    "scan": "the farthest points are not drawn, so that the others are large",
    "room": "walls and ceiling between viewer and room are not drawn",
}
"""Notes on the points that the pictures of scans and rooms leave out."""


class Tile(NamedTuple):
    """Card of a sheet: a cloud in one colouring or, if `panel` is set, a flat picture; with its caption."""

    cloud: Stage
    coloring: Coloring
    caption: str
    panel: ImagePanel | None = None


def make_tiles(subject: ViewedSample) -> list[Tile]:
    """List the cards of a sample: every stage in its first colouring, followed by its flat pictures.

    The raw stage is shown by its classes too, predictions by ground truth, prediction and error.
    """
    tiles: list[Tile] = []
    has_predictions = any(cloud.coloring(_PREDICTION_COLORINGS[-1]) for cloud in subject.stages)
    for index, cloud in enumerate(subject.stages):
        first, count = cloud.colorings[0], len(cloud.points)
        if cloud.stage == "prediction":
            drawn = [coloring for coloring in cloud.colorings if coloring.name in _PREDICTION_COLORINGS]
            if drawn or not cloud.is_flat:
                tiles += [Tile(cloud, coloring, coloring.name) for coloring in drawn] or [
                    Tile(cloud, first, cloud.description)
                ]
            tiles += [Tile(cloud, first, panel.name, panel) for panel in cloud.panels]
            continue
        if cloud.is_flat:
            tiles += [Tile(cloud, first, panel.name, panel) for panel in cloud.panels]
            continue
        is_same = index > 0 and count == len(subject.stages[index - 1].points)
        tiles.append(Tile(cloud, first, cloud.stage if is_same else f"{cloud.stage} ({count:,})"))
        classes = next((c for c in cloud.colorings if isinstance(c, ClassColoring)), first)
        if index == 0 and classes is not first and not has_predictions:
            tiles.append(Tile(cloud, classes, f"{cloud.stage}: {classes.name}"))
        tiles += [Tile(cloud, first, panel.name, panel) for panel in cloud.panels]
    return tiles


def draw_sheet(subject: ViewedSample, *, hidden: Sequence[str] = (), tile_px: int = 300) -> np.ndarray:
    """Draw the sheet of a sample, (H, W, 3) uint8, without the points of `hidden` classes, which it notes.

    Clouds above `MAX_DRAWN` points are subsampled to that many, evenly and the same each time. Wide pictures, such as
    range images, take the whole width, below the clouds.
    """
    tiles, strips = _split_strips(make_tiles(subject))
    columns = max(min(4, len(tiles)), *(len(group) for group in _group_by_stage(tiles)))
    if any(panel.is_large for cloud in subject.stages for panel in cloud.panels):
        tile_px = max(tile_px, min(2 * tile_px, 4 * tile_px // columns))
    card_inputs = [_make_card(tile, hidden, subject.up_axis) for tile in _arrange_rows(tiles, columns)]
    cards = render_clouds(
        [card.content for card in card_inputs],
        captions=[card.caption for card in card_inputs],
        is_right=[card.is_right for card in card_inputs],
        colors=[card.colors for card in card_inputs],
        lines=[card.lines for card in card_inputs],
        up_axis=subject.up_axis,
        columns=columns,
        tile_px=tile_px,
    )
    width = max(cards.shape[1], 2 * tile_px)
    title = _draw_text(_title_lines(subject, tiles, hidden), width)
    wide = [render_strips(strips, width=width, tile_px=tile_px)] if strips else []
    legend = draw_legend([(f"{name}  {count:,}", color) for name, color, count in _list_classes(tiles)], width)
    parts = [title, cards, *wide, legend]
    page = np.full((sum(map(len, parts)), width, 3), PAGE, dtype=np.uint8)
    for top, part in zip(accumulate(map(len, parts), initial=0), parts, strict=False):
        page[top : top + len(part), : part.shape[1]] = part
    return page


def _split_strips(tiles: list[Tile]) -> tuple[list[Tile], list[tuple[np.ndarray, str]]]:
    """Split wide pictures, with their captions, from the other tiles of a sheet that has clouds."""
    if all(tile.panel for tile in tiles):
        return tiles, []
    strips = [(tile, tile.panel) for tile in tiles if tile.panel and is_strip(tile.panel)]
    rest = [tile for tile in tiles if not any(tile is strip for strip, _ in strips)]
    return rest, [(panel.pixels, f"{strip.cloud.stage}, {panel.name}") for strip, panel in strips]


class _Card(NamedTuple):
    """Arguments of `render_clouds` for one card of the sheet; the defaults are those of an empty one."""

    content: np.ndarray | None = None
    caption: str = ""
    is_right: bool | None = None
    colors: np.ndarray | None = None
    lines: tuple[Lines, ...] = ()


def _make_card(tile: Tile | None, hidden: Sequence[str], frame: Frame) -> _Card:
    if tile is None:
        return _Card()
    if tile.panel is not None:
        return _Card(tile.panel.pixels, tile.caption)
    rows = subsample(_shown_rows(tile.cloud, _visible_rows(tile.cloud, hidden), frame), MAX_DRAWN)
    lines = tuple(line for figure in tile.cloud.skeletons if figure.name not in hidden for line in figure.lines())
    return _Card(tile.cloud.points[rows], tile.caption, tile.cloud.is_right, tile.coloring.colors()[rows], lines)


def _group_by_stage(tiles: Sequence[Tile]) -> list[list[Tile]]:
    return [list(group) for _, group in groupby(tiles, key=lambda tile: id(tile.cloud))]


def _arrange_rows(tiles: Sequence[Tile], columns: int) -> list[Tile | None]:
    """Arrange the tiles in rows of `columns`: cards of a stage stay together, unused cells of a row are None."""
    cells: list[Tile | None] = []
    for group in _group_by_stage(tiles):
        num_free = -len(cells) % columns
        cells += [*[None] * (num_free if len(group) > num_free else 0), *group]
    return cells


def subsample(rows: np.ndarray, count: int) -> np.ndarray:
    """Subsample `rows` to at most `count`, in order; the random choice depends on the number of rows alone."""
    if len(rows) <= count:
        return rows
    chosen = np.random.Generator(np.random.PCG64(len(rows))).permutation(len(rows))[:count]
    return rows[np.sort(chosen)]


def _shown_rows(cloud: Stage, rows: np.ndarray, frame: Frame) -> np.ndarray:
    """Return those of the rows that are near the objects of a scan, or behind the near walls of a room."""
    objects = [figure.joints for figure in cloud.skeletons if figure.num_objects is not None]
    if objects or cloud.surroundings == "scan":
        return rows[near_objects(cloud.points[rows], objects)]
    return rows[behind_near_walls(cloud.points[rows], frame)] if cloud.surroundings == "room" else rows


def _visible_rows(cloud: Stage, hidden: Sequence[str]) -> np.ndarray:
    """Return the indices of points that are finite and of no hidden class (by the first colouring with that class)."""
    is_seen = np.isfinite(cloud.points).all(axis=1)
    for name in hidden:
        coloring = next((e for e in cloud.colorings if isinstance(e, ClassColoring) and name in e.class_names), None)
        if coloring is not None:
            is_seen &= coloring.codes != coloring.class_names.index(name)
    return np.flatnonzero(is_seen)


def _title_lines(subject: ViewedSample, tiles: Sequence[Tile], hidden: Sequence[str]) -> list[str]:
    """List the lines above the cards: name and class, raw stage, drawn stages, prediction, and what is not drawn."""
    class_name = next((str(subject.facts[key]) for key in ("class", "category") if key in subject.facts), "")
    first, last = subject.stages[0], subject.stages[-1]
    lines = [f"{subject.name}{f': {class_name}' if class_name else ''}", f"{first.stage}: {', '.join(first.lines())}"]
    lines += [
        f"{cloud.stage}: {cloud.description}"
        for cloud in subject.stages[1:]
        if cloud.panels and cloud.stage != "prediction"
    ]
    if last.stage == "prediction" and last is not first:
        lines.append(f"prediction: {last.description}")
    notes = [f"without {', '.join(hidden)}"] if hidden else []
    if any(len(tile.cloud.points) > MAX_DRAWN for tile in tiles if tile.panel is None):
        notes.append(f"at most {MAX_DRAWN:,} points are drawn of a cloud")
    surroundings = {tile.cloud.surroundings for tile in tiles if tile.panel is None}
    notes += [note for kind, note in _LEFT_OUT.items() if kind in surroundings]
    return [*lines, "; ".join(notes)] if notes else lines


def _list_classes(tiles: Sequence[Tile]) -> list[tuple[str, np.ndarray, int]]:
    """List name, colour and number of points of each class on the tiles, from the first tile that has the class."""
    classes: dict[str, tuple[str, np.ndarray, int]] = {}
    for tile in tiles:
        if isinstance(tile.coloring, ClassColoring):
            for name, color, count in tile.coloring.legend():
                classes.setdefault(name, (name, color, count))
    return list(classes.values())


def _draw_text(lines: Sequence[str], width: int) -> np.ndarray:
    """Draw lines of text, the first one larger; lines too long for the sheet are shortened with dots."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (width, 2 * _MARGIN_PX + _LINE_PX * len(lines)), PAGE)
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        size_px = _TEXT_PX if number else _TITLE_PX
        position = (_MARGIN_PX, _MARGIN_PX + _LINE_PX * (number + 0.5))
        text, font = fit_text(draw, line, width - 2 * _MARGIN_PX, size_px=size_px)
        draw.text(position, text, fill=_FAINT if number else INK, font=font, anchor="lm")
    return np.asarray(image)
