"""Levels of sparse voxels, each half as fine as the one before, with the kernel maps that a network's layers share.

Maps depend on the cells alone. The rows of a level may be filled up to a capacity, so that steps on a GPU have few
forms: a capacity changes no bit of what a network computes at the voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from sightline.ops.voxels.kernel_maps import KernelMap, strided_map, submanifold_map

_FIRST_CAPACITY = 1024
_MULTIPLE = 128
_SHARES = (1.0, 0.8, 0.6, 0.4, 0.25)
"""Capacity of each level as a share of the first's, a little above the levels of a LiDAR scan in cells of 5 cm."""


@dataclass(frozen=True)
class VoxelLevel:
    """Voxels of S clouds at one level: `cells` (V, 3) int64 from 0 in each cloud, `offsets` (S+1,), and maps.

    Features of a level are tables of `capacity` rows, of which the first V are voxels. `around` are the maps of
    submanifold convolutions by size, `down` that to the next level of a convolution of size and stride 2.
    """

    cells: Tensor
    offsets: Tensor
    capacity: int
    around: dict[int, KernelMap]
    down: KernelMap | None

    @property
    def num_voxels(self) -> int:
        """Number of voxels of all clouds."""
        return self.cells.shape[0]

    @cached_property
    def pointwise(self) -> KernelMap:
        """The map of a linear layer: each voxel reads itself."""
        row = torch.arange(self.capacity, device=self.cells.device, dtype=torch.int32)
        table = torch.where(row < self.num_voxels, row, -1)[:, None]
        return KernelMap(table, table)

    def fill_up(self, capacity: int, next_capacity: int) -> VoxelLevel:
        """Return the level with tables of `capacity` rows, and `next_capacity` of the next level.

        Raises ValueError for fewer rows than voxels: no voxel is dropped.
        """
        if capacity < self.num_voxels:
            raise ValueError(f"capacity: found {capacity} for {self.num_voxels} voxels; no voxel is dropped")
        around = {size: kernel_map.pad(capacity, capacity) for size, kernel_map in self.around.items()}
        down = None if self.down is None else self.down.pad(next_capacity, capacity)
        return replace(self, capacity=capacity, around=around, down=down)

    def pad(self, rows: Tensor) -> Tensor:
        """Fill rows (V, C) up to the capacity with zeros."""
        return torch.nn.functional.pad(rows, (0, 0, 0, self.capacity - rows.shape[0]))


def build_voxel_levels(cells: Tensor, offsets: Tensor, *, sizes: Sequence[Sequence[int]]) -> list[VoxelLevel]:
    """Build a level for each entry of `sizes`, the kernels of its submanifold convolutions, from `cells` (V, 3).

    One voxel a cell, of packed clouds with `offsets` (S+1,). Raises ValueError as the maps do.
    """
    levels = []
    for number, level_sizes in enumerate(sizes):
        around = {size: submanifold_map(cells, offsets, size=size) for size in level_sizes}
        if number + 1 == len(sizes):
            levels.append(VoxelLevel(cells, offsets, len(cells), around, None))
            break
        coarse = strided_map(cells, offsets, size=2, stride=2)
        levels.append(VoxelLevel(cells, offsets, len(cells), around, coarse.map))
        cells, offsets = coarse.cells, coarse.offsets
    return levels


def choose_capacities(counts: Sequence[int]) -> list[int]:
    """Choose the capacities of levels of `counts` voxels: those of the smallest form that holds all of them.

    Forms grow by a factor of the square root of 2. Each level of one is a fixed share of its first, so that batches of
    about the same size have one form.
    """
    form = 0
    while True:
        capacities = [_round_up(_FIRST_CAPACITY * 2 ** (form / 2) * _share(level)) for level in range(len(counts))]
        if all(count <= capacity for count, capacity in zip(counts, capacities, strict=True)):
            return capacities
        form += 1


def _share(level: int) -> float:
    last = len(_SHARES) - 1
    return _SHARES[level] if level <= last else _SHARES[last] * 0.6 ** (level - last)


def _round_up(rows: float) -> int:
    return int(-(-rows // _MULTIPLE) * _MULTIPLE)
