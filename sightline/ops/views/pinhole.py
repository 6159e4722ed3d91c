"""Pinhole camera model: projection of camera points to pixels and depths, and its inverse; exact in float64."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Array = TypeVar("Array", np.ndarray, Tensor)
"""NumPy array or tensor: functions return the type of their input, tensors on their device."""


def project_points(points: Array, camera: Array) -> Array:
    """Project camera points (..., 3) to column u, row v and depth: (..., 3) float64.

    `camera` (..., 4) contains fx, fy, u0 and v0 in pixels: u = fx X / Z + u0, v = fy Y / Z + v0, with pixel centres at
    integers, 0 first. fy is negative if Y points up. Its leading axes are those of the points, or broadcast against
    them. A point in the plane of the camera (Z = 0) has no projection: its u and v are infinite or NaN.
    Source: the pinhole model.
    """
    points, camera = _double(points), _double(camera)
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        u = camera[..., 0] * x / z + camera[..., 2]
        v = camera[..., 1] * y / z + camera[..., 3]
    return _stack(u, v, z)


def unproject_pixels(pixels: Array, camera: Array) -> Array:
    """Unproject pixels (..., 3), column u, row v and depth, to camera points (..., 3) float64.

    The inverse of `project_points`: X = (u - u0) Z / fx, Y = (v - v0) Z / fy.
    """
    pixels, camera = _double(pixels), _double(camera)
    u, v, z = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    x = (u - camera[..., 2]) * z / camera[..., 0]
    y = (v - camera[..., 3]) * z / camera[..., 1]
    return _stack(x, y, z)


def depth_points(depth: np.ndarray, camera: np.ndarray) -> np.ndarray:
    """Unproject a depth image (H, W) to points (N, 3), row by row; pixels of depth 0 or less are left out.

    `camera` (4,) as in `project_points`; points have the unit of the depths.
    """
    v, u = np.nonzero(depth > 0)
    return unproject_pixels(np.stack((u, v, depth[v, u]), axis=-1), camera)


def pixel_rays(camera: np.ndarray, *, width_px: int, height_px: int) -> np.ndarray:
    """Return the point at depth 1 on the ray of every pixel: (H, W, 3) float64; `camera` (4,)."""
    v, u = np.mgrid[:height_px, :width_px]
    return unproject_pixels(np.stack((u, v, np.ones_like(u)), axis=-1), camera)


def _double(array: Array) -> Array:
    if isinstance(array, Tensor):
        return array.double()
    return np.asarray(array, dtype=np.float64)


def _stack(*parts: Any) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.stack(parts, dim=-1)
    return np.stack(parts, axis=-1)
