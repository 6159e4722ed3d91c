"""Rotation matrices from random numbers or angles, and rotation of points, with the same bits in any batch."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

_AXES = "xyz"


def rotate_points(points: Tensor, matrix: Tensor) -> Tensor:
    """Rotate every point of every cloud by its matrix, bit for bit the same in any batch: (B, N, 3) -> (B, N, 3).

    `points` (B, N, 3), `matrix` (B, 3, 3) for column vectors. Products and sums are written out, because a batched
    matrix product may round differently for another batch size.
    """
    columns_B13 = [column.unsqueeze(-2) for column in matrix.unbind(-1)]
    return points[..., 0:1] * columns_B13[0] + points[..., 1:2] * columns_B13[1] + points[..., 2:3] * columns_B13[2]


def axis_rotation(axis: Literal["x", "y", "z"], angle_rad: Tensor) -> Tensor:
    """Build matrices (..., 3, 3) that rotate column vectors counter-clockwise about an axis by `angle_rad` (...).

    Source: Rodrigues' formula for a unit coordinate vector.
    """
    cosine, sine = _cosine_and_sine(angle_rad)
    along = _AXES.index(axis)
    first, second = (along + 1) % 3, (along + 2) % 3
    matrix = cosine.new_zeros((*angle_rad.shape, 3, 3))
    matrix[..., along, along] = 1
    matrix[..., first, first] = cosine
    matrix[..., second, second] = cosine
    matrix[..., second, first] = sine
    matrix[..., first, second] = -sine
    return matrix


def euler_matrix(angles_rad: Tensor) -> Tensor:
    """Build R_z(c) R_y(b) R_x(a) (..., 3, 3) for the angles (a, b, c) (..., 3) about the fixed axes x, then y, then z.

    Source: the product of three of Rodrigues' matrices, multiplied out; Diebel 2006, "Representing Attitude".
    """
    (cos_x, cos_y, cos_z), (sin_x, sin_y, sin_z) = (part.unbind(-1) for part in _cosine_and_sine(angles_rad))
    entries = (
        cos_z * cos_y,
        cos_z * sin_y * sin_x - sin_z * cos_x,
        cos_z * sin_y * cos_x + sin_z * sin_x,
        sin_z * cos_y,
        sin_z * sin_y * sin_x + cos_z * cos_x,
        sin_z * sin_y * cos_x - cos_z * sin_x,
        -sin_y,
        cos_y * sin_x,
        cos_y * cos_x,
    )
    return torch.stack(entries, -1).unflatten(-1, (3, 3))


def uniform_quaternion(uniform: Tensor) -> Tensor:
    """Map uniform numbers (..., 3) in [0, 1) to uniformly distributed unit quaternions (..., 4), order w x y z.

    Source: Shoemake 1992, "Uniform Random Rotations", Graphics Gems III.
    """
    share, *turns = uniform.unbind(-1)
    (cos_1, cos_2), (sin_1, sin_2) = zip(*(_cosine_and_sine(turn * (2 * math.pi)) for turn in turns), strict=True)
    low, high = torch.sqrt(1 - share), torch.sqrt(share)
    return torch.stack((high * cos_2, low * sin_1, low * cos_1, high * sin_2), -1)


def quaternion_matrix(quaternion: Tensor) -> Tensor:
    """Convert unit quaternions (..., 4), order w x y z, to rotation matrices (..., 3, 3).

    Source: Shoemake 1985, "Animating Rotation with Quaternion Curves".
    """
    w, x, y, z = quaternion.unbind(-1)
    entries = (
        1 - 2 * (y * y + z * z),
        2 * (x * y - w * z),
        2 * (x * z + w * y),
        2 * (x * y + w * z),
        1 - 2 * (x * x + z * z),
        2 * (y * z - w * x),
        2 * (x * z - w * y),
        2 * (y * z + w * x),
        1 - 2 * (x * x + y * y),
    )
    return torch.stack(entries, -1).unflatten(-1, (3, 3))


def _cosine_and_sine(angle_rad: Tensor) -> tuple[Tensor, Tensor]:
    """Compute cosine and sine (...) in float64, rounded once, so that the bits are the same in any batch."""
    angle = angle_rad.double()
    dtype = angle_rad.dtype if angle_rad.is_floating_point() else torch.get_default_dtype()
    return torch.cos(angle).to(dtype), torch.sin(angle).to(dtype)
