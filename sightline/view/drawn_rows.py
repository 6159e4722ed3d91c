"""Points that pictures of clouds show: near the objects of a scan, and behind the near walls of a room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np

from sightline.draw.pictures import Frame, upright_points, view_direction

Surroundings: TypeAlias = Literal["none", "scan", "room"]
"""What a cloud is of: an object by itself, a scan of a sensor among objects, or a room with walls around it."""
_BULK = (0.05, 0.95)
"""Shares of the points along an axis, between which the bulk of them lies."""
_MARGIN = 0.05
"""Margin around the drawn part of a scan, as a share of its longest side."""
_WALL_SHARE = 0.05
"""Thickness of a wall or a ceiling, as a share of the longest side of the room's plan."""
_MIN_WALL_HEIGHT = 0.5
"""Height that the points near a border must fill to be a wall, as a share of the room's."""
_MIN_WALL_POINTS = 0.02
"""Share of the points that a wall must have."""
_MIN_CEILING_COVER = 0.5
"""Share of the cells of the plan over which there must be points near the top for these to be a ceiling."""
_NUM_CELLS = 12
"""Number of cells along each side of the plan, and of steps of the height."""
_NUM_DIRECTIONS = 36


def near_objects(points: np.ndarray, objects: Sequence[np.ndarray]) -> np.ndarray:
    """Return a mask (N,) of the points (N, 3) of a scan near its bulk and the corners (C, 3) of its objects.

    The farthest points of a turning sensor would leave all others small.
    """
    if not len(points):
        return np.ones(0, dtype=bool)
    corners = np.concatenate([np.quantile(points, _BULK, axis=0), *objects])
    low, high = corners.min(axis=0), corners.max(axis=0)
    margin = _MARGIN * (high - low).max()
    is_near: np.ndarray = ((points >= low - margin) & (points <= high + margin)).all(axis=1)
    return is_near


def behind_near_walls(points: np.ndarray, frame: Frame) -> np.ndarray:
    """Return a mask (N,) of the points (N, 3) of a room without the walls and the ceiling that hide it from the viewer.

    A wall is what lies within a twentieth of the room's length from its border, on a side that faces the viewer, and
    fills half of its height; a ceiling is the same at its top, over half of its plan. The floor always stays.
    """
    is_drawn = np.ones(len(points), dtype=bool)
    if len(points) < _NUM_CELLS**2:
        return is_drawn
    upright = upright_points(points.astype(np.float64), frame)
    plan, height = upright[:, :2], upright[:, 2]
    bottom, top = np.quantile(height, (0.005, 0.995))
    thickness = _WALL_SHARE * float(np.ptp(plan, axis=0).max())
    if top - bottom <= 2 * thickness:
        return is_drawn
    is_floor = height < bottom + thickness
    is_top = (height > top - thickness) & ~is_floor
    if _cover(plan[is_top], plan) >= _MIN_CEILING_COVER * _cover(plan, plan):
        is_drawn &= ~is_top
    towards = view_direction()[:2]
    is_inner = ~is_floor & ~is_top  # whether or not there is a ceiling, its points are in no wall
    for angle in np.arange(_NUM_DIRECTIONS) * 2 * np.pi / _NUM_DIRECTIONS:
        outward = np.array([np.cos(angle), np.sin(angle)])
        if outward @ towards <= 0.1 * np.linalg.norm(towards):
            continue
        along = plan @ outward
        is_near = along > np.quantile(along, 0.998) - thickness
        if _is_wall(height[is_near & is_inner], len(points), bottom, top):
            is_drawn &= ~is_near | is_floor
    return is_drawn


def _is_wall(height: np.ndarray, num_points: int, bottom: float, top: float) -> bool:
    """Return True for points (M,) that are many enough, and at heights that fill enough of those of the room."""
    if len(height) < _MIN_WALL_POINTS * num_points:
        return False
    steps = np.unique(np.floor((height - bottom) / (top - bottom) * _NUM_CELLS).astype(np.int64))
    return len(steps) >= _MIN_WALL_HEIGHT * _NUM_CELLS


def _cover(plan: np.ndarray, whole: np.ndarray) -> int:
    """Count the cells of the plan of a room (N, 2) that have some of the points (M, 2)."""
    low = whole.min(axis=0)
    side = float(np.ptp(whole, axis=0).max()) / _NUM_CELLS
    return len(np.unique(np.floor((plan - low) / side).astype(np.int64), axis=0))
