"""Levels of sparse voxels, each half as fine as the one before, with the kernel maps that a network's layers share.

Maps depend on the cells alone, so that they are made where batches are read, beside the step before. The rows of a
level may be filled up to a capacity, so that steps on a GPU have few forms: a capacity changes no bit of what a network
computes at the voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from sightline.layers.cloud_layouts import as_packed
from sightline.layers.curve_levels import CurveLevel, CurveRule
from sightline.ops.segments.offsets import offsets_to_batch
from sightline.ops.voxels.cells import SparseVoxels, group_cells, sparse_voxels
from sightline.ops.voxels.kernel_maps import KernelMap, neighbour_table, strided_map

_FIRST_CAPACITY = 1024
_MULTIPLE = 128
_SHARES = (1.0, 0.8, 0.6, 0.4, 0.25)
"""Capacity of each level as a share of the first's, a little above the levels of a LiDAR scan in cells of 5 cm."""


@dataclass(frozen=True)
class VoxelLevel:
    """Voxels of all clouds at one level, and the kernel maps there.

    Features of a level are tables of `capacity` rows, of which the first `num_voxels` are voxels. `tables` (capacity,
    size^3) are those of submanifold convolutions by size, `down` the map to the next level of a convolution of size and
    stride 2; `curves` are their orders for attention.
    """

    num_voxels: int
    capacity: int
    tables: dict[int, Tensor]
    down: KernelMap | None
    curves: CurveLevel | None = None

    @cached_property
    def around(self) -> dict[int, KernelMap]:
        """The maps of submanifold convolutions by size."""
        return {size: KernelMap.of_neighbours(table) for size, table in self.tables.items()}

    @cached_property
    def pointwise(self) -> KernelMap:
        """The map of a linear layer: each voxel reads itself."""
        table = next(iter(self.tables.values()))
        row = torch.arange(self.capacity, device=table.device, dtype=torch.int32)
        table = torch.where(row < self.num_voxels, row, -1)[:, None]
        return KernelMap(table, table)

    @cached_property
    def parents(self) -> Tensor:
        """The voxel (capacity,) int64 of the next level that each is in, -1 for none."""
        assert self.down is not None
        return self.down.reverse.amax(dim=1).long()

    def fill_up(self, capacity: int, next_capacity: int) -> VoxelLevel:
        """Return the level with tables of `capacity` rows, and `next_capacity` of the next level.

        Raises ValueError for fewer rows than voxels: no voxel is dropped.
        """
        if capacity < self.num_voxels:
            raise ValueError(f"capacity: found {capacity} for {self.num_voxels} voxels; no voxel is dropped")
        missing = capacity - self.capacity
        tables = {
            size: torch.nn.functional.pad(table, (0, 0, 0, missing), value=-1) for size, table in self.tables.items()
        }
        down = None if self.down is None else self.down.pad(next_capacity, capacity)
        curves = None if self.curves is None else self.curves.fill_up(capacity)
        return replace(self, capacity=capacity, tables=tables, down=down, curves=curves)

    def pad(self, rows: Tensor) -> Tensor:
        """Fill rows (V, C) up to the capacity with zeros."""
        return torch.nn.functional.pad(rows, (0, 0, 0, self.capacity - rows.shape[0]))


@dataclass(frozen=True)
class VoxelMaps:
    """Voxels of a batch, and the levels on them, as a `preparation` makes them."""

    preparation: VoxelPreparation
    voxels: SparseVoxels
    levels: tuple[VoxelLevel, ...]

    def fill_up(self) -> VoxelMaps:
        """Return the maps with levels of the capacities that `choose_capacities` chooses for them."""
        capacities = choose_capacities([level.num_voxels for level in self.levels])
        filled = zip(self.levels, pairwise([*capacities, 0]), strict=True)
        return replace(self, levels=tuple(level.fill_up(*rows) for level, rows in filled))


@dataclass(frozen=True)
class VoxelPreparation:
    """Function from points to the `VoxelMaps` of a network with kernels of `sizes` on voxels of `side`.

    `curves` is the rule of a network with attention inside of patches.
    """

    side: float
    sizes: tuple[tuple[int, ...], ...]
    curves: CurveRule | None = None

    def __call__(
        self,
        *,
        points: Tensor,
        offsets: Tensor | None = None,
        cells: Tensor | None = None,
        grid_corner: Tensor | None = None,
    ) -> dict[str, VoxelMaps]:
        """Return `voxel_maps` of `points` (B, N, 3), or (P, 3) with `offsets` (S+1,); `cells` (..., 3) replace theirs.

        Cells count from the lowest of each cloud. With `grid_corner` (3,), they fall into coarse cells as those of a
        cloud whose lowest coordinates these are. Raises ValueError as `sparse_voxels` and the maps do.
        """
        packed, _, bounds = as_packed(points, None, offsets)
        if cells is None:
            voxels = sparse_voxels(packed, bounds, side=self.side)
        else:
            voxels = group_cells(cells.reshape(-1, 3), bounds)
        if grid_corner is not None:
            voxels = self._align(voxels, grid_corner)
        levels = build_voxel_levels(voxels.cells, voxels.offsets, sizes=self.sizes, curves=self.curves)
        return {"voxel_maps": VoxelMaps(self, voxels, tuple(levels))}

    def _align(self, voxels: SparseVoxels, grid_corner: Tensor) -> SparseVoxels:
        """Let cells count from the next lower cell that is a whole number of coarsest ones away from a corner's."""
        first = (grid_corner.double() / self.side).floor().long()
        moved = (voxels.lowest - first) % 2 ** (len(self.sizes) - 1)
        cloud = offsets_to_batch(voxels.offsets, len(voxels.cells))
        return voxels._replace(cells=voxels.cells + moved[cloud], lowest=voxels.lowest - moved)

    def fits(self, maps: VoxelMaps) -> bool:
        """Return True for maps that this would make of some points: those of another network are of no use."""
        return maps.preparation == self


def build_voxel_levels(
    cells: Tensor, offsets: Tensor, *, sizes: Sequence[Sequence[int]], curves: CurveRule | None = None
) -> list[VoxelLevel]:
    """Build a level for each entry of `sizes`, the kernels of its submanifold convolutions, from `cells` (V, 3).

    One voxel a cell, of packed clouds with `offsets` (S+1,). Raises ValueError as the maps and curves do.
    """
    levels = []
    depth = 0 if curves is None else curves.choose_depth(cells)
    for number, level_sizes in enumerate(sizes):
        tables, count = {size: neighbour_table(cells, offsets, size=size) for size in level_sizes}, cells.shape[0]
        ordered = None if curves is None else curves.order(cells, offsets, depth=depth - number)
        if number + 1 == len(sizes):
            levels.append(VoxelLevel(count, count, tables, None, ordered))
            break
        coarse = strided_map(cells, offsets, size=2, stride=2)
        levels.append(VoxelLevel(count, count, tables, coarse.map, ordered))
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
