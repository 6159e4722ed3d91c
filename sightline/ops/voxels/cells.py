"""Sparse voxels: the cells of a regular grid that points of packed clouds fall into, and the points of each.

A point is in the cell floor(p / side) of each axis, in float64; a cloud's cells count from its lowest along each axis.
Voxels are in the order of cloud, x, y, z, and the points of one in their own order, so that every machine makes the
same. Sources: Graham et al. 2018 (sparse voxels); Pointcept's GridSample (members of a voxel, fragments of a test).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from sightline.ops.operator import operator
from sightline.ops.segments.extremes import scatter_extremes
from sightline.ops.segments.offsets import assert_packed, batch_to_offsets, offsets_to_batch
from sightline.ops.segments.sums import scatter_rows
from sightline.ops.waits import has_values, is_recording, read_list, require, send_list

MAX_CELLS = 2**62
"""Cells of all clouds' boxes, so that a number of 64 bits names each."""


class SparseVoxels(NamedTuple):
    """Voxels with points of S clouds of N points in all: V of them.

    `cells` (V, 3) int64 are at least 0 in each cloud, of which `offsets` (S+1,) are the first voxels. `inverse` (N,)
    is the voxel of each point; `order` (N,) are the points voxel by voxel, and `starts` (V+1,) where each voxel begins
    there. `lowest` (S, 3) int64 is the cell of the grid at which a cloud's cells begin: the lowest corner of a voxel is
    at (cells + lowest) * side.
    """

    cells: Tensor
    offsets: Tensor
    inverse: Tensor
    order: Tensor
    starts: Tensor
    lowest: Tensor

    @property
    def num_points(self) -> Tensor:
        """Points (V,) of each voxel, at least one."""
        return self.starts.diff()

    @property
    def first(self) -> Tensor:
        """The first point (V,) of each voxel."""
        return self.order[self.starts[:-1]]

    def pick(self, draws: Tensor) -> Tensor:
        """Return one point (V,) of each voxel: the member `draws` (V,), whole numbers from 0, modulo their number.

        The members of a voxel are equally likely only if the draws are, over all remainders.
        """
        return self.order[self.starts[:-1] + draws % self.num_points]

    def average(self, values: Tensor, capacity: int | None = None) -> Tensor:
        """Average values (N, ...) of the points of each voxel: (V, ...), added in the order of the points.

        With a `capacity` of at least V the result has so many rows, the further ones 0.
        """
        num_rows = len(self.cells) if capacity is None else capacity
        starts = torch.cat([self.starts, self.starts[-1:].expand(num_rows - len(self.cells))])
        rows = values[self.order].flatten(1)
        sums, counts = scatter_rows(rows[None], starts[None], num_rows, layout="bounds")
        return (sums[0] / counts[0, :, None].clamp(min=1)).reshape(num_rows, *values.shape[1:])

    def highest(self, values: Tensor) -> Tensor:
        """Return the highest of each column of values (N, C) over the points of each voxel: (V, C).

        Of equal ones, the first point has the gradient.
        """
        bounds = self.starts[None]
        return scatter_extremes(values[self.order][None], bounds, len(self.cells), is_highest=True, layout="bounds")[0][
            0
        ]

    def spread(self, values: Tensor) -> Tensor:
        """Give each point the values (V, ...) of its voxel: (N, ...). It is the inverse of pooling."""
        return values[self.inverse]

    def vote(self, labels: Tensor, num_classes: int, ignore_index: int | None = None) -> Tensor:
        """Return the commonest class (V,) of the labels (N,) of each voxel; the lowest of several.

        Points of `ignore_index` have no vote; a voxel of such points alone is ignored too. Raises ValueError for other
        labels outside of 0 to `num_classes` - 1.
        """
        counts = self.count_labels(labels, num_classes, ignore_index)
        most, winner = counts.max(dim=1)  # of equal counts the first, on every device
        winner = (counts == most[:, None]).int().argmax(dim=1)
        return winner if ignore_index is None else torch.where(most > 0, winner, ignore_index)

    def count_labels(self, labels: Tensor, num_classes: int, ignore_index: int | None = None) -> Tensor:
        """Count the labels (N,) of each class in each voxel: (V, C) int64, without those of `ignore_index`."""
        is_counted = torch.ones_like(labels, dtype=torch.bool) if ignore_index is None else labels != ignore_index
        is_known = (labels >= 0) & (labels < num_classes)
        require(
            (is_known | ~is_counted).all(),
            lambda: ValueError(
                f"labels: found {labels[is_counted & ~is_known].unique().tolist()[:5]}, expected 0 to {num_classes - 1}"
            ),
        )
        place = torch.where(is_counted, self.inverse * num_classes + labels.long(), len(self.cells) * num_classes)
        counts = labels.new_zeros(len(self.cells) * num_classes + 1, dtype=torch.int64)
        return counts.index_add(0, place, torch.ones_like(place))[:-1].view(-1, num_classes)

    def iterate_fragments(self) -> Iterator[Tensor]:
        """Yield as many fragments as the fullest voxel has points: a point (V,) of each, all points together.

        Fragment i takes member i modulo the number of members, so that a voxel of fewer points repeats them.
        Source: Pointcept's GridSample of a test.
        """
        begins, counts = self.starts[:-1], self.num_points
        for number in range(read_list(counts.max()[None])[0] if len(counts) else 0):
            yield self.order[begins + number % counts]


def sparse_voxels(points: Tensor, offsets: Tensor | None = None, *, side: float) -> SparseVoxels:
    """Group points (N, 3) of packed clouds by the cubes of `side`, in the unit of the points, into which they fall.

    `offsets` (S+1,) int64 divide the points into clouds; without them they are one. The number of voxels is read, which
    waits for a GPU. Raises ValueError for a side that is not above 0, coordinates that are not finite, offsets that do
    not fit, and cells that a number of 64 bits cannot name.
    """
    if not (math.isfinite(side) and side > 0):
        raise ValueError(f"side: found {side}, expected a length above 0 in the unit of the points")
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points: found the shape {tuple(points.shape)}, expected (N, 3)")
    require(
        torch.isfinite(points).all(),
        lambda: ValueError(
            f"points: {int((~torch.isfinite(points)).any(dim=1).sum())} of {len(points)} have coordinates that are not "
            f"finite, first row {int((~torch.isfinite(points)).any(dim=1).nonzero()[0])}; remove them"
        ),
    )
    return group_cells((points.detach().double() / side).floor().long(), offsets)


def group_cells(cells: Tensor, offsets: Tensor | None = None) -> SparseVoxels:
    """Group points by the cells (N, 3) of whole numbers that they are in, as `sparse_voxels`.

    The number of voxels is read, which waits for a GPU.
    """
    if cells.ndim != 2 or cells.shape[1] != 3 or cells.is_floating_point() or cells.dtype == torch.bool:
        found = f"{tuple(cells.shape)} {cells.dtype}"
        raise ValueError(f"cells: found {found}, expected whole numbers (N, 3): floor(coordinate / side)")
    if offsets is None:
        offsets = send_list([0, cells.shape[0]], cells.device)
    assert_packed(cells, offsets, name="cells")
    inverse, order, starts, lowest, count = _group_cells(cells.long(), offsets)
    (starts,) = keep_first(count + 1, starts)
    first = order[starts[:-1]]
    cloud = offsets_to_batch(offsets, cells.shape[0])[first]
    voxel_offsets = batch_to_offsets(cloud, offsets.shape[0] - 1)
    return SparseVoxels(cells.long()[first] - lowest[cloud], voxel_offsets, inverse, order, starts, lowest)


def keep_first(count: Tensor, *tables: Tensor) -> list[Tensor]:
    """Return the first `count` () rows of tables (R, ...), whose number is read; a graph has rows of that number."""
    if has_values(count):
        num_rows = read_list(count[None])[0]
        return [rows[:num_rows] for rows in tables]
    kept = (torch.arange(tables[0].shape[0], device=count.device) < count).nonzero()[:, 0]
    return [rows[kept] for rows in tables]


def sort_stably(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Sort keys (N,), equal ones in their order: the keys and their order, (N,) each."""
    if not is_recording():
        rising, order = keys.sort(stable=True)
        return rising, order
    rising, order = keys.sort()  # ONNX has no other, and torch's leaves equal keys in any order on some processors
    ranks = torch.zeros_like(order)
    ranks[1:] = (rising[1:] != rising[:-1]).cumsum(0)
    places = torch.arange(keys.shape[0], device=keys.device)
    order = (torch.empty_like(order).scatter_(0, order, ranks) * keys.shape[0] + places).argsort()
    return keys[order], order


def pool_cells(cells: Tensor, offsets: Tensor, *, stride: int) -> SparseVoxels:
    """Group voxels `cells` (N, 3), at least 0, of packed clouds by the cells of a grid `stride` times as coarse.

    Its `cells` are floor(cells / stride), and stay where they are: `lowest` is 0. The number of voxels is read, which
    waits for a GPU. Raises ValueError as `group_cells`.
    Source: Wu et al. 2022 (Point Transformer V2), grid pooling.
    """
    if stride < 1:
        raise ValueError(f"stride: found {stride}, expected a whole number of at least 1")
    pooled = group_cells(cells.div(stride, rounding_mode="floor"), offsets)
    cloud = offsets_to_batch(pooled.offsets, pooled.cells.shape[0])
    return pooled._replace(cells=pooled.cells + pooled.lowest[cloud], lowest=torch.zeros_like(pooled.lowest))


def cell_keys(cells: Tensor, cloud: Tensor, *, margin: int = 0) -> tuple[Tensor, Tensor]:
    """Return numbers (N,) int64 that order cells (N, 3), at least 0, by `cloud` (N,), x, y, z; and their steps (3,).

    A cell up to `margin` cells beside one along each axis has the number of no other: it is that plus its distance
    times the steps.
    """
    sizes = (cells.amax(dim=0) if cells.shape[0] else cells.new_zeros(3)) + 1 + 2 * margin
    steps = torch.stack([sizes[1] * sizes[2], sizes[2], torch.ones_like(sizes[2])])
    return cloud * (sizes[0] * steps[0]) + ((cells + margin) * steps).sum(dim=1), steps


def require_few_cells(cells: Tensor, num_clouds: int | Tensor, *, margin: int = 0) -> None:
    """Require cells (N, 3) of at least 0 that a number of 64 bits can name; raise ValueError for others.

    There are `num_clouds` of them, at least one: a number, or one () on the device.
    """
    if not cells.shape[0]:
        return
    require(
        (cells >= 0).all(),
        lambda: ValueError(
            f"cells: found {cells.amin(dim=0).tolist()} as the lowest, expected 0 or more in each cloud: subtract the "
            "lowest of each, as `group_cells` does"
        ),
    )
    sizes = cells.amax(dim=0) + 1 + 2 * margin
    require(
        sizes.double().prod() * num_clouds < MAX_CELLS,
        lambda: ValueError(
            f"cells: clouds of up to {sizes.tolist()} cells cannot be numbered in 64 bits; raise the side of the "
            "voxels, or remove points that are far away"
        ),
    )


def _check(cells: Tensor, offsets: Tensor) -> None:
    fits = (offsets[0] == 0) & (offsets[-1] == cells.shape[0]) & (offsets.diff() >= 0).all()
    require(
        fits,
        lambda: ValueError(
            f"offsets {offsets.tolist()[:8]} of {cells.shape[0]} points; they start at 0, never fall, and end at the "
            "number of points (counts, or cumulative counts without the leading 0, are other conventions)"
        ),
    )
    if cells.shape[0]:
        require_few_cells(cells - _find_lowest(cells, offsets)[offsets_to_batch(offsets, len(cells))], len(offsets) - 1)


def _find_lowest(cells: Tensor, offsets: Tensor) -> Tensor:
    """Return the lowest cell (S, 3) of each cloud, 0 of an empty one."""
    cloud = offsets_to_batch(offsets, cells.shape[0])[:, None].expand_as(cells)
    return cells.new_zeros((offsets.shape[0] - 1, 3)).scatter_reduce(0, cloud, cells, "amin", include_self=False)


@operator(check=_check, differentiable=False)
def _group_cells(cells: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the voxel of each point (N,), points by voxel (N,), starts (N+1,), lowest cells (S, 3), voxels ()."""
    count, offsets = cells.shape[0], offsets.contiguous()
    cloud, lowest = offsets_to_batch(offsets, count), _find_lowest(cells, offsets)
    key, _ = cell_keys(cells - lowest[cloud], cloud)
    rising, order = sort_stably(key)
    begins = torch.ones_like(rising, dtype=torch.bool)
    begins[1:] = rising[1:] != rising[:-1]
    number = begins.cumsum(0) - 1
    inverse = torch.empty_like(order).scatter(0, order, number)
    position = torch.arange(count + 1, device=cells.device)
    place = torch.where(functional.pad(begins, (0, 1)), functional.pad(number, (0, 1)), count + 1)
    starts = position.new_full((count + 2,), count).scatter(0, place, position)[:-1]
    return inverse, order, starts, lowest, begins.sum()


@_group_cells.fake
def _(cells: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    count = cells.shape[0]
    inverse, order, starts = (cells.new_empty(size) for size in (count, count, count + 1))
    return inverse, order, starts, cells.new_empty((offsets.shape[0] - 1, 3)), cells.new_empty(())
