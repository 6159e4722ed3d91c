"""Benchmarks of sparse convolutions: beside a dense convolution of the whole grid, and spconv's forward on CPUs.

Voxels are those of a room's surfaces, or a random share of a cube. The dense convolution is the baseline, whose outputs
at the voxels are the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.case import BenchmarkCase, Implementation, Run, allclose, implementation
from sightline import ops
from sightline.areas.scenes.sets.synthetic_rooms import SyntheticRooms
from sightline.contract.types import SampleKey
from sightline.ops.operator import OPERATORS

CLOSE = allclose(1e-5)
ROOM_SIDE_M = 0.05


@dataclass(frozen=True)
class VoxelInputs:
    """Voxels of one cloud with `values` (V, C), a `weight` (27, C, C), and the gradient (V, C) of the outputs."""

    cells: Tensor
    values: Tensor
    weight: Tensor
    gradient: Tensor

    @property
    def offsets(self) -> Tensor:
        return torch.tensor([0, len(self.cells)])

    @property
    def grid(self) -> list[int]:
        return [int(last) + 1 for last in self.cells.amax(dim=0)]

    def make_map(self) -> ops.KernelMap:
        return ops.submanifold_map(self.cells, self.offsets, size=3)

    def to_dense(self, rows: Tensor) -> Tensor:
        """Return rows (V, C) in their cells of a grid (1, C, X, Y, Z) of zeros."""
        grid = rows.new_zeros((*self.grid, rows.shape[1]))
        grid[tuple(self.cells.T)] = rows
        return grid.permute(3, 0, 1, 2)[None].contiguous()

    def from_dense(self, grid: Tensor) -> Tensor:
        return grid[0].permute(1, 2, 3, 0)[tuple(self.cells.T)]

    @property
    def kernel(self) -> Tensor:
        """The weight as that of a dense convolution (C, C, 3, 3, 3)."""
        return self.weight.unflatten(0, (3, 3, 3)).permute(4, 3, 0, 1, 2).contiguous()


def cases() -> list[BenchmarkCase]:
    return [case for surface in (True, False) for case in _cases_of(surface)]


def _cases_of(is_surface: bool) -> list[BenchmarkCase]:
    where = "room_{points_per_m2}" if is_surface else "cube_{side}_{percent}"
    size = {"points_per_m2": 60, "channels": 32} if is_surface else {"side": 64, "percent": 5, "channels": 32}
    quick = {"points_per_m2": 4, "channels": 4} if is_surface else {"side": 12, "channels": 4}
    case = partial(BenchmarkCase, suite="geometry", size=size, quick=quick, make=draw_room if is_surface else draw_cube)
    return [
        case(
            label=f"sparse_convolution_{where}_c{{channels}}",
            baseline=Implementation("dense", _open_dense, CLOSE),
            variants=(
                Implementation("sightline", _open_sparse, CLOSE),
                implementation("plain", _convolve_plainly, CLOSE),
                Implementation("spconv", _open_spconv, CLOSE, "spconv"),
            ),
        ),
        case(
            label=f"sparse_convolution_step_{where}_c{{channels}}",
            baseline=Implementation("dense", _open_dense_step, CLOSE),
            variants=(
                Implementation("sightline", _open_sparse_step, CLOSE),
                implementation("sightline_with_map", lambda inputs: _step(inputs, inputs.make_map()), CLOSE),
            ),
        ),
        case(
            label=f"kernel_map_{where}_c{{channels}}",
            baseline=implementation("plain", _map_plainly, allclose(0.0)),
            variants=(implementation("sightline", lambda inputs: inputs.make_map().table, allclose(0.0)),),
        ),
    ]


def draw_room(*, points_per_m2: int, channels: int) -> VoxelInputs:
    """Draw the voxels of 5 cm of a synthetic room's surfaces."""
    room = SyntheticRooms(split="train", points_per_m2=points_per_m2)
    points = room[SampleKey(0, 0, 0)]["points"]
    return _draw_values(ops.sparse_voxels(points, side=ROOM_SIDE_M).cells, channels)


def draw_cube(*, side: int, percent: int, channels: int) -> VoxelInputs:
    """Draw a share of the cells of a cube."""
    generator = torch.Generator().manual_seed(0)
    cells = (torch.rand(side, side, side, generator=generator) < percent / 100).nonzero()
    return _draw_values(cells - cells.amin(dim=0), channels)


def _draw_values(cells: Tensor, channels: int) -> VoxelInputs:
    generator = torch.Generator().manual_seed(1)
    values, gradient = torch.randn(2, len(cells), channels, generator=generator)
    return VoxelInputs(cells, values, torch.randn(27, channels, channels, generator=generator), gradient)


@contextmanager
def _open_dense(inputs: VoxelInputs) -> Iterator[Run]:
    grid, kernel = inputs.to_dense(inputs.values), inputs.kernel
    yield lambda: inputs.from_dense(functional.conv3d(grid, kernel, padding=1))


@contextmanager
def _open_dense_step(inputs: VoxelInputs) -> Iterator[Run]:
    gradient = inputs.to_dense(inputs.gradient)

    def run() -> dict[str, Tensor]:
        grid, kernel = (tensor.requires_grad_() for tensor in (inputs.to_dense(inputs.values), inputs.kernel))
        functional.conv3d(grid, kernel, padding=1).backward(gradient)
        assert grid.grad is not None
        assert kernel.grad is not None
        return {
            "values": inputs.from_dense(grid.grad),
            "weight": kernel.grad.permute(2, 3, 4, 1, 0).flatten(0, 2),
        }

    yield run


@contextmanager
def _open_sparse(inputs: VoxelInputs) -> Iterator[Run]:
    kernel_map = inputs.make_map()
    yield lambda: ops.sparse_convolution(inputs.values, inputs.weight, kernel_map)


@contextmanager
def _open_sparse_step(inputs: VoxelInputs) -> Iterator[Run]:
    yield partial(_step, inputs, inputs.make_map())


def _step(inputs: VoxelInputs, kernel_map: ops.KernelMap) -> dict[str, Any]:
    values, weight = (tensor.detach().requires_grad_() for tensor in (inputs.values, inputs.weight))
    ops.sparse_convolution(values, weight, kernel_map).backward(inputs.gradient)
    return {"values": values.grad, "weight": weight.grad}


def _convolve_plainly(inputs: VoxelInputs) -> Tensor:
    kernel_map = inputs.make_map()
    result: Tensor = OPERATORS["convolve_voxels"].plain(inputs.values, inputs.weight, None, *kernel_map)
    return result


def _map_plainly(inputs: VoxelInputs) -> Tensor:
    cloud = torch.zeros(len(inputs.cells), dtype=torch.int64)
    result: Tensor = OPERATORS["neighbour_table"].plain(inputs.cells, cloud, 3)
    return result


@contextmanager
def _open_spconv(inputs: VoxelInputs) -> Iterator[Run]:
    """Open spconv's layer, whose pairs of rows are found before."""
    import spconv.pytorch as spconv

    channels = inputs.values.shape[1]
    layer = spconv.SubMConv3d(channels, channels, 3, bias=False, indice_key="voxels", algo=spconv.ConvAlgo.Native)
    layer.weight.data = inputs.weight.unflatten(0, (3, 3, 3)).permute(4, 0, 1, 2, 3).contiguous()
    indices = functional.pad(inputs.cells, (1, 0)).int()
    tensor = spconv.SparseConvTensor(inputs.values, indices, inputs.grid, 1)

    @torch.no_grad()
    def run() -> Tensor:
        result: Tensor = layer(tensor).features
        return result

    run()
    yield run
