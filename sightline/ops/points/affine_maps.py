"""Affine maps of image coordinates, as matrices (2, 3) that act on (x, y, 1), applied to boxes."""

from __future__ import annotations

import torch
from torch import Tensor


def warp_boxes(boxes: Tensor, matrix: Tensor) -> Tensor:
    """Return the bounding boxes (..., 4) of the mapped corners of `boxes` (..., 4).

    `matrix` (2, 3), computed in float64; those of whole numbers are float64.
    """
    left, top, right, bottom = boxes.double().unbind(-1)
    ones = torch.ones_like(left)
    corners = torch.stack([torch.stack([x, y, ones], -1) for x in (left, right) for y in (top, bottom)], -2)
    mapped = corners @ matrix.double().T
    bounds = torch.cat([mapped.amin(-2), mapped.amax(-2)], dim=-1)
    return bounds.to(boxes.dtype) if boxes.is_floating_point() else bounds


def compose_affine(second: Tensor, first: Tensor) -> Tensor:
    """Return the map (2, 3) float64 that applies `first` (2, 3), then `second` (2, 3)."""
    return second.double() @ _square(first)


def invert_affine(matrix: Tensor) -> Tensor:
    """Return the inverse map (2, 3) float64 of `matrix` (2, 3)."""
    return torch.linalg.inv(_square(matrix))[:2]


def _square(matrix: Tensor) -> Tensor:
    return torch.cat([matrix.double(), matrix.new_tensor([[0, 0, 1]], dtype=torch.float64)])
