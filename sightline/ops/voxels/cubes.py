"""Cubes of voxels around a reference point: camera coordinates to voxels and back, and voxel occupancy.

Coordinates are in the order (x, y, z) everywhere; voxel m covers [m, m + 1). A cube of side `cube_mm` around the
reference point is cut into `size` voxels a side, in a grid of `original` voxels that leaves room to shift it.
Source: Moon et al. 2018, V2V-PoseNet, section 4, in the continuous form of its PyTorch port.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sightline.ops.numba_kernels import can_use_numba, numba_kernel, run_parallel
from sightline.ops.waits import is_on_host, recall, remember, send_list

Axes = Literal["xyz", "zyx"]
"""Order of the three axes of volumes and heat maps; coordinates are always (x, y, z)."""
Compat = Literal["none", "release"]
"""Rounding convention: `release` rounds as the authors' own code does, half a voxel off."""

PLACEMENT_WIDTH = 13
_GRID = "grid"


@dataclass(frozen=True, eq=False)
class CubePlacement:
    """Position and augmentation of each sample's cube: all that maps camera coordinates to voxels and back.

    `reference_mm` (B, 3) is its centre; the grid is scaled by `scale` (B,) about its own centre, turned by `angle_rad`
    (B,) about the optical axis, and shifted by `shift` (B, 3) voxels, of which (original - size) / 2 is neutral.
    """

    reference_mm: Tensor
    scale: Tensor
    angle_rad: Tensor
    shift: Tensor
    cube_mm: float
    size: int
    grid_size: int
    axes: Axes = "xyz"
    compat: Compat = "none"

    @classmethod
    def identity(cls, reference_mm: Tensor, *, cube_mm: float, size: int, original: int | None = None) -> CubePlacement:
        """Build placements without augmentation around `reference_mm` (B, 3), in float64."""
        original = original_size(size) if original is None else original
        ones = torch.ones(len(reference_mm), dtype=torch.float64, device=reference_mm.device)
        shift = torch.full((len(reference_mm), 3), (original - size) / 2, dtype=torch.float64, device=ones.device)
        return cls(reference_mm.double(), ones, torch.zeros_like(ones), shift, float(cube_mm), size, original)

    @classmethod
    def from_rows(cls, rows: Tensor) -> CubePlacement:
        """Build a placement from the batch field `rows` (B, 13); raises ValueError for rows of different grids."""
        if rows.ndim != 2 or rows.shape[1] != PLACEMENT_WIDTH:
            raise ValueError(f"placement: found the shape {tuple(rows.shape)}, expected (B, {PLACEMENT_WIDTH})")
        known = None if is_on_host(rows) else recall(rows, _GRID)
        side, size, original, is_zyx, is_release = known or _read_grid(rows)
        reference, scale, angle, shift = rows[:, :8].double().split([3, 1, 1, 3], dim=1)
        return cls(
            reference,
            scale[:, 0],
            angle[:, 0],
            shift,
            side,
            int(size),
            int(original),
            "zyx" if is_zyx else "xyz",
            "release" if is_release else "none",
        )

    def to_rows(self) -> Tensor:
        """Return the placement as (B, 13) float64.

        Reference, scale, angle, shift, side, size, original, two flags as 0 or 1.
        """
        grid = [self.cube_mm, self.size, self.grid_size, self.axes == "zyx", self.compat == "release"]
        reference = self.reference_mm
        grid_rows = send_list([float(value) for value in grid], reference.device, reference.dtype).expand(len(self), -1)
        rows = torch.cat([reference, self.scale[:, None], self.angle_rad[:, None], self.shift, grid_rows], dim=1)
        remember(rows, _GRID, grid)
        return rows

    def __len__(self) -> int:
        return len(self.reference_mm)

    @property
    def voxel_mm(self) -> float:
        """Side of a voxel of a cube that is not scaled."""
        return self.cube_mm / self.size


def _read_grid(rows: Tensor) -> list[float]:
    """Read the numbers of the one grid that the samples of `rows` (B, 13) are in."""
    if len(rows) and bool((rows[:, 8:] != rows[:1, 8:]).any()):
        raise ValueError("placement: samples of one batch are in grids of different sides, sizes or orders")
    return rows[0, 8:].tolist() if len(rows) else [1.0, 1, 1, 0, 0]


def original_size(size: int) -> int:
    """Return the voxels a side of the grid in which a crop of `size` is shifted.

    96 for 88, as published, in proportion.
    """
    return size + 2 * round(size / 22)


def to_voxels(points_mm: Tensor, placement: CubePlacement) -> Tensor:
    """Convert camera coordinates (B, P, 3) to continuous voxel coordinates (B, P, 3), in the dtype of `points_mm`."""
    if placement.compat == "release":
        return _release_to_voxels(points_mm, placement)
    reference, factor, offset = _broadcast_mapping(points_mm, placement)
    return _rotate((points_mm - reference) * factor, placement.angle_rad) + offset


def to_camera(voxels: Tensor, placement: CubePlacement) -> Tensor:
    """Convert continuous voxel coordinates (B, P, 3) to camera coordinates (B, P, 3): the exact inverse of `to_voxels`.

    The release's rounding has no inverse: the release's own decoding, which adds half a voxel, is used.
    """
    if placement.compat == "release":
        return _release_to_camera(voxels, placement)
    reference, factor, offset = _broadcast_mapping(voxels, placement)
    return _rotate(voxels - offset, -placement.angle_rad) / factor + reference


def occupancy_reference(voxels: Tensor, is_point: Tensor, placement: CubePlacement) -> Tensor:
    """Compute the reference of `occupancy`: (B, 1, S, S, S) float32, 1 if a voxel has a point, in the order `axes`.

    `voxels` (B, P, 3); `is_point` (B, P) masks the actual points. A coordinate belongs to the voxel of its floor, so
    that none of (-1, 0) falls into the first one; the release rounds to the nearest whole number.
    """
    size = placement.size
    voxel = (voxels + 0.5).floor() if placement.compat == "release" else voxels.floor()
    is_inside = is_point & (voxel >= 0).all(dim=-1) & (voxel < size).all(dim=-1)
    x, y, z = voxel[is_inside].long().unbind(-1)
    sample = is_inside.nonzero()[:, 0]
    volume = torch.zeros(len(voxels), size, size, size, device=voxels.device)
    volume[sample, x, y, z] = 1.0
    return permute_axes(volume, placement.axes)[:, None]


def occupancy(depth_mm: Tensor, camera: Tensor, placement: CubePlacement) -> Tensor:
    """Compute voxel occupancy (B, 1, S, S, S) float32 of depth frames: 1 if a voxel contains a measured pixel's point.

    `depth_mm` (B, H, W), 0 for unmeasured pixels; `camera` (B, 4): fx, fy, u0, v0 in pixels. The compiled form
    does the same operations in the same order as the reference, pixel by pixel.
    """
    depth = depth_mm.contiguous()
    if placement.compat == "release" or not can_use_numba(depth):
        return occupancy_reference(*_pixel_points(depth.double(), camera, placement), placement)
    volume = torch.zeros(len(depth), *[placement.size] * 3)
    reference, factor, offset = _mapping(placement)
    turn = torch.stack([factor, placement.angle_rad.cos(), placement.angle_rad.sin()], dim=1)
    rows = torch.cat([reference, turn, offset], dim=1).numpy()
    run_parallel(_fill_voxels, len(depth), depth.numpy(), camera.double().numpy(), rows, volume.numpy())
    return permute_axes(volume, placement.axes)[:, None].contiguous()


def permute_axes(volumes: Tensor, axes: Axes) -> Tensor:
    """Permute the last three axes of volumes (..., X, Y, Z) to the order `axes`; the permutation is its own inverse."""
    return volumes.transpose(-1, -3) if axes == "zyx" else volumes


def _pixel_points(depth: Tensor, camera: Tensor, placement: CubePlacement) -> tuple[Tensor, Tensor]:
    """Return voxel coordinates (B, P, 3) of every pixel, and a mask (B, P) of measured pixels."""
    rows, columns = torch.meshgrid(*(torch.arange(n).to(depth) for n in depth.shape[1:]), indexing="ij")
    fx, fy, u0, v0 = camera.double()[:, :, None, None].unbind(1)
    points = torch.stack([(columns - u0) / fx * depth, (rows - v0) / fy * depth, depth], dim=-1).flatten(1, 2)
    return to_voxels(points, placement), (depth > 0).flatten(1)


def _broadcast_mapping(points: Tensor, placement: CubePlacement) -> tuple[Tensor, Tensor, Tensor]:
    """Return reference, voxels per millimetre and voxel offset (B, 1, n), in the dtype of `points`."""
    reference, factor, offset = _mapping(placement)
    return reference[:, None].to(points), factor[:, None, None].to(points), offset[:, None].to(points)


def _mapping(placement: CubePlacement) -> tuple[Tensor, Tensor, Tensor]:
    """Return the paper's steps as one map: v = R(angle) (p - reference) factor + offset.

    Source: Moon et al. 2018, section 4.
    """
    factor = placement.scale * (placement.size / placement.cube_mm)
    return placement.reference_mm, factor, placement.grid_size / 2 - placement.shift


def _rotate(points: Tensor, angle_rad: Tensor) -> Tensor:
    """Rotate points (B, P, 3) counter-clockwise in the plane of x and y."""
    cosine, sine = (f(angle_rad)[:, None].to(points) for f in (torch.cos, torch.sin))
    x, y, z = points.unbind(-1)
    return torch.stack([x * cosine - y * sine, x * sine + y * cosine, z], dim=-1)


@numba_kernel
def _fill_voxels(
    first: int,
    last: int,
    depth: np.ndarray,
    camera: np.ndarray,
    placement: np.ndarray,
    volume: np.ndarray,
) -> None:
    """CPU kernel of `occupancy`: depth (F, H, W), camera (F, 4), placement (F, 9); fills volume (F, S, S, S).

    In `placement`: reference, voxels per millimetre, cosine, sine, voxel coordinates of the reference.
    """
    size = volume.shape[1]
    height, width = depth.shape[1:]
    ray_x = np.empty(width)
    for frame in range(first, last):
        fx, fy, u0, v0 = camera[frame]
        x0, y0, z0, factor, cosine, sine, offset_x, offset_y, offset_z = placement[frame]
        for column in range(width):
            ray_x[column] = (column - u0) / fx
        for row in range(height):
            ray_y = (row - v0) / fy
            for column in range(width):
                measured = depth[frame, row, column]
                if not measured > 0:
                    continue
                z = np.float64(measured)
                along = math.floor((z - z0) * factor + offset_z)
                if along < 0 or along >= size:
                    continue
                x = (ray_x[column] * z - x0) * factor
                y = (ray_y * z - y0) * factor
                across = math.floor(x * cosine - y * sine + offset_x)
                down = math.floor(x * sine + y * cosine + offset_y)
                if 0 <= across < size and 0 <= down < size:
                    volume[frame, across, down, along] = 1


# --- Rounding of the authors' published files (V2V-PoseNet_RELEASE, the Torch7 code) ----------------------------------
#
# A coordinate becomes a whole voxel before the grid is scaled, turned and shifted; the scaled grid has a whole number
# of voxels and begins at one; the turn is about the middle of the first and last index, with y upwards. Read back, a
# voxel's number means its middle, but a heat map's centre is at half of a whole number: on average half a voxel is
# lost. Source: Moon et al. 2018; the rules as `golden/pose` among the shared samples records them.


def _release_to_voxels(points_mm: Tensor, placement: CubePlacement) -> Tensor:
    """Convert camera coordinates (B, P, 3) to voxel coordinates (B, P, 3), whose nearest integers are occupied."""
    size, original = placement.size, placement.grid_size
    reference, shift = placement.reference_mm[:, None].to(points_mm), placement.shift[:, None].to(points_mm)
    unit = (points_mm - reference) / (placement.cube_mm / 2)
    voxels = ((unit + 1) / (2 / size)).floor() + (original / 2 - size / 2)
    scaled = _scale_grid(voxels, placement.scale.to(points_mm), original)
    return _rotate_in_release(scaled, placement.angle_rad.to(points_mm), (original - 1) / 2) - shift


def _release_to_camera(voxels: Tensor, placement: CubePlacement) -> Tensor:
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


def _rotate_in_release(points: Tensor, angle_rad: Tensor, pivot: float) -> Tensor:
    cosine, sine = angle_rad.cos()[:, None], angle_rad.sin()[:, None]
    x, y, z = points.unbind(-1)
    x, y = x - pivot, pivot - y
    turned = torch.stack([x * cosine - y * sine + pivot, pivot - (x * sine + y * cosine), z], dim=-1)
    return torch.where((angle_rad == 0)[:, None, None], points, turned)
