"""Pinhole camera model: projection of camera points to pixels and depths, and its inverse; exact in float64.

Cameras on rings around the up axis, each of which frames the unit sphere about the origin.

Square crops of depth images about a reference point, and coordinates in the crop's frame.

A crop shows the cube of side `side_mm` about the reference point as the camera sees its middle, turned in the image
plane about the point, with depths from -1 at its front to 1 at its back. Source: Oberweger and Lepetit 2017
(DeepPrior++), section 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

Array = TypeVar("Array", np.ndarray, Tensor)
"""NumPy array or tensor: functions return the type of their input, tensors on their device."""


def project_points(points: Array, camera: Array) -> Array:
    """Project camera points (..., 3) to column u, row v and depth: (..., 3) float64.

    `camera` (..., 4) contains fx, fy, u0 and v0 in pixels: u = fx X / Z + u0, v = fy Y / Z + v0, with pixel centres at
    integers, 0 first. fy is negative if Y points up. Its leading axes are those of the points, or broadcast against
    them. A point in the plane of the camera (Z = 0) has no projection: its u and v are infinite or NaN.
    Source: the pinhole model.
    """
    points, camera = _double(points), _double(camera)
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        u = camera[..., 0] * x / z + camera[..., 2]
        v = camera[..., 1] * y / z + camera[..., 3]
    return _stack(u, v, z)


def unproject_pixels(pixels: Array, camera: Array) -> Array:
    """Unproject pixels (..., 3), column u, row v and depth, to camera points (..., 3) float64.

    The inverse of `project_points`: X = (u - u0) Z / fx, Y = (v - v0) Z / fy.
    """
    pixels, camera = _double(pixels), _double(camera)
    u, v, z = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    x = (u - camera[..., 2]) * z / camera[..., 0]
    y = (v - camera[..., 3]) * z / camera[..., 1]
    return _stack(x, y, z)


def depth_points(depth: np.ndarray, camera: np.ndarray) -> np.ndarray:
    """Unproject a depth image (H, W) to points (N, 3), row by row; pixels of depth 0 or less are left out.

    `camera` (4,) as in `project_points`; points have the unit of the depths.
    """
    v, u = np.nonzero(depth > 0)
    return unproject_pixels(np.stack((u, v, depth[v, u]), axis=-1), camera)


def pixel_rays(camera: np.ndarray, *, width_px: int, height_px: int) -> np.ndarray:
    """Return the point at depth 1 on the ray of every pixel: (H, W, 3) float64; `camera` (4,)."""
    v, u = np.mgrid[:height_px, :width_px]
    return unproject_pixels(np.stack((u, v, np.ones_like(u)), axis=-1), camera)


def _double(array: Array) -> Array:
    if isinstance(array, Tensor):
        return array.double()
    return np.asarray(array, dtype=np.float64)


def _stack(*parts: Any) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.stack(parts, dim=-1)
    return np.stack(parts, axis=-1)


Axis = Literal["x", "y", "z"]
Projection = Literal["parallel", "pinhole"]

_AXES: dict[Axis, tuple[int, int, int]] = {"x": (1, 2, 0), "y": (2, 0, 1), "z": (0, 1, 2)}  # right-handed, upward last
_FRAME = 0.95
"""Radius of the unit sphere in a picture with half a side of 1: discs at the rim exceed the sphere."""
_DISTANCE = 3.0
"""Distance of a pinhole from the origin, in radii of the sphere: the field of view is then 39 degrees."""


@dataclass(frozen=True, eq=False)
class Cameras:
    """Camera poses that view the unit sphere: the directions right, up and towards the viewer of each view.

    `rotations` (V, 3, 3) float64, these three unit vectors as rows; `distance` from the origin to the pinhole, None for
    parallel projection; `scale_px`: pixels per unit, for a pinhole pixels per unit at distance 1. Pixel centres are at
    integers, the origin of space in the middle of the picture of `size_px` pixels a side.
    """

    rotations: np.ndarray
    size_px: int
    scale_px: float
    distance: float | None = None

    def __len__(self) -> int:
        return len(self.rotations)

    @property
    def centre_px(self) -> float:
        return (self.size_px - 1) / 2

    def to_view(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rotate vectors (N, 3) into each camera's frame: right, up and towards the viewer, (V, N) each.

        The sums are written out: the bits of a view do not depend on the number of views.
        """
        x, y, z = vectors.T
        right, up, towards = (
            row[:, 0:1] * x + row[:, 1:2] * y + row[:, 2:3] * z for row in self.rotations.swapaxes(0, 1)
        )
        return right, up, towards


def ring_cameras(
    num_views: int,
    *,
    size_px: int,
    up_axis: Axis = "z",
    elevations_deg: Sequence[float] = (30.0,),
    projection: Projection = "parallel",
) -> Cameras:
    """Place views evenly around the up axis, ring after ring, with the same number on each elevation.

    Every second ring is turned by half a step. View 0 is on the axis after the up axis (x, y, z, x).
    Raises ValueError if the views cannot be divided evenly, and for elevations of more than 90 degrees.
    """
    num_rings = len(elevations_deg)
    if num_rings == 0 or num_views < 1 or num_views % num_rings:
        raise ValueError(
            f"{num_views} views on {num_rings} elevations: as many on each, at least one, must be asked for"
        )
    for elevation in elevations_deg:
        if not abs(elevation) <= 90:  # NaN is refused as well
            raise ValueError(f"an elevation of {elevation:g} degrees: it must lie within -90 and 90")
    per_ring = num_views // num_rings
    rotations = np.zeros((num_views, 3, 3))
    for view in range(num_views):
        ring, view_in_ring = divmod(view, per_ring)
        azimuth = 2 * math.pi * (view_in_ring + (ring % 2) / 2) / per_ring
        rotations[view][:, _AXES[up_axis]] = _view_rotation(azimuth, math.radians(elevations_deg[ring]))
    half_px = size_px / 2 * _FRAME
    if projection == "parallel":
        return Cameras(rotations, size_px, half_px)
    # The cone from the pinhole that touches the sphere has the tangent 1 / sqrt(distance^2 - 1).
    return Cameras(rotations, size_px, half_px * math.sqrt(_DISTANCE**2 - 1), _DISTANCE)


def _view_rotation(azimuth: float, elevation: float) -> np.ndarray:
    """Return the directions right, up and towards the viewer (3, 3) as rows, in a frame whose third axis is up."""
    cos_a, sin_a, cos_e, sin_e = math.cos(azimuth), math.sin(azimuth), math.cos(elevation), math.sin(elevation)
    return np.array(
        [[-sin_a, cos_a, 0.0], [-sin_e * cos_a, -sin_e * sin_a, cos_e], [cos_e * cos_a, cos_e * sin_a, sin_e]]
    )


CROP_WIDTH = 9


@dataclass(frozen=True, eq=False)
class CropPlacement:
    """Position of each sample's crop: `reference_mm` (B, 3), `camera` (B, 4), `side_mm` (B,) and `angle_rad` (B,)."""

    reference_mm: Tensor
    camera: Tensor
    side_mm: Tensor
    angle_rad: Tensor

    @classmethod
    def from_rows(cls, rows: Tensor) -> CropPlacement:
        """Build a placement from the batch field `rows` (B, 9). Raises ValueError for another width."""
        if rows.ndim != 2 or rows.shape[1] != CROP_WIDTH:
            raise ValueError(f"crop_placement: found the shape {tuple(rows.shape)}, expected (B, {CROP_WIDTH})")
        reference, camera, side, angle = rows.double().split([3, 4, 1, 1], dim=1)
        return cls(reference, camera, side[:, 0], angle[:, 0])

    def rows(self) -> Tensor:
        """Return the placement as one tensor (B, 9) float64: reference, camera, side, angle."""
        return torch.cat([self.reference_mm, self.camera, self.side_mm[:, None], self.angle_rad[:, None]], dim=1)


def crop_depth(depth_mm: Tensor, placement: CropPlacement, *, size: int) -> Tensor:
    """Crop depth images (B, H, W), 0 for unmeasured pixels, to (B, 1, size, size) float32.

    Each pixel of a crop has the depth of the nearest pixel of the image, relative to the reference point and in halves
    of the side: -1 if it is in front of the cube, 1 if it is behind, unmeasured or outside.
    """
    reference, half = placement.reference_mm, placement.side_mm[:, None, None] / 2
    steps = (torch.arange(size, dtype=torch.float64, device=depth_mm.device) + 0.5) / size * 2 - 1
    middle = project_points(reference, placement.camera)
    along, down = torch.meshgrid(steps, steps, indexing="xy")
    wide, high = (half * placement.camera[:, axis, None, None].abs() / reference[:, 2, None, None] for axis in (0, 1))
    right, below = _rotate(along * wide, down * high, -placement.angle_rad[:, None, None])
    column = (middle[:, 0, None, None] + right + 0.5).floor()
    row = (middle[:, 1, None, None] + below + 0.5).floor()
    height, width = depth_mm.shape[1:]
    is_inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    pixel = torch.where(is_inside, row * width + column, 0.0).long()
    measured = depth_mm.double().flatten(1).gather(1, pixel.flatten(1)).view(pixel.shape)
    unit = ((measured - reference[:, 2, None, None]) / half).clamp_min(-1.0)
    return torch.where(is_inside & (measured > 0) & (unit <= 1), unit, 1.0).float()[:, None]


def to_crop_coordinates(points_mm: Tensor, placement: CropPlacement) -> Tensor:
    """Convert camera points (B, P, 3) to crop coordinates (B, P, 3).

    Offsets from the reference point in halves of the side.
    """
    reference, half = placement.reference_mm[:, None], placement.side_mm[:, None, None] / 2
    return (_rotate_in_image(points_mm, placement, placement.angle_rad) - reference) / half


def from_crop_coordinates(offsets: Tensor, placement: CropPlacement) -> Tensor:
    """Convert crop coordinates (B, P, 3) to camera points (B, P, 3) float64.

    The exact inverse of `to_crop_coordinates`.
    """
    half = placement.side_mm[:, None, None] / 2
    points = offsets.double() * half + placement.reference_mm[:, None]
    return _rotate_in_image(points, placement, -placement.angle_rad)


def _rotate_in_image(points_mm: Tensor, placement: CropPlacement, angle_rad: Tensor) -> Tensor:
    """Rotate points (B, P, 3) in the image plane about the projected reference point; their depths are unchanged."""
    camera = placement.camera[:, None]
    middle_u, middle_v, _ = project_points(placement.reference_mm[:, None], camera).unbind(-1)
    u, v, z = project_points(points_mm, camera).unbind(-1)
    right, below = _rotate(u - middle_u, v - middle_v, angle_rad[:, None])
    return unproject_pixels(torch.stack([right + middle_u, below + middle_v, z], dim=-1), camera)


def _rotate(x: Tensor, y: Tensor, angle_rad: Tensor) -> tuple[Tensor, Tensor]:
    cosine, sine = angle_rad.cos(), angle_rad.sin()
    return x * cosine - y * sine, x * sine + y * cosine
