"""Kernel maps of sparse convolutions: which voxel of the input each place of a kernel reads, for each output voxel.

The places of a kernel of size k are numbered with z fastest: (kx k + ky) k + kz. A submanifold convolution (Graham et
al. 2018) has outputs at its input's voxels, and the place (kx, ky, kz) reads the voxel at p + (kx, ky, kz) - k // 2. A
strided one has outputs at all cells q that some voxel reaches, and reads q stride - padding + (kx, ky, kz). Maps depend
on cells alone: layers of one level share them. Nothing depends on the number of threads, or on other clouds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.ops.numba_kernels import numba_kernel, run_parallel
from sightline.ops.operator import operator
from sightline.ops.segments.offsets import assert_packed, batch_to_offsets, offsets_to_batch
from sightline.ops.voxels.cells import cell_keys, keep_first, require_few_cells, sort_stably
from sightline.ops.waits import require, send_list

_MOST_ROWS = 2**31 - 1


class KernelMap(NamedTuple):
    """Rows that a convolution of K places reads: `table` (M, K) int32 of M outputs, -1 where there is no voxel.

    `reverse` (N, K) int32 is the output that reads each of N inputs at each place, -1 for none: the table of the
    inverse convolution, and of the gradient.
    """

    table: Tensor
    reverse: Tensor

    @classmethod
    def of_neighbours(cls, table: Tensor) -> KernelMap:
        """Return the map of a submanifold convolution by its table (N, K): what reads a voxel is read by it."""
        return cls(table, table.flip(1))

    def inverted(self) -> KernelMap:
        """Return the map of the inverse convolution: from the outputs back to the inputs, with the same kernel."""
        return KernelMap(self.reverse, self.table)

    def pad(self, num_outputs: int, num_inputs: int) -> KernelMap:
        """Add rows without pairs, up to these numbers of outputs and inputs."""
        pairs = ((self.table, num_outputs), (self.reverse, num_inputs))
        return KernelMap(
            *(torch.nn.functional.pad(rows, (0, 0, 0, size - len(rows)), value=-1) for rows, size in pairs)
        )


class CoarseCells(NamedTuple):
    """Voxels of the next level: `cells` (M, 3) int64 and `offsets` (S+1,), in rising order; and the map to them."""

    cells: Tensor
    offsets: Tensor
    map: KernelMap

    @property
    def is_dropped(self) -> Tensor:
        """Whether each voxel of the input (N,) is read by no output, as beyond the `extent` of a grid."""
        return (self.map.reverse < 0).all(dim=1)


def submanifold_map(cells: Tensor, offsets: Tensor, *, size: int) -> KernelMap:
    """Map voxels `cells` (N, 3), at least 0, of packed clouds to themselves by a kernel of odd `size`.

    Of several voxels in one cell, the centre reads the own row, the other places the first. Raises ValueError for an
    even size, cells below 0, and cells that a number of 64 bits cannot name.
    """
    return KernelMap.of_neighbours(neighbour_table(cells, offsets, size=size))


def neighbour_table(cells: Tensor, offsets: Tensor, *, size: int) -> Tensor:
    """Return the table (N, size^3) int32 of `submanifold_map`, which is half of the map: its reverse is the mirror."""
    if size < 1 or size % 2 == 0:
        raise ValueError(f"size: found {size}, expected an odd number: the middle of the kernel is at the voxel itself")
    assert_packed(cells, offsets, name="cells")
    table: Tensor = _neighbour_table(cells.long(), offsets_to_batch(offsets, cells.shape[0]), size)
    return table


def strided_map(
    cells: Tensor,
    offsets: Tensor,
    *,
    size: int,
    stride: int,
    padding: int = 0,
    extent: Sequence[int] | None = None,
) -> CoarseCells:
    """Map voxels `cells` (N, 3), at least 0, of packed clouds to those that a strided convolution reaches.

    Every voxel reaches an output, whatever the extent of the grid. Libraries with a spatial size, here `extent` (3,)
    in cells, have no output beyond floor((extent + 2 padding - size) / stride), and drop what only those would read.
    The number of outputs is read, which waits for a GPU. Raises ValueError as `submanifold_map`, and for two voxels in
    one cell.
    """
    if min(size, stride) < 1 or not 0 <= padding < size or stride > size:
        raise ValueError(f"size {size}, stride {stride}, padding {padding}: the kernels have to cover all cells")
    assert_packed(cells, offsets, name="cells")
    num_clouds = offsets.shape[0] - 1
    cloud = offsets_to_batch(offsets, cells.shape[0])
    coarse, of_cloud, table, reverse, count = _stride_table(
        cells.long(), cloud, size, stride, padding, None if extent is None else list(extent)
    )
    coarse, of_cloud, table = keep_first(count, coarse, of_cloud, table)
    return CoarseCells(coarse, batch_to_offsets(of_cloud, num_clouds), KernelMap(table, reverse))


def _check_table(cells: Tensor, cloud: Tensor, size: int) -> None:
    if cells.shape[0] > _MOST_ROWS:
        raise ValueError(f"cells: {cells.shape[0]} voxels in one batch, more than 2^31; make it smaller")
    if cells.shape[0]:
        require_few_cells(cells, cloud[-1] + 1, margin=size // 2)


def _list_places(size: int, device: torch.device) -> Tensor:
    """Return the places (size^3, 3) of a kernel, z fastest."""
    axis = torch.arange(size, device=device)
    return torch.cartesian_prod(axis, axis, axis).view(-1, 3)


@operator(check=_check_table, differentiable=False)
def _neighbour_table(cells: Tensor, cloud: Tensor, size: int) -> Tensor:
    """Return the row (N, size^3) int32 of the voxel at each place around each voxel, -1 for none."""
    key, steps = cell_keys(cells, cloud, margin=size // 2)
    rising, order = sort_stably(key)
    moved = ((_list_places(size, cells.device) - size // 2) * steps).sum(dim=1)
    columns = []
    for number in range(size**3):
        wanted = key + moved[number]
        place = torch.searchsorted(rising, wanted).clamp(max=max(0, rising.shape[0] - 1))
        columns.append(torch.where(rising[place] == wanted, order[place], -1))
    columns[size**3 // 2] = torch.arange(cells.shape[0], device=cells.device)
    return torch.stack(columns, dim=1).int()


@_neighbour_table.fake
def _(cells: Tensor, cloud: Tensor, size: int) -> Tensor:
    return cells.new_empty((cells.shape[0], size**3), dtype=torch.int32)


def _check_strided(cells: Tensor, cloud: Tensor, *_: Any) -> None:
    _check_table(cells, cloud, 1)
    if not cells.shape[0]:
        return
    key = cell_keys(cells, cloud)[0].sort().values
    require(
        (key.diff() > 0).all(),
        lambda: ValueError(
            f"cells: {int((key.diff() == 0).sum())} voxels are in a cell with another; keep one of each cell, as "
            "`sparse_voxels` does"
        ),
    )


@operator(check=_check_strided, differentiable=False)
def _stride_table(
    cells: Tensor, cloud: Tensor, size: int, stride: int, padding: int, extent: list[int] | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return output cells (R, 3), clouds (R,), table (R, K), reverse (N, K), of which the first () rows are outputs.

    R is the largest number of outputs that N voxels can have.
    """
    num_rows, num_places, device = cells.shape[0], size**3, cells.device
    moved = cells + padding
    steps = _list_places(-(-size // stride), device)  # of outputs before the last that reads the voxel
    place = (moved % stride)[:, None] + steps * stride  # (N, m^3, 3), of the kernel
    coarse = moved.div(stride, rounding_mode="floor")[:, None] - steps
    reads = ((place < size) & (coarse >= 0)).all(dim=2)
    if extent is not None:
        reads &= (coarse <= _last_outputs(extent, size, stride, padding, device)).all(dim=2)
    coarse = torch.where(reads[..., None], coarse, 0)
    last = torch.iinfo(torch.int64).max
    key, _ = cell_keys(coarse.flatten(0, 1), cloud.repeat_interleave(len(steps)))
    rising, order = sort_stably(torch.where(reads.flatten(), key, last))
    begins = rising != last
    begins[1:] &= rising[1:] != rising[:-1]
    rank = begins.cumsum(0) - 1
    most = key.shape[0]
    first = torch.where(begins, rank, most)
    out_cells = cells.new_zeros((most + 1, 3)).scatter(0, first[:, None].expand(-1, 3), coarse.flatten(0, 1)[order])
    out_cloud = cells.new_zeros(most + 1).scatter(0, first, cloud[order.div(len(steps), rounding_mode="floor")])
    output = torch.empty_like(key).scatter(0, order, rank).view(num_rows, len(steps))
    number = (place[..., 0] * size + place[..., 1]) * size + place[..., 2]
    row = torch.arange(num_rows, device=device)[:, None].expand_as(output)
    slot = torch.where(reads, output * num_places + number, most * num_places)
    table = _fill(most, num_places, slot, row)
    reverse = _fill(num_rows, num_places, torch.where(reads, row * num_places + number, num_rows * num_places), output)
    return out_cells[:-1], out_cloud[:-1], table, reverse, begins.sum()


def _fill(num_rows: int, num_places: int, slot: Tensor, values: Tensor) -> Tensor:
    """Return a table (R, K) int32 with values at their slots, -1 elsewhere; the slot after the last is nobody's."""
    filled = torch.full((num_rows * num_places + 1,), -1, dtype=torch.int32, device=slot.device)
    return filled.scatter(0, slot.flatten(), values.int().flatten())[:-1].view(num_rows, num_places)


def _last_outputs(extent: list[int], size: int, stride: int, padding: int, device: torch.device) -> Tensor:
    return send_list([(cells + 2 * padding - size) // stride for cells in extent], device)


@_stride_table.fake
def _(
    cells: Tensor, cloud: Tensor, size: int, stride: int, padding: int, extent: list[int] | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    most = cells.shape[0] * (-(-size // stride)) ** 3
    table, reverse = (cells.new_empty((rows, size**3), dtype=torch.int32) for rows in (most, cells.shape[0]))
    return cells.new_empty((most, 3)), cells.new_empty(most), table, reverse, cells.new_empty(())


# --- CPU: one walk through the sorted numbers for each column of the kernel -------------------------------------------


@_neighbour_table.cpu_kernel
def _(cells: Tensor, cloud: Tensor, size: int) -> Tensor:
    key, steps = cell_keys(cells, cloud, margin=size // 2)
    rising, order = (key, torch.arange(len(key))) if bool((key.diff() > 0).all()) else key.sort(stable=True)
    table = np.empty((len(key), size**3), np.int32)
    run_parallel(_fill_table, len(key), rising.numpy(), order.numpy(), steps.numpy(), size, table)
    return torch.from_numpy(table)


@numba_kernel
def _fill_table(
    first: int, last: int, rising: np.ndarray, order: np.ndarray, steps: np.ndarray, size: int, table: np.ndarray
) -> None:
    """Fill the rows of the voxels first to last in `rising` order: what they look for rises with them."""
    num_voxels, reach = len(rising), size // 2
    begins = np.empty(size * size, np.int64)  # where what a column of the kernel looks for was found last
    for column in range(size * size):
        moved = (column // size - reach) * steps[0] + (column % size - reach) * steps[1] - reach
        begins[column] = np.searchsorted(rising, rising[first] + moved)
    for start in range(first, last, _BLOCK):
        end = min(start + _BLOCK, last)
        for column in range(size * size):
            moved = (column // size - reach) * steps[0] + (column % size - reach) * steps[1] - reach
            begin = begins[column]
            for voxel in range(start, end):
                wanted, row = rising[voxel] + moved, order[voxel]
                while begin < num_voxels and rising[begin] < wanted:
                    begin += 1
                near = begin
                for z in range(size):
                    has_voxel = near < num_voxels and rising[near] == wanted + z
                    table[row, column * size + z] = order[near] if has_voxel else -1
                    near += has_voxel
                    while has_voxel and near < num_voxels and rising[near] == wanted + z:
                        near += 1
            begins[column] = begin
    for voxel in range(first, last):
        table[order[voxel], size**3 // 2] = order[voxel]


_BLOCK = 1024
"""Voxels whose rows of the table are filled while they are in the cache."""
