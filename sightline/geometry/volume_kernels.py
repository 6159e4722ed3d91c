"""Depth frames into voxels, compiled for the CPU: the same operations in the same order as the plain form."""

from __future__ import annotations

import math

import numpy as np

from sightline.compiled import compiled

__all__ = ["fill_voxels"]


@compiled
def fill_voxels(
    first: int,
    last: int,
    depth: np.ndarray,
    camera: np.ndarray,
    placement: np.ndarray,
    grid: tuple[float, int, int],
    volume: np.ndarray,
) -> None:
    """See `volumes.occupancy_plainly`; frames are the rows. In `placement`: reference, scale, cosine, sine, shift."""
    half, size, original = grid
    centre, border = original / 2, (original - size) / 2
    for frame in range(first, last):
        fx, fy, u0, v0 = camera[frame]
        x0, y0, z0, scale, cosine, sine, shift_x, shift_y, shift_z = placement[frame]
        for row in range(depth.shape[1]):
            for column in range(depth.shape[2]):
                z = depth[frame, row, column]
                if not z > 0:
                    continue
                along = ((z - z0) / half + 1) * (size / 2) + border
                along = math.floor((along - centre) * scale + centre - shift_z)
                if along < 0 or along >= size:
                    continue
                x = (((column - u0) * z / fx - x0) / half + 1) * (size / 2) + border
                y = (((row - v0) * z / fy - y0) / half + 1) * (size / 2) + border
                x = (x - centre) * scale + centre - centre
                y = (y - centre) * scale + centre - centre
                across = math.floor(x * cosine - y * sine + centre - shift_x)
                down = math.floor(x * sine + y * cosine + centre - shift_y)
                if 0 <= across < size and 0 <= down < size:
                    volume[frame, across, down, along] = 1
