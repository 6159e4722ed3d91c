"""Voxel rounding of the authors' published files: V2V-PoseNet_RELEASE, the Torch7 code.

A coordinate becomes a whole voxel before the grid is scaled, turned and shifted; the scaled grid has a whole number of
voxels and begins at one; the turn is about the middle of the first and last index, with y upwards. Read back, a voxel's
number means its middle, but a heat map's centre lies at half of a whole number: on average half a voxel is lost.
Source: Moon et al. 2018; the rules as `golden/pose` among the shared samples records them.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

__all__ = ["release_to_camera", "release_to_voxels"]


class PlacementLike(Protocol):
    """Members of a `geometry.volumes` placement that this module reads."""

    @property
    def reference_mm(self) -> Tensor:
        """Centre (B, 3) of each cube."""

    @property
    def scale(self) -> Tensor:
        """Scale (B,) of each grid."""

    @property
    def angle_rad(self) -> Tensor:
        """Angle (B,) about the optical axis."""

    @property
    def shift(self) -> Tensor:
        """Shift (B, 3) in voxels."""

    @property
    def cube_mm(self) -> float: ...

    @property
    def size(self) -> int: ...

    @property
    def grid_size(self) -> int: ...


def release_to_voxels(points_mm: Tensor, placement: PlacementLike) -> Tensor:
    """Convert camera coordinates (B, P, 3) to voxel coordinates (B, P, 3), whose nearest integers are occupied."""
    size, original = placement.size, placement.grid_size
    reference, shift = placement.reference_mm[:, None].to(points_mm), placement.shift[:, None].to(points_mm)
    unit = (points_mm - reference) / (placement.cube_mm / 2)
    voxels = ((unit + 1) / (2 / size)).floor() + (original / 2 - size / 2)
    scaled = _scale_grid(voxels, placement.scale.to(points_mm), original)
    return _rotate(scaled, placement.angle_rad.to(points_mm), (original - 1) / 2) - shift


def release_to_camera(voxels: Tensor, placement: PlacementLike) -> Tensor:
    """Convert voxel numbers (B, P, 3) of an unaugmented crop to camera coordinates (B, P, 3) of the voxels' middles."""
    size = placement.size
    unit = voxels * 2 / size - 1 + 1 / size
    return unit * (placement.cube_mm / 2) + placement.reference_mm[:, None].to(voxels)


def _scale_grid(voxels: Tensor, scale: Tensor, original: int) -> Tensor:
    """Scale to a grid of floor(original * scale) voxels, moved by a whole number towards the middle."""
    scale_B11 = scale[:, None, None]
    smaller = (original / 2 - original / 2 * scale_B11).floor()
    larger = -(original / 2 * scale_B11 - original / 2).floor()
    resized = voxels / original * (original * scale_B11).floor() + torch.where(scale_B11 < 1, smaller, larger)
    return torch.where(scale_B11 == 1, voxels, resized)


def _rotate(points: Tensor, angle_rad: Tensor, pivot: float) -> Tensor:
    cosine, sine = angle_rad.cos()[:, None], angle_rad.sin()[:, None]
    x, y, z = points.unbind(-1)
    x, y = x - pivot, pivot - y
    turned = torch.stack([x * cosine - y * sine + pivot, pivot - (x * sine + y * cosine), z], dim=-1)
    return torch.where((angle_rad == 0)[:, None, None], points, turned)
