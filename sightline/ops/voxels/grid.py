"""Voxels of a regular grid that points fall into, by the names and with the calls of torch-cluster and PyG.

Source: the documentation of torch-cluster 1.6 and torch_geometric 2.6. Others than there: points outside of the grid
are refused, not put into voxels of others; `consecutive_cluster` returns the first point of a cluster, not any.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sightline.ops.dtypes import promote_to_float32, widen_labels
from sightline.ops.operator import operator
from sightline.ops.waits import is_recording, require, send_list

_MAX_VOXELS = 2.0**62


def grid_cluster(pos: Tensor, size: Tensor, start: Tensor | None = None, end: Tensor | None = None) -> Tensor:
    """Find the voxel of sides `size` (D,) that each of the points `pos` (N, D) or (N,) falls into: (N,) int64.

    The grid begins at `start` (D,), by default the lowest coordinates, and ends with the voxel that holds `end` (D,),
    by default the highest. The first coordinate counts fastest. Half precision is computed in float32.
    Raises ValueError for points outside of the grid, numbers that are not finite, and more than 2^62 voxels.
    """
    return voxel_grid(pos, size, None, start, end)


def voxel_grid(
    pos: Tensor,
    size: float | Sequence[float] | Tensor,
    batch: Tensor | None = None,
    start: float | Sequence[float] | Tensor | None = None,
    end: float | Sequence[float] | Tensor | None = None,
) -> Tensor:
    """Find the voxel that each of the points `pos` (N, D) falls into, as `grid_cluster`; one number is for all axes.

    Voxels of the samples `batch` (N,) come one sample after another. `cluster, first = consecutive_cluster(voxels)`
    numbers those with points, and `scatter_mean(pos, cluster, dim=0)` are their centres. Raises ValueError as
    `grid_cluster`, and for a negative `batch`.
    """
    points = promote_to_float32(pos if pos.ndim > 1 else pos[:, None]).flatten(1)
    lowest, highest = (
        (points.amin(dim=0), points.amax(dim=0)) if points.shape[0] else points.new_zeros(2, points.shape[1])
    )
    if batch is not None and batch.shape != points.shape[:1]:
        raise ValueError(
            f"batch: found the shape {tuple(batch.shape)}, expected ({len(pos)},), the sample of each point"
        )
    return _grid_cluster(
        points,
        _for_all_axes(size, points, name="size"),
        lowest if start is None else _for_all_axes(start, points, name="start"),
        highest if end is None else _for_all_axes(end, points, name="end"),
        None if batch is None else widen_labels(batch, "batch"),
    )


def consecutive_cluster(src: Tensor) -> tuple[Tensor, Tensor]:
    """Renumber clusters `src` (N,) from 0, in rising order: (N,) int64, and the first point (C,) of each.

    The number of clusters is read, which waits for a GPU.
    """
    rising, order = src.sort() if is_recording() else src.sort(stable=True)  # ONNX's own sort is stable
    begins = torch.ones_like(rising, dtype=torch.bool)
    begins[1:] = rising[1:] != rising[:-1]
    return torch.empty_like(order).scatter_(0, order, begins.cumsum(0) - 1), order[begins]


def _for_all_axes(value: float | Sequence[float] | Tensor, points: Tensor, *, name: str) -> Tensor:
    if isinstance(value, Tensor):
        numbers = value.to(points.device, points.dtype).flatten()
    else:
        listed = [value] if isinstance(value, int | float) else list(value)
        numbers = send_list(listed, points.device, points.dtype)
    if numbers.shape[0] not in (1, points.shape[1]):
        raise ValueError(f"{name}: {len(numbers)} numbers for points of {points.shape[1]} coordinates; give one or all")
    return numbers.expand(points.shape[1])


def _check(points: Tensor, size: Tensor, start: Tensor, end: Tensor, batch: Tensor | None) -> None:
    require((size > 0).all(), lambda: ValueError(f"size: found {size.tolist()}, expected sides above 0"))
    cell, last = (points - start) / size, ((end - start) / size).floor()
    is_inside = ((cell >= 0) & (cell.floor() <= last)).all(dim=1)

    def make_error() -> ValueError:
        row = int((~is_inside).nonzero()[0])
        return ValueError(
            f"pos: {int((~is_inside).sum())} of {len(points)} points are outside of the grid, such as row {row}, "
            f"{points[row].tolist()}; it begins at {start.tolist()}, ends at {end.tolist()} and has voxels of "
            f"{size.tolist()}: leave start and end out, or such points"
        )

    require(is_inside.all(), make_error)
    num_voxels = (last.double() + 1).prod()
    if batch is not None and batch.shape[0]:
        require((batch >= 0).all(), lambda: ValueError(f"batch: found {int(batch.min())}, expected samples from 0"))
        num_voxels = num_voxels * (batch.max() + 1)
    require(
        num_voxels <= _MAX_VOXELS,
        lambda: ValueError(f"size: voxels of {size.tolist()} are {float(num_voxels):.3g}, more than 2^62; raise it"),
    )


@operator(check=_check, differentiable=False)
def _grid_cluster(points: Tensor, size: Tensor, start: Tensor, end: Tensor, batch: Tensor | None) -> Tensor:
    count, cell = ((end - start) / size).long() + 1, ((points - start) / size).long()
    voxel, step = torch.zeros_like(cell[:, 0]), count.new_ones(())
    for axis in range(points.shape[1]):  # not a cumulative product, which ONNX lacks
        voxel, step = voxel + cell[:, axis] * step, step * count[axis]
    return voxel if batch is None else voxel + batch * step


@_grid_cluster.fake
def _(points: Tensor, size: Tensor, start: Tensor, end: Tensor, batch: Tensor | None) -> Tensor:
    return points.new_empty(points.shape[0], dtype=torch.int64)
