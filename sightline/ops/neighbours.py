"""Exact nearest neighbours (kNN): the reference, and the choice of a faster form that agrees with it.

Nearest neighbours by matrix products in torch, for GPUs: the bits of the reference.

Ball query: the points within a radius of each centre, by index, as PointNet++ groups them.

Inverse-distance interpolation of features from points to queries.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sightline.contract.errors import ConfigError
from sightline.ops.distances import (
    assert_finite,
    assert_radius,
    assert_same_form,
    assert_some,
    distance_scores,
    paired_squared_distances,
    squared_distances,
    upcast_for_comparison,
)
from sightline.ops.neighbour_kernels import ball_query_by_tree, neighbours_by_product, neighbours_by_tree
from sightline.ops.numba_kernels import can_use_numba
from sightline.ops.waits import expect, is_exporting, is_free_to_read, is_recording, require

_SPARE = 16
"""Candidates beyond the requested neighbours: enough that rounding rarely reaches past them."""


def neighbours_by_candidates(
    points: Tensor, queries: Tensor, num_neighbours: int, *, entries_at_once: int
) -> tuple[Tensor, Tensor] | None:
    """Find neighbours among the lowest scores: index (B, M, K) int64, and is_proven (B, M) bool.

    `points` (B, N, C), `queries` (B, M, C). The points with the lowest `distance_scores` are measured as in the
    reference; a query is proven if its last candidate is above the bound for the nearest; the others have too many
    points at equal distances. None if there is no such bound.
    """
    parts = distance_scores(points, queries)
    if parts is None:
        return None
    num_clouds, num_queries, _ = queries.shape
    num_points = points.shape[1]
    count = min(num_points, num_neighbours + _SPARE)
    index = torch.empty((num_clouds, num_queries, num_neighbours), dtype=torch.int64, device=points.device)
    is_proven = torch.empty((num_clouds, num_queries), dtype=torch.bool, device=points.device)
    step = max(1, entries_at_once // max(1, num_clouds * num_points))
    for begin in range(0, num_queries, step):
        part = slice(begin, begin + step)
        with torch.autocast(points.device.type, enabled=False):
            scores = torch.baddbmm(parts.squared_norms[:, None], parts.queries[:, part], parts.points.mT, alpha=-2)
        least = scores.topk(count, dim=-1, largest=False)
        index[:, part] = _sort_candidates(points, queries[:, part], least.indices)[..., :num_neighbours]
        bound = least.values[..., num_neighbours - 1] + parts.slack[:, part]
        is_proven[:, part] = (least.values[..., -1] > bound) | (count == num_points)
    return index, is_proven


def _sort_candidates(points: Tensor, queries: Tensor, candidates: Tensor) -> Tensor:
    """Sort candidates (B, M, K) by (distance, index)."""
    candidates = candidates.sort(dim=-1).values
    sample = torch.arange(len(points), device=points.device)[:, None, None]
    distances = paired_squared_distances(queries[:, :, None], points[sample, candidates])
    return candidates.gather(-1, torch.sort(distances, dim=-1, stable=True).indices)


_CHANNELS_OF_TREES = 5
"""Highest number of channels for k-d trees.

At 1024 points they take half the time of the product in 3, the same in 6.
"""

_ENTRIES_AT_ONCE = {"cpu": 2**20, "cuda": 2**26}
"""Distances in memory at a time: near 8 MB in float32, on a GPU near 1 GB, for clouds of any size."""


@torch.no_grad()
def nearest_neighbours(points: Tensor, *, num_neighbours: int, queries: Tensor | None = None) -> Tensor:
    """Find the `num_neighbours` nearest points of each query in the same sample, in order of (distance, index).

    `points` (B, N, C), `queries` (B, M, C), by default the points themselves -> index (B, M, num_neighbours) int64.
    A query that is a point counts itself (distance 0; a duplicate with a lower index comes before it). Distances are
    the plain sum of (a - b)^2 over the channels in order, in the points' own precision (half precision in float32).
    So a squared distance is off by (C / 2 + 1) eps of itself at most, wherever the points stand: at 1e4 m float32
    orders them as float64 would, but for those that are equally far to that.
    Raises ValueError for no neighbours or more than points, for queries of another kind than the points, and for values
    that are not finite, naming the sample.
    Source: the neighbourhood of Wang et al. 2019, section 3.1.
    """
    assert_some(num_neighbours)
    assert_finite(points, name="points")
    num_points = points.shape[1]
    if num_neighbours > num_points:
        raise ValueError(
            f"{num_neighbours} neighbours asked for in clouds of {num_points} points; lower num_neighbours or give "
            f"clouds of at least {num_neighbours} points"
        )
    if queries is not None:
        assert_same_form(points, queries, name="queries")
        assert_finite(queries, name="queries")
    points = upcast_for_comparison(points)
    queries = points if queries is None else upcast_for_comparison(queries)
    if can_use_numba(points, queries) and points.numel() and queries.numel():
        if points.shape[2] <= _CHANNELS_OF_TREES:
            return neighbours_by_tree(points, queries, num_neighbours)
        by_product = neighbours_by_product(points, queries, num_neighbours)
        if by_product is not None:
            return by_product
    elif is_recording():
        return _find_in_graph(points, queries, num_neighbours)
    elif points.shape[2] > _CHANNELS_OF_TREES and points.numel() and queries.numel():
        by_candidates = _find_by_candidates(points, queries, num_neighbours)
        if by_candidates is not None:
            return by_candidates
    return nearest_neighbours_reference(points, queries, num_neighbours)


def _find_by_candidates(points: Tensor, queries: Tensor, num_neighbours: int) -> Tensor | None:
    """Use matrix products for most queries, and the reference for those that are not proven."""
    candidates = neighbours_by_candidates(points, queries, num_neighbours, entries_at_once=_entries_at_once(points))
    if candidates is None:
        return None
    index, is_proven = candidates
    if expect(is_proven):
        return index
    for sample in (~is_proven).any(dim=1).nonzero().flatten().tolist():
        unproven = ~is_proven[sample]
        unproven_queries = queries[sample, unproven][None]
        index[sample, unproven] = nearest_neighbours_reference(points[sample][None], unproven_queries, num_neighbours)[
            0
        ]
    return index


def _find_in_graph(points: Tensor, queries: Tensor, num_neighbours: int) -> Tensor:
    """Find neighbours in operations that a graph can record for any number of points: no blocks and no proof.

    The nearest in many channels are among the best products of centred points, of which there are `_SPARE` more. ONNX
    orders equal entries by their index.
    """
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


def _entries_at_once(points: Tensor) -> int:
    return _ENTRIES_AT_ONCE.get(points.device.type, _ENTRIES_AT_ONCE["cpu"])


def scale_num_neighbours(count: int, *, reference_num_points: int | None, num_points: int) -> int:
    """Scale a number of neighbours from clouds of `reference_num_points` points to clouds of `num_points`.

    A denser sampling has proportionally more points within the same distance. A half is rounded up, and the result is
    at least one; `count` itself if the reference is None (any cloud).
    """
    return (
        count
        if reference_num_points is None
        else max(1, (2 * count * num_points + reference_num_points) // (2 * reference_num_points))
    )


def assert_meant_for(neighbours_at: int | None, *, num_neighbours: int) -> None:
    """Raise ConfigError if `num_neighbours` exceeds the number of points of the clouds it refers to."""
    if neighbours_at is not None and neighbours_at < num_neighbours:
        raise ConfigError(f"neighbours_at: found {neighbours_at}, expected at least num_neighbours={num_neighbours}")


def gather_points(values: Tensor, index: Tensor) -> Tensor:
    """Gather rows by index: `values` (B, N, C), `index` (B, M, K) int64 -> (B, M, K, C)."""
    sample_index = torch.arange(values.shape[0], device=values.device)[:, None, None]
    return values[sample_index, index]


def assert_rows(index: Tensor, values: Tensor, *, num_queries: int) -> None:
    """Raise ValueError unless `index` (B, num_queries, K) contains rows of `values` (B, N, C).

    For compiled loops, which read and write wherever an index points.
    """
    num_samples, num_points = values.shape[:2]
    if index.shape[:-1] != (num_samples, num_queries) or index.shape[-1] == 0 or index.dtype != torch.int64:
        raise ValueError(
            f"index: found the shape {tuple(index.shape)} {index.dtype}, expected ({num_samples}, {num_queries}, K) "
            "torch.int64 with K >= 1; give the neighbours of every query in every sample"
        )
    if index.numel():
        lowest, highest = index.aminmax()
        require(
            (lowest >= 0) & (highest < num_points),
            lambda: ValueError(
                f"index: rows {int(lowest)}..{int(highest)} named in clouds of {num_points} points; give rows of these "
                "clouds"
            ),
        )


@torch.no_grad()
def nearest_neighbours_reference(points: Tensor, queries: Tensor, num_neighbours: int) -> Tensor:
    """Compute the reference of `nearest_neighbours`, on any device.

    Points (B, N, C), queries (B, M, C) -> index (B, M, K) int64. It computes all distances, for a bounded number of
    queries at a time.
    """
    num_samples, num_points, _ = points.shape
    points_CBN = points.permute(2, 0, 1).contiguous()  # one channel is read at a time: five times faster than strided
    queries_CBM = queries.permute(2, 0, 1).contiguous()
    chunk = max(1, _entries_at_once(points) // max(1, num_samples * num_points))
    parts = [
        _first_by_distance_and_index(squared_distances(queries_CBm, points_CBN), num_neighbours)
        for queries_CBm in queries_CBM.split(chunk, dim=2)
    ]
    return torch.cat(parts, dim=1)


def _first_by_distance_and_index(distances_BMN: Tensor, count: int) -> Tensor:
    """Return columns (B, M, count) int64 of the smallest entries of each row, in order of (entry, column)."""
    if distances_BMN.dtype == torch.float32 and not is_free_to_read(distances_BMN):
        # The bits of numbers that are not negative rise with them: one key orders by distance, then by column.
        columns = torch.arange(distances_BMN.shape[-1], device=distances_BMN.device)
        keys = (distances_BMN.view(torch.int32).long() << 32) | columns
        return keys.topk(count, largest=False, sorted=True).indices
    smallest = distances_BMN.topk(min(count + 1, distances_BMN.shape[-1]), largest=False)
    chosen = smallest.indices[..., :count].sort(dim=-1).values
    order = torch.sort(distances_BMN.gather(-1, chosen), dim=-1, stable=True).indices
    chosen = chosen.gather(-1, order)
    if smallest.values.shape[-1] == count:
        return chosen
    # topk takes any of those that tie for the last place. A row with such a tie is sorted whole: six times slower
    # than topk, and rare outside grids and padded clouds.
    has_tie = smallest.values[..., count - 1] == smallest.values[..., count]
    if not expect(~has_tie):
        chosen[has_tie] = torch.sort(distances_BMN[has_tie], dim=-1, stable=True).indices[:, :count]
    return chosen


_BALL_ENTRIES_AT_ONCE = 2**20


@torch.no_grad()
def ball_query(points: Tensor, *, centres: Tensor, radius: float, num_neighbours: int) -> Tensor:
    """Return the first `num_neighbours` points, by index, whose squared distance to the centre is at most radius^2.

    `points` (B, N, C), `centres` (B, M, C) -> index (B, M, num_neighbours) int64. A group with fewer points repeats
    its first one in the places that are left. radius^2 is rounded to the points' precision (half is compared in
    float32) before the comparison.
    Raises ValueError for fewer than one neighbour, a radius that is below 0 or NaN, a centre with no point in its ball,
    and values that are not finite, naming the sample.
    Source: Qi et al. 2017 (PointNet++), section 3.2; which points and their order follow its PyTorch port by Yan.
    """
    assert_some(num_neighbours)
    assert_radius(radius)
    assert_finite(points, name="points")
    assert_same_form(points, centres, name="centres")
    assert_finite(centres, name="centres")
    points, centres = upcast_for_comparison(points), upcast_for_comparison(centres)
    if is_recording():
        return _query_balls_in_graph(points, centres, radius, num_neighbours)
    search = (
        ball_query_by_tree
        if can_use_numba(points, centres) and points.numel() and centres.numel()
        else ball_query_reference
    )
    index = search(points, centres, radius, num_neighbours)
    index = torch.where(index == points.shape[1], index[..., :1], index)
    require(index[..., 0] < points.shape[1], lambda: _empty_ball_error(points, centres, index, radius))
    return index


@torch.no_grad()
def ball_query_reference(points: Tensor, centres: Tensor, radius: float, num_neighbours: int) -> Tensor:
    """Compute the reference of `ball_query`, on any device.

    `points` (B, N, C), `centres` (B, M, C) -> index (B, M, K) int64, ascending.
    Slots without a point contain N.
    """
    num_samples, num_points, _ = points.shape
    points_CBN, centres_CBM = (values.permute(2, 0, 1).contiguous() for values in (points, centres))
    squared_radius = torch.full((), radius * radius, dtype=points.dtype, device=points.device)
    place_N = torch.arange(num_points, device=points.device)
    chunk = max(1, _BALL_ENTRIES_AT_ONCE // max(1, num_samples * num_points))
    parts = []
    for centres_CBm in centres_CBM.split(chunk, dim=2):
        is_inside = squared_distances(centres_CBm, points_CBN) <= squared_radius
        place_BmN = torch.where(is_inside, place_N, num_points)
        parts.append(place_BmN.topk(min(num_neighbours, num_points), dim=-1, largest=False, sorted=True).values)
    index = torch.cat(parts, dim=1)
    return torch.nn.functional.pad(index, (0, num_neighbours - index.shape[-1]), value=num_points)


def _query_balls_in_graph(points: Tensor, centres: Tensor, radius: float, num_neighbours: int) -> Tensor:
    """Query balls in operations that a graph can record for any number of points."""
    squared_distances_BMN = squared_distances(centres.permute(2, 0, 1), points.permute(2, 0, 1))
    num_points = points.shape[1]
    place = torch.arange(num_points, device=points.device).where(squared_distances_BMN <= radius * radius, num_points)
    filled = torch.nn.functional.pad(place, (0, num_neighbours), value=num_points)  # there may be fewer
    index = filled.topk(num_neighbours, dim=-1, largest=False, sorted=True).values
    return torch.where(index == num_points, index[..., :1], index)


def _empty_ball_error(points: Tensor, centres: Tensor, index: Tensor, radius: float) -> ValueError:
    sample, centre = (index[..., 0] == points.shape[1]).nonzero()[0].tolist()
    difference = points[sample].double() - centres[sample, centre].double()
    nearest = float(difference.square().sum(-1).min().sqrt())
    return ValueError(
        f"centres[{sample}]: centre {centre} has no point within {radius:g}, the nearest one is {nearest:.6g} away; "
        "take centres from the points themselves, or raise the radius"
    )


Weighting = Literal["inverse_square", "inverse"]
_SOFTENING = 1e-8


def interpolate(
    features: Tensor,
    *,
    points: Tensor,
    queries: Tensor,
    weighting: Weighting = "inverse_square",
    num_neighbours: int = 3,
) -> Tensor:
    """Interpolate features at the queries: the mean of the nearest points, weighted by 1/(d^2 + 1e-8) or 1/(d + 1e-8).

    `features` (B, N, F) at `points` (B, N, C), `queries` (B, M, C) -> (B, M, F). Differentiable in `features` alone;
    the mean of whole numbers has the precision of the points.
    Where there are fewer than `num_neighbours` = K points, all of them are taken. Wherever the points stand, rounding
    moves a value by at most (C + K + 6) eps times the largest feature (C + 2 roundings in a squared distance, K + 3 in
    the weights' sum and quotient, twice, and K in the mean); of points that are equally far to rounding, either counts.
    Raises ValueError for features of other points, and for values that are not finite, naming the sample.
    Source: Qi et al. 2017 (PointNet++), equation 2 with p = 2 and k = 3 (`inverse_square`); Zhao et al. 2021 (Point
    Transformer), in their code, weigh by the distance itself (`inverse`).
    """
    if features.shape[:-1] != points.shape[:-1]:
        raise ValueError(
            f"features {tuple(features.shape)} do not go with points {tuple(points.shape)}; give a row for each point"
        )
    index = nearest_neighbours(points, num_neighbours=min(num_neighbours, points.shape[1]), queries=queries)
    return weighted_mean(features, index, inverse_distance_weights(points, queries, index, weighting))


def weighted_mean(features: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Sum the rows `index` (B, M, K) of `features` (B, N, F) times `weights` (B, M, K): (B, M, F)."""
    if features.is_floating_point():
        weights = weights.to(features.dtype)
    return (gather_points(features, index) * weights[..., None]).sum(dim=2)


@torch.no_grad()
def inverse_distance_weights(
    points: Tensor, queries: Tensor, index: Tensor, weighting: Weighting, *, is_valid: Tensor | None = None
) -> Tensor:
    """Compute weights (B, M, K), with sum 1, of the points `index` (B, M, K) at the queries (B, M, C).

    0 if not `is_valid`.
    """
    points, queries = upcast_for_comparison(points), upcast_for_comparison(queries)
    distances = paired_squared_distances(queries[:, :, None], gather_points(points, index))
    if weighting == "inverse":
        distances = distances.sqrt()
    weights = 1 / (distances + _SOFTENING)
    if is_valid is not None:
        weights = weights * is_valid
    return weights / weights.sum(dim=-1, keepdim=True)
