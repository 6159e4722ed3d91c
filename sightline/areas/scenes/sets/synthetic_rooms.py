"""Synthetic furnished rooms: clouds of different sizes with colours and the class of every point."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from sightline.areas.clouds.sets.patches import FACING, ROW, rectangle_patch, sample_patches
from sightline.areas.scenes.sets.room_things import (
    NUM_MEASURES,
    Body,
    Thing,
    make_thing,
    rectangle_thing,
    transform_thing,
)
from sightline.areas.scenes.sets.s3dis_files import CLASS_NAMES
from sightline.contract import registry
from sightline.contract.arguments import NonNegativeFloat, PositiveFloat, Seed
from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError
from sightline.contract.types import CloudInputSpec, DataInfo, Field, Sample, SampleKey
from sightline.store.computed_samples import ComputedSet, Many, SampleCache, array_bytes

_AT_WALLS = ("door", "column", "window", "window", "board", "bookcase", "bookcase", "sofa", "column")
_CHANCES = (1.0, 0.6, 1.0, 0.5, 0.8, 1.0, 0.5, 0.8, 0.3)
_MAX_TABLES, _CHAIRS_PER_TABLE, _MAX_CLUTTER = 3, 4, 8
_ATTEMPTS = 12
_BLOCK = 1024
_GAP = 0.08
_SHALLOW = 0.2  # a board or a window leaves the floor in front of it free
_LABEL = {name: label for label, name in enumerate(CLASS_NAMES)}


class FurnishedRoom(NamedTuple):
    """Room of `size` (width, depth, height) in metres, a corner at the origin; the first things are bare surfaces."""

    size: np.ndarray
    things: tuple[Thing, ...]


class _RandomNumbers:
    """Random numbers in [0, 1) of one room, drawn sequentially; float64 from 24 bits each."""

    def __init__(self, draws: Draws) -> None:
        self._draws = draws
        self._drawn: Iterator[float] = iter(())  # in blocks: single draws would take half of the time of a room

    def number(self, low: float = 0.0, high: float = 1.0) -> float:
        drawn = next(self._drawn, None)
        if drawn is None:
            self._drawn = iter(self._draws.uniform(_BLOCK)[0].tolist())
            drawn = next(self._drawn)
        return low + (high - low) * drawn

    def measures(self) -> np.ndarray:
        return np.array([self.number() for _ in range(NUM_MEASURES)])


class _FloorPlan:
    """Occupied rectangles of the floor and occupied intervals of each wall."""

    def __init__(self, size: np.ndarray) -> None:
        self._size = size
        self._floor: list[tuple[float, float, float, float]] = []
        self._walls: list[list[tuple[float, float]]] = [[], [], [], []]

    def try_occupy(self, x: float, y: float, width: float, depth: float) -> bool:
        """Occupy a rectangle centred at (x, y) if it is free; return True if it was."""
        is_inside = all(
            side / 2 + 0.05 < centre < length - side / 2 - 0.05
            for centre, side, length in ((x, width, self._size[0]), (y, depth, self._size[1]))
        )
        if not is_inside or not self._is_free(x, y, width, depth):
            return False
        self._floor.append((x, y, width, depth))
        return True

    def try_occupy_wall(self, wall: int, start: float, end: float, depth: float) -> bool:
        """Occupy an interval of a wall and the floor in front of it if both are free; return True if they were."""
        if any(a < end + _GAP and start - _GAP < b for a, b in self._walls[wall]):
            return False
        rectangle = _floor_before_wall(self._size, wall, (start + end) / 2, end - start, depth)
        if not self._is_free(*rectangle):
            return False
        self._walls[wall].append((start, end))
        if depth > _SHALLOW:
            self._floor.append(rectangle)
        return True

    def _is_free(self, x: float, y: float, width: float, depth: float) -> bool:
        return not any(
            2 * abs(x - a) < width + wide and 2 * abs(y - b) < depth + deep for a, b, wide, deep in self._floor
        )


def furnish_room(draws: Draws) -> FurnishedRoom:
    """Furnish a room; the result is a pure function of one random stream."""
    chance = _RandomNumbers(draws)
    size = np.array([chance.number(3.2, 6.0), chance.number(3.2, 6.0), chance.number(2.5, 3.2)])
    plan = _FloorPlan(size)
    things = [*_make_surfaces(size), *_furnish_walls(size, plan, chance)]
    if chance.number() < 0.6:
        beam = make_thing("beam", chance.measures())
        angle, along = (0.0, size[1]) if chance.number() < 0.5 else (np.pi / 2, size[0])
        position = float(along) * chance.number(0.2, 0.8)
        at = (size[0] / 2, position, size[2]) if angle == 0 else (position, size[1] / 2, size[2])
        things.append(transform_thing(beam, angle_rad=angle, at=at))
    things += [thing for group in _arrange_tables(size, plan, chance) for thing in group]
    things += _scatter_things(size, plan, chance)
    return FurnishedRoom(size, tuple(things))


def _make_surfaces(size: np.ndarray) -> Iterator[Thing]:
    """Yield floor, ceiling and the four walls, facing inwards."""
    width, depth, height = map(float, size)
    middle = (width / 2, depth / 2, height / 2)
    for name, facing, at in (
        ("floor", "+z", (middle[0], middle[1], 0.0)),
        ("ceiling", "-z", (middle[0], middle[1], height)),
        ("wall", "+y", (middle[0], 0.0, middle[2])),
        ("wall", "-x", (width, middle[1], middle[2])),
        ("wall", "-y", (middle[0], depth, middle[2])),
        ("wall", "+x", (0.0, middle[1], middle[2])),
    ):
        across, up = (float(np.abs(axis) @ size) for axis in FACING[facing][:2])
        yield rectangle_thing(_LABEL[name], rectangle_patch(across, up, at=at, frame=FACING[facing], num_solids=1))


def _furnish_walls(size: np.ndarray, plan: _FloorPlan, chance: _RandomNumbers) -> Iterator[Thing]:
    for name, probability in zip(_AT_WALLS, _CHANCES, strict=True):
        thing, is_drawn = make_thing(name, chance.measures()), chance.number() < probability
        positions = [(int(chance.number(0, 4)), chance.number()) for _ in range(_ATTEMPTS)]
        if not is_drawn:
            continue
        for wall, share in positions:
            length = float(size[wall % 2])
            half = thing.plan[0] / 2 + 0.1
            if 2 * half >= length:
                continue
            along = half + share * (length - 2 * half)
            if plan.try_occupy_wall(wall, along - thing.plan[0] / 2, along + thing.plan[0] / 2, thing.plan[1]):
                yield _move_to_wall(thing, size, wall, along)
                break


def _move_to_wall(thing: Thing, size: np.ndarray, wall: int, along: float) -> Thing:
    width, depth = float(size[0]), float(size[1])
    at = ((along, 0.0, 0.0), (width, along, 0.0), (width - along, depth, 0.0), (0.0, depth - along, 0.0))[wall]
    return transform_thing(thing, angle_rad=wall * np.pi / 2, at=at)


def _floor_before_wall(
    size: np.ndarray, wall: int, along: float, width: float, depth: float
) -> tuple[float, float, float, float]:
    """Compute centre and size (x, y, width, depth) of the floor in front of an interval of a wall."""
    room_x, room_y = float(size[0]), float(size[1])
    x, y = (
        (along, depth / 2),
        (room_x - depth / 2, along),
        (room_x - along, room_y - depth / 2),
        (depth / 2, room_y - along),
    )[wall]
    return (x, y, width, depth) if wall % 2 == 0 else (x, y, depth, width)


def _arrange_tables(size: np.ndarray, plan: _FloorPlan, chance: _RandomNumbers) -> Iterator[list[Thing]]:
    """Yield groups of a table, chairs at its sides and clutter on it."""
    for _ in range(1 + int(chance.number(0, _MAX_TABLES))):
        table, angle = make_thing("table", chance.measures()), np.pi / 2 * int(chance.number(0, 2))
        width, depth = table.plan if angle == 0 else table.plan[::-1]
        positions = [(chance.number(0, float(size[0])), chance.number(0, float(size[1]))) for _ in range(_ATTEMPTS)]
        seats = [_draw_seat(chance) for _ in range(_CHAIRS_PER_TABLE)]
        clutter = [(make_thing("clutter", chance.measures()), chance.number(), chance.number()) for _ in range(2)]
        centre = next((position for position in positions if plan.try_occupy(*position, width, depth)), None)
        if centre is None:
            continue
        group = [transform_thing(table, angle_rad=angle, at=(*centre, 0.0))]
        for chair, side, along, turn in seats:
            reach = (depth if side % 2 == 0 else width) / 2 + chair.plan[1] / 2 + 0.05
            offset = (along - 0.5) * 0.7 * (width if side % 2 == 0 else depth)
            step = ((offset, -reach), (reach, offset), (offset, reach), (-reach, offset))[side]
            chair_xy = (centre[0] + step[0], centre[1] + step[1])
            if plan.try_occupy(*chair_xy, chair.plan[0], chair.plan[1]):
                group.append(transform_thing(chair, angle_rad=side * np.pi / 2 + turn, at=(*chair_xy, 0.0)))
        for thing, x, y in clutter:
            at = (centre[0] + (x - 0.5) * 0.7 * width, centre[1] + (y - 0.5) * 0.6 * depth, table.height)
            group.append(transform_thing(thing, angle_rad=2 * np.pi * x, at=at))
        yield group


def _draw_seat(chance: _RandomNumbers) -> tuple[Thing, int, float, float]:
    """Draw a chair, the side of its table, the position along that side, and the chair's rotation in rad."""
    chair = make_thing("chair", chance.measures())
    return chair, int(chance.number(0, 4)), chance.number(), chance.number(-0.5, 0.5)


def _scatter_things(size: np.ndarray, plan: _FloorPlan, chance: _RandomNumbers) -> Iterator[Thing]:
    """Yield clutter and further chairs on the floor."""
    for number in range(_MAX_CLUTTER):
        name = "clutter" if number % 4 else "chair"
        thing, angle = make_thing(name, chance.measures()), chance.number(0, 2 * np.pi)
        position = (chance.number(0, float(size[0])), chance.number(0, float(size[1])))
        if plan.try_occupy(*position, 1.2 * thing.plan[0], 1.2 * thing.plan[1]):
            yield transform_thing(thing, angle_rad=angle, at=(*position, 0.0))


_SPLITS = ("train", "test")
_MAX_POINTS = 2_000_000
_MAX_CACHE_BYTES = 2**28
_AREA = 4
_REACH_M = 10.0
_TOUCH_M = 1e-3
_CUT_AT_ROOM = (CLASS_NAMES.index("beam"), CLASS_NAMES.index("column"))
_MEAN_COLOURS = np.array(
    [
        *([0.85, 0.85, 0.83], [0.55, 0.50, 0.45], [0.80, 0.78, 0.74], [0.78, 0.77, 0.75], [0.76, 0.76, 0.72]),
        *([0.65, 0.75, 0.85], [0.60, 0.45, 0.35], [0.65, 0.52, 0.38], [0.35, 0.35, 0.40], [0.50, 0.35, 0.40]),
        *([0.55, 0.42, 0.32], [0.90, 0.90, 0.90], [0.50, 0.50, 0.50]),
    ]
)
"""Mean colour of each class; things of a class vary more than most classes differ."""


@registry.data.add("synthetic_rooms")
class SyntheticRooms(ComputedSet):
    """Furnished rooms with the thirteen classes of S3DIS at every point, a pure function of (data_seed, split, index).

    Surfaces are sampled with `points_per_m2`, in random order; points covered by another thing are left out, so rooms
    differ in size. Metres, z up, a corner of the floor at the origin. `noise_m` is the standard deviation of the noise
    of the coordinates. `colours` adds red, green and blue, 0 to 1, to the model's input. Epoch and
    seed of a key change nothing. Source: made here; sightline/areas/clouds/sets/synthetic_solids.py.
    """

    computed = "room is computed"

    def __init__(
        self,
        *,
        split: str,
        train_size: Many = 160,
        test_size: Many = 40,
        points_per_m2: PositiveFloat = 40.0,
        noise_m: NonNegativeFloat = 0.005,
        colours: bool = True,
        data_seed: Seed = 0,
    ) -> None:
        if split not in _SPLITS:
            raise ConfigError(f"synthetic_rooms: there is no split '{split}'; it has {' and '.join(_SPLITS)}")
        self._split = split
        self._sizes = {"train": train_size, "test": test_size}
        self._points_per_m2 = points_per_m2
        self._noise_m = noise_m
        self._data_seed = data_seed
        self._cache = SampleCache[dict[str, np.ndarray]](_MAX_CACHE_BYTES, array_bytes)
        self.info = _describe(self._sizes, colours)

    def __len__(self) -> int:
        return self._sizes[self._split]

    def __getitem__(self, key: SampleKey) -> Sample:
        if not 0 <= key.index < len(self):
            raise IndexError(f"synthetic_rooms: sample {key.index} of '{self._split}', which has {len(self)}")
        room = self._cache.get(key.index)
        if room is None:
            room = self._cache.put(key.index, self._make(key.index))
        return {name: torch.from_numpy(values.copy()) for name, values in room.items()}

    def _make(self, index: int) -> dict[str, np.ndarray]:
        split = _SPLITS.index(self._split)  # instead of the epoch, so train and test share no stream
        draws = Draws.for_samples([SampleKey(index, split, self._data_seed)])
        room = furnish_room(draws.stream("layout"))
        rows = np.concatenate([thing.rows for thing in room.things])
        count = round(rows[:, _AREA].sum() * self._points_per_m2)
        if not 1 <= count <= _MAX_POINTS:
            raise ConfigError(
                f"synthetic_rooms: points_per_m2 {self._points_per_m2:g} makes {count} points of room {index}; give "
                f"one that makes 1 to {_MAX_POINTS}"
            )
        surface = sample_patches(rows.reshape(1, -1, ROW), draws.stream("surface").bits(count, 2))
        owner = np.repeat(np.arange(len(room.things)), [len(thing.rows) for thing in room.things])[surface.patch[0]]
        visible_mask = _visible_mask(surface.points[0], owner, room)
        points = surface.points[0] + self._noise_m * draws.stream("noise").normal(count, 3)[0].double().numpy()
        labels = np.array([thing.label for thing in room.things])
        colours = _draw_colours(labels, owner, draws.stream("colours"))
        return {
            "points": points[visible_mask].astype(np.float32),
            "colours": colours[visible_mask],
            "label": labels[owner][visible_mask].astype(np.int64),
        }


def _visible_mask(points: np.ndarray, owner: np.ndarray, room: FurnishedRoom) -> np.ndarray:
    """Mask (N,) of points outside all other things' bodies; points of beams and columns must be inside the room."""
    visible_mask = np.ones(len(points), dtype=bool)
    for number, thing in enumerate(room.things):
        if thing.body is not None:
            visible_mask &= ~_body_mask(points, thing.body) | (owner == number)
    needs_room_mask = np.isin(np.array([thing.label for thing in room.things])[owner], _CUT_AT_ROOM)
    in_room_mask = ((points >= 0) & (points <= room.size)).all(axis=1)
    return visible_mask & (in_room_mask | ~needs_room_mask)


def _body_mask(points: np.ndarray, body: Body) -> np.ndarray:
    """Mask (N,) of points inside a body or on its surface."""
    offset = points - body.centre
    along = [offset[:, 0] * axis[0] + offset[:, 1] * axis[1] + offset[:, 2] * axis[2] for axis in body.turn.T]
    return np.all([np.abs(a) <= half + _TOUCH_M for a, half in zip(along, body.half, strict=True)], axis=0)


def _draw_colours(labels: np.ndarray, owner: np.ndarray, draws: Draws) -> np.ndarray:
    """Draw colours (N, 3) float32, 0 to 1: class colour with variation per thing, shade, light and point noise."""
    thing_offset = draws.normal(len(labels), 3)[0].double().numpy() * 0.10
    shade = draws.normal(len(labels), 1)[0].double().numpy() * 0.12
    point_noise = draws.normal(len(owner), 3)[0].double().numpy() * 0.03
    light = 0.8 + 0.3 * draws.uniform(1)[0].double().numpy()
    return np.clip((_MEAN_COLOURS[labels] + thing_offset + shade)[owner] * light + point_noise, 0, 1).astype(np.float32)


def _describe(sizes: dict[str, int], colours: bool) -> DataInfo:
    frame = "room, z up, a corner of the floor at the origin"
    fields = {
        "points": Field("points 3", "float32", "m", frame, -_REACH_M, _REACH_M, "concatenate"),
        "colours": Field("points 3", "float32", "red, green, blue", "", 0.0, 1.0, "concatenate"),
        "label": Field("points", "int64", "class", "", 0, len(CLASS_NAMES) - 1, "concatenate"),
    }
    facts = {
        "num_classes": len(CLASS_NAMES),
        "class_names": CLASS_NAMES,
        "in_channels": 6 if colours else 3,
        "up_axis": "z",
    }
    features = ("colours",) if colours else ()
    return DataInfo(facts=facts, fields=fields, split_sizes=sizes, features=features, clouds=CloudInputSpec())
