"""A street as a LiDAR on a car sees it: things drawn at random, cast exactly, with noise and lost returns."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sightline.data.scans.sensors import Sensor
from sightline.geometry.beams import GROUND, NOTHING, Obstacles, cast_beams

__all__ = ["CLASS_IDS", "FARTHEST_M", "SENSOR_HEIGHT_M", "LidarNoise", "Scan", "Street", "cast_street", "draw_street"]

SENSOR_HEIGHT_M = 1.73
NEAREST_M, FARTHEST_M = 0.9, 80.0
_ROAD_M, _SIDEWALK_M = 4.0, 6.0
"""Half the width of the road, and of road and sidewalks."""
_CAR, _PERSON, _ROAD, _SIDEWALK, _BUILDING, _TRUNK, _TERRAIN, _POLE = 10, 30, 40, 48, 50, 71, 72, 80
CLASS_IDS = {
    "car": _CAR,
    "person": _PERSON,
    "road": _ROAD,
    "sidewalk": _SIDEWALK,
    "building": _BUILDING,
    "trunk": _TRUNK,
    "terrain": _TERRAIN,
    "pole": _POLE,
}
"""The classes and their ids in SemanticKITTI."""
_REMISSION = {_CAR: 0.55, _PERSON: 0.4, _ROAD: 0.2, _SIDEWALK: 0.3, _BUILDING: 0.35, _TRUNK: 0.25, _TERRAIN: 0.45}
_REMISSION[_POLE] = 0.7
"""Of a surface that faces the sensor."""
_NUM = {_CAR: 6, _PERSON: 3, _BUILDING: 10, _POLE: 8, _TRUNK: 6}


class Street(NamedTuple):
    """What stands on a street: `things`, and the id of each, boxes first, then cylinders."""

    things: Obstacles
    ids: np.ndarray


class LidarNoise(NamedTuple):
    """Faults of a sensor: standard deviations of range (metres) and remission, and the share of lost returns."""

    range_m: float = 0.02
    remission: float = 0.03
    lost_share: float = 0.05


class Scan(NamedTuple):
    """A scan's returns in the order of KITTI's files: beam by beam, from forward to the left, all around.

    `points` (N, 3) float32 metres, `remission` (N,) float32 0 to 1, `ids` (N,) int64 (`CLASS_IDS`), `ring` (N,) int64,
    0 the highest beam, `column` (N,) int64 of the image, `thing` (N,) int64, the number in the street or GROUND.
    """

    points: np.ndarray
    remission: np.ndarray
    ids: np.ndarray
    ring: np.ndarray
    column: np.ndarray
    thing: np.ndarray


def draw_street(generator: np.random.Generator) -> Street:
    """Six cars at the road's edges, three persons, ten houses, eight poles and six trunks; sizes vary by a tenth."""
    ground = -SENSOR_HEIGHT_M
    side = {key: generator.choice([-1.0, 1.0], count) for key, count in _NUM.items()}
    vary = {key: generator.uniform(0.9, 1.1, (count, 3)) for key, count in _NUM.items()}
    away = generator.choice([-1.0, 1.0], _NUM[_CAR]) * generator.uniform(5.0, 40.0, _NUM[_CAR])
    turn = generator.normal(0.0, 0.05, _NUM[_CAR]) + np.pi * generator.integers(0, 2, _NUM[_CAR])
    cars = _boxes(away, side[_CAR] * generator.uniform(2.7, 3.2, _NUM[_CAR]), (4.2, 1.8, 1.5), vary[_CAR], turn)
    facing = generator.uniform(-np.pi, np.pi, _NUM[_PERSON])
    beside = side[_PERSON] * generator.uniform(4.2, 5.8, _NUM[_PERSON])
    persons = _boxes(generator.uniform(-25.0, 25.0, _NUM[_PERSON]), beside, (0.6, 0.6, 1.8), vary[_PERSON], facing)
    row = np.repeat(np.arange(-40.0, 41.0, 20.0), 2) + generator.uniform(-2.0, 2.0, _NUM[_BUILDING])
    houses = _boxes(row, 14.0 * np.tile([-1.0, 1.0], 5), (16.0, 8.0, 8.0), vary[_BUILDING], np.zeros(len(row)))
    poles = _cylinders(generator, side[_POLE] * 6.2, 0.1, 4.0 * vary[_POLE][:, 2])
    far_off = side[_TRUNK] * generator.uniform(7.0, 9.0, _NUM[_TRUNK])
    trunks = _cylinders(generator, far_off, 0.2, 1.5 * vary[_TRUNK][:, 2])
    boxes, cylinders = np.concatenate([cars, persons, houses]), np.concatenate([poles, trunks])
    boxes[:, 5] += ground
    cylinders[:, 3] += ground
    kinds = (_CAR, _PERSON, _BUILDING, _POLE, _TRUNK)
    ids = np.repeat(kinds, [_NUM[kind] for kind in kinds])
    return Street(Obstacles(boxes, cylinders), ids)


def cast_street(
    street: Street, sensor: Sensor, *, num_columns: int, generator: np.random.Generator, disturbance: LidarNoise
) -> Scan:
    """The returns between 0.9 and 80 m of one turn of the sensor, which stands 1.73 m above the road's middle line."""
    elevation, azimuth = sensor.elevations_rad(), sensor.azimuths_rad(num_columns)
    hits = cast_beams(elevation, azimuth, street.things, ground_m=-SENSOR_HEIGHT_M)
    is_kept = (hits.object_id != NOTHING) & (hits.range_m > NEAREST_M) & (hits.range_m < FARTHEST_M)
    is_kept &= generator.random(is_kept.shape, dtype=np.float32) >= disturbance.lost_share
    order = _columns_in_order(azimuth)
    ring, place = np.nonzero(is_kept[:, order])
    column = order[place]
    distance, thing = hits.range_m[ring, column], hits.object_id[ring, column]
    ids = np.where(thing == GROUND, _ground_ids(distance, elevation[ring], azimuth[column]), street.ids[thing])
    base = np.zeros(max(_REMISSION) + 1)
    base[list(_REMISSION)] = list(_REMISSION.values())
    remission = base[ids] * hits.cosine[ring, column]
    remission += disturbance.remission * generator.standard_normal(len(ids), dtype=np.float32)
    distance = distance + disturbance.range_m * generator.standard_normal(len(ids), dtype=np.float32)
    level = distance * np.cos(elevation)[ring]
    points = np.stack(
        [level * np.cos(azimuth)[column], level * np.sin(azimuth)[column], distance * np.sin(elevation)[ring]], axis=1
    )
    return Scan(points.astype(np.float32), np.clip(remission, 0.0, 1.0).astype(np.float32), ids, ring, column, thing)


def _columns_in_order(azimuth_rad: np.ndarray) -> np.ndarray:
    """Columns from forward to the left and all around; from the left edge on where the sensor sees less than a turn."""
    if not np.isclose(np.abs(np.ptp(azimuth_rad)) * len(azimuth_rad), 2 * np.pi * (len(azimuth_rad) - 1)):
        return np.arange(len(azimuth_rad))
    return np.argsort(azimuth_rad % (2 * np.pi))


def _ground_ids(distance: np.ndarray, elevation_rad: np.ndarray, azimuth_rad: np.ndarray) -> np.ndarray:
    aside = np.abs(distance * np.cos(elevation_rad) * np.sin(azimuth_rad))
    return np.where(aside < _ROAD_M, _ROAD, np.where(aside < _SIDEWALK_M, _SIDEWALK, _TERRAIN))


def _boxes(
    x: np.ndarray, y: np.ndarray, size: tuple[float, float, float], vary: np.ndarray, yaw: np.ndarray
) -> np.ndarray:
    length, width, height = (np.asarray(size) * vary).T
    return np.stack([x, y, length / 2, width / 2, yaw, height], axis=1)


def _cylinders(generator: np.random.Generator, y: np.ndarray, radius: float, top: np.ndarray) -> np.ndarray:
    x = generator.uniform(-40.0, 40.0, len(y))
    return np.stack([x, y, np.full(len(y), radius), top], axis=1)
