"""Points that pictures of clouds show: near the objects of a scan, and behind the near walls of a room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sightline.contract.types import Surroundings
from sightline.draw.pictures import Frame, upright_points, view_direction

LEFT_OUT: dict[Surroundings, str] = {
    "scan": "the farthest points are not drawn, so that the others are large",
    "room": "walls and ceiling between viewer and room are not drawn",
}
"""Notes on the points that pictures of scans and rooms leave out."""
MIN_FACING = 0.1
"""Smallest cosine of the angle in the plan between a wall's outer side and a viewer from whom it hides the room."""
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
_MIN_COVER = 0.5
"""Share of the cells of the plan over which points near the top, or the bottom, are a ceiling, or a floor."""
_MAX_GAP_RAD = 2 * np.pi / 3
_MIN_WITHIN = 0.05
"""Share of the points that a room has between its walls: a closed box that was scanned from outside has none."""
_ROOM_HEIGHT_M = (1.8, 12.0)
"""Lowest and highest distance of a room's ceiling from its floor."""
_NUM_CELLS = 12
"""Number of cells along each side of the plan, and of steps of the height."""
_NUM_DIRECTIONS = 36
_MAX_MEASURED = 200_000
"""Largest number of points of a room among which its walls are looked for."""


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


class RoomShell(NamedTuple):
    """Walls, floor and ceiling of a room, in a frame whose z is up.

    `walls` (W, 3) are each a direction out of the room in the plan, x and y of length 1, and the place along it beyond
    which the wall lies; below `floor` lies the floor, above `ceiling` the ceiling, which is infinite if there is none.
    """

    walls: np.ndarray
    floor: float
    ceiling: float

    def hides(self, upright: np.ndarray, towards: np.ndarray) -> np.ndarray:
        """Return a mask (N,) of the points (N, 3) that hide the room from a viewer in the direction `towards` (3,).

        They are of a wall, the ceiling or the floor, and the viewer is on its outer side. Where a wall meets the floor,
        the points are the floor's.
        """
        plan, height = upright[:, :2], upright[:, 2]
        is_floor = height < self.floor
        is_hidden = is_floor if towards[2] < 0 else (height > self.ceiling) & ~is_floor & (towards[2] > 0)
        for x, y, limit in self.walls:
            outward = np.array([x, y])
            if outward @ towards[:2] > MIN_FACING * np.linalg.norm(towards[:2]):
                is_hidden = is_hidden | ((plan @ outward > limit) & ~is_floor)
        return is_hidden

    def encloses(self, upright: np.ndarray) -> bool:
        """Return True if it surrounds the points (N, 3) on all sides, as a room that was scanned from within does.

        There are a ceiling, a floor below half of the plan, walls no more than a third of a turn apart, and enough
        points between them.
        """
        plan, height = upright[:, :2], upright[:, 2]
        is_floor = height < self.floor
        if (
            len(self.walls) < 3
            or np.isinf(self.ceiling)
            or _cover(plan[is_floor], plan) < _MIN_COVER * _cover(plan, plan)
        ):
            return False
        angles = np.sort(np.arctan2(self.walls[:, 1], self.walls[:, 0]))
        is_around = np.diff(angles, append=angles[0] + 2 * np.pi).max() <= _MAX_GAP_RAD
        is_in_wall = (plan @ self.walls[:, :2].T > self.walls[:, 2]).any(axis=1)
        is_within = ~is_floor & ~is_in_wall & (height <= self.ceiling)
        return bool(is_around) and float(is_within.mean()) >= _MIN_WITHIN


def find_shell(upright: np.ndarray) -> RoomShell | None:
    """Find walls, floor and ceiling among the points (N, 3) of a room in a frame whose z is up; None for flat ones.

    A wall is what lies within a twentieth of the room's length from its border and fills half of its height; a ceiling
    is the same at its top, over half of its plan.
    """
    if len(upright) < _NUM_CELLS**2:
        return None
    upright = upright[:: -(-len(upright) // _MAX_MEASURED)].astype(np.float64)
    plan, height = upright[:, :2], upright[:, 2]
    bottom, top = np.quantile(height, (0.005, 0.995))
    thickness = _WALL_SHARE * float(np.ptp(plan, axis=0).max())
    if not 0 < 2 * thickness < top - bottom:
        return None
    is_floor = height < bottom + thickness
    is_top = (height > top - thickness) & ~is_floor
    has_ceiling = _cover(plan[is_top], plan) >= _MIN_COVER * _cover(plan, plan)
    is_inner = ~is_floor & ~is_top  # whether or not there is a ceiling, its points are in no wall
    walls = []
    for angle in np.arange(_NUM_DIRECTIONS) * 2 * np.pi / _NUM_DIRECTIONS:
        outward = np.array([np.cos(angle), np.sin(angle)])
        along = plan @ outward
        limit = np.quantile(along, 0.998) - thickness
        if _is_wall(height[(along > limit) & is_inner], len(upright), bottom, top):
            walls.append([*outward, limit])
    return RoomShell(np.array(walls).reshape(-1, 3), bottom + thickness, top - thickness if has_ceiling else np.inf)


def guess_surroundings(points: np.ndarray, frame: Frame) -> Surroundings:
    """Guess what the points (N, 3) of a file are of: a room if a shell encloses them, of the height of rooms in metres.

    Without the height, a wardrobe would be one.
    """
    upright = upright_points(points[np.isfinite(points).all(axis=1)], frame)
    shell = find_shell(upright)
    is_room = shell is not None and _ROOM_HEIGHT_M[0] <= shell.ceiling - shell.floor <= _ROOM_HEIGHT_M[1]
    return "room" if shell is not None and is_room and shell.encloses(upright) else "none"


def are_drawn(
    points: np.ndarray, surroundings: Surroundings, frame: Frame, *, objects: Sequence[np.ndarray] = ()
) -> np.ndarray:
    """Return a mask (N,) of the points (N, 3) that a picture from the usual direction shows.

    They are finite; of a scan, near its bulk and `objects`; of a room, not of the shell between it and the viewer.
    """
    is_drawn: np.ndarray = np.isfinite(points).all(axis=1)
    if surroundings == "scan":
        is_drawn[is_drawn] = near_objects(points[is_drawn], objects)
    elif surroundings == "room":
        upright = upright_points(points[is_drawn], frame)
        shell = find_shell(upright)
        is_drawn[is_drawn] = True if shell is None else ~shell.hides(upright, view_direction())
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
    column, row = np.floor((plan - low) / side).astype(np.int64).T
    return int(np.count_nonzero(np.bincount(column * (_NUM_CELLS + 1) + row)))
