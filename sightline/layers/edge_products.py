"""Linear maps of edges and of points, by the fastest matrix product for their shape.

torch multiplies float32 matrices on the CPU with a library that leaves half of some processors idle (MKL on AMD:
107 of the 235 thousand million operations a second of its convolutions, measured on one Zen 5 core at 512 channels). A
linear map is a convolution of size 1, and convolutions of sixteen images or more go to oneDNN, which does not.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

__all__ = ["map_edges", "map_gradient", "map_points"]

_MIN_IMAGES = 16
"""Fewest images for which torch uses oneDNN; below, its own loops are no faster than a product."""


def map_edges(edges: Tensor, weight: Tensor) -> Tensor:
    """Apply a linear map to edges: `edges` (M, K, C), `weight` (D, C) -> (M, K, D), a new tensor."""
    if not _can_use_convolution(edges):
        return F.linear(edges, weight)
    return F.conv2d(_as_images(edges), weight[:, :, None, None]).permute(0, 2, 3, 1).squeeze(1)


def map_points(points: Tensor, weight: Tensor) -> Tensor:
    """Apply a linear map to points: `points` (..., C), `weight` (D, C) -> (..., D), with the gradients of a product."""
    rows = points.flatten(0, -2)
    if len(rows) % _MIN_IMAGES:
        return F.linear(points, weight)
    mapped = map_edges(rows.view(_MIN_IMAGES, -1, rows.shape[-1]), weight)
    return mapped.reshape(*points.shape[:-1], len(weight))


def map_gradient(edges: Tensor, to_mapped: Tensor) -> Tensor:
    """Compute the weight's gradient (D, C) of `map_edges` from edges (M, K, C) and its result's (M, K, D)."""
    if not _can_use_convolution(edges):
        return to_mapped.flatten(0, 1).mT @ edges.flatten(0, 1)
    shape = (to_mapped.shape[-1], edges.shape[-1], 1, 1)
    return conv2d_weight(_as_images(edges), shape, _as_images(to_mapped))[:, :, 0, 0]


def _can_use_convolution(edges: Tensor) -> bool:
    return edges.device.type == "cpu" and edges.dtype == torch.float32 and len(edges) >= _MIN_IMAGES


def _as_images(edges: Tensor) -> Tensor:
    """View edges (M, K, C) as images (M, C, 1, K) in channels-last memory, without a copy."""
    return edges[:, None].permute(0, 3, 1, 2)
