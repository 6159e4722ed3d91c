"""Cubes of voxels around a reference point: camera coordinates to voxels and back, and voxel occupancy.

Coordinates are in the order (x, y, z) everywhere; voxel m covers [m, m + 1). A cube of side `cube_mm` around the
reference point is cut into `size` voxels a side, in a grid of `original` voxels that leaves room to shift it.
Source: Moon et al. 2018, V2V-PoseNet, section 4, in the continuous form of its PyTorch port.

Gaussian heat maps of joints in a volume, and the decoding of heat maps to coordinates.

A heat map has half as many cells a side as its volume has voxels, or any other whole share. Its coordinate h is that of
voxels times this share: cell a covers [a, a + 1), and its middle is a + 0.5. Volumes of heat maps are (B, J, V, V, V)
in the order x, y, z, coordinates (B, J, 3) in the same order.

Voxel rounding of the authors' published files: V2V-PoseNet_RELEASE, the Torch7 code.

A coordinate becomes a whole voxel before the grid is scaled, turned and shifted; the scaled grid has a whole number of
voxels and begins at one; the turn is about the middle of the first and last index, with y upwards. Read back, a voxel's
number means its middle, but a heat map's centre is at half of a whole number: on average half a voxel is lost.
Source: Moon et al. 2018; the rules as `golden/pose` among the shared samples records them.

CPU kernel of voxel occupancy from depth frames, with the operations and order of the reference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from sightline.ops.numba_kernels import can_use_numba, numba_kernel, run_parallel

Decoding = Literal["parabola", "argmax", "soft", "centroid"]
"""Decoding of a coordinate from a heat map; `parabola` fits the logarithm around the largest cell."""
Targets = Literal["gaussian", "one_hot"]

_SOFT_SHARPNESS = 50.0  # below it the volume's middle draws: 16.8 cells for a true 10.3 at 10, the middle itself at 1
_CENTROID_SHARE = 0.5


def gaussian_heatmaps(
    joints: Tensor, *, cells: int, sigma: float = 1.7, middle: float = 0.5, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Compute exp(-|a + middle - h|^2 / (2 sigma^2)) for cells a = 0 .. cells - 1: (B, J, V, V, V), at most 1.

    `joints` (B, J, 3) are coordinates h in cells; `sigma` is in cells too. A joint outside keeps the tail that reaches
    in. `middle` is 0 in the authors' release. The exponential of a sum is a product of three, one for each axis, taken
    in float64. Source: Moon et al. 2018, eq. 1.
    """
    x, y, z = _axis_factors(joints, cells, sigma, middle).unbind(2)
    plane = (y[..., :, None] * z[..., None, :]).to(dtype)
    return x.to(dtype)[..., :, None, None] * plane[..., None, :, :]


def gaussian_heatmaps_reference(joints: Tensor, *, cells: int, sigma: float = 1.7, middle: float = 0.5) -> Tensor:
    """Compute the reference of `gaussian_heatmaps`: joints (B, J, 3) -> (B, J, V, V, V) float64."""
    centres = torch.arange(cells, dtype=torch.float64, device=joints.device) + middle
    grid = torch.stack(torch.meshgrid(centres, centres, centres, indexing="ij"), dim=-1)
    squared = ((grid - joints.double()[:, :, None, None, None]) ** 2).sum(dim=-1)
    return torch.exp(-squared / (2 * sigma**2))


def one_hot_heatmaps(joints: Tensor, *, cells: int) -> Tensor:
    """Compute trilinear weights of the eight cells around joints (B, J, 3), with sum 1: (B, J, V, V, V) float32.

    Coordinates count from cell to cell here, without a half, and are clipped to [0, cells - 2]. Source: the integral
    variant of the PyTorch port of V2V-PoseNet, after Sun et al. 2018, Integral human pose regression.
    """
    clipped = joints.double().clamp(0, cells - 2)
    offset = torch.arange(cells, dtype=torch.float64, device=joints.device) - clipped[..., None]
    x, y, z = (1 - offset.abs()).clamp_min(0).unbind(2)
    return (x[..., :, None, None] * y[..., None, :, None] * z[..., None, None, :]).float()


def decode(heatmaps: Tensor, *, decoding: Decoding = "parabola") -> Tensor:
    """Decode heat maps (B, J, V, V, V) to coordinates h (B, J, 3) float64, in cells.

    `argmax` is the middle of the largest cell, the first in C order among equals. `parabola` moves from there along
    each axis to the top of the parabola through the logarithms of three cells, by half a cell at most; at a border, or
    beside a cell that is not positive, it stays. For a Gaussian it is exact. `soft` is the mean under the softmax of 50
    times the map, `centroid` that of the cells above half of the maximum.
    """
    values = heatmaps.double()
    if decoding == "soft":
        return soft_cells(values * _SOFT_SHARPNESS) + 0.5
    if decoding == "centroid":
        return _centroid(values) + 0.5
    largest = _find_largest(values)
    return largest + 0.5 + (_parabola_offset(values, largest) if decoding == "parabola" else 0.0)


def soft_cells(logits: Tensor) -> Tensor:
    """Soft-argmax: the mean cell (B, J, 3) under the softmax over each volume (B, J, V, V, V), counted from 0.

    Differentiable. Source: Sun et al. 2018, Integral human pose regression, eq. 2.
    """
    shares = logits.flatten(2).softmax(dim=-1).view(logits.shape)
    return _mean_cell(shares)


def peaks(heatmaps: Tensor) -> Tensor:
    """Return the largest value (B, J) of each heat map: near 1 for a confident network, near 0 for a dead map."""
    return heatmaps.flatten(2).amax(dim=-1)


def _axis_factors(joints: Tensor, cells: int, sigma: float, middle: float) -> Tensor:
    """Compute the Gaussian factor of each axis: (B, J, 3, V) float64."""
    centres = torch.arange(cells, dtype=torch.float64, device=joints.device) + middle
    return torch.exp(-((centres - joints.double()[..., None]) ** 2) / (2 * sigma**2))


def _find_largest(values: Tensor) -> Tensor:
    cell = values.flatten(2).argmax(dim=-1)  # torch promises the first of equal maxima
    _, height, depth = values.shape[2:]  # not by unravel_index, which a trace of TorchScript cannot record
    row = cell // depth
    return torch.stack((row // height, row % height, cell % depth), dim=-1).double()


def _parabola_offset(values: Tensor, largest: Tensor) -> Tensor:
    """Return the offset (B, J, 3) of the top of a parabola through three logarithms from the largest cell."""
    index = largest.long()
    centre = _gather_cells(values, index)
    offsets = []
    for axis, size in enumerate(values.shape[2:]):
        step = torch.zeros(3, dtype=torch.int64, device=values.device)
        step[axis] = 1
        previous, following = (_gather_cells(values, (index + sign * step).clamp(0, size - 1)) for sign in (-1, 1))
        is_usable = (
            (index[..., axis] > 0) & (index[..., axis] < size - 1) & (previous > 0) & (following > 0) & (centre > 0)
        )
        low, mid, high = (torch.where(is_usable, value, 1.0).log() for value in (previous, centre, following))
        bend = low - 2 * mid + high
        is_usable &= bend < 0
        offset = 0.5 * (low - high) / torch.where(is_usable, bend, 1.0)
        offsets.append(torch.where(is_usable, offset.clamp(-0.5, 0.5), 0.0))
    return torch.stack(offsets, dim=-1)


def _gather_cells(values: Tensor, index: Tensor) -> Tensor:
    x, y, z = index.unbind(-1)
    _, height, depth = values.shape[2:]
    return values.flatten(2).gather(2, ((x * height + y) * depth + z)[..., None])[..., 0]


def _centroid(values: Tensor) -> Tensor:
    top = values.amax(dim=(2, 3, 4), keepdim=True)
    thresholded = torch.where(values >= _CENTROID_SHARE * top, values, 0.0).clamp_min(0)
    total = thresholded.sum(dim=(2, 3, 4), keepdim=True)
    return torch.where(total[..., 0, 0] > 0, _mean_cell(thresholded / total.clamp_min(1e-300)), _find_largest(values))


def _mean_cell(shares: Tensor) -> Tensor:
    """Return the mean index (B, J, 3) along each axis of volumes that sum to 1."""
    means = []
    for axis in (2, 3, 4):
        others = [other for other in (2, 3, 4) if other != axis]
        along = torch.arange(shares.shape[axis], dtype=shares.dtype, device=shares.device)
        means.append((shares.sum(dim=others) * along).sum(dim=-1))
    return torch.stack(means, dim=-1)


class PlacementLike(Protocol):
    """Members of a `ops.volumes` placement that this module reads."""

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
    return _rotate_in_release(scaled, placement.angle_rad.to(points_mm), (original - 1) / 2) - shift


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


def _rotate_in_release(points: Tensor, angle_rad: Tensor, pivot: float) -> Tensor:
    cosine, sine = angle_rad.cos()[:, None], angle_rad.sin()[:, None]
    x, y, z = points.unbind(-1)
    x, y = x - pivot, pivot - y
    turned = torch.stack([x * cosine - y * sine + pivot, pivot - (x * sine + y * cosine), z], dim=-1)
    return torch.where((angle_rad == 0)[:, None, None], points, turned)


@numba_kernel
def fill_voxels(
    first: int,
    last: int,
    depth: np.ndarray,
    camera: np.ndarray,
    placement: np.ndarray,
    volume: np.ndarray,
) -> None:
    """CPU kernel of `volumes.occupancy`: depth (F, H, W), camera (F, 4), placement (F, 9); fills volume (F, S, S, S).

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


Axes = Literal["xyz", "zyx"]
"""Order of the three axes of volumes and heat maps; coordinates are always (x, y, z)."""
Compat = Literal["none", "release"]
"""Rounding convention: `release` rounds as the authors' own code does, half a voxel off."""

PLACEMENT_WIDTH = 13


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
        if len(rows) and bool((rows[:, 8:] != rows[:1, 8:]).any()):
            raise ValueError("placement: samples of one batch are in grids of different sides, sizes or orders")
        side, size, original, is_zyx, is_release = rows[0, 8:].tolist() if len(rows) else (1.0, 1, 1, 0, 0)
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
        grid_rows = self.reference_mm.new_tensor([float(value) for value in grid]).expand(len(self), -1)
        return torch.cat(
            [self.reference_mm, self.scale[:, None], self.angle_rad[:, None], self.shift, grid_rows], dim=1
        )

    def __len__(self) -> int:
        return len(self.reference_mm)

    @property
    def voxel_mm(self) -> float:
        """Side of a voxel of a cube that is not scaled."""
        return self.cube_mm / self.size


def original_size(size: int) -> int:
    """Return the voxels a side of the grid in which a crop of `size` is shifted.

    96 for 88, as published, in proportion.
    """
    return size + 2 * round(size / 22)


def to_voxels(points_mm: Tensor, placement: CubePlacement) -> Tensor:
    """Convert camera coordinates (B, P, 3) to continuous voxel coordinates (B, P, 3), in the dtype of `points_mm`."""
    if placement.compat == "release":
        return release_to_voxels(points_mm, placement)
    reference, factor, offset = _broadcast_mapping(points_mm, placement)
    return _rotate((points_mm - reference) * factor, placement.angle_rad) + offset


def to_camera(voxels: Tensor, placement: CubePlacement) -> Tensor:
    """Convert continuous voxel coordinates (B, P, 3) to camera coordinates (B, P, 3): the exact inverse of `to_voxels`.

    The release's rounding has no inverse: the release's own decoding, which adds half a voxel, is used.
    """
    if placement.compat == "release":
        return release_to_camera(voxels, placement)
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
    run_parallel(fill_voxels, len(depth), depth.numpy(), camera.double().numpy(), rows, volume.numpy())
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
