"""Rings of scans as their files state them: which column they are in, the number of beams, and which beam is first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from sightline.store.files.column_names import is_whole

RingOrder: TypeAlias = Literal["top_first", "bottom_first"]
"""Numbering of beams in files: ring 0 is the highest or the lowest beam."""
NUMBERS_OF_BEAMS = (1, 4, 8, 16, 32, 40, 64, 80, 128, 256)
"""Numbers of beams of sensors on the market."""
MAX_RINGS = NUMBERS_OF_BEAMS[-1]
MIN_RING_CORRELATION = 0.9
"""Minimum correlation, but for its sign, of ring number and elevation at which numbers count as rings."""
_MIN_POINTS = 50
"""Number of returns below which a scan does not show whether a column has rings."""


class Rings(NamedTuple):
    """Rings of a scan: `num_rings`, the largest number plus one, and the order of their beams."""

    num_rings: int
    order: RingOrder


def find_rings(points: np.ndarray, values: np.ndarray) -> Rings | None:
    """Return the rings that a column (N,) of the points (N, 3) has; None if it has none.

    Rings are whole numbers from 0 to 255 that rise or fall with the elevation. Points at the origin or without finite
    coordinates are not looked at.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        distance = np.linalg.norm(points, axis=1)
        is_used = np.isfinite(distance) & (distance > 0)
    rings, sines = values[is_used], points[is_used, 2] / distance[is_used]
    if len(rings) < _MIN_POINTS or not is_whole(rings, 0, MAX_RINGS - 1) or not np.ptp(rings) or not np.ptp(sines):
        return None
    correlation = float(np.corrcoef(rings, np.arcsin(np.clip(sines, -1, 1)))[0, 1])
    if abs(correlation) < MIN_RING_CORRELATION:
        return None
    return Rings(int(rings.max()) + 1, "top_first" if correlation < 0 else "bottom_first")


def next_number_of_beams(count: int) -> int:
    """Return the smallest number of beams of a sensor on the market that is at least `count`, which is at most 256."""
    return next(number for number in NUMBERS_OF_BEAMS if number >= count)


def find_ring_column(tables: Sequence[np.ndarray]) -> tuple[int, int] | None:
    """Return which of the tables (N, columns), and which of its columns from the fourth on, has rings; None if none.

    The first three columns are read as x, y and z. Of a raw file, the tables are its numbers in rows of every length
    that fits; in rows of a wrong length, no column follows the elevation.
    """
    for index, table in enumerate(tables):
        for column in range(3, table.shape[1]):
            if find_rings(table[:, :3].astype(np.float64), table[:, column].astype(np.float64)) is not None:
                return index, column
    return None
