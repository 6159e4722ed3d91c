"""Ball query, dense and packed: the first points, by index, within a radius of each centre.

Source: Qi et al. 2017 (PointNet++), section 3.2; which points and their order follow its PyTorch port by Yan.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from sightline.ops.gpu_kernels import as_type, gpu_kernel, tl
from sightline.ops.operator import operator
from sightline.ops.points.distances import (
    assert_clouds,
    assert_finite,
    assert_finite_rows,
    assert_radius,
    assert_same_form,
    assert_some,
    by_channel,
    find_segment,
    is_far,
    squared_distances,
    strides_of_clouds,
    tile_of_distances,
    to_rows,
    upcast_for_comparison,
)
from sightline.ops.points.neighbour_kernels import ball_query_by_tree
from sightline.ops.segments.offsets import (
    assert_packed,
    first_rows,
    list_runs,
    locate_row,
    offsets_to_batch,
    read_both_sizes,
)
from sightline.ops.waits import knows_list, require_between

_ENTRIES_AT_ONCE = {"cpu": 2**20, "cuda": 2**26}

Empty = Literal["refuse", "mark"]


@torch.no_grad()
def points_in_balls(
    points: Tensor,
    *,
    centres: Tensor,
    radius: float,
    num_neighbours: int,
    empty: Empty = "refuse",
    has_rim: bool = True,
) -> Tensor:
    """Return the first `num_neighbours` points, by index, whose squared distance to the centre is at most radius^2.

    `points` (B, N, C), `centres` (B, M, C) -> index (B, M, num_neighbours) int64. A group with fewer points repeats
    its first one in the places that are left; with `empty="mark"`, one without points is -1 in all of them. radius^2 is
    rounded to the points' precision (half is compared in float32) before the comparison; without `has_rim`, squared
    distances have to be below it.
    Raises ValueError for fewer than one neighbour, a radius that is below 0 or NaN, a centre with no point in its ball
    unless they are marked, and values that are not finite, naming the sample.
    """
    assert_some(num_neighbours)
    assert_radius(radius)
    assert_clouds(points, name="points")
    assert_same_form(points, centres, name="centres")
    points, centres = upcast_for_comparison(points), upcast_for_comparison(centres)
    return _points_in_balls(points, centres, radius, num_neighbours, _is_mark(empty), has_rim)


@torch.no_grad()
def packed_points_in_balls(
    points: Tensor,
    *,
    offsets: Tensor,
    centres: Tensor,
    centre_offsets: Tensor,
    radius: float,
    num_neighbours: int,
    empty: Empty = "refuse",
    has_rim: bool = True,
) -> Tensor:
    """Find points in balls within each segment: rows (M, num_neighbours) of `points` (N, C) for `centres` (M, C).

    With `empty="mark"`, a segment may have centres and no points. Reads the offsets, which a GPU waits for unless the
    host has sent them.
    Raises ValueError as `points_in_balls`, the number of a centre being that within its segment.
    """
    assert_some(num_neighbours)
    assert_radius(radius)
    assert_packed(points, offsets, name="points")
    assert_packed(centres, centre_offsets, name="centres")
    assert_same_form(points, centres, name="centres")
    points, centres = upcast_for_comparison(points), upcast_for_comparison(centres)
    rows = (points, offsets, centres, centre_offsets)
    return _packed_points_in_balls(*rows, radius, num_neighbours, _is_mark(empty), has_rim)


def mark_found(index: Tensor) -> Tensor:
    """Mark the slots (..., K) of an index of points in balls that do not repeat the first one, and are not empty."""
    is_leading = torch.arange(index.shape[-1], device=index.device) == 0
    return (index >= 0) & (is_leading | (index > index[..., :1]))


def _is_mark(empty: Empty) -> bool:
    if empty not in ("refuse", "mark"):
        raise ValueError(f"empty: found {empty!r}, expected 'refuse' or 'mark'")
    return empty == "mark"


def _largest_inside(radius: float, has_rim: bool, dtype: torch.dtype) -> float:
    """Return the largest squared distance of a format that is inside."""
    limit = torch.tensor(radius * radius, dtype=dtype)
    return float(limit if has_rim else torch.nextafter(limit, torch.full_like(limit, -1.0)))


def _check(points: Tensor, centres: Tensor, *_: object) -> None:
    assert_finite(points, name="points")
    assert_finite(centres, name="centres")


def _require_points(index: Tensor, radius: float, locate: Callable[[int], tuple[int, int, Tensor, Tensor]]) -> None:
    """Raise ValueError if a row of `index` (..., K) is marked; `locate` gives its cloud, place, points and centre."""

    def make_error() -> ValueError:
        sample, row, points, centre = locate(int((index[..., 0] < 0).flatten().nonzero()[0]))
        nearest = float((points.double() - centre.double()).square().sum(-1).min().sqrt())
        return ValueError(
            f"centres[{sample}]: centre {row} has no point within {radius:g}, the nearest one is {nearest:.6g} away; "
            'take centres from the points themselves, raise the radius, or mark empty balls by empty="mark"'
        )

    require_between(index[..., 0], 0, math.inf, make_error)


def _require_dense(index: Tensor, points: Tensor, centres: Tensor, radius: float) -> Tensor:
    def locate(row: int) -> tuple[int, int, Tensor, Tensor]:
        sample, centre = divmod(row, centres.shape[1])
        return sample, centre, points[sample], centres[sample, centre]

    _require_points(index, radius, locate)
    return index


def _require_packed(
    index: Tensor, points: Tensor, offsets: Tensor, centres: Tensor, centre_offsets: Tensor, radius: float
) -> Tensor:
    def locate(row: int) -> tuple[int, int, Tensor, Tensor]:
        segment, centre = locate_row(row, centre_offsets)
        return segment, centre, points[int(offsets[segment]) : int(offsets[segment + 1])], centres[row]

    _require_points(index, radius, locate)
    return index


@operator(launches=3, check=_check, differentiable=False, stacked=True)
def _points_in_balls(
    points: Tensor, centres: Tensor, radius: float, num_neighbours: int, marks: bool, has_rim: bool
) -> Tensor:
    """Compute all distances, for a bounded number of centres at a time; an empty ball is -1 if `marks`, or an error."""
    num_samples, num_points, _ = points.shape
    points_CBN, centres_CBM = (values.permute(2, 0, 1).contiguous() for values in (points, centres))
    limit = torch.full((), _largest_inside(radius, has_rim, points.dtype), dtype=points.dtype, device=points.device)
    at_once = _ENTRIES_AT_ONCE.get(points.device.type, _ENTRIES_AT_ONCE["cpu"])
    parts = [
        _first_inside(squared_distances(centres_CBm, points_CBN) <= limit, num_neighbours)
        for centres_CBm in centres_CBM.split(max(1, at_once // max(1, num_samples * num_points)), dim=2)
    ]
    index = torch.cat(parts, dim=1)
    index = index.masked_fill(index == _NOWHERE, -1)
    return index if marks else _require_dense(index, points, centres, radius)


_NOWHERE = 2**31 - 1
"""Place in no cloud; not the number of its points, which may be free in a graph."""


def _first_inside(is_inside: Tensor, num_neighbours: int) -> Tensor:
    """Return the first places (..., K) of True in the rows of `is_inside` (..., N), then the first; or `_NOWHERE`."""
    position = torch.arange(is_inside.shape[-1], device=is_inside.device).where(is_inside, _NOWHERE)
    filled = torch.nn.functional.pad(position, (0, num_neighbours), value=_NOWHERE)  # there may be fewer
    index = filled.topk(num_neighbours, dim=-1, largest=False, sorted=True).values
    return torch.where(index == _NOWHERE, index[..., :1], index)


def _compare(has_rim: bool) -> Callable[[Tensor, float], Tensor]:
    return torch.le if has_rim else torch.lt


@_points_in_balls.fake
def _(points: Tensor, centres: Tensor, radius: float, num_neighbours: int, marks: bool, has_rim: bool) -> Tensor:
    return centres.new_empty((*centres.shape[:2], num_neighbours), dtype=torch.int64)


def _query_in_graph(
    points: Tensor, centres: Tensor, radius: float, num_neighbours: int, marks: bool, has_rim: bool
) -> Tensor:
    """Query balls in operations that a graph can record for any number of points; it cannot refuse an empty one."""
    squared = squared_distances(centres.permute(2, 0, 1), points.permute(2, 0, 1))
    index = _first_inside(_compare(has_rim)(squared, radius * radius), num_neighbours)
    return index.masked_fill(index == _NOWHERE, -1) if marks else index


_points_in_balls.graph = _query_in_graph


@_points_in_balls.cpu_kernel
def _(points: Tensor, centres: Tensor, radius: float, num_neighbours: int, marks: bool, has_rim: bool) -> Tensor:
    if not (points.numel() and centres.numel()):
        return _points_in_balls.plain(points, centres, radius, num_neighbours, marks, has_rim)
    index = ball_query_by_tree(points, centres, _largest_inside(radius, has_rim, points.dtype), num_neighbours)
    return index if marks else _require_dense(index, points, centres, radius)


# --- Packed -----------------------------------------------------------------------------------------------------------


def _read_both_sizes(
    points: Tensor, offsets: Tensor, centres: Tensor, centre_offsets: Tensor, *, marks: bool
) -> tuple[list[int], list[int]]:
    return read_both_sizes(points, offsets, centres, centre_offsets, name="centre", may_lack_points=marks)


def _check_packed(
    points: Tensor,
    offsets: Tensor,
    centres: Tensor,
    centre_offsets: Tensor,
    radius: float,
    count: int,
    marks: bool,
    has_rim: bool,
) -> None:
    _read_both_sizes(points, offsets, centres, centre_offsets, marks=marks)
    assert_finite_rows(points, lambda row: locate_row(row, offsets), name="points")
    assert_finite_rows(centres, lambda row: locate_row(row, centre_offsets), name="centres")


@operator(launches=3, check=_check_packed, differentiable=False)
def _packed_points_in_balls(
    points: Tensor,
    offsets: Tensor,
    centres: Tensor,
    centre_offsets: Tensor,
    radius: float,
    count: int,
    marks: bool,
    has_rim: bool,
) -> Tensor:
    index = offsets.new_empty((centres.shape[0], count), dtype=torch.int64)
    for run in list_runs(*_read_both_sizes(points, offsets, centres, centre_offsets, marks=marks)):
        stacked = points[run.rows].unflatten(0, (run.count, run.size))
        run_centres = centres[run.other_rows].unflatten(0, (run.count, run.other_size))
        near = _points_in_balls(stacked, run_centres, radius, count, True, has_rim)
        rows = torch.where(near >= 0, near + first_rows(run, points.device)[:, None, None], -1)
        index[run.other_rows] = rows.flatten(0, 1)
    return index if marks else _require_packed(index, points, offsets, centres, centre_offsets, radius)


@_packed_points_in_balls.fake
def _(
    points: Tensor,
    offsets: Tensor,
    centres: Tensor,
    centre_offsets: Tensor,
    radius: float,
    count: int,
    marks: bool,
    has_rim: bool,
) -> Tensor:
    return centres.new_empty((centres.shape[0], count), dtype=torch.int64)


def _query_packed_in_graph(
    points: Tensor,
    offsets: Tensor,
    centres: Tensor,
    centre_offsets: Tensor,
    radius: float,
    count: int,
    marks: bool,
    has_rim: bool,
) -> Tensor:
    """Query cloud by cloud if the graph knows their sizes, else among all points with a mask."""
    if knows_list(offsets):
        return _packed_points_in_balls.plain(points, offsets, centres, centre_offsets, radius, count, marks, has_rim)
    cloud_N, cloud_M = (
        offsets_to_batch(o, rows.shape[0]) for rows, o in ((points, offsets), (centres, centre_offsets))
    )
    squared = squared_distances(centres.mT[:, None], points.mT[:, None])[0]
    is_inside = _compare(has_rim)(squared, radius * radius)
    index = _first_inside(is_inside & (cloud_M[:, None] == cloud_N), count)
    return index.masked_fill(index == _NOWHERE, -1)


_packed_points_in_balls.graph = _query_packed_in_graph


# --- GPU: some threads a centre ---------------------------------------------------------------------------------------


@_points_in_balls.gpu_kernel()
def _(points: Tensor, centres: Tensor, radius: float, num_neighbours: int, marks: bool, has_rim: bool) -> Tensor:
    num_clouds, num_centres, _ = centres.shape
    index = centres.new_empty((num_clouds, num_centres, num_neighbours), dtype=torch.int64)
    limit = _largest_inside(radius, has_rim, points.dtype)
    _launch(num_clouds, points, None, centres, None, limit, index, num_centres)
    return index if marks else _require_dense(index, points, centres, radius)


@_packed_points_in_balls.gpu_kernel()
def _(
    points: Tensor,
    offsets: Tensor,
    centres: Tensor,
    centre_offsets: Tensor,
    radius: float,
    count: int,
    marks: bool,
    has_rim: bool,
) -> Tensor:
    _, counts = _read_both_sizes(points, offsets, centres, centre_offsets, marks=marks)
    index = centres.new_empty((centres.shape[0], count), dtype=torch.int64)
    limit = _largest_inside(radius, has_rim, points.dtype)
    _launch(len(counts), points, offsets, centres, centre_offsets, limit, index, max(counts, default=0))
    return index if marks else _require_packed(index, points, offsets, centres, centre_offsets, radius)


def _launch(
    num_clouds: int,
    points: Tensor,
    offsets: Tensor | None,
    centres: Tensor,
    centre_offsets: Tensor | None,
    squared_radius: float,
    index: Tensor,
    num_centres: int,
) -> None:
    points, centres = by_channel(points), by_channel(centres)
    num_blocks = -(-num_centres // _CENTRES)
    _find_in_balls.launch(
        num_clouds * num_blocks,
        points,
        offsets,
        centres,
        centre_offsets,
        index,
        num_blocks,
        points.shape[-2],
        num_centres,
        index.shape[-1],
        squared_radius,
        *strides_of_clouds(points),
        *strides_of_clouds(centres),
        CHANNELS=points.shape[-1],
        CENTRES=_CENTRES,
        BLOCK=32,
        IS_FAR=is_far(points) or is_far(centres),
        num_warps=1,
    )


_CENTRES = 8


@gpu_kernel
def _find_in_balls(  # type: ignore[no-untyped-def]
    points,
    offsets,
    centres,
    centre_offsets,
    index,
    num_blocks: tl.int32,
    num_points: tl.int32,
    num_centres: tl.int32,
    num_neighbours: tl.int32,
    squared_radius: tl.float64,
    cloud_step: tl.int64,
    point_step: tl.int64,
    channel_step: tl.int64,
    centre_cloud_step: tl.int64,
    centre_step: tl.int64,
    centre_channel_step: tl.int64,
    CHANNELS: tl.constexpr,
    CENTRES: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_FAR: tl.constexpr,
):
    """Write points inside as they come, until each group is full; then the first one into the places left."""
    cloud = (tl.program_id(0) // num_blocks).to(tl.int64)
    first_point, count = find_segment(offsets, cloud, num_points)
    first_centre, num_own = find_segment(centre_offsets, cloud, num_centres)
    centre = (tl.program_id(0) % num_blocks) * CENTRES + tl.arange(0, CENTRES)
    is_centre = centre < num_own
    base, centre_base = points + cloud * cloud_step, centres + cloud * centre_cloud_step
    if offsets is not None:
        base += first_point * point_step
        centre_base += first_centre * centre_step
    to_centre = to_rows(centre_base, centre, centre_step, IS_FAR)
    limit = as_type(squared_radius, points.dtype.element_ty)
    slots = index + (first_centre + centre) * num_neighbours
    num_found = tl.where(is_centre, 0, num_neighbours)
    first = tl.full([CENTRES], 0x7FFFFFFF, tl.int32)
    begin = 0
    while (begin < count) & (tl.min(num_found, axis=0) < num_neighbours):
        point = begin + tl.arange(0, BLOCK)
        is_point, address = point < count, to_rows(base, point, point_step, IS_FAR)
        distances = tile_of_distances(
            address, is_point, channel_step, to_centre, is_centre, centre_channel_step, CHANNELS
        )
        is_inside = (distances <= limit) & is_point[:, None] & is_centre[None, :]
        rank = num_found[None, :] + tl.cumsum(is_inside.to(tl.int32), axis=0) - 1
        row = point[:, None].to(tl.int64) + (0 if offsets is None else first_point)
        tl.store(slots[None, :] + rank, row + tl.zeros_like(rank), mask=is_inside & (rank < num_neighbours))
        first = tl.minimum(first, tl.min(tl.where(is_inside, point[:, None], 0x7FFFFFFF), axis=0))
        num_found += tl.sum(is_inside.to(tl.int32), axis=0)
        begin += BLOCK
    first_row = tl.where(num_found > 0, first.to(tl.int64) + (0 if offsets is None else first_point), -1)
    for first_slot in range(tl.min(num_found, axis=0), num_neighbours, BLOCK):
        slot = first_slot + tl.arange(0, BLOCK)[:, None]
        is_left = (slot >= num_found[None, :]) & (slot < num_neighbours) & is_centre[None, :]
        tl.store(slots[None, :] + slot, first_row[None, :] + tl.zeros_like(slot), mask=is_left)
