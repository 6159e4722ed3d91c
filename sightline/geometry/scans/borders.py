"""Border pixels of classes in label images."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["border_mask"]

_ABOVE_ALL = 2**31 - 1
"""Label above every class, and exact in float64, through which padding goes."""


def border_mask(label: Tensor, *, size: int, connectivity: Literal[4, 8] = 4, background: int | None = None) -> Tensor:
    """Return a mask (S, H, W) bool of the pixels that `size` erosions remove from their class in `label` (S, H, W).

    Pixels of `background` belong to every class. The border of the image is one of every class.
    Source: the border mask of the published code of Milioto et al. 2019 (RangeNet++).
    """
    is_background = torch.zeros_like(label, dtype=torch.bool) if background is None else label == background
    low, high = label.masked_fill(is_background, _ABOVE_ALL), label.masked_fill(is_background, -1)
    for _ in range(size):
        low = _least_around(low, connectivity, outside=-1)
        high = -_least_around(-high, connectivity, outside=-_ABOVE_ALL)
    return low < high  # two classes are near, or a class and the outside


def _least_around(image: Tensor, connectivity: Literal[4, 8], *, outside: int) -> Tensor:
    """Return the minimum (S, H, W) of each pixel and its neighbours."""
    padded = functional.pad(image, (1, 1, 1, 1), value=outside)
    rows = padded[:, :, :-2].minimum(padded[:, :, 1:-1]).minimum(padded[:, :, 2:])
    upright = rows if connectivity == 8 else padded[:, :, 1:-1]
    return upright[:, :-2].minimum(upright[:, 2:]).minimum(rows[:, 1:-1])
