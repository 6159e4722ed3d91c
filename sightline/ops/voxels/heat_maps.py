"""Gaussian heat maps of joints in an image or a volume, and the decoding of heat maps to coordinates.

A coordinate h is in cells of the map: cell a covers [a, a + 1), and its middle is a + 0.5, unless `middle` says where
else. Coordinates are always in the order (x, y) or (x, y, z); `axes` names those of a map in their order, by default
that of images, (..., height, width) or (..., depth, height, width).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Decoding = Literal["parabola", "argmax", "soft", "centroid"]
"""Decoding of a coordinate from a heat map; `parabola` fits the logarithm around the largest cell."""
MapAxes = Literal["yx", "xy", "zyx", "xyz"]
"""Order of the axes of a map."""

_OF_IMAGES: dict[int, MapAxes] = {2: "yx", 3: "zyx"}
_SOFT_SHARPNESS = 50.0  # below it the volume's middle draws: 16.8 cells for a true 10.3 at 10, the middle itself at 1
_CENTROID_SHARE = 0.5


def gaussian_heatmaps(
    joints: Tensor,
    size: int | Sequence[int],
    *,
    sigma: float = 1.7,
    axes: MapAxes | None = None,
    middle: float = 0.5,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw a Gaussian about each joint: exp(-|a + middle - h|^2 / (2 sigma^2)) in cell a, (..., J, *size), at most 1.

    `joints` (..., J, 2 or 3) are coordinates h in cells, `sigma` is in cells, too; `size` is that of the map's axes, or
    one for all. A joint outside keeps the tail that reaches in. A `middle` of 0 puts the first cell's middle at 0, as
    codes for COCO do. The exponential of a sum is a product, with a factor for each axis, taken in float64. Raises
    ValueError for other shapes. Source: Tompson et al. 2014; Moon et al. 2018, equation 1.
    """
    axes = _read_axes(axes, joints.shape[-1], "joints", tuple(joints.shape))
    sizes = (size,) * len(axes) if isinstance(size, int) else tuple(size)
    if len(sizes) != len(axes) or min(sizes) < 1:
        raise ValueError(f"size: found {size}, expected a whole number for each of the axes {axes}, at least 1")
    if not sigma > 0:
        raise ValueError(f"sigma: found {sigma}, allowed is a number of cells above 0")
    *outer, row, column = (
        _axis_factor(joints[..., "xyz".index(axis)], length, sigma, middle)
        for axis, length in zip(axes, sizes, strict=True)
    )
    maps = (row[..., :, None] * column[..., None, :]).to(dtype)
    for factor in outer:
        maps = factor.to(dtype)[..., :, None, None] * maps[..., None, :, :]
    return maps


def decode_heatmaps(
    heatmaps: Tensor, *, decoding: Decoding = "parabola", axes: MapAxes | None = None, middle: float = 0.5
) -> Tensor:
    """Decode heat maps (B, J, *size) to coordinates h (B, J, 2 or 3) float64, in cells.

    `argmax` is the middle of the largest cell, the first in C order among equals. `parabola` moves from there along
    each axis to the top of the parabola through the logarithms of three cells, by half a cell at most; at a border, or
    beside a cell that is not positive, it stays. For a Gaussian it is exact. `soft` is the mean under the softmax of 50
    times the map, `centroid` that of the cells above half of the maximum. `axes` and `middle` are
    those of `gaussian_heatmaps`. Raises ValueError for another shape or decoding.
    """
    axes = _read_axes(axes, heatmaps.ndim - 2, "heatmaps", tuple(heatmaps.shape))
    values = heatmaps.double()
    if decoding == "soft":
        cells = _mean_cell(_soft_shares(values * _SOFT_SHARPNESS))
    elif decoding == "centroid":
        cells = _centroid(values)
    elif decoding in ("argmax", "parabola"):
        largest = _find_largest(values)
        cells = largest + middle + (_parabola_offset(values, largest) if decoding == "parabola" else 0.0)
        return _in_order(cells, axes)
    else:
        raise ValueError(f"decoding: found {decoding!r}, allowed are 'parabola', 'argmax', 'soft' and 'centroid'")
    return _in_order(cells + middle, axes)


def soft_argmax(logits: Tensor, *, axes: MapAxes | None = None) -> Tensor:
    """Compute the mean cell (B, J, 2 or 3) under the softmax over each map (B, J, *size), counted from 0.

    Differentiable, in the dtype of `logits`. Source: Sun et al. 2018, Integral human pose regression, eq. 2.
    """
    axes = _read_axes(axes, logits.ndim - 2, "logits", tuple(logits.shape))
    return _in_order(_mean_cell(_soft_shares(logits)), axes)


def heatmap_peaks(heatmaps: Tensor) -> Tensor:
    """Return the largest value (B, J) of heat maps (B, J, *size): near 1 for a sure network, near 0 for a dead map."""
    return heatmaps.flatten(2).amax(dim=-1)


def _read_axes(axes: MapAxes | None, count: int, name: str, shape: tuple[int, ...]) -> MapAxes:
    """Return the axes of maps of `count` coordinates, by default those of images."""
    if count not in _OF_IMAGES:
        expected = "(..., J, 2 or 3)" if name == "joints" else "(B, J, height, width) or (B, J, depth, height, width)"
        raise ValueError(f"{name}: found the shape {shape}, expected {expected}")
    if axes is not None and axes not in (_OF_IMAGES[count], _OF_IMAGES[count][::-1]):
        raise ValueError(f"axes: found {axes!r}, allowed are {_OF_IMAGES[count]!r} and {_OF_IMAGES[count][::-1]!r}")
    return axes or _OF_IMAGES[count]


def _in_order(cells: Tensor, axes: MapAxes) -> Tensor:
    """Return coordinates (..., D) in the order of a map's axes in their own: x first."""
    return cells if axes[0] == "x" else cells.flip(-1)


def _axis_factor(coordinate: Tensor, length: int, sigma: float, middle: float) -> Tensor:
    """Compute the Gaussian factor of an axis: (..., length) float64."""
    centres = torch.arange(length, dtype=torch.float64, device=coordinate.device) + middle
    return torch.exp(-((centres - coordinate.double()[..., None]) ** 2) / (2 * sigma**2))


def _soft_shares(logits: Tensor) -> Tensor:
    return logits.flatten(2).softmax(dim=-1).view(logits.shape)


def _find_largest(values: Tensor) -> Tensor:
    cell = values.flatten(2).argmax(dim=-1)  # torch promises the first of equal maxima
    places = []
    for size in reversed(values.shape[3:]):  # not by unravel_index, which a trace of TorchScript cannot record
        places.append(cell % size)
        cell = cell // size
    return torch.stack([cell, *reversed(places)], dim=-1).double()


def _parabola_offset(values: Tensor, largest: Tensor) -> Tensor:
    """Return the offset (B, J, D) of the top of a parabola through three logarithms from the largest cell."""
    cell = largest.long().unbind(-1)
    centre = _gather_cells(values, cell)
    offsets = []
    for axis, size in enumerate(values.shape[2:]):
        axis_cell, before, after = cell[axis], cell[:axis], cell[axis + 1 :]
        previous = _gather_cells(values, (*before, (axis_cell - 1).clamp(min=0), *after))
        following = _gather_cells(values, (*before, (axis_cell + 1).clamp(max=size - 1), *after))
        is_usable = (axis_cell > 0) & (axis_cell < size - 1) & (previous > 0) & (following > 0) & (centre > 0)
        low, mid, high = (torch.where(is_usable, value, 1.0).log() for value in (previous, centre, following))
        bend = low - 2 * mid + high
        is_usable = is_usable & (bend < 0)
        offset = 0.5 * (low - high) / torch.where(is_usable, bend, 1.0)
        offsets.append(torch.where(is_usable, offset.clamp(-0.5, 0.5), 0.0))
    return torch.stack(offsets, dim=-1)


def _gather_cells(values: Tensor, index: Sequence[Tensor]) -> Tensor:
    cell, *positions = index
    for size, position in zip(values.shape[3:], positions, strict=True):
        cell = cell * size + position
    return values.flatten(2).gather(2, cell[..., None])[..., 0]


def _centroid(values: Tensor) -> Tensor:
    axes = tuple(range(2, values.ndim))
    top = values.amax(dim=axes, keepdim=True)
    thresholded = torch.where(values >= _CENTROID_SHARE * top, values, 0.0).clamp_min(0)
    total = thresholded.sum(dim=axes, keepdim=True)
    is_some = total.flatten(2) > 0
    return torch.where(is_some, _mean_cell(thresholded / total.clamp_min(1e-300)), _find_largest(values))


def _mean_cell(shares: Tensor) -> Tensor:
    """Return the mean index (B, J, D) along each axis of maps that sum to 1."""
    means, axes = [], range(2, shares.ndim)
    for axis in axes:
        along = torch.arange(shares.shape[axis], dtype=shares.dtype, device=shares.device)
        means.append((shares.sum(dim=[other for other in axes if other != axis]) * along).sum(dim=-1))
    return torch.stack(means, dim=-1)
