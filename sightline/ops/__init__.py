"""Geometry of points and surfaces: pure functions of tensors, or of arrays where meshes are read."""

from __future__ import annotations

from sightline.ops.farthest_points import farthest_point_sample
from sightline.ops.neighbours import ball_query, gather_points, interpolate, nearest_neighbours
from sightline.ops.packed import (
    Neighbours,
    PackedSample,
    pack,
    packed_ball_query,
    packed_farthest_point_sample,
    packed_interpolate,
    packed_nearest_neighbours,
    unpack,
)
from sightline.ops.rotations import (
    axis_rotation,
    euler_matrix,
    quaternion_matrix,
    rotate_points,
    uniform_quaternion,
)
from sightline.ops.surfaces import areas_and_normals, estimate_normals, sample_surface

__all__ = [
    "Neighbours",
    "PackedSample",
    "areas_and_normals",
    "axis_rotation",
    "ball_query",
    "estimate_normals",
    "euler_matrix",
    "farthest_point_sample",
    "gather_points",
    "interpolate",
    "nearest_neighbours",
    "pack",
    "packed_ball_query",
    "packed_farthest_point_sample",
    "packed_interpolate",
    "packed_nearest_neighbours",
    "quaternion_matrix",
    "rotate_points",
    "sample_surface",
    "uniform_quaternion",
    "unpack",
]
