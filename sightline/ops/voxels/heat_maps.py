"""Gaussian heat maps of joints in a volume, and the decoding of heat maps to coordinates.

A heat map has half as many cells a side as its volume has voxels, or any other whole share. Its coordinate h is that of
voxels times this share: cell a covers [a, a + 1), and its middle is a + 0.5. Volumes of heat maps are (B, J, V, V, V)
in the order x, y, z, coordinates (B, J, 3) in the same order.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Decoding = Literal["parabola", "argmax", "soft", "centroid"]
"""Decoding of a coordinate from a heat map; `parabola` fits the logarithm around the largest cell."""

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
        other_axes = [other for other in (2, 3, 4) if other != axis]
        along = torch.arange(shares.shape[axis], dtype=shares.dtype, device=shares.device)
        means.append((shares.sum(dim=other_axes) * along).sum(dim=-1))
    return torch.stack(means, dim=-1)
