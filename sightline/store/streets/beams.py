"""LiDAR beams from one point against flat ground, upright boxes and cylinders: the nearest hit, in closed form.

Every thing stands on the ground and has a flat top, so a beam meets it where an interval of horizontal distance, which
depends on the azimuth alone, overlaps one that depends on the elevation alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

NOTHING, GROUND = -2, -1
"""`object_id` of a beam that hits nothing, and of one that hits the ground."""
_FLAT = 1e-12
"""Slopes below this, and parts of directions, count as zero: nothing within reach depends on them."""


class Obstacles(NamedTuple):
    """Boxes and cylinders in the sensor's frame: metres, x forward, y left, z up.

    `boxes` (A, 6): x, y, half length, half width, yaw (radians, from x to y), height of the top above the sensor.
    `cylinders` (C, 4): x, y, radius, height of the top. An object's number counts boxes first, then cylinders.
    """

    boxes: np.ndarray
    cylinders: np.ndarray


class Hits(NamedTuple):
    """Nearest hit per beam and azimuth (H, W).

    `range_m` float64, infinite without a hit; `object_id` int64, the number of the obstacle, GROUND or NOTHING;
    `cosine` float64, of the angle between the beam and the surface's normal, 0 to 1.
    """

    range_m: np.ndarray
    object_id: np.ndarray
    cosine: np.ndarray


class _Crossing(NamedTuple):
    """Horizontal distances (W,) in metres at which azimuths enter and leave an outline, and the cosine at the entry.

    Seen from above. `enter` is infinite for azimuths that miss the outline.
    """

    enter: np.ndarray
    leave: np.ndarray
    cosine: np.ndarray


def cast_beams(elevations_rad: np.ndarray, azimuths_rad: np.ndarray, things: Obstacles, *, ground_m: float) -> Hits:
    """Find the nearest hit (H, W) of every beam `elevations_rad` (H,) at every azimuth `azimuths_rad` (W,).

    The ground is flat, at height `ground_m` below the sensor, which must be outside of all obstacles. Of two hits at
    the same distance the earlier obstacle counts.
    """
    assert ground_m < 0, f"the ground at {ground_m} m is not below the sensor"
    slope_H, level_H = np.tan(elevations_rad), np.cos(elevations_rad)
    distance = np.broadcast_to(
        _distance_to_ground(slope_H, ground_m)[:, None], (len(slope_H), len(azimuths_rad))
    ).copy()
    what = np.where(np.isfinite(distance), GROUND, NOTHING)
    cosine = np.broadcast_to(np.abs(np.sin(elevations_rad))[:, None], distance.shape).copy()
    is_down = slope_H < -_FLAT
    for number, (outline, top) in enumerate(_outlines(things, azimuths_rad)):
        columns = np.flatnonzero(np.isfinite(outline.enter))
        if not len(columns):
            continue
        low_H, high_H = _distance_interval(slope_H, top, ground_m)
        entry = np.maximum(outline.enter[columns], low_H[:, None])
        nearest = distance[:, columns]
        is_hit = (entry <= np.minimum(outline.leave[columns], high_H[:, None])) & (entry < nearest)
        is_top = is_down[:, None] & (low_H[:, None] > outline.enter[columns])
        facing = np.where(is_top, np.abs(np.sin(elevations_rad))[:, None], outline.cosine[columns] * level_H[:, None])
        distance[:, columns] = np.where(is_hit, entry, nearest)
        what[:, columns] = np.where(is_hit, number, what[:, columns])
        cosine[:, columns] = np.where(is_hit, facing, cosine[:, columns])
    return Hits(distance / level_H[:, None], what, cosine)


def _distance_to_ground(slope_H: np.ndarray, ground_m: float) -> np.ndarray:
    """Return the horizontal distance (H,) at which beams of slope (H,) reach the ground.

    Infinite for beams that do not.
    """
    return np.where(slope_H < -_FLAT, ground_m / np.minimum(slope_H, -_FLAT), np.inf)


def _distance_interval(slope_H: np.ndarray, top: float, ground_m: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the horizontal distances (H,), near and far, between which a beam is between ground and `top`.

    near > far for a beam that never is.
    """
    is_down, is_up = slope_H < -_FLAT, slope_H > _FLAT
    below_top = top / np.where(is_down | is_up, slope_H, 1.0)
    low = np.where(is_down, np.maximum(below_top, 0.0), 0.0)
    high = np.where(
        is_down, _distance_to_ground(slope_H, ground_m), np.where(is_up, below_top, np.inf if top > 0 else -1.0)
    )
    return low, high


def _outlines(things: Obstacles, azimuths_rad: np.ndarray) -> list[tuple[_Crossing, float]]:
    ahead = np.stack([np.cos(azimuths_rad), np.sin(azimuths_rad)], axis=1)
    boxes = [(_cross_box(ahead, box), float(box[5])) for box in things.boxes]
    return boxes + [(_cross_circle(ahead, cylinder), float(cylinder[3])) for cylinder in things.cylinders]


def _cross_box(ahead: np.ndarray, box: np.ndarray) -> _Crossing:
    """Intersect azimuth directions (W, 2) with a box by the slab method. Source: Kay and Kajiya 1986."""
    x, y, half_length, half_width, yaw, _ = box
    axes = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
    centre, half = axes @ (x, y), np.array([half_length, half_width])
    along = ahead @ axes.T
    along = np.where(np.abs(along) < _FLAT, _FLAT, along)
    first_sides, last_sides = np.sort(np.stack([(centre - half) / along, (centre + half) / along]), axis=0)
    enter, leave = first_sides.max(axis=1), last_sides.min(axis=1)
    cosine = np.abs(along[np.arange(len(ahead)), first_sides.argmax(axis=1)])
    return _Crossing(np.where((enter <= leave) & (enter > 0), enter, np.inf), leave, cosine)


def _cross_circle(ahead: np.ndarray, cylinder: np.ndarray) -> _Crossing:
    x, y, radius, _ = cylinder
    middle = ahead @ np.array([x, y])
    off_squared = x * x + y * y - middle**2
    half = np.sqrt(np.maximum(radius**2 - off_squared, 0.0))
    is_crossed = (off_squared <= radius**2) & (middle > half)
    return _Crossing(np.where(is_crossed, middle - half, np.inf), middle + half, half / radius)
