"""A pinhole camera: from pixels and depths to points of its frame, and back; exact in float64."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

__all__ = ["depth_points", "pixel_rays", "project_points", "unproject_pixels"]

Array = TypeVar("Array", np.ndarray, Tensor)
"""NumPy in, NumPy out; tensors in, tensors out, on their device."""


def project_points(points: Array, camera: Array) -> Array:
    """Where points (..., 3) of the camera's frame appear: (..., 3) float64, the column u, the row v and the depth.

    `camera` (..., 4) holds fx, fy, u0 and v0 in pixels: u = fx X / Z + u0, v = fy Y / Z + v0, where pixel centres lie
    at integers, 0 first. fy is negative where Y points up. Its leading axes are those of the points, or broadcast
    against them. A point in the plane of the camera (Z = 0) appears nowhere: its u and v are infinite or no numbers.
    Source: the pinhole model.
    """
    points, camera = _double(points), _double(camera)
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        u = camera[..., 0] * x / z + camera[..., 2]
        v = camera[..., 1] * y / z + camera[..., 3]
    return _stacked(u, v, z)


def unproject_pixels(pixels: Array, camera: Array) -> Array:
    """The points (..., 3) float64 of the camera's frame that appear at pixels (..., 3): column u, row v and depth.

    The inverse of `project`: X = (u - u0) Z / fx, Y = (v - v0) Z / fy.
    """
    pixels, camera = _double(pixels), _double(camera)
    u, v, z = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    x = (u - camera[..., 2]) * z / camera[..., 0]
    y = (v - camera[..., 3]) * z / camera[..., 1]
    return _stacked(x, y, z)


def depth_points(depth: np.ndarray, camera: np.ndarray) -> np.ndarray:
    """The measured points of a depth image (H, W): (N, 3) float64, row after row; pixels of depth 0 or less have none.

    `camera` (4,) is that of `project`; points have the unit of the depths.
    """
    v, u = np.nonzero(depth > 0)
    return unproject_pixels(np.stack((u, v, depth[v, u]), axis=-1), camera)


def pixel_rays(camera: np.ndarray, *, width_px: int, height_px: int) -> np.ndarray:
    """The point at depth 1 behind every pixel: (H, W, 3) float64."""
    v, u = np.mgrid[:height_px, :width_px]
    return unproject_pixels(np.stack((u, v, np.ones_like(u)), axis=-1), camera)


def _double(array: Array) -> Array:
    if isinstance(array, Tensor):
        return array.double()
    return np.asarray(array, dtype=np.float64)


def _stacked(*parts: Any) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.stack(parts, dim=-1)
    return np.stack(parts, axis=-1)
