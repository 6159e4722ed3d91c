"""CPU kernels of disc and triangle rendering, with the operations and order of the references."""

from __future__ import annotations

import math

import numpy as np

from sightline.numba_kernels import numba_kernel

__all__ = ["draw_surfels", "draw_triangles"]


@numba_kernel
def draw_surfels(first: int, last: int, discs: np.ndarray, key: np.ndarray, shade: np.ndarray) -> None:
    """CPU kernel of `rendering.draw_surfels_reference`.

    Discs (V, N, 12) into key and shade (V, H, W), views first to last.
    """
    size = key.shape[1]
    nearest = np.empty((size, size))
    weights = np.empty((size, size))
    for view in range(first, last):
        nearest[:] = -np.inf
        weights[:] = 0
        key[view] = 0
        shade[view] = 0
        _find_nearest(discs[view], nearest)
        _blend(discs[view], nearest, weights, key[view], shade[view])
        for row in range(size):
            for column in range(size):
                weight = weights[row, column]
                key[view, row, column] = key[view, row, column] / weight if weight > 0 else -np.inf
                shade[view, row, column] = shade[view, row, column] / weight if weight > 0 else 0.0


@numba_kernel
def _find_nearest(discs: np.ndarray, nearest: np.ndarray) -> None:
    size = nearest.shape[0]
    for disc in range(len(discs)):
        u, v, key, key_u, key_v, a, b, c, half_u, half_v = discs[disc, :10]
        for row in range(max(0, math.ceil(v - half_v)), min(size - 1, math.floor(v + half_v)) + 1):
            dv = row - v
            for column in range(max(0, math.ceil(u - half_u)), min(size - 1, math.floor(u + half_u)) + 1):
                du = column - u
                if a * du * du + b * du * dv + c * dv * dv < 1:
                    nearest[row, column] = max(nearest[row, column], key + key_u * du + key_v * dv)


@numba_kernel
def _blend(discs: np.ndarray, nearest: np.ndarray, weights: np.ndarray, keys: np.ndarray, shades: np.ndarray) -> None:
    size = nearest.shape[0]
    for disc in range(len(discs)):
        u, v, key, key_u, key_v, a, b, c, half_u, half_v, band, shade = discs[disc]
        for row in range(max(0, math.ceil(v - half_v)), min(size - 1, math.floor(v + half_v)) + 1):
            dv = row - v
            for column in range(max(0, math.ceil(u - half_u)), min(size - 1, math.floor(u + half_u)) + 1):
                du = column - u
                share = a * du * du + b * du * dv + c * dv * dv
                pixel_key = key + key_u * du + key_v * dv
                if share < 1 and pixel_key >= nearest[row, column] - band:
                    weight = (1 - share) * (1 - share)
                    weights[row, column] += weight
                    keys[row, column] += weight * pixel_key
                    shades[row, column] += weight * shade


@numba_kernel
def draw_triangles(first: int, last: int, faces: np.ndarray, key: np.ndarray, shade: np.ndarray) -> None:
    """CPU kernel of `rendering.draw_triangles_reference`.

    Faces (V, F, 17) into key and shade (V, H, W), views first to last.
    """
    size = key.shape[1]
    for view in range(first, last):
        key[view] = -np.inf
        shade[view] = 0
        for index in range(faces.shape[1]):
            face = faces[view, index]
            at_zero, key_u, key_v, brightness = face[9], face[10], face[11], face[12]
            low_u, high_u, low_v, high_v = face[13], face[14], face[15], face[16]
            for row in range(max(0, math.ceil(low_v)), min(size - 1, math.floor(high_v)) + 1):
                for column in range(max(0, math.ceil(low_u)), min(size - 1, math.floor(high_u)) + 1):
                    pixel_key = at_zero + key_u * column + key_v * row
                    if (
                        face[0] + face[1] * column + face[2] * row >= 0
                        and face[3] + face[4] * column + face[5] * row >= 0
                        and face[6] + face[7] * column + face[8] * row >= 0
                        and pixel_key > key[view, row, column]
                    ):
                        key[view, row, column] = pixel_key
                        shade[view, row, column] = brightness
