"""Solids of `synthetic_shapes`: twelve upright objects of named parts with random proportions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from sightline.areas.clouds.sets.patches import (
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
        """Add a disc, or a ring around a hole."""
        self.cone(part, radius, hole, 0.0, at=at, facing=facing)

    def sphere(
        self, part: int, radius: Measure, low: Measure, high: Measure, *, at: Position, facing: str = "+z"
    ) -> None:
        self._add(part, sphere_patch(radius, low, high, at=at, frame=FACING[facing], num_solids=len(self._uniform)))

    def torus(self, part: int, ring: Measure, tube: Measure, arc_rad: float, *, at: Position, facing: str) -> None:
        """Add an arc of a torus."""
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
