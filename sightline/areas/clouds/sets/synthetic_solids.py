"""Solids of `synthetic_shapes`: twelve upright objects of named parts with random proportions.

Furniture and building parts of `synthetic_rooms`, made of patches in metres.

A thing is on the floor at the origin, its front towards +y. Things at walls have the wall's plane at y = 0 and the room
on the side of +y.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from sightline.areas.scenes.sets.s3dis_files import CLASS_NAMES
from sightline.compute.geometry.surfaces import (
    FACING,
    ROW,
    Measure,
    cone_patch,
    rectangle_patch,
    sphere_patch,
    torus_patch,
)

NUM_PROPORTIONS = 8
"""Number of random numbers that a recipe may use."""

Position = Sequence[Measure]


class SolidBuilder:
    """Builder that collects the patches of B solids of one class; `share(k, low, high)` is the k-th proportion of each.

    Lengths have no unit: the data set scales every cloud. A face that another part touches is not cut.
    """

    def __init__(self, uniform: np.ndarray) -> None:
        self._uniform = uniform
        self._rows: list[np.ndarray] = []
        self.parts: list[int] = []

    @property
    def rows(self) -> np.ndarray:
        """Patches of all solids (B, S, ROW)."""
        return np.stack(self._rows, axis=1)

    def share(self, k: int, low: float, high: float) -> np.ndarray:
        return low + (high - low) * self._uniform[:, k]

    def cone(self, part: int, start: Measure, end: Measure, rise: Measure, *, at: Position, facing: str = "+z") -> None:
        """Add a surface of revolution without lids: a cylinder or cone, or a disc or ring if `rise` is 0."""
        self._add(part, cone_patch(start, end, rise, at=at, frame=FACING[facing], num_solids=len(self._uniform)))

    def disc(self, part: int, radius: Measure, *, at: Position, facing: str, hole: Measure = 0.0) -> None:
        self.cone(part, radius, hole, 0.0, at=at, facing=facing)

    def sphere(
        self, part: int, radius: Measure, low: Measure, high: Measure, *, at: Position, facing: str = "+z"
    ) -> None:
        self._add(part, sphere_patch(radius, low, high, at=at, frame=FACING[facing], num_solids=len(self._uniform)))

    def torus(self, part: int, ring: Measure, tube: Measure, arc_rad: float, *, at: Position, facing: str) -> None:
        self._add(part, torus_patch(ring, tube, arc_rad, at=at, frame=FACING[facing], num_solids=len(self._uniform)))

    def box(
        self, part: int, size: tuple[Measure, Measure, Measure], *, at: Position, turn: np.ndarray = FACING["+z"]
    ) -> None:
        """Add the six faces of a box centred at `at`, its sides along the rows of `turn`."""
        for axis, name in enumerate("xyz"):
            width, height = size[(axis + 1) % 3], size[(axis + 2) % 3]
            for sign, facing in ((1, f"+{name}"), (-1, f"-{name}")):
                centre = [start + sign * size[axis] / 2 * step for start, step in zip(at, turn[axis], strict=True)]
                frame = FACING[facing] @ turn
                rows = rectangle_patch(width, height, at=centre, frame=frame, num_solids=len(self._uniform))
                self._add(part, rows)

    def legs(self, part: int, radius: Measure, height: Measure, *, reach_x: Measure, reach_y: Measure) -> None:
        """Add four upright cylinders on the ground, at the corners of a rectangle."""
        for sign_x, sign_y in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            foot = (sign_x * reach_x, sign_y * reach_y, 0.0)
            self.cone(part, radius, radius, height, at=foot)
            self.disc(part, radius, at=foot, facing="-z")

    def _add(self, part: int, rows: np.ndarray) -> None:
        self._rows.append(rows)
        self.parts.append(part)


class Solid(NamedTuple):
    """Class of solids: name, names of its parts, and the recipe, which numbers the parts from 0."""

    name: str
    parts: tuple[str, ...]
    build: Callable[[SolidBuilder], None]


def build_solids(label: np.ndarray, uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Build the patches (B, S, ROW) of solids of the classes `label` (B,), and the global part (B, S) of each patch.

    `uniform` (B, NUM_PROPORTIONS) in [0, 1) determines the proportions.
    """
    builders = {}
    for value in np.unique(label):
        builder = SolidBuilder(uniform[label == value].astype(np.float64))
        SOLIDS[value].build(builder)
        builders[value] = builder
    num_patches = max(len(builder.parts) for builder in builders.values())
    rows = np.zeros((len(label), num_patches, ROW))
    parts = np.zeros((len(label), num_patches), dtype=np.int64)
    first_part = np.cumsum([0, *(len(solid.parts) for solid in SOLIDS)])
    for value, builder in builders.items():
        rows[label == value, : len(builder.parts)] = builder.rows
        parts[label == value, : len(builder.parts)] = first_part[value] + np.array(builder.parts)
    return rows, parts


def _mug(b: SolidBuilder) -> None:
    height, inside, floor = b.share(0, 0.9, 2.8), b.share(1, 0.78, 0.92), 0.12
    b.cone(0, 1.0, 1.0, height, at=(0, 0, 0))
    b.cone(0, inside, inside, floor - height, at=(0, 0, height))
    b.disc(0, 1.0, at=(0, 0, height), facing="+z", hole=inside)
    b.disc(0, inside, at=(0, 0, floor), facing="+z")
    b.disc(0, 1.0, at=(0, 0, 0), facing="-z")
    ring = height * b.share(2, 0.28, 0.42)
    b.torus(1, ring, ring * b.share(3, 0.18, 0.32), math.pi, at=(1.0, 0, height * b.share(4, 0.45, 0.55)), facing="+y")


def _hammer(b: SolidBuilder) -> None:
    grip, length = b.share(0, 0.09, 0.17), b.share(1, 1.6, 3.0)
    head, reach, claw = b.share(2, 0.22, 0.42), b.share(3, 0.35, 0.8), b.share(4, 0.5, 1.2)
    b.cone(0, grip, grip, length, at=(0, 0, 0))
    b.disc(0, grip, at=(0, 0, 0), facing="-z")
    middle = length + head
    b.cone(1, head, head, reach, at=(0, 0, middle), facing="+x")
    b.disc(1, head, at=(reach, 0, middle), facing="+x")
    tip = head * b.share(5, 0.15, 0.5)
    b.cone(2, head, tip, claw, at=(0, 0, middle), facing="-x")
    b.disc(2, tip, at=(-claw, 0, middle), facing="-x")


def _table(b: SolidBuilder) -> None:
    width, depth, height = b.share(0, 1.0, 2.6), b.share(1, 0.8, 1.8), b.share(2, 0.6, 2.0)
    thick, leg = b.share(3, 0.06, 0.22), b.share(4, 0.05, 0.14)
    b.box(0, (width, depth, thick), at=(0, 0, height + thick / 2))
    b.legs(1, leg, height, reach_x=width / 2 - 1.5 * leg, reach_y=depth / 2 - 1.5 * leg)


def _chair(b: SolidBuilder) -> None:
    width, depth, height = b.share(0, 0.8, 1.6), b.share(1, 0.8, 1.5), b.share(2, 0.4, 1.3)
    thick, leg, back = b.share(3, 0.07, 0.2), b.share(4, 0.05, 0.12), b.share(5, 0.3, 1.4)
    b.box(0, (width, depth, thick), at=(0, 0, height + thick / 2))
    b.box(1, (width, thick, back), at=(0, (thick - depth) / 2, height + thick + back / 2))
    b.legs(2, leg, height, reach_x=width / 2 - 1.5 * leg, reach_y=depth / 2 - 1.5 * leg)


def _lamp(b: SolidBuilder) -> None:
    base, plate, pole = b.share(0, 0.35, 0.9), b.share(1, 0.06, 0.25), b.share(2, 0.05, 0.11)
    length, wide, shade = b.share(3, 0.6, 2.2), b.share(4, 0.45, 0.95), b.share(5, 0.4, 1.1)
    b.cone(0, base, base, plate, at=(0, 0, 0))
    b.disc(0, base, at=(0, 0, plate), facing="+z", hole=pole)
    b.disc(0, base, at=(0, 0, 0), facing="-z")
    b.cone(1, pole, pole, length, at=(0, 0, plate))
    narrow = wide * b.share(6, 0.3, 0.8)
    b.cone(2, wide, narrow, shade, at=(0, 0, plate + length - shade / 3))
    b.disc(2, narrow, at=(0, 0, plate + length + shade * 2 / 3), facing="+z")


def _traffic_cone(b: SolidBuilder) -> None:
    wide, height, thick = b.share(0, 0.4, 0.85), b.share(1, 0.8, 2.4), b.share(2, 0.06, 0.2)
    narrow = wide * b.share(3, 0.08, 0.4)
    b.cone(0, wide, narrow, height, at=(0, 0, thick))
    b.disc(0, narrow, at=(0, 0, thick + height), facing="+z")
    side = 2 * wide * b.share(4, 1.05, 1.5)
    b.box(1, (side, side, thick), at=(0, 0, thick / 2))


def _dumbbell(b: SolidBuilder) -> None:
    ball, length = b.share(0, 0.35, 0.7), b.share(1, 0.6, 1.8)
    bar = ball * b.share(2, 0.2, 0.45)
    inner = np.sqrt(ball * ball - bar * bar)
    b.cone(0, bar, bar, length, at=(-length / 2, 0, ball), facing="+x")
    b.sphere(1, ball, -inner, ball, at=(length / 2 + inner, 0, ball), facing="+x")
    b.sphere(1, ball, -inner, ball, at=(-length / 2 - inner, 0, ball), facing="-x")


def _ring_stand(b: SolidBuilder) -> None:
    ring, foot, height = b.share(0, 0.55, 1.0), b.share(1, 0.3, 0.9), b.share(2, 0.12, 0.9)
    tube = ring * b.share(3, 0.12, 0.35)
    top = foot * b.share(4, 0.4, 1.0)
    b.torus(0, ring, tube, 2 * math.pi, at=(0, 0, height + ring + tube * 0.8), facing="+y")
    b.cone(1, foot, top, height, at=(0, 0, 0))
    b.disc(1, top, at=(0, 0, height), facing="+z")
    b.disc(1, foot, at=(0, 0, 0), facing="-z")


def _bottle(b: SolidBuilder) -> None:
    body, shoulder, cap = b.share(0, 0.6, 2.2), b.share(1, 0.25, 1.0), b.share(2, 0.15, 0.6)
    wide = b.share(3, 0.35, 0.75)
    neck = wide * b.share(4, 0.3, 0.6)
    b.cone(0, wide, wide, body, at=(0, 0, 0))
    b.disc(0, wide, at=(0, 0, 0), facing="-z")
    b.cone(1, wide, neck, shoulder, at=(0, 0, body))
    lid = neck * b.share(5, 1.0, 1.25)
    b.cone(2, lid, lid, cap, at=(0, 0, body + shoulder))
    b.disc(2, lid, at=(0, 0, body + shoulder + cap), facing="+z")


def _mushroom(b: SolidBuilder) -> None:
    cap, height = b.share(0, 0.5, 1.0), b.share(1, 0.4, 2.2)
    stem = cap * b.share(2, 0.2, 0.5)
    foot = stem * b.share(3, 0.8, 1.6)
    b.cone(0, foot, stem, height, at=(0, 0, 0))
    b.disc(0, foot, at=(0, 0, 0), facing="-z")
    cut = cap * b.share(4, -0.5, 0.5)
    b.sphere(1, cap, cut, cap, at=(0, 0, height - cut))
    b.disc(1, np.sqrt(cap * cap - cut * cut), at=(0, 0, height), facing="-z", hole=stem)


def _rocket(b: SolidBuilder) -> None:
    wide, body, nose = b.share(0, 0.28, 0.6), b.share(1, 0.7, 2.3), b.share(2, 0.4, 1.2)
    b.cone(0, wide, wide, body, at=(0, 0, 0))
    b.disc(0, wide, at=(0, 0, 0), facing="-z")
    b.cone(1, wide, 0.0, nose, at=(0, 0, body))
    reach, height, thick = b.share(3, 0.15, 0.6), b.share(4, 0.3, 0.7), b.share(5, 0.05, 0.12)
    for cosine, sine in ((1.0, 0.0), (-0.5, math.sqrt(0.75)), (-0.5, -math.sqrt(0.75))):
        turn = np.array([[cosine, sine, 0.0], [-sine, cosine, 0.0], [0.0, 0.0, 1.0]])
        out = wide + reach / 2
        b.box(2, (reach, thick, height), at=(cosine * out, sine * out, height / 2), turn=turn)


def _goblet(b: SolidBuilder) -> None:
    bowl, stem, length = b.share(0, 0.5, 0.9), b.share(1, 0.06, 0.14), b.share(2, 0.4, 1.9)
    foot, thick = b.share(3, 0.35, 0.9), b.share(4, 0.06, 0.25)
    rim = bowl * b.share(5, 0.0, 0.5)
    centre = (0, 0, thick + length + bowl)
    inside = bowl * 0.9
    b.sphere(0, bowl, -bowl, rim, at=centre)
    b.sphere(0, -inside, -inside, rim, at=centre)
    outer_rim, inner_rim = np.sqrt(bowl * bowl - rim * rim), np.sqrt(inside * inside - rim * rim)
    b.disc(0, outer_rim, at=(0, 0, thick + length + bowl + rim), facing="+z", hole=inner_rim)
    b.cone(1, stem, stem, length, at=(0, 0, thick))
    b.cone(2, foot, stem, thick, at=(0, 0, 0))
    b.disc(2, foot, at=(0, 0, 0), facing="-z")


SOLIDS = (
    Solid("mug", ("body", "handle"), _mug),
    Solid("hammer", ("grip", "head", "claw"), _hammer),
    Solid("table", ("top", "legs"), _table),
    Solid("chair", ("seat", "back", "legs"), _chair),
    Solid("lamp", ("base", "pole", "shade"), _lamp),
    Solid("traffic_cone", ("cone", "plate"), _traffic_cone),
    Solid("dumbbell", ("bar", "weights"), _dumbbell),
    Solid("ring_stand", ("ring", "foot"), _ring_stand),
    Solid("bottle", ("body", "shoulder", "cap"), _bottle),
    Solid("mushroom", ("stem", "cap"), _mushroom),
    Solid("rocket", ("body", "nose", "fins"), _rocket),
    Solid("goblet", ("bowl", "stem", "foot"), _goblet),
)
"""Classes in the order of their labels; parts are numbered consecutively in this order."""


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


def _make_body(width: float, depth: float, height: float, *, at: tuple[float, float, float]) -> Body:
    return Body(np.array(at), np.array([width, depth, height]) / 2, np.eye(3))


def _add_legs(b: SolidBuilder, thick: float, height: float, reach_x: float, reach_y: float) -> None:
    for x, y in ((reach_x, reach_y), (-reach_x, reach_y), (reach_x, -reach_y), (-reach_x, -reach_y)):
        b.box(0, (thick, thick, height), at=(x, y, height / 2))


def _furniture_table(b: SolidBuilder) -> Thing:
    width, depth, height = (
        _scale_measure(b, 0, 1.0, 2.0),
        _scale_measure(b, 1, 0.6, 1.0),
        _scale_measure(b, 2, 0.68, 0.78),
    )
    b.box(0, (width, depth, 0.04), at=(0, 0, height - 0.02))
    if _scale_measure(b, 3, 0, 1) < 0.6:
        _add_legs(b, 0.05, height - 0.04, width / 2 - 0.06, depth / 2 - 0.06)
    else:
        for side in (-1, 1):
            b.box(0, (0.03, depth - 0.1, height - 0.04), at=(side * (width / 2 - 0.05), 0, height / 2 - 0.02))
    return _make_thing(b, "table", width, depth, height)


def _furniture_chair(b: SolidBuilder) -> Thing:
    width, seat, top = (
        _scale_measure(b, 0, 0.40, 0.52),
        _scale_measure(b, 1, 0.40, 0.50),
        _scale_measure(b, 2, 0.78, 1.0),
    )
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
    width, depth = _scale_measure(b, 0, 1.3, 2.2), _scale_measure(b, 1, 0.75, 0.95)
    seat, top, arm = _scale_measure(b, 2, 0.36, 0.44), _scale_measure(b, 3, 0.7, 0.85), _scale_measure(b, 4, 0.12, 0.22)
    middle = depth / 2 + 0.03
    b.box(0, (width, depth, seat), at=(0, middle, seat / 2))
    b.box(0, (width, 0.2, top - seat), at=(0, 0.13, (top + seat) / 2))
    for side in (-1, 1):
        b.box(0, (arm, depth, 0.2), at=(side * (width - arm) / 2, middle, seat + 0.1))
    return _make_thing(b, "sofa", width, depth, top, _make_body(width, depth, seat, at=(0, middle, seat / 2)))


def _bookcase(b: SolidBuilder) -> Thing:
    width, depth, height = (
        _scale_measure(b, 0, 0.8, 1.6),
        _scale_measure(b, 1, 0.28, 0.42),
        _scale_measure(b, 2, 1.2, 2.2),
    )
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
    width, height, recess = (
        _scale_measure(b, 0, 0.8, 1.1),
        _scale_measure(b, 1, 2.0, 2.15),
        _scale_measure(b, 2, 0.03, 0.12),
    )
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
