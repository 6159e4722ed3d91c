"""CPU kernel of rays against capsules, with the operations and order of the reference."""

from __future__ import annotations

import math

import numpy as np

from sightline.numba_kernels import numba_kernel

__all__ = ["PARALLEL", "ROW", "cast_capsules"]

ROW = 18
"""Row of a capsule: start, end (0:6), radius, axis (7:10), start x axis (10:13), length, columns, rows (14:18)."""

PARALLEL = 1e-24
"""Squared sine times the squared length of a ray, below which its angle with an axis is lost in rounding."""


@numba_kernel
def cast_capsules(
    first: int, last: int, rows: np.ndarray, camera: np.ndarray, depth: np.ndarray, owner: np.ndarray
) -> None:
    """CPU kernel of `capsules.render_capsules`: rows (F, N, ROW), camera (4,); fills depth and owner (F, H, W).

    `first` and `last` are frames.
    """
    height_px, width_px = depth.shape[1], depth.shape[2]
    for frame in range(first, last):
        depth[frame] = np.inf
        owner[frame] = -1
        for capsule in range(rows.shape[1]):
            row = rows[frame, capsule]
            if row[6] > 0:
                for v in range(max(0, int(row[16])), min(height_px - 1, int(row[17])) + 1):
                    y = (v - camera[3]) / camera[1]
                    for u in range(max(0, int(row[14])), min(width_px - 1, int(row[15])) + 1):
                        distance = _distance(row, (u - camera[2]) / camera[0], y)
                        if distance < depth[frame, v, u]:
                            depth[frame, v, u] = distance
                            owner[frame, v, u] = capsule
        for v in range(height_px):
            for u in range(width_px):
                if owner[frame, v, u] < 0:
                    depth[frame, v, u] = 0.0


@numba_kernel
def _distance(row: np.ndarray, x: float, y: float) -> float:
    radius, nx, ny, nz, mx, my, mz = row[6], row[7], row[8], row[9], row[10], row[11], row[12]
    across_x, across_y, across_z = y * nz - ny, nx - x * nz, x * ny - y * nx
    steepness = across_x * across_x + across_y * across_y + across_z * across_z
    aside = x * mx + y * my + mz
    share = steepness * (radius * radius) - aside * aside
    along = x * nx + y * ny + nz
    is_low = along > 0
    if steepness > PARALLEL:
        if share < 0:
            return np.inf
        entry = (across_x * mx + across_y * my + across_z * mz - math.sqrt(share)) / steepness
        height = entry * along - (row[0] * nx + row[1] * ny + row[2] * nz)
        if 0 < height < row[13]:
            return entry
        is_low = height <= 0
    return _sphere(row[0], row[1], row[2], radius, x, y) if is_low else _sphere(row[3], row[4], row[5], radius, x, y)


@numba_kernel
def _sphere(a: float, b: float, c: float, radius: float, x: float, y: float) -> float:
    square = x * x + y * y + 1
    across_x, across_y, across_z = y * c - b, a - x * c, x * b - y * a
    share = square * (radius * radius) - (across_x * across_x + across_y * across_y + across_z * across_z)
    return (x * a + y * b + c - math.sqrt(share)) / square if share >= 0 else np.inf
