"""Traffic of a random street: cars, pedestrians and cyclists that move without touching, and what stands beside them.

The world has x along the road, y to its left and z up, and its origin is on the ground below the sensor's first place
along the road. The road is as wide as that of `store/streets/casting.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sightline.store.streets.beams import Obstacles
from sightline.store.streets.casting import BUILDING, CAR, CYCLIST, PERSON, POLE, SENSOR_HEIGHT_M, TRUNK, Street

__all__ = ["CLASS_NAMES", "FRAME_S", "RoadUsers", "Traffic", "draw_traffic", "list_boxes", "place_street"]

CLASS_NAMES = ("Car", "Pedestrian", "Cyclist")
"""Names of KITTI's objects, so that its scores apply."""
FRAME_S = 0.1
"""Seconds between frames: a turn of the sensor."""
_IDS = np.array([CAR, PERSON, CYCLIST])
_SIZES_M = np.array([[4.3, 1.8, 1.55], [0.8, 0.6, 1.75], [1.75, 0.6, 1.72]])
"""Mean length, width and height of each class; every side of an object varies by 10 %."""
_PARTS = (
    ((0.0, 1.0, 1.0, 0.55), (-0.08, 0.55, 0.86, 1.0)),
    ((0.0, 1.0, 1.0, 1.0),),
    ((0.0, 1.0, 0.3, 0.6), (-0.08, 0.3, 1.0, 1.0)),
)
"""Parts of each class: how far the middle is in front of the object's, length, width and top, as shares of its size.

A car is a body and a cabin that is set back; a cyclist is a bicycle and a rider who sits behind its middle.
"""
_NUM_CARS = (6, 10)
"""So many that three in ten are partly hidden by others, poles and trunks."""
_CAR_KINDS = ("drives",) * 4 + ("along",) * 4 + ("across",) * 2 + ("turns",) * 4
"""What a car does, drawn evenly: those that turn find no free place more often than others."""
_ATTEMPTS = 30
_EGO = (4.5, 1.6)
"""Length and width that others keep free around the sensor."""
_REACH_M = 42.0


class RoadUsers(NamedTuple):
    """M objects at one time, each on an arc of constant speed and turn.

    `label` (M,) int64 are indices into `CLASS_NAMES`; `position` (M, 2) metres and `yaw` (M,) radians are of their
    middles, `size` (M, 3) is the length, width and height of their surfaces; `speed` (M,) is in metres a second,
    `turn` (M,) in radians a second.
    """

    label: np.ndarray
    position: np.ndarray
    yaw: np.ndarray
    size: np.ndarray
    speed: np.ndarray
    turn: np.ndarray

    def after(self, time_s: float) -> RoadUsers:
        """Return the objects after a time, in closed form."""
        position, yaw = _follow_arc(self.position, self.yaw, self.speed, self.turn, time_s)
        return self._replace(position=position, yaw=yaw)

    def velocity(self) -> np.ndarray:
        """Return the velocity (M, 2) over ground."""
        return self.speed[:, None] * _directions(self.yaw)


class Traffic(NamedTuple):
    """Street at its first frame: the objects, the sensor as one of them, and what stands still.

    `houses` (A, 6) and `cylinders` (C, 4) are obstacles as of `beams.py`, with tops above the ground; `cylinder_ids`
    are the classes of the latter.
    """

    users: RoadUsers
    sensor: RoadUsers
    houses: np.ndarray
    cylinders: np.ndarray
    cylinder_ids: np.ndarray


def draw_traffic(generator: np.random.Generator, *, num_frames: int, gap_m: float) -> Traffic:
    """Draw a street on which all footprints are `gap_m` apart in `num_frames` frames.

    A third of 6 to 10 cars drive at 0 to 15 m/s, a third are parked along the road, and a third are parked across it or
    turn; 3 to 6 pedestrians and 2 to 4 cyclists move at their paces. What finds no free place is left out.
    """
    plan = _Plan(np.arange(num_frames) * FRAME_S, gap_m)
    sensor = _one(-1, (0.0, 0.0), generator.normal(0.0, 0.02), (*_EGO, 0.0), generator.uniform(0.0, 10.0))
    sensor = sensor._replace(turn=generator.normal(0.0, 0.05, 1))
    plan.try_occupy(sensor)
    kinds = ((_draw_car, _NUM_CARS), (_draw_cyclist, (2, 4)), (_draw_pedestrian, (3, 6)))
    numbers = [int(generator.integers(fewest, most + 1)) for _, (fewest, most) in kinds]
    users = [
        plan.place(draw, generator) for (draw, _), number in zip(kinds, numbers, strict=True) for _ in range(number)
    ]
    houses = _draw_houses(generator)
    things = [_place_thing(plan, generator, radius, aside) for radius, aside in _BESIDE_THE_ROAD]
    kept = [(thing, POLE if thing[2] < 0.15 else TRUNK) for thing in things if thing is not None]
    cylinders = np.array([thing for thing, _ in kept]).reshape(-1, 4)
    ids = np.array([kind for _, kind in kept], dtype=np.int64)
    return Traffic(_join([user for user in users if user is not None]), sensor, houses, cylinders, ids)


def place_street(traffic: Traffic, time_s: float) -> tuple[Street, np.ndarray]:
    """Return the street at a time in the frame of the sensor, and whose part each of its things is, -1 for nobody's."""
    sensor, users = traffic.sensor.after(time_s), traffic.users.after(time_s)
    parts, owner = [], []
    for row in range(len(users.label)):
        size, ahead = users.size[row], _directions(users.yaw[row : row + 1])[0]
        for forward, length, width, top in _PARTS[users.label[row]]:
            x, y = users.position[row] + forward * size[0] * ahead
            parts.append((x, y, length * size[0] / 2, width * size[1] / 2, users.yaw[row], top * size[2]))
            owner.append(row)
    boxes = np.concatenate([np.array(parts).reshape(-1, 6), traffic.houses])
    cylinders = traffic.cylinders.copy()
    heading = float(sensor.yaw[0])
    for things in (boxes, cylinders):
        things[:, :2] = (things[:, :2] - sensor.position) @ _turned(heading).T
        things[:, -1] -= SENSOR_HEIGHT_M
    boxes[:, 4] -= heading
    ids = np.concatenate([_IDS[users.label[owner]], [BUILDING] * len(traffic.houses), traffic.cylinder_ids])
    nobody = [-1] * (len(ids) - len(owner))
    return Street(Obstacles(boxes, cylinders), ids.astype(np.int64)), np.array([*owner, *nobody], dtype=np.int64)


def list_boxes(traffic: Traffic, time_s: float, *, margin_m: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return boxes (M, 7) and velocities (M, 2) at a time in the frame of the sensor, and its pose (4, 4).

    Boxes stand on the ground, and are larger than the surfaces by `margin_m` to the sides and above. Velocities are
    over ground, along the axes of the sensor.
    """
    sensor, users = traffic.sensor.after(time_s), traffic.users.after(time_s)
    heading = float(sensor.yaw[0])
    to_sensor = _turned(heading)
    size = users.size + margin_m * np.array([2.0, 2.0, 1.0])
    boxes = np.column_stack(
        [
            (users.position - sensor.position) @ to_sensor.T,
            size[:, 2] / 2 - SENSOR_HEIGHT_M,
            size,
            users.yaw - heading,
        ]
    )
    pose = np.eye(4)
    pose[:2, :2] = to_sensor.T
    pose[:3, 3] = (*sensor.position[0], SENSOR_HEIGHT_M)
    return boxes, users.velocity() @ to_sensor.T, pose


# --- objects ---------------------------------------------------------------------------------------------------------


def _one(
    label: int,
    position: tuple[float, float],
    yaw: float,
    size: tuple[float, ...],
    speed: float = 0.0,
    turn: float = 0.0,
) -> RoadUsers:
    return RoadUsers(
        np.array([label]), np.array([position]), np.array([yaw]), np.array([size]), np.array([speed]), np.array([turn])
    )


def _join(users: list[RoadUsers]) -> RoadUsers:
    return RoadUsers(*(np.concatenate(arrays) for arrays in zip(*users, strict=True)))


def _draw_size(generator: np.random.Generator, label: int) -> tuple[float, ...]:
    return tuple((_SIZES_M[label] * generator.uniform(0.9, 1.1, 3)).tolist())


def _draw_car(generator: np.random.Generator) -> RoadUsers:
    size, x = _draw_size(generator, 0), generator.uniform(-_REACH_M, _REACH_M)
    side = float(generator.choice([-1.0, 1.0]))
    kind = _CAR_KINDS[generator.integers(len(_CAR_KINDS))]
    if kind == "drives":  # drives on the right side of the road
        along = 0.0 if side < 0 else np.pi
        return _one(0, (x, 2.4 * side), along + generator.normal(0.0, 0.02), size, generator.uniform(0.0, 15.0))
    if kind == "along":
        along = np.pi * generator.integers(2) + generator.normal(0.0, 0.05)
        return _one(0, (x, side * generator.uniform(4.9, 5.1)), along, size)
    if kind == "across":
        across = np.pi / 2 * generator.choice([-1.0, 1.0]) + generator.normal(0.0, 0.2)
        return _one(0, (x, side * generator.uniform(6.8, 7.4)), across, size)
    yaw, speed = generator.uniform(-np.pi, np.pi), generator.uniform(1.0, 5.0)
    return _one(0, (x, generator.uniform(-3.0, 3.0)), yaw, size, speed, generator.uniform(-0.6, 0.6))


def _draw_cyclist(generator: np.random.Generator) -> RoadUsers:
    side = float(generator.choice([-1.0, 1.0]))
    yaw = (0.0 if side < 0 else np.pi) + generator.normal(0.0, 0.1)
    if generator.random() < 0.3:
        yaw = generator.uniform(-np.pi, np.pi)
    position = (generator.uniform(-30.0, 30.0), side * generator.uniform(3.3, 4.2))
    return _one(2, position, yaw, _draw_size(generator, 2), generator.uniform(0.0, 7.0))


def _draw_pedestrian(generator: np.random.Generator) -> RoadUsers:
    position = (generator.uniform(-25.0, 25.0), generator.choice([-1.0, 1.0]) * generator.uniform(3.0, 8.5))
    yaw = generator.uniform(-np.pi, np.pi)
    return _one(1, position, yaw, _draw_size(generator, 1), generator.uniform(0.0, 1.8))


def _draw_houses(generator: np.random.Generator) -> np.ndarray:
    """Draw ten houses (10, 6), five at each side of the road; their fronts are 10 m from its middle at least."""
    x = np.repeat(np.arange(-40.0, 41.0, 20.0), 2) + generator.uniform(-2.0, 2.0, 10)
    length, depth, height = (np.array([16.0, 8.0, 8.0]) * generator.uniform(0.9, 1.1, (10, 3))).T
    return np.column_stack([x, np.tile([-15.0, 15.0], 5), length / 2, depth / 2, np.zeros(10), height])


_BESIDE_THE_ROAD = ((0.1, (6.2, 6.2)),) * 8 + ((0.2, (7.0, 9.0)),) * 6
"""Radius and distance from the road's middle, in metres, of the poles and trunks."""


def _place_thing(
    plan: _Plan, generator: np.random.Generator, radius: float, aside: tuple[float, float]
) -> np.ndarray | None:
    """Place a pole, 4 m high, or a trunk, 1.5 m high: x, y, radius, top."""
    top = (4.0 if radius < 0.15 else 1.5) * generator.uniform(0.9, 1.1)

    def draw(generator: np.random.Generator) -> RoadUsers:
        y = generator.choice([-1.0, 1.0]) * generator.uniform(*aside)
        return _one(-1, (generator.uniform(-40.0, 40.0), y), 0.0, (2 * radius, 2 * radius, top))

    thing = plan.place(draw, generator)
    return None if thing is None else np.array([*thing.position[0], radius, top])


# --- free places -----------------------------------------------------------------------------------------------------


class _Plan:
    """Footprints (K, T, 5) on the ground at T times: x, y, half length, half width and yaw."""

    def __init__(self, times_s: np.ndarray, gap_m: float) -> None:
        self._times_s, self._gap_m = times_s, gap_m
        self._taken = np.zeros((0, len(times_s), 5))

    def place(
        self, draw: Callable[[np.random.Generator], RoadUsers], generator: np.random.Generator
    ) -> RoadUsers | None:
        """Draw an object until it touches nothing at any time; None if it never does."""
        return next((user for _ in range(_ATTEMPTS) if self.try_occupy(user := draw(generator))), None)

    def try_occupy(self, user: RoadUsers) -> bool:
        """Occupy the places of an object at all times if they are free; return True if they were."""
        paths = [_follow_arc(user.position, user.yaw, user.speed, user.turn, time_s) for time_s in self._times_s]
        half = (user.size[0, :2] + self._gap_m) / 2
        footprints = np.array([[*position[0], *half, yaw[0]] for position, yaw in paths])
        if _do_touch(self._taken, footprints[None]).any():
            return False
        self._taken = np.concatenate([self._taken, footprints[None]])
        return True


def _do_touch(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Mask of rectangles (..., 5) that overlap: no side of either separates them."""
    offset = second[..., :2] - first[..., :2]
    separated = np.zeros(np.broadcast_shapes(first.shape[:-1], second.shape[:-1]), dtype=bool)
    for one, other in ((first, second), (second, first)):
        between = other[..., 4] - one[..., 4]
        cosine, sine = np.abs(np.cos(between)), np.abs(np.sin(between))
        for axis in range(2):
            turn = one[..., 4] + axis * np.pi / 2
            distance = np.abs(offset[..., 0] * np.cos(turn) + offset[..., 1] * np.sin(turn))
            shares = (cosine, sine) if axis == 0 else (sine, cosine)
            reach = one[..., 2 + axis] + other[..., 2] * shares[0] + other[..., 3] * shares[1]
            separated |= distance > reach
    return ~separated


def _follow_arc(
    position: np.ndarray, yaw: np.ndarray, speed: np.ndarray, turn: np.ndarray, time_s: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return position and yaw after a time of constant speed and turn: the chord of the arc, which halves the turn."""
    half_rad = turn * time_s / 2
    chord = speed * time_s * np.sinc(half_rad / np.pi)
    return position + chord[:, None] * _directions(yaw + half_rad), yaw + turn * time_s


def _directions(yaw: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(yaw), np.sin(yaw)], axis=1)


def _turned(heading_rad: float) -> np.ndarray:
    """Return the matrix (2, 2) from the world's axes to those of a sensor with this heading."""
    cosine, sine = np.cos(heading_rad), np.sin(heading_rad)
    return np.array([[cosine, sine], [-sine, cosine]])
