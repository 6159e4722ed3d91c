"""The grid of pillars on the ground that a network and its anchors share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from sightline.contract.errors import ConfigError

Extent: TypeAlias = tuple[float, float, float, float, float, float]
"""Lowest x, y, z, then highest, in metres of the sensor's frame."""
_WHOLE = 1e-6


@dataclass(frozen=True)
class PillarGrid:
    """Cells of `pillar_m` (along x, along y) over `extent_m`; one cell of the head is `stride` of them each way.

    `num_cells` are rows along y and columns along x.
    """

    extent_m: Extent
    pillar_m: tuple[float, float]
    stride: int
    num_cells: tuple[int, int]

    @classmethod
    def of(cls, extent_m: Extent, pillar_m: tuple[float, float], *, stride: int, coarsest: int) -> PillarGrid:
        """Build the grid. Raises ConfigError for an extent that is not whole numbers of `coarsest` cells."""
        low, high = extent_m[:3], extent_m[3:]
        if any(last <= first for first, last in zip(low, high, strict=True)):
            raise ConfigError(
                f"extent_m: found {list(extent_m)}; give the lowest x, y, z, then the highest, in metres, such as "
                "[0, -39.68, -3, 69.12, 39.68, 1]"
            )
        counts = []
        for axis in (0, 1):
            count = (high[axis] - low[axis]) / pillar_m[axis]
            step = coarsest * pillar_m[axis]
            nearest = max(1, round((high[axis] - low[axis]) / step))
            if abs(count - nearest * coarsest) > _WHOLE * count:
                end = low[axis] + nearest * step
                raise ConfigError(
                    f"extent_m: along {'xy'[axis]} {low[axis]:g} to {high[axis]:g} m are {count:g} pillars of "
                    f"{pillar_m[axis]:g} m; the network's strides need a multiple of {coarsest}: let it end at {end:g}"
                )
            counts.append(nearest * coarsest)
        return cls(extent_m, pillar_m, stride, (counts[1], counts[0]))

    @property
    def head_cells(self) -> tuple[int, int]:
        """Rows and columns of the head's map."""
        return self.num_cells[0] // self.stride, self.num_cells[1] // self.stride

    def find_middles(self, cells: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the middles (V, 3) of pillars in `cells` (V, 2), row and column; halfway up the extent."""
        low = self.extent_m
        x = (cells[:, 1].to(dtype) + 0.5) * self.pillar_m[0] + low[0]
        y = (cells[:, 0].to(dtype) + 0.5) * self.pillar_m[1] + low[1]
        return torch.stack([x, y, torch.full_like(x, (low[2] + low[5]) / 2)], dim=1)
