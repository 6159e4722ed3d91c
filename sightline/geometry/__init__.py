"""Geometry of points and surfaces: pure functions of tensors, or of arrays where meshes are read."""

from __future__ import annotations

from sightline.geometry.neighbours import gather_points, nearest_neighbours
from sightline.geometry.rotations import (
    axis_rotation,
    euler_matrix,
    quaternion_matrix,
    rotate_points,
    uniform_quaternion,
)
from sightline.geometry.surfaces import areas_and_normals, sample_surface

__all__ = [
    "areas_and_normals",
    "axis_rotation",
    "euler_matrix",
    "gather_points",
    "nearest_neighbours",
    "quaternion_matrix",
    "rotate_points",
    "sample_surface",
    "uniform_quaternion",
]
