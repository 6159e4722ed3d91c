"""3D boxes and their velocities, moved as the points of their cloud are.

Boxes (B, M, 7) are x, y, z of the centre, dx along the heading, dy, dz, and yaw, counter-clockwise from +x, which is
brought to -pi to below pi; velocities (B, M, 2) are along x and y. What is None stays away.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def flip_boxes(sign: Tensor, boxes: Tensor | None, velocity: Tensor | None) -> dict[str, Tensor]:
    """Flip boxes along axes whose `sign` (B, 1, 3) is -1: a heading is mirrored, an extent is not."""
    changed = {}
    if boxes is not None:
        yaw = boxes[..., 6]
        yaw = torch.where(sign[..., 1] < 0, -yaw, yaw)
        yaw = torch.where(sign[..., 0] < 0, math.pi - yaw, yaw)
        changed["boxes"] = _join(boxes[..., :3] * sign, boxes[..., 3:6], yaw)
    if velocity is not None:
        changed["velocity"] = velocity * sign[..., :2]
    return changed


def turn_boxes(matrix: Tensor, boxes: Tensor | None, velocity: Tensor | None) -> dict[str, Tensor]:
    """Turn boxes about z by rotations `matrix` (B, 3, 3), as `rotate_points` turns points."""
    changed = {}
    if boxes is not None:
        rotation = matrix.to(boxes.dtype)
        angle = torch.atan2(rotation[:, 1, 0], rotation[:, 0, 0])[:, None]
        centres = boxes[..., :3] @ rotation.transpose(1, 2)
        changed["boxes"] = _join(centres, boxes[..., 3:6], boxes[..., 6] + angle)
    if velocity is not None:
        changed["velocity"] = velocity @ matrix[:, :2, :2].to(velocity.dtype).transpose(1, 2)
    return changed


def scale_boxes(factor: Tensor, boxes: Tensor | None, velocity: Tensor | None) -> dict[str, Tensor]:
    """Scale boxes about the origin by `factor` (B, 1, 1): places, extents and velocities."""
    changed = {}
    if boxes is not None:
        changed["boxes"] = torch.cat([boxes[..., :6] * factor.to(boxes.dtype), boxes[..., 6:]], dim=2)
    if velocity is not None:
        changed["velocity"] = velocity * factor.to(velocity.dtype)
    return changed


def shift_boxes(shift: Tensor, boxes: Tensor | None) -> dict[str, Tensor]:
    """Shift boxes by `shift` (B, 1, 3)."""
    return (
        {} if boxes is None else {"boxes": torch.cat([boxes[..., :3] + shift.to(boxes.dtype), boxes[..., 3:]], dim=2)}
    )


def wrap_yaw(yaw: Tensor) -> Tensor:
    """Return angles in radians from -pi to below pi."""
    turned = torch.remainder(yaw + math.pi, 2 * math.pi) - math.pi
    return torch.where(turned >= math.pi, -math.pi, turned)


def _join(centres: Tensor, sizes: Tensor, yaw: Tensor) -> Tensor:
    return torch.cat([centres, sizes, wrap_yaw(yaw)[..., None]], dim=2)
