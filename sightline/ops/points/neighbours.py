"""Exact nearest neighbours (kNN), dense and packed: in order of (distance, index), the same on every device.

Distances are the plain sum of (a - b)^2 over the channels in order, each operation rounded. CPUs search k-d trees in
few channels, and in many rank matrix products and prove the rank; GPUs compare all pairs.
Source: the neighbourhood of Wang et al. 2019, section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.ops.operator import operator
from sightline.ops.points.distances import (
    absolute_distances,
    assert_clouds,
    assert_finite,
    assert_finite_rows,
    assert_same_form,
    assert_some,
    first_by_distance_and_index,
    squared_distances,
    upcast_for_comparison,
)
from sightline.ops.points.neighbour_gpu_kernels import launch_search
from sightline.ops.points.neighbour_kernels import neighbours_by_product, neighbours_by_tree
from sightline.ops.points.proven_neighbours import neighbours_by_proof
from sightline.ops.segments.offsets import (
    assert_packed,
    first_rows,
    list_runs,
    locate_row,
    offsets_to_batch,
    read_both_sizes,
)
from sightline.ops.waits import is_exporting, is_on_host, is_transformed, knows_list

_CHANNELS_OF_TREES = 5
"""Highest number of channels for k-d trees.

At 1024 points they take half the time of the product in 3, the same in 6.
"""

_ENTRIES_AT_ONCE = {"cpu": 2**20, "cuda": 2**26}
"""Distances in memory at a time: near 8 MB in float32, on a GPU near 1 GB, for clouds of any size."""


@torch.no_grad()
def nearest_neighbours(points: Tensor, num_neighbours: int, *, queries: Tensor | None = None, norm: int = 2) -> Tensor:
    """Find the `num_neighbours` nearest points of each query in the same sample, in order of (distance, index).

    `points` (B, N, C), `queries` (B, M, C), by default the points themselves -> index (B, M, num_neighbours) int64.
    A query that is a point counts itself (distance 0; a duplicate with a lower index comes before it). Distances are
    the plain sum of (a - b)^2 over the channels in order, in the points' own precision (half precision in float32).
    So a squared distance is off by (C / 2 + 1) eps of itself at most, wherever the points stand: at 1e4 m float32
    orders them as float64 would, but for those that are equally far to that. With `norm` 1 they are the sum of |a - b|.
    Raises ValueError for no neighbours or more than points, for queries of another kind than the points, and for values
    that are not finite, naming the sample.
    """
    assert_some(num_neighbours)
    assert_clouds(points, name="points")
    num_points = points.shape[1]
    if num_neighbours > num_points:
        raise ValueError(
            f"{num_neighbours} neighbours asked for in clouds of {num_points} points; lower num_neighbours or give "
            f"clouds of at least {num_neighbours} points"
        )
    if queries is not None:
        assert_same_form(points, queries, name="queries")
        queries = upcast_for_comparison(queries)
    if norm not in (1, 2):
        raise ValueError(f"norm: found {norm}, expected 2, of squared distances, or 1, of absolute differences")
    find = _nearest_neighbours if norm == 2 else _nearest_by_differences
    return find(upcast_for_comparison(points), queries, num_neighbours)


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Neighbour indices (M, K) int64 into the packed points, and a mask (M, K) bool of the valid ones.

    An invalid slot contains the first row of the segment: it may be gathered, and has to be masked.
    """

    index: Tensor
    is_valid: Tensor


@torch.no_grad()
def packed_nearest_neighbours(
    points: Tensor,
    num_neighbours: int,
    *,
    offsets: Tensor,
    queries: Tensor | None = None,
    query_offsets: Tensor | None = None,
) -> Neighbours:
    """Find neighbours within each segment; a segment with fewer points returns all it has, in the same order.

    `points` (N, C), `queries` (M, C) with their own offsets, by default the points -> rows and their truth, (M, K).
    Offsets are read, unless the host sent them. Raises ValueError for offsets that do not fit, queries of a segment
    without points, and values not finite.
    """
    assert_some(num_neighbours)
    assert_packed(points, offsets, name="points")
    if (queries is None) is not (query_offsets is None):
        raise ValueError("queries and query_offsets belong together; give both, or neither for the points themselves")
    if queries is not None and query_offsets is not None:
        assert_packed(queries, query_offsets, name="queries")
        assert_same_form(points, queries, name="queries")
        queries = upcast_for_comparison(queries)
    points = upcast_for_comparison(points)
    return Neighbours(*_packed_nearest_neighbours(points, offsets, queries, query_offsets, num_neighbours))


# --- Dense ------------------------------------------------------------------------------------------------------------


def _check(points: Tensor, queries: Tensor | None, num_neighbours: int) -> None:
    assert_finite(points, name="points")
    if queries is not None:
        assert_finite(queries, name="queries")


@operator(launches=2, check=_check, differentiable=False, stacked=True)
def _nearest_neighbours(points: Tensor, queries: Tensor | None, num_neighbours: int) -> Tensor:
    """Take the nearest by `measure_all`; in many channels on a CPU most of it is proven instead."""
    queries, index = points if queries is None else queries, None
    if points.shape[2] > _CHANNELS_OF_TREES and is_on_host(points) and not is_transformed():
        index = neighbours_by_proof(points, queries, num_neighbours, measure_all)
    return measure_all(points, queries, num_neighbours) if index is None else index


def measure_all(points: Tensor, queries: Tensor, num_neighbours: int) -> Tensor:
    """Compute all distances, for a bounded number of queries at a time: the definition of the nearest."""
    return _find_by(points, queries, num_neighbours, squared_distances)


Measure = Callable[[Tensor, Tensor], Tensor]


def _find_by(points: Tensor, queries: Tensor | None, num_neighbours: int, measure: Measure) -> Tensor:
    num_samples, num_points, _ = points.shape
    points_CBN = points.permute(2, 0, 1).contiguous()  # one channel is read at a time: five times faster than strided
    queries = points if queries is None else queries
    queries_CBM = points_CBN if queries is points else queries.permute(2, 0, 1).contiguous()
    at_once = _ENTRIES_AT_ONCE.get(points.device.type, _ENTRIES_AT_ONCE["cpu"])
    parts = [
        first_by_distance_and_index(measure(queries_CBm, points_CBN), num_neighbours)
        for queries_CBm in queries_CBM.split(max(1, at_once // max(1, num_samples * num_points)), dim=2)
    ]
    return torch.cat(parts, dim=1)


@operator(check=_check, differentiable=False, stacked=True)
def _nearest_by_differences(points: Tensor, queries: Tensor | None, num_neighbours: int) -> Tensor:
    return _find_by(points, queries, num_neighbours, absolute_distances)


@_nearest_by_differences.fake
@_nearest_neighbours.fake
def _(points: Tensor, queries: Tensor | None, num_neighbours: int) -> Tensor:
    asking = points if queries is None else queries
    return asking.new_empty((*asking.shape[:2], num_neighbours), dtype=torch.int64)


_SPARE = 16
"""Candidates beyond the requested neighbours in a graph: enough that rounding rarely reaches past them."""


def _find_in_graph(points: Tensor, queries: Tensor | None, num_neighbours: int) -> Tensor:
    """Find neighbours in operations that a graph can record for any number of points: no blocks and no proof.

    The nearest in many channels are among the best products of centred points, of which there are `_SPARE` more. ONNX
    orders equal entries by their index.
    """
    queries = points if queries is None else queries
    if points.shape[2] <= _CHANNELS_OF_TREES:
        distances = squared_distances(queries.permute(2, 0, 1), points.permute(2, 0, 1))
        return distances.topk(num_neighbours, largest=False, sorted=True).indices
    centre = points.mean(dim=1, keepdim=True)
    points, queries = points - centre, queries - centre
    scores = torch.baddbmm(points.square().sum(-1)[:, None], queries, points.mT, alpha=-2)
    smaller = torch.sym_min if is_exporting() else min  # the first keeps the number of points free
    count = smaller(num_neighbours + _SPARE, points.shape[1])
    candidates = scores.topk(count, largest=False, sorted=False).indices.sort(dim=-1).values
    sample = torch.arange(points.shape[0], device=points.device)[:, None, None]
    distances = (queries[:, :, None] - points[sample, candidates]).square().sum(-1)
    return candidates.gather(-1, distances.topk(num_neighbours, largest=False, sorted=True).indices)


def _find_by_differences_in_graph(points: Tensor, queries: Tensor | None, num_neighbours: int) -> Tensor:
    distances = absolute_distances((points if queries is None else queries).permute(2, 0, 1), points.permute(2, 0, 1))
    return distances.topk(num_neighbours, largest=False, sorted=True).indices


_nearest_neighbours.graph = _find_in_graph
_nearest_by_differences.graph = _find_by_differences_in_graph


@_nearest_neighbours.cpu_kernel
def _(points: Tensor, queries: Tensor | None, num_neighbours: int) -> Tensor:
    queries = points if queries is None else queries
    index = None
    if points.numel() and queries.numel():
        if points.shape[2] <= _CHANNELS_OF_TREES:
            return neighbours_by_tree(points, queries, num_neighbours)
        index = neighbours_by_product(points, queries, num_neighbours)
    return _nearest_neighbours.plain(points, queries, num_neighbours) if index is None else index


# --- Packed -----------------------------------------------------------------------------------------------------------


def _check_packed(
    points: Tensor, offsets: Tensor, queries: Tensor | None, query_offsets: Tensor | None, num_neighbours: int
) -> None:
    read_both_sizes(points, offsets, queries, query_offsets)
    assert_finite_rows(points, lambda row: locate_row(row, offsets), name="points")
    if queries is not None and query_offsets is not None:
        own_offsets = query_offsets
        assert_finite_rows(queries, lambda row: locate_row(row, own_offsets), name="queries")


@operator(launches=2, check=_check_packed, differentiable=False)
def _packed_nearest_neighbours(
    points: Tensor, offsets: Tensor, queries: Tensor | None, query_offsets: Tensor | None, num_neighbours: int
) -> tuple[Tensor, Tensor]:
    asking = points if queries is None else queries
    index = offsets.new_zeros((asking.shape[0], num_neighbours), dtype=torch.int64)
    is_valid = torch.zeros_like(index, dtype=torch.bool)
    for run in list_runs(*read_both_sizes(points, offsets, queries, query_offsets)):
        count = min(num_neighbours, run.size)
        stacked = None if queries is None else queries[run.other_rows].unflatten(0, (run.count, -1))
        near = _nearest_neighbours(points[run.rows].unflatten(0, (run.count, -1)), stacked, count)
        rows = index[run.other_rows].unflatten(0, (run.count, -1))
        rows += first_rows(run, points.device)[:, None, None]
        rows[..., :count] += near
        is_valid[run.other_rows, :count] = True
    return index, is_valid


@_packed_nearest_neighbours.fake
def _(
    points: Tensor, offsets: Tensor, queries: Tensor | None, query_offsets: Tensor | None, num_neighbours: int
) -> tuple[Tensor, Tensor]:
    shape = (points if queries is None else queries).shape[0], num_neighbours
    return points.new_empty(shape, dtype=torch.int64), points.new_empty(shape, dtype=torch.bool)


def _find_packed_in_graph(
    points: Tensor, offsets: Tensor, queries: Tensor | None, query_offsets: Tensor | None, num_neighbours: int
) -> tuple[Tensor, Tensor]:
    """Find neighbours cloud by cloud if the graph knows their sizes, else among all points with a mask."""
    if knows_list(offsets):
        return _packed_nearest_neighbours.plain(points, offsets, queries, query_offsets, num_neighbours)
    asking, asking_offsets = (points, offsets) if queries is None or query_offsets is None else (queries, query_offsets)
    cloud_N, cloud_M = (offsets_to_batch(o, rows.shape[0]) for rows, o in ((points, offsets), (asking, asking_offsets)))
    distances = squared_distances(asking.mT[:, None], points.mT[:, None])[0]
    distances = distances.masked_fill(cloud_M[:, None] != cloud_N, torch.inf)
    filled = F.pad(distances, (0, num_neighbours), value=torch.inf)  # there may be fewer
    index = filled.topk(num_neighbours, largest=False, sorted=True).indices
    is_valid = torch.arange(num_neighbours, device=points.device) < offsets.diff()[cloud_M][:, None]
    return torch.where(is_valid, index, offsets[cloud_M][:, None]), is_valid


_packed_nearest_neighbours.graph = _find_packed_in_graph


# --- GPU --------------------------------------------------------------------------------------------------------------


@_nearest_neighbours.gpu_kernel()
def _(points: Tensor, queries: Tensor | None, num_neighbours: int) -> Tensor:
    num_clouds, num_queries, _ = (points if queries is None else queries).shape
    index = points.new_empty((num_clouds, num_queries, num_neighbours), dtype=torch.int64)
    launch_search(num_clouds, points, None, queries, None, index, None, num_queries)
    return index


@_packed_nearest_neighbours.gpu_kernel()
def _(
    points: Tensor, offsets: Tensor, queries: Tensor | None, query_offsets: Tensor | None, num_neighbours: int
) -> tuple[Tensor, Tensor]:
    _, counts = read_both_sizes(points, offsets, queries, query_offsets)
    index = points.new_empty((len(points if queries is None else queries), num_neighbours), dtype=torch.int64)
    is_valid = torch.empty_like(index, dtype=torch.bool)
    launch_search(len(counts), points, offsets, queries, query_offsets, index, is_valid, max(counts, default=0))
    return index, is_valid
