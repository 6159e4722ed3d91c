"""Furniture and building parts of `synthetic_rooms`, made of patches in metres.

A thing is on the floor at the origin, its front towards +y. Things at walls have the wall's plane at y = 0 and the room
on the side of +y.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from sightline.areas.clouds.sets.patches import ROW
from sightline.areas.clouds.sets.synthetic_solids import SolidBuilder
from sightline.areas.scenes.sets.s3dis_files import CLASS_NAMES

NUM_MEASURES = 8
"""Number of random numbers that a recipe may use."""

_ORIGIN, _FRAME = slice(5, 8), slice(8, 17)
_LABEL = {name: label for label, name in enumerate(CLASS_NAMES)}


class Body(NamedTuple):
    """Upright box that occludes points: `centre` (3,), half `size` (3,), and the rotation `turn` (3, 3)."""

    centre: np.ndarray
    half: np.ndarray
    turn: np.ndarray


class Thing(NamedTuple):
    """Object of a room: patches (S, ROW), class, ground plan (width, depth), height, and its occluding body."""

    rows: np.ndarray
    label: int
    plan: tuple[float, float]
    height: float
    body: Body | None = None


def make_thing(name: str, uniform: np.ndarray) -> Thing:
    """Make a thing of a class at the origin; `uniform` (NUM_MEASURES,) in [0, 1) determines its proportions."""
    builder = SolidBuilder(uniform[None].astype(np.float64))
    return _RECIPES[name](builder)


def transform_thing(thing: Thing, *, angle_rad: float, at: tuple[float, float, float]) -> Thing:
    """Rotate a thing about the vertical through its origin, then translate it to `at`."""
    cosine, sine = np.cos(angle_rad), np.sin(angle_rad)
    turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1.0]])
    rows = thing.rows.copy()
    rows[:, _ORIGIN] = rows[:, _ORIGIN] @ turn.T + at
    rows[:, _FRAME] = (rows[:, _FRAME].reshape(-1, 3, 3) @ turn.T).reshape(-1, 9)
    body = thing.body
    if body is not None:
        body = Body(turn @ body.centre + at, body.half, turn @ body.turn)
    return thing._replace(rows=rows, body=body)


def rectangle_thing(label: int, rows: np.ndarray) -> Thing:
    """Make a bare surface of a room from one patch (1, ROW)."""
    assert rows.shape == (1, ROW), rows.shape
    return Thing(rows, label, (0.0, 0.0), 0.0)


def _make_thing(
    b: SolidBuilder, name: str, width: float, depth: float, height: float, body: Body | None = None
) -> Thing:
    return Thing(b.rows[0], _LABEL[name], (width, depth), height, body)


def _scale_measure(b: SolidBuilder, k: int, low: float, high: float) -> float:
    return float(b.share(k, low, high)[0])


def _scale_measures(b: SolidBuilder, *ranges: tuple[float, float]) -> Iterator[float]:
    """Iterate over the first measures, each scaled to its range."""
    return (_scale_measure(b, k, low, high) for k, (low, high) in enumerate(ranges))


def _make_body(width: float, depth: float, height: float, *, at: tuple[float, float, float]) -> Body:
    return Body(np.array(at), np.array([width, depth, height]) / 2, np.eye(3))


def _add_legs(b: SolidBuilder, thick: float, height: float, reach_x: float, reach_y: float) -> None:
    for x, y in ((reach_x, reach_y), (-reach_x, reach_y), (reach_x, -reach_y), (-reach_x, -reach_y)):
        b.box(0, (thick, thick, height), at=(x, y, height / 2))


def _furniture_table(b: SolidBuilder) -> Thing:
    width, depth, height = _scale_measures(b, (1.0, 2.0), (0.6, 1.0), (0.68, 0.78))
    b.box(0, (width, depth, 0.04), at=(0, 0, height - 0.02))
    if _scale_measure(b, 3, 0, 1) < 0.6:
        _add_legs(b, 0.05, height - 0.04, width / 2 - 0.06, depth / 2 - 0.06)
    else:
        for side in (-1, 1):
            b.box(0, (0.03, depth - 0.1, height - 0.04), at=(side * (width / 2 - 0.05), 0, height / 2 - 0.02))
    return _make_thing(b, "table", width, depth, height)


def _furniture_chair(b: SolidBuilder) -> Thing:
    width, seat, top = _scale_measures(b, (0.40, 0.52), (0.40, 0.50), (0.78, 1.0))
    b.box(0, (width, width, 0.06), at=(0, 0, seat))
    b.box(0, (width, 0.05, top - seat - 0.1), at=(0, -width / 2 + 0.03, (top + seat + 0.1) / 2))
    if _scale_measure(b, 3, 0, 1) < 0.5:
        _add_legs(b, 0.03, seat - 0.03, width / 2 - 0.03, width / 2 - 0.03)
    else:
        b.cone(0, 0.03, 0.03, seat - 0.1, at=(0, 0, 0.07))
        for size in ((width, 0.05, 0.05), (0.05, width, 0.05)):
            b.box(0, size, at=(0, 0, 0.05))
    if _scale_measure(b, 4, 0, 1) < 0.4:
        for side in (-1, 1):
            b.box(0, (0.04, width * 0.7, 0.03), at=(side * width / 2, 0, seat + 0.2))
    return _make_thing(b, "chair", width, width, top)


def _sofa(b: SolidBuilder) -> Thing:
    ranges = ((1.3, 2.2), (0.75, 0.95), (0.36, 0.44), (0.7, 0.85), (0.12, 0.22))
    width, depth, seat, top, arm = _scale_measures(b, *ranges)
    middle = depth / 2 + 0.03
    b.box(0, (width, depth, seat), at=(0, middle, seat / 2))
    b.box(0, (width, 0.2, top - seat), at=(0, 0.13, (top + seat) / 2))
    for side in (-1, 1):
        b.box(0, (arm, depth, 0.2), at=(side * (width - arm) / 2, middle, seat + 0.1))
    return _make_thing(b, "sofa", width, depth, top, _make_body(width, depth, seat, at=(0, middle, seat / 2)))


def _bookcase(b: SolidBuilder) -> Thing:
    width, depth, height = _scale_measures(b, (0.8, 1.6), (0.28, 0.42), (1.2, 2.2))
    middle, num_shelves = depth / 2 + 0.02, int(_scale_measure(b, 3, 3, 6))
    for side in (-1, 1):
        b.box(0, (0.03, depth, height), at=(side * (width - 0.03) / 2, middle, height / 2))
    b.box(0, (width, 0.02, height), at=(0, 0.03, height / 2))
    for shelf in range(num_shelves + 1):
        rise = 0.05 + (height - 0.07) * shelf / num_shelves
        b.box(0, (width - 0.06, depth, 0.03), at=(0, middle, rise))
        filled = _scale_measure(b, 4 + shelf % 3, 0.0, 0.9)
        if shelf < num_shelves and filled > 0.2:
            size = (filled * (width - 0.1), depth * 0.6, 0.7 * height / num_shelves)
            b.box(0, size, at=((filled - 1) * (width - 0.1) / 2, middle - 0.03, rise + 0.015 + size[2] / 2))
    # the body occludes the wall behind and objects that enter the back, not the contents of the shelves
    return _make_thing(b, "bookcase", width, depth, height, _make_body(width, 0.06, height, at=(0, 0.01, height / 2)))


def _column(b: SolidBuilder) -> Thing:
    width, depth, height = _scale_measure(b, 0, 0.3, 0.6), _scale_measure(b, 1, 0.25, 0.5), 6.0
    b.box(0, (width, depth, height), at=(0, depth / 2, height / 2))
    return _make_thing(
        b, "column", width, depth, height, _make_body(width, depth, height, at=(0, depth / 2, height / 2))
    )


def _beam(b: SolidBuilder) -> Thing:
    """Make a beam under the ceiling: its origin is at the ceiling, its length along x."""
    width, drop, length = _scale_measure(b, 0, 0.2, 0.4), _scale_measure(b, 1, 0.2, 0.4), 12.0
    b.box(0, (length, width, drop), at=(0, 0, -drop / 2))
    return _make_thing(b, "beam", length, width, drop, _make_body(length, width, drop, at=(0, 0, -drop / 2)))


def _door(b: SolidBuilder) -> Thing:
    width, height, recess = _scale_measures(b, (0.8, 1.1), (2.0, 2.15), (0.03, 0.12))
    b.box(0, (width, 0.04, height), at=(0, -recess - 0.02, height / 2))
    for side in (-1, 1):
        b.box(0, (0.07, 0.04 + recess, height), at=(side * width / 2, -recess / 2, height / 2))
    b.box(0, (width + 0.14, 0.04 + recess, 0.07), at=(0, -recess / 2, height + 0.035))
    b.cone(0, 0.012, 0.012, 0.06 + recess, at=(0.4 * width, -recess, 1.0), facing="+y")
    size = (width + 0.14, 0.5, height + 0.07)
    return _make_thing(b, "door", width + 0.14, 0.9, height, _make_body(*size, at=(0, -0.2, size[2] / 2)))


def _window(b: SolidBuilder) -> Thing:
    width, height = _scale_measure(b, 0, 0.8, 2.0), _scale_measure(b, 1, 0.9, 1.5)
    sill, recess = _scale_measure(b, 2, 0.7, 1.0), _scale_measure(b, 3, 0.05, 0.2)
    middle = sill + height / 2
    b.box(0, (width, 0.01, height), at=(0, -recess, middle))
    for step in range(-1, 2):
        b.box(0, (0.05, 0.05, height), at=(step * width / 2, -recess, middle))
        b.box(0, (width, 0.05, 0.05), at=(0, -recess, middle + step * height / 2))
    b.box(0, (width, recess + 0.1, 0.03), at=(0, 0.05 - recess / 2, sill))
    body = _make_body(width + 0.05, 0.7, height + 0.05, at=(0, -0.33, middle))
    return _make_thing(b, "window", width, 0.1, sill + height, body)


def _board(b: SolidBuilder) -> Thing:
    width, height, low = _scale_measure(b, 0, 1.2, 2.4), _scale_measure(b, 1, 0.9, 1.2), _scale_measure(b, 2, 0.8, 1.0)
    b.box(0, (width, 0.03, height), at=(0, 0.015, low + height / 2))
    b.box(0, (width, 0.1, 0.02), at=(0, 0.05, low))
    body = _make_body(width, 0.04, height, at=(0, 0.01, low + height / 2))
    return _make_thing(b, "board", width, 0.1, low + height, body)


def _clutter(b: SolidBuilder) -> Thing:
    kind, size = _scale_measure(b, 0, 0, 3), _scale_measure(b, 1, 0.08, 0.2)
    height = _scale_measure(b, 2, 0.1, 0.4)
    if kind < 1:
        b.box(0, (2 * size, 1.5 * size, height), at=(0, 0, height / 2))
    elif kind < 2:
        b.cone(0, 0.8 * size, size, height, at=(0, 0, 0))
        b.disc(0, size, at=(0, 0, height), facing="+z")
    else:
        height = 2 * size
        b.sphere(0, size, -size, size, at=(0, 0, size))
    return _make_thing(b, "clutter", 2 * size, 2 * size, height)


_RECIPES = {
    "table": _furniture_table,
    "chair": _furniture_chair,
    "sofa": _sofa,
    "bookcase": _bookcase,
    "column": _column,
    "beam": _beam,
    "door": _door,
    "window": _window,
    "board": _board,
    "clutter": _clutter,
}
