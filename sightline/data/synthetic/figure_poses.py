"""How the poses of synthetic figures are put together: drawn numbers to ranges, joints that turn, capsules on bones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np
import torch
from annotated_types import Ge, Le

from sightline.arguments import NonNegativeFloat, Probability
from sightline.errors import ConfigError
from sightline.geometry.rotations import euler_matrix

__all__ = [
    "Angle",
    "Figures",
    "NoiseRange",
    "Range",
    "ScaleRange",
    "ShareRange",
    "assert_in_order",
    "capsule_rows",
    "rotate",
    "rotate_about_x",
    "rotate_about_z",
    "scale_symmetric",
    "scale_to_range",
]

Angle = Annotated[float, Ge(0.0), Le(180.0)]
"""In degrees, to either side."""
Range = tuple[float, float]
"""From the first to the second, drawn evenly; two equal numbers are always the same."""
NoiseRange = tuple[NonNegativeFloat, NonNegativeFloat]
ShareRange = tuple[Probability, Probability]
ScaleRange = tuple[Annotated[float, Ge(0.1), Le(10.0)], Annotated[float, Ge(0.1), Le(10.0)]]


class Figures(NamedTuple):
    """Several figures in the camera's frame, mm: `joints` (B, J, 3), `capsules` (B, N, 7) of radius 0 where absent."""

    joints: np.ndarray
    capsules: np.ndarray


def assert_in_order(name: str, bounds: Range) -> None:
    """Raises ConfigError where a range ends before it begins."""
    low, high = bounds
    if low > high:
        raise ConfigError(f"{name}: is from {low:g} to {high:g}; give the lower number first")


def scale_to_range(uniform: torch.Tensor, bounds: Range) -> np.ndarray:
    """Drawn numbers in [0, 1) put between two bounds, float64."""
    low, high = bounds
    spread: np.ndarray = low + (high - low) * uniform.double().numpy()
    return spread


def scale_symmetric(uniform: torch.Tensor, reach: float | Sequence[float]) -> np.ndarray:
    """Drawn numbers in [0, 1) put between -reach and reach, float64."""
    spread: np.ndarray = (2 * uniform.double().numpy() - 1) * np.asarray(reach)
    return spread


def rotate(points: np.ndarray, turn_rad: np.ndarray) -> np.ndarray:
    """Points (B, N, 3) turned by yaw, pitch and roll (B, 3): about x (pitch), then y (yaw), then z (roll).

    Matrix by matrix, and products written out: a figure has the same bits alone and among others.
    """
    matrices = [euler_matrix(torch.from_numpy(angles[[1, 0, 2]])).numpy() for angles in turn_rad]
    x, y, z = (points[..., axis, None] for axis in range(3))
    columns = np.stack(matrices)[:, None]
    rotated: np.ndarray = x * columns[..., 0] + y * columns[..., 1] + z * columns[..., 2]
    return rotated


def rotate_about_x(vectors: np.ndarray, angles_rad: np.ndarray) -> np.ndarray:
    """Vectors (..., 3) turned about x: y towards z."""
    cosine, sine = _cosine_and_sine(angles_rad)
    x, y, z = np.moveaxis(vectors, -1, 0)
    return np.stack(np.broadcast_arrays(x, cosine * y - sine * z, sine * y + cosine * z), axis=-1)


def rotate_about_z(vectors: np.ndarray, angles_rad: np.ndarray) -> np.ndarray:
    """Vectors (..., 3) turned about z: x towards y."""
    cosine, sine = _cosine_and_sine(angles_rad)
    x, y, z = np.moveaxis(vectors, -1, 0)
    return np.stack(np.broadcast_arrays(cosine * x - sine * y, sine * x + cosine * y, z), axis=-1)


def capsule_rows(points: np.ndarray, ends: Sequence[tuple[int, int]], radii: Sequence[float]) -> np.ndarray:
    """Capsules (B, N, 7) between pairs of points (B, P, 3)."""
    first, second = np.array(ends).T
    thick = np.broadcast_to(np.asarray(radii)[None, :, None], (len(points), len(radii), 1))
    return np.concatenate((points[:, first], points[:, second], thick), axis=2)


def _cosine_and_sine(angles_rad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One by one: the last bit of an array's cosine may depend on where in it the angle stands."""
    angles = np.asarray(angles_rad, dtype=np.float64)
    pairs = [(math.cos(angle), math.sin(angle)) for angle in angles.ravel().tolist()]
    cosine, sine = np.array(pairs).reshape(*angles.shape, 2).transpose(-1, *range(angles.ndim))
    return cosine, sine
