"""Streets under a LiDAR: what stands there, and the returns of one turn with their noise and classes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sightline.store.files.sensors import Sensor
from sightline.store.streets.beams import GROUND, NOTHING, Obstacles, cast_beams

SENSOR_HEIGHT_M = 1.73
NEAREST_M, FARTHEST_M = 0.9, 80.0
_ROAD_M, _SIDEWALK_M = 4.0, 6.0
"""Half the width of the road, and of road with sidewalks."""
CAR, PERSON, CYCLIST, ROAD, SIDEWALK, BUILDING, TRUNK, TERRAIN, POLE = 10, 30, 31, 40, 48, 50, 71, 72, 80
"""Class ids of SemanticKITTI."""
_REMISSION = {CAR: 0.55, PERSON: 0.4, CYCLIST: 0.5, ROAD: 0.2, SIDEWALK: 0.3}
_REMISSION |= {BUILDING: 0.35, TRUNK: 0.25, TERRAIN: 0.45, POLE: 0.7}
"""Remission of a surface that faces the sensor, by class id."""


class Street(NamedTuple):
    """Objects of a street: `things` and their class ids, boxes first, then cylinders."""

    things: Obstacles
    ids: np.ndarray


class LidarNoise(NamedTuple):
    """Noise of a sensor: standard deviations of range (metres) and remission, and the share of lost returns."""

    range_m: float = 0.02
    remission: float = 0.03
    lost_share: float = 0.05


class Scan(NamedTuple):
    """Returns of a scan in the order of KITTI's files: beam by beam, counter-clockwise from forward.

    `points` (N, 3) float32 metres, `remission` (N,) float32 0 to 1, `ids` (N,) int64 of SemanticKITTI, `ring` (N,)
    int64, 0 the highest beam, `column` (N,) int64 of the image, `thing` (N,) int64, the index in the street or GROUND.
    """

    points: np.ndarray
    remission: np.ndarray
    ids: np.ndarray
    ring: np.ndarray
    column: np.ndarray
    thing: np.ndarray


def cast_street(
    street: Street,
    sensor: Sensor,
    *,
    num_columns: int,
    generator: np.random.Generator,
    disturbance: LidarNoise,
    side_m: float = 0.0,
    heading_rad: float = 0.0,
) -> Scan:
    """Cast one turn of the sensor, 1.73 m above the road; returns are between 0.9 and 80 m away.

    The street is in the frame of the sensor, which is `side_m` to the left of the road's middle line, and turned by
    `heading_rad` to the left of its direction.
    """
    elevation, azimuth = sensor.elevations_rad(), sensor.azimuths_rad(num_columns)
    hits = cast_beams(elevation, azimuth, street.things, ground_m=-SENSOR_HEIGHT_M)
    is_return = (hits.object_id != NOTHING) & (hits.range_m > NEAREST_M) & (hits.range_m < FARTHEST_M)
    is_return &= generator.random(is_return.shape, dtype=np.float32) >= disturbance.lost_share
    order = _order_columns(azimuth)
    ring, order_index = np.nonzero(is_return[:, order])
    column = order[order_index]
    distance, thing = hits.range_m[ring, column], hits.object_id[ring, column]
    across = side_m + distance * np.cos(elevation[ring]) * np.sin(heading_rad + azimuth[column])
    ids = np.where(thing == GROUND, _classify_ground(np.abs(across)), street.ids[thing])
    base = np.zeros(max(_REMISSION) + 1)
    base[list(_REMISSION)] = list(_REMISSION.values())
    remission = base[ids] * hits.cosine[ring, column]
    remission += disturbance.remission * generator.standard_normal(len(ids), dtype=np.float32)
    distance = distance + disturbance.range_m * generator.standard_normal(len(ids), dtype=np.float32)
    ground_distance = distance * np.cos(elevation)[ring]
    points = np.stack(
        [
            ground_distance * np.cos(azimuth)[column],
            ground_distance * np.sin(azimuth)[column],
            distance * np.sin(elevation)[ring],
        ],
        axis=1,
    )
    return Scan(points.astype(np.float32), np.clip(remission, 0.0, 1.0).astype(np.float32), ids, ring, column, thing)


def _order_columns(azimuth_rad: np.ndarray) -> np.ndarray:
    """Order columns counter-clockwise from forward; from the left edge if the sensor covers less than a turn."""
    if not np.isclose(np.abs(np.ptp(azimuth_rad)) * len(azimuth_rad), 2 * np.pi * (len(azimuth_rad) - 1)):
        return np.arange(len(azimuth_rad))
    return np.argsort(azimuth_rad % (2 * np.pi))


def _classify_ground(lateral: np.ndarray) -> np.ndarray:
    return np.where(lateral < _ROAD_M, ROAD, np.where(lateral < _SIDEWALK_M, SIDEWALK, TERRAIN))
