"""CPU kernel of voxel occupancy from depth frames, with the operations and order of the reference."""

from __future__ import annotations

import math

import numpy as np

from sightline.numba_kernels import numba_kernel

__all__ = ["fill_voxels"]


@numba_kernel
def fill_voxels(
    first: int,
    last: int,
    depth: np.ndarray,
    camera: np.ndarray,
    placement: np.ndarray,
    volume: np.ndarray,
) -> None:
    """CPU kernel of `volumes.occupancy`: depth (F, H, W), camera (F, 4), placement (F, 9); fills volume (F, S, S, S).

    In `placement`: reference, voxels per millimetre, cosine, sine, voxel coordinates of the reference.
    """
    size = volume.shape[1]
    height, width = depth.shape[1:]
    ray_x = np.empty(width)
    for frame in range(first, last):
        fx, fy, u0, v0 = camera[frame]
        x0, y0, z0, factor, cosine, sine, offset_x, offset_y, offset_z = placement[frame]
        for column in range(width):
            ray_x[column] = (column - u0) / fx
        for row in range(height):
            ray_y = (row - v0) / fy
            for column in range(width):
                measured = depth[frame, row, column]
                if not measured > 0:
                    continue
                z = np.float64(measured)
                along = math.floor((z - z0) * factor + offset_z)
                if along < 0 or along >= size:
                    continue
                x = (ray_x[column] * z - x0) * factor
                y = (ray_y * z - y0) * factor
                across = math.floor(x * cosine - y * sine + offset_x)
                down = math.floor(x * sine + y * cosine + offset_y)
                if 0 <= across < size and 0 <= down < size:
                    volume[frame, across, down, along] = 1
