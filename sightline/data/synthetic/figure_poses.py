"""Posing of synthetic figures: scaling of random numbers, joint rotations, and capsules on bones."""

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
"""Maximum angle to either side, in degrees."""
Range = tuple[float, float]
"""Bounds of a uniform distribution; two equal numbers give a constant."""
NoiseRange = tuple[NonNegativeFloat, NonNegativeFloat]
ShareRange = tuple[Probability, Probability]
ScaleRange = tuple[Annotated[float, Ge(0.1), Le(10.0)], Annotated[float, Ge(0.1), Le(10.0)]]


class Figures(NamedTuple):
    """Figures in the camera's frame, in mm: `joints` (B, J, 3), `capsules` (B, N, 7); absent capsules have radius 0."""

    joints: np.ndarray
    capsules: np.ndarray


def assert_in_order(name: str, bounds: Range) -> None:
    """Raise ConfigError for a range whose end is below its start."""
    low, high = bounds
    if low > high:
        raise ConfigError(f"{name}: is from {low:g} to {high:g}; give the lower number first")


def scale_to_range(uniform: torch.Tensor, bounds: Range) -> np.ndarray:
    """Scale random numbers in [0, 1) to a range; the shape is kept, float64."""
    low, high = bounds
    scaled: np.ndarray = low + (high - low) * uniform.double().numpy()
    return scaled


def scale_symmetric(uniform: torch.Tensor, reach: float | Sequence[float]) -> np.ndarray:
    """Scale random numbers in [0, 1) to -reach to reach; the shape is kept, float64."""
    scaled: np.ndarray = (2 * uniform.double().numpy() - 1) * np.asarray(reach)
    return scaled


def rotate(points: np.ndarray, turn_rad: np.ndarray) -> np.ndarray:
    """Rotate points (B, N, 3) by yaw, pitch and roll (B, 3): about x (pitch), then y (yaw), then z (roll).

    Matrices are made one by one and products are written out: a figure has the same bits alone and in a batch.
    """
    matrices = [euler_matrix(torch.from_numpy(angles[[1, 0, 2]])).numpy() for angles in turn_rad]
    x, y, z = (points[..., axis, None] for axis in range(3))
    columns = np.stack(matrices)[:, None]
    rotated: np.ndarray = x * columns[..., 0] + y * columns[..., 1] + z * columns[..., 2]
    return rotated


def rotate_about_x(vectors: np.ndarray, angles_rad: np.ndarray) -> np.ndarray:
    """Rotate vectors (..., 3) about x: y towards z."""
    cosine, sine = _compute_cos_sin(angles_rad)
    x, y, z = np.moveaxis(vectors, -1, 0)
    return np.stack(np.broadcast_arrays(x, cosine * y - sine * z, sine * y + cosine * z), axis=-1)


def rotate_about_z(vectors: np.ndarray, angles_rad: np.ndarray) -> np.ndarray:
    """Rotate vectors (..., 3) about z: x towards y."""
    cosine, sine = _compute_cos_sin(angles_rad)
    x, y, z = np.moveaxis(vectors, -1, 0)
    return np.stack(np.broadcast_arrays(cosine * x - sine * y, sine * x + cosine * y, z), axis=-1)


def capsule_rows(points: np.ndarray, ends: Sequence[tuple[int, int]], radii: Sequence[float]) -> np.ndarray:
    """Make capsules (B, N, 7) between pairs of points (B, P, 3)."""
    first, second = np.array(ends).T
    radius_column = np.broadcast_to(np.asarray(radii)[None, :, None], (len(points), len(radii), 1))
    return np.concatenate((points[:, first], points[:, second], radius_column), axis=2)


def _compute_cos_sin(angles_rad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute cosines and sines one by one: in an array the last bit may depend on the index of the angle."""
    angles = np.asarray(angles_rad, dtype=np.float64)
    pairs = [(math.cos(angle), math.sin(angle)) for angle in angles.ravel().tolist()]
    cosine, sine = np.array(pairs).reshape(*angles.shape, 2).transpose(-1, *range(angles.ndim))
    return cosine, sine
