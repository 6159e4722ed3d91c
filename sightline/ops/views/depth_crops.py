"""Square crops of depth images about a reference point, and coordinates in the crop's frame.

A crop shows the cube of side `side_mm` about the reference point as the camera sees its middle, turned in the image
plane about the point, with depths from -1 at its front to 1 at its back. Source: Oberweger and Lepetit 2017
(DeepPrior++), section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sightline.ops.views.pinhole import project_points, unproject_pixels

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
