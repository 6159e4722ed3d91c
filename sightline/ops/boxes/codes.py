"""Box codes: deltas relative to anchors, in images and in space, and distances from points, with their inverses."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sightline.ops.boxes.overlaps import _multiply_sides, box_centres, box_sizes
from sightline.ops.dtypes import promote_to_float32
from sightline.ops.waits import send_list

MAX_LOG_RATIO = math.log(1000 / 16)
"""Upper bound of the predicted log ratio: a decoded box is at most 1000 / 16 times as wide and high as its prior."""

DeltaWeights = tuple[float, float, float, float]
_ALL_ONE: DeltaWeights = (1.0, 1.0, 1.0, 1.0)


def encode_deltas(priors: Tensor, boxes: Tensor, *, weights: DeltaWeights = _ALL_ONE) -> Tensor:
    """Encode boxes as box deltas: centre offsets in prior sizes and log ratios of the sizes, each times its weight.

    `priors` and `boxes` (..., 4) -> (..., 4); a side of 0 counts as the least positive number. Source: Girshick et al.
    2014, appendix C; the weights are those of Fast R-CNN's code, (10, 10, 5, 5) in its second stage.
    """
    prior_sizes, sizes = _positive_sizes(priors), _positive_sizes(boxes)
    offsets = (box_centres(boxes) - box_centres(priors)) / prior_sizes
    deltas = torch.cat([offsets, (sizes / prior_sizes).log()], dim=-1)
    return deltas if weights == _ALL_ONE else deltas * send_list(weights, deltas.device, deltas.dtype)


def decode_deltas(priors: Tensor, deltas: Tensor, *, weights: DeltaWeights = _ALL_ONE) -> Tensor:
    """Decode box deltas: priors (..., 4), deltas (..., 4) -> boxes (..., 4).

    The inverse of `encode_deltas`, with log ratios of at most `MAX_LOG_RATIO`.
    """
    deltas = promote_to_float32(deltas)
    if weights != _ALL_ONE:
        deltas = deltas / send_list(weights, deltas.device, deltas.dtype)
    sizes = box_sizes(priors)
    centres = box_centres(priors) + deltas[..., :2] * sizes
    half = sizes * deltas[..., 2:].clamp(max=MAX_LOG_RATIO).exp() / 2
    return torch.cat([centres - half, centres + half], dim=-1)


def encode_distances(points: Tensor, boxes: Tensor, *, strides: Tensor | float = 1.0) -> Tensor:
    """Encode boxes (..., 4) as distances (..., 4) in strides: of points (..., 2) from left, top, right and bottom.

    `strides` is one number or broadcasts with the result, such as (P, 1). A distance is negative if the point is beyond
    that side. Source: Tian et al. 2019, equation 1.
    """
    points, boxes = promote_to_float32(points), promote_to_float32(boxes)
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1) / strides


def decode_distances(points: Tensor, distances: Tensor, *, strides: Tensor | float = 1.0) -> Tensor:
    """Decode points (..., 2) and distances (..., 4) in strides to boxes (..., 4): the inverse of `encode_distances`."""
    points, distances = promote_to_float32(points), promote_to_float32(distances) * strides
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], dim=-1)


def encode_deltas3d(priors: Tensor, boxes: Tensor) -> Tensor:
    """Encode boxes in space (..., 7) as deltas (..., 7) of anchors (..., 7): x, y, z, dx, dy, dz in metres, and yaw.

    Offsets in x and y are in diagonals of the anchor's base, that in z in its heights; then log ratios of the sides, of
    which one of 0 counts as the least positive number, and the difference of the yaws in radians, not wrapped. Further
    columns, such as velocities, are differences, too.
    Source: Yan et al. 2018, SECOND, section 3.2.1.
    """
    priors, boxes = promote_to_float32(priors), promote_to_float32(boxes)
    tiny = torch.finfo(boxes.dtype).tiny
    prior_sides, sides = priors[..., 3:6].clamp(min=tiny), boxes[..., 3:6].clamp(min=tiny)
    offsets = (boxes[..., :3] - priors[..., :3]) / _offset_units(prior_sides)
    return torch.cat([offsets, (sides / prior_sides).log(), boxes[..., 6:] - priors[..., 6:]], dim=-1)


def decode_deltas3d(priors: Tensor, deltas: Tensor) -> Tensor:
    """Decode deltas (..., 7) of anchors (..., 7) to boxes in space (..., 7).

    The inverse of `encode_deltas3d`, with log ratios of at most `MAX_LOG_RATIO`; the yaw is not wrapped.
    """
    priors, deltas = promote_to_float32(priors), promote_to_float32(deltas)
    middles = priors[..., :3] + deltas[..., :3] * _offset_units(priors[..., 3:6])
    sides = priors[..., 3:6] * deltas[..., 3:6].clamp(max=MAX_LOG_RATIO).exp()
    return torch.cat([middles, sides, priors[..., 6:] + deltas[..., 6:]], dim=-1)


def _offset_units(sides: Tensor) -> Tensor:
    """Return units (..., 3) of offsets: the diagonal of the base for x and y, and the height, of sides (..., 3)."""
    diagonal = torch.linalg.vector_norm(sides[..., :2], dim=-1, keepdim=True)
    return torch.cat([diagonal, diagonal, sides[..., 2:]], dim=-1)


def decode_boxes(priors: Tensor, codes: Tensor) -> Tensor:
    """Decode predictions (..., 4) to boxes (..., 4), or (..., 7) to boxes in space (..., 7).

    Deltas if `priors` are anchors, (..., 4) or (..., 7); pixels if they are points (..., 2).
    """
    if priors.shape[-1] >= 7:
        return decode_deltas3d(priors, codes)
    return decode_deltas(priors, codes) if priors.shape[-1] == 4 else decode_distances(priors, codes)


def centreness(distances: Tensor) -> Tensor:
    """Compute the centreness (...) from distances (..., 4) in any unit.

    1 in the middle of a box, 0 on its sides and outside.
    Source: Tian et al. 2019, equation 3.
    """
    distances = promote_to_float32(distances).clamp(min=0)
    smaller, larger = torch.aminmax(torch.stack([distances[..., :2], distances[..., 2:]]), dim=0)
    return _multiply_sides(smaller / larger.clamp(min=torch.finfo(larger.dtype).tiny)).sqrt()


def _positive_sizes(boxes: Tensor) -> Tensor:
    sizes = box_sizes(boxes)
    return sizes.clamp(min=torch.finfo(sizes.dtype).tiny)
