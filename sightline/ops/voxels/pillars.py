"""Pillars of points: the cells of a grid seen from above that points fall into, of fixed sizes, and what is dropped.

A point is in the cell floor((p - lowest) / side) of each axis, computed in the format of the points, float32 at least,
without a reciprocal; a grid has round((highest - lowest) / side) cells along an axis. Frames are rows of one table with
`offsets`, so that a frame without points is one of the batch. Nothing is read on the host: places that no pillar and no
point takes are -1. Sources: hard, Lang et al. 2019 (PointPillars); dynamic, Zhou et al. 2020.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.ops.dtypes import promote_to_float32
from sightline.ops.numba_kernels import numba_kernel, run_parallel
from sightline.ops.operator import operator
from sightline.ops.segments.offsets import assert_packed, offsets_to_batch
from sightline.ops.waits import is_recording, require, send_list

_MAX_TABLE = 2**26
"""Cells of all frames in a kernel's table, 256 MB; a larger grid is sorted."""
_MAX_CELLS = 2**40


class DroppedPoints(NamedTuple):
    """What of each of B frames is in no pillar, each (B,) int64.

    Of `num_points`, `num_outside` are outside of the grid, `num_crowded` in a pillar that was full, and `num_left_out`
    in one of the `num_dropped_pillars` that came after the last place was taken. `num_pillars` are those with points.
    """

    num_points: Tensor
    num_outside: Tensor
    num_crowded: Tensor
    num_left_out: Tensor
    num_pillars: Tensor
    num_dropped_pillars: Tensor

    @property
    def share_of_points(self) -> Tensor:
        """The share (B,) of the points in the grid that a limit dropped, 0 where there are none."""
        return _share(self.num_crowded + self.num_left_out, self.num_points - self.num_outside)

    @property
    def share_of_pillars(self) -> Tensor:
        """The share (B,) of the pillars with points that a limit dropped, 0 where there are none."""
        return _share(self.num_dropped_pillars, self.num_pillars)


class HardPillars(NamedTuple):
    """Pillars of B frames with V places each, P points in each: places that are not taken are -1.

    `point_index` (B, V, P) int64 are rows of the points, `cells` (B, V, 2) int64 the row (along y) and the column
    (along x) of the grid, `num_points` (B, V) int64 the points in each.
    """

    point_index: Tensor
    cells: Tensor
    num_points: Tensor
    dropped: DroppedPoints


class DynamicPillars(NamedTuple):
    """Pillars of N points, with N places, of which the first `num_pillars` () int64 are taken; the others are -1.

    `pillar_index` (N,) int64 is the pillar of each point, -1 of one outside. `keys` (N,) int64 rise: frame, column and
    row in one number; `cells` (N, 3) int64 are frame, row and column, `num_points` (N,) int64 the points in each.
    """

    pillar_index: Tensor
    keys: Tensor
    cells: Tensor
    num_points: Tensor
    num_pillars: Tensor
    dropped: DroppedPoints


@torch.no_grad()
def hard_pillars(
    points: Tensor,
    offsets: Tensor | None = None,
    *,
    side_m: Sequence[float],
    range_m: Sequence[float],
    max_points: int,
    max_pillars: int,
) -> HardPillars:
    """Gather points (N, 3+) of frames in pillars of `side_m` (x, y), up to two limits for each frame.

    `range_m` is x, y, z of the lowest and of the highest corner; a point at the highest is outside. Pillars stand in
    the order in which their first point comes, points within one in their own order, up to `max_points`. After
    `max_pillars` have begun in a frame, no other begins, and those go on filling. `offsets` (B+1,) int64 divide the
    points into frames; without them they are one. Points that are not finite are outside. Raises ValueError for
    another shape, limits or sides that are not above 0, and offsets that do not fit.
    """
    if len(range_m) != 6:
        raise ValueError(f"range_m: found {len(range_m)} numbers, expected 6: x, y, z lowest, x, y, z highest")
    for name, limit in (("max_points", max_points), ("max_pillars", max_pillars)):
        if limit < 1:
            raise ValueError(f"{name}: found {limit}, allowed is a number of at least 1")
    sides = (*_two(side_m), range_m[5] - range_m[2])
    table, offsets, lowest, side, grid = _read(points, offsets, sides, range_m[:3], range_m[3:])
    index, cells, num_points, counts = _hard_pillars(table, offsets, lowest, side, grid[:2], max_points, max_pillars)
    return HardPillars(index, cells, num_points, DroppedPoints(*counts.unbind(dim=1)))


@torch.no_grad()
def dynamic_pillars(
    points: Tensor, offsets: Tensor | None = None, *, side_m: Sequence[float], range_m: Sequence[float]
) -> DynamicPillars:
    """Find the pillars of `side_m` (x, y) that points (N, 2+) of frames fall into, without a limit.

    `range_m` is x, y of the lowest and of the highest corner; heights do not matter. Pillars are in the order of their
    keys, (frame * columns + column) * rows + row. All else is as in `hard_pillars`.
    """
    if len(range_m) != 4:
        raise ValueError(f"range_m: found {len(range_m)} numbers, expected 4: x, y lowest, x, y highest")
    table, offsets, lowest, side, grid = _read(points, offsets, _two(side_m), range_m[:2], range_m[2:])
    index, keys, num_points, num_pillars, counts = _dynamic_pillars(table, offsets, lowest, side, grid)
    columns, rows = grid
    parts = (keys // (columns * rows), keys % rows, keys // rows % columns)
    cells = torch.where(keys[:, None] >= 0, torch.stack(parts, dim=1), -1)
    return DynamicPillars(index, keys, cells, num_points, num_pillars, DroppedPoints(*counts.unbind(dim=1)))


def _share(part: Tensor, total: Tensor) -> Tensor:
    return part / total.clamp(min=1)


def _two(side_m: Sequence[float]) -> tuple[float, float]:
    if len(side_m) != 2:
        raise ValueError(f"side_m: found {len(side_m)} numbers, expected 2: along x and along y; a pillar is as high")
    return side_m[0], side_m[1]


def _read(
    points: Tensor,
    offsets: Tensor | None,
    side_m: Sequence[float],
    lowest_m: Sequence[float],
    highest_m: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[int]]:
    """Check what is given; return points and limits in one float format on one device, offsets, and cells by axis."""
    if points.ndim != 2 or points.shape[1] < len(side_m) or points.dtype == torch.bool or points.is_complex():
        found = f"{tuple(points.shape)} {points.dtype}"
        raise ValueError(f"points: found {found}, expected numbers (N, {len(side_m)}) or more columns: x, y, ...")
    for axis, low, high, side in zip("xyz", lowest_m, highest_m, side_m, strict=False):
        if not (math.isfinite(low) and math.isfinite(high) and side > 0 and round((high - low) / side) >= 1):
            raise ValueError(
                f"range_m: {low} to {high} along {axis} with pillars of {side}; at least one has to fit, sides above 0"
            )
    grid = [round((high - low) / side) for low, high, side in zip(lowest_m, highest_m, side_m, strict=True)]
    if offsets is None:
        offsets = send_list([0, points.shape[0]], points.device)
    assert_packed(points, offsets, name="points")
    if math.prod(grid) * max(1, offsets.shape[0] - 1) > _MAX_CELLS:
        raise ValueError(f"side_m: a grid of {grid} cells is too large; raise the sides or cut the range")
    table = promote_to_float32(points.detach())
    lowest, sides = (send_list(list(values), table.device, table.dtype) for values in (lowest_m, side_m))
    return table, offsets, lowest, sides, grid


def _check(points: Tensor, offsets: Tensor, *_: Any) -> None:
    fits = (offsets[0] == 0) & (offsets[-1] == points.shape[0]) & (offsets.diff() >= 0).all()
    require(
        fits,
        lambda: ValueError(
            f"offsets {offsets.tolist()[:8]} of {points.shape[0]} points; they start at 0, never fall, and end at the "
            "number of points"
        ),
    )


# --- the definitions: points sorted by their cells --------------------------------------------------------------------


def _locate(points: Tensor, lowest: Tensor, side: Tensor, grid: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return column and row (N,) of the cell of each point, 0 of one outside, and which (N,) are inside."""
    cell = ((points[:, : lowest.shape[0]] - lowest) / side).floor()
    highest = torch.ones_like(lowest)  # of heights there is one cell
    highest[0], highest[1] = grid[0], grid[1]
    is_inside = ((cell >= 0) & (cell < highest)).all(dim=1)
    column, row = torch.where(is_inside[:, None], cell[:, :2], 0).long().unbind(dim=1)
    return column, row, is_inside


class _Groups(NamedTuple):
    """Equal keys (N,): the number of each group by its key, its first point, and the rank of each point in it."""

    number: Tensor
    first: Tensor
    rank: Tensor


def _group(key: Tensor) -> _Groups:
    position = torch.arange(key.shape[0], device=key.device)
    if is_recording():  # a graph's sort need not be stable
        order = (key * key.shape[0] + position).argsort()
        rising = key.index_select(0, order)
    else:
        rising, order = key.sort(stable=True)
    begins = torch.ones_like(rising, dtype=torch.bool)
    begins[1:] = rising[1:] != rising[:-1]
    number = begins.cumsum(0) - 1
    begin = key.new_zeros(key.shape[0] + 1).scatter(0, torch.where(begins, number, key.shape[0]), position)[number]
    values = (number, order[begin], position - begin)
    return _Groups(*(torch.empty_like(key).scatter(0, order, value) for value in values))


@operator(check=_check, differentiable=False)
def _hard_pillars(
    points: Tensor,
    offsets: Tensor,
    lowest: Tensor,
    side: Tensor,
    grid: list[int],
    max_points: int,
    max_pillars: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return rows of points (B, V, P), cells (B, V, 2), points (B, V) of each pillar, and counts (B, 6)."""
    num_frames = offsets.shape[0] - 1
    column, row, is_inside = _locate(points, lowest, side, grid)
    frame, position = offsets_to_batch(offsets, points.shape[0]), torch.arange(points.shape[0], device=points.device)
    cell = (frame * grid[0] + column) * grid[1] + row
    _, first, rank = _group(torch.where(is_inside, cell, -1))
    begins = is_inside & (first == position)
    begun = torch.cat([frame.new_zeros(1), begins.cumsum(0)])  # pillars that have begun before each point
    number = begun[first] - begun[offsets[frame]]
    has_place = is_inside & (number < max_pillars)
    is_kept = has_place & (rank < max_points)

    num_pillars = num_frames * max_pillars
    pillar = torch.where(has_place, frame * max_pillars + number, num_pillars)  # the last is of those without a place
    slot = torch.where(is_kept, pillar * max_points + rank, num_pillars * max_points)
    index = frame.new_full((num_pillars * max_points + 1,), -1).scatter(0, slot, position)[:-1]
    place = torch.where(begins, pillar, num_pillars)[:, None].expand(-1, 2)
    cells = frame.new_full((num_pillars + 1, 2), -1).scatter(0, place, torch.stack([row, column], dim=1))[:-1]
    num_points = frame.new_zeros(num_pillars + 1).scatter_add(0, pillar, is_kept.long())[:-1]
    parts = (torch.ones_like(begins), ~is_inside, has_place & ~is_kept, is_inside & ~has_place, begins)
    counts = _count((*parts, begins & ~has_place), frame, num_frames)
    shape = (num_frames, max_pillars)
    return index.view(*shape, max_points), cells.view(*shape, 2), num_points.view(shape), counts


@operator(check=_check, differentiable=False)
def _dynamic_pillars(
    points: Tensor, offsets: Tensor, lowest: Tensor, side: Tensor, grid: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the pillar of each point (N,), keys (N,), points (N,) of each pillar, their number (), counts (B, 6)."""
    num_frames, count = offsets.shape[0] - 1, points.shape[0]
    column, row, is_inside = _locate(points, lowest, side, grid)
    frame, position = offsets_to_batch(offsets, count), torch.arange(count, device=points.device)
    key = (frame * grid[0] + column) * grid[1] + row
    number, first, _ = _group(torch.where(is_inside, key, num_frames * grid[0] * grid[1]))  # those outside come last
    begins = is_inside & (first == position)
    index = torch.where(is_inside, number, -1)
    place = torch.where(is_inside, number, count)
    keys = frame.new_full((count + 1,), -1).scatter(0, place, key)[:-1]
    num_points = frame.new_zeros(count + 1).scatter_add(0, place, is_inside.long())[:-1]
    none = torch.zeros_like(begins)
    counts = _count((~none, ~is_inside, none, none, begins, none), frame, num_frames)
    return index, keys, num_points, begins.sum(), counts


def _count(masks: Sequence[Tensor], frame: Tensor, num_frames: int) -> Tensor:
    """Count the points (B, k) of each frame in k masks (N,)."""
    flags = torch.stack([*masks], dim=1).long()
    return frame.new_zeros((num_frames, len(masks))).scatter_add(0, frame[:, None].expand_as(flags), flags)


@_hard_pillars.fake
def _(
    points: Tensor,
    offsets: Tensor,
    lowest: Tensor,
    side: Tensor,
    grid: list[int],
    max_points: int,
    max_pillars: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_frames = offsets.shape[0] - 1
    shapes = ((num_frames, max_pillars, max_points), (num_frames, max_pillars, 2), (num_frames, max_pillars))
    index, cells, num_points = (points.new_empty(shape, dtype=torch.int64) for shape in shapes)
    return index, cells, num_points, points.new_empty((num_frames, 6), dtype=torch.int64)


@_dynamic_pillars.fake
def _(
    points: Tensor, offsets: Tensor, lowest: Tensor, side: Tensor, grid: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    index, keys, num_points = (points.new_empty(points.shape[0], dtype=torch.int64) for _ in range(3))
    counts = points.new_empty((offsets.shape[0] - 1, 6), dtype=torch.int64)
    return index, keys, num_points, points.new_empty((), dtype=torch.int64), counts


# --- CPU: a table of the cells of each frame --------------------------------------------------------------------------


def _has_room(offsets: Tensor, grid: Sequence[int]) -> bool:
    return (len(offsets) - 1) * grid[0] * grid[1] <= _MAX_TABLE


@_hard_pillars.cpu_kernel
def _(
    points: Tensor,
    offsets: Tensor,
    lowest: Tensor,
    side: Tensor,
    grid: list[int],
    max_points: int,
    max_pillars: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if not _has_room(offsets, grid):
        return _hard_pillars.plain(points, offsets, lowest, side, grid, max_points, max_pillars)
    num_frames = len(offsets) - 1
    table = torch.full((num_frames, grid[0] * grid[1]), -1, dtype=torch.int32)
    index = offsets.new_full((num_frames, max_pillars, max_points), -1)
    cells = offsets.new_full((num_frames, max_pillars, 2), -1)
    num_points, counts = offsets.new_zeros((num_frames, max_pillars)), offsets.new_zeros((num_frames, 6))
    given = [value.contiguous().numpy() for value in (points[:, :3].T, offsets, lowest, side)]
    results = [value.numpy() for value in (table, index, cells, num_points, counts)]
    run_parallel(_fill_pillars, num_frames, *given, *grid, *results)
    return index, cells, num_points, counts


@numba_kernel
def _fill_pillars(
    first: int,
    last: int,
    points: np.ndarray,
    offsets: np.ndarray,
    lowest: np.ndarray,
    side: np.ndarray,
    num_columns: int,
    num_rows: int,
    table: np.ndarray,
    index: np.ndarray,
    cells: np.ndarray,
    num_points: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Fill the pillars of frames of `points` (3, N), and count what is dropped.

    `table` (B, cells) is -1, becomes the place of a pillar, and -2 of one without a place. The cells of a block of
    points come first: a processor computes many at a time.
    """
    max_pillars, max_points = index.shape[1], index.shape[2]
    block, end = np.empty(_BLOCK, dtype=np.int32), 0
    for frame in range(first, last):
        places, places_of_points, outside, crowded, left_out = table[frame], index[frame], 0, 0, 0
        begun, dropped, sizes = 0, 0, num_points[frame]
        for start in range(offsets[frame], offsets[frame + 1], _BLOCK):
            end = min(start + _BLOCK, offsets[frame + 1])
            _find_cells(points, start, end, lowest, side, num_columns, num_rows, block)
            for point in range(start, end):
                cell = block[point - start]
                if cell < 0:
                    outside += 1
                    continue
                pillar = places[cell]
                if pillar == -1:
                    if begun < max_pillars:
                        pillar = begun
                        cells[frame, pillar, 0], cells[frame, pillar, 1] = cell % num_rows, cell // num_rows
                        begun += 1
                    else:
                        pillar = -2
                        dropped += 1
                    places[cell] = pillar
                if pillar < 0:
                    left_out += 1
                elif sizes[pillar] < max_points:
                    places_of_points[pillar, sizes[pillar]] = point
                    sizes[pillar] += 1
                else:
                    crowded += 1
        counts[frame, 0], counts[frame, 1] = offsets[frame + 1] - offsets[frame], outside
        counts[frame, 2], counts[frame, 3] = crowded, left_out
        counts[frame, 4], counts[frame, 5] = begun + dropped, dropped


_BLOCK = 1024
"""Points whose cells are computed at a time."""


@numba_kernel
def _find_cells(
    points: np.ndarray,
    start: int,
    end: int,
    lowest: np.ndarray,
    side: np.ndarray,
    num_columns: int,
    num_rows: int,
    block: np.ndarray,
) -> None:
    """Write the cells of `points` (3, N) to `block`, -1 of those outside."""
    first, second, third = points[0], points[1], points[2]  # unpacked, loops would be slow
    low_x, low_y, low_z = lowest[0], lowest[1], lowest[2]
    side_x, side_y, side_z = side[0], side[1], side[2]
    zero, one = side.dtype.type(0), side.dtype.type(1)  # whole numbers would make float32 float64
    columns, rows, stride = side.dtype.type(num_columns), side.dtype.type(num_rows), np.int32(num_rows)
    for point in range(start, end):
        x, y = np.floor((first[point] - low_x) / side_x), np.floor((second[point] - low_y) / side_y)
        z = (third[point] - low_z) / side_z
        is_inside = (x >= zero) & (x < columns) & (y >= zero) & (y < rows) & (z >= zero) & (z < one)
        x, y = x if is_inside else zero, y if is_inside else zero
        block[point - start] = np.int32(x) * stride + np.int32(y) if is_inside else np.int32(-1)


@_dynamic_pillars.cpu_kernel
def _(
    points: Tensor, offsets: Tensor, lowest: Tensor, side: Tensor, grid: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if not _has_room(offsets, grid):
        return _dynamic_pillars.plain(points, offsets, lowest, side, grid)
    num_frames = len(offsets) - 1
    table, counts = offsets.new_zeros(num_frames * grid[0] * grid[1]), offsets.new_zeros((num_frames, 6))
    index, keys, num_points = (offsets.new_full((len(points),), value) for value in (-1, -1, 0))
    given = [value.contiguous().numpy() for value in (points, offsets, lowest, side)]
    results = [value.numpy() for value in (table, index, keys, num_points, counts)]
    num_pillars = _number_pillars(*given, *grid, *results)
    return index, keys, num_points, torch.tensor(num_pillars), counts


@numba_kernel
def _number_pillars(
    points: np.ndarray,
    offsets: np.ndarray,
    lowest: np.ndarray,
    side: np.ndarray,
    num_columns: int,
    num_rows: int,
    table: np.ndarray,
    index: np.ndarray,
    keys: np.ndarray,
    num_points: np.ndarray,
    counts: np.ndarray,
) -> int:
    """Count the points of all cells in `table`, which is 0, number those with points in order; return how many."""
    for frame in range(len(offsets) - 1):
        for point in range(offsets[frame], offsets[frame + 1]):
            x, y = (points[point, 0] - lowest[0]) / side[0], (points[point, 1] - lowest[1]) / side[1]
            counts[frame, 0] += 1
            if x >= 0 and np.floor(x) < num_columns and y >= 0 and np.floor(y) < num_rows:
                index[point] = (frame * num_columns + np.int64(x)) * num_rows + np.int64(y)
                table[index[point]] += 1
            else:
                counts[frame, 1] += 1
    num_pillars = 0
    for cell in range(len(table)):
        if table[cell]:
            keys[num_pillars], num_points[num_pillars] = cell, table[cell]
            counts[cell // (num_columns * num_rows), 4] += 1
            table[cell] = num_pillars
            num_pillars += 1
    for point in range(len(points)):
        if index[point] >= 0:
            index[point] = table[index[point]]
    return num_pillars
