"""Rotation matrices against SciPy, and the bits of one cloud alone and among others."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from sightline.geometry.rotations import (
    axis_rotation,
    euler_matrix,
    quaternion_matrix,
    rotate_points,
    uniform_quaternion,
)

# a matrix entry is made of at most four products of numbers up to 1 in float64
BOUND = 8 * np.finfo(np.float64).eps


def drawn(*shape: int, low: float, high: float) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(5).uniform(low, high, shape))


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_axis_rotation_agrees_with_scipy(axis: str) -> None:
    angles = drawn(40, low=-7, high=7)
    expected = Rotation.from_euler(axis, angles.numpy()[:, None]).as_matrix()
    assert np.abs(axis_rotation(axis, angles).numpy() - expected).max() < BOUND


def test_a_quarter_turn_about_z_takes_x_to_y() -> None:
    turned = rotate_points(torch.tensor([[[1.0, 0, 0]]]), axis_rotation("z", torch.tensor([math.pi / 2])))
    assert torch.allclose(turned, torch.tensor([[[0.0, 1.0, 0.0]]]), atol=1e-7)


def test_euler_angles_turn_about_the_fixed_axes_x_y_z() -> None:
    angles = drawn(40, 3, low=-4, high=4)
    assert np.abs(euler_matrix(angles).numpy() - Rotation.from_euler("xyz", angles.numpy()).as_matrix()).max() < BOUND


def test_quaternions_agree_with_scipy() -> None:
    quaternions = uniform_quaternion(drawn(200, 3, low=0, high=1))
    assert np.abs(np.linalg.norm(quaternions, axis=1) - 1).max() < BOUND
    scipy_order = quaternions.numpy()[:, [1, 2, 3, 0]]
    assert np.abs(quaternion_matrix(quaternions).numpy() - Rotation.from_quat(scipy_order).as_matrix()).max() < BOUND


def test_rotating_is_the_matrix_product_and_does_not_see_the_batch() -> None:
    points, angles = drawn(9, 50, 3, low=-1, high=1).float(), drawn(9, 3, low=-1, high=1).float()
    rotated = rotate_points(points, euler_matrix(angles))
    expected = np.einsum("bij,bnj->bni", euler_matrix(angles.double()).numpy(), points.double().numpy())
    assert np.abs(rotated.numpy() - expected).max() < 8 * np.finfo(np.float32).eps
    for row in range(9):
        assert torch.equal(rotate_points(points[row : row + 1], euler_matrix(angles[row : row + 1]))[0], rotated[row])
