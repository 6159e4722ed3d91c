"""CPU kernels of nearest neighbours and ball query: the bits of the reference, without looking at every point."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from sightline.ops.numba_kernels import numba_kernel, run_parallel
from sightline.ops.points.distances import distance_scores
from sightline.ops.points.trees import LEAF_SIZE, build_trees
from sightline.ops.products import linear_map

_ENTRIES_AT_ONCE = 2**20
"""Scores in memory at a time: 4 MB in float32. Each part of the queries arranges the points for its product anew."""
_ROWS_OF_PRODUCTS = 16
"""Queries of a product are a multiple of it, as `linear_map` likes them."""
_SPARE = 32
"""Candidates that are sorted by score beyond twice the number of neighbours; of more, all distances are measured."""
_HALVINGS = 10
_DEEPEST = 64
"""Size of a search's stack: more than the levels of any tree."""
_NONE = 2**62
"""Index of an empty slot: larger than that of any point."""


def neighbours_by_tree(points: Tensor, queries: Tensor, num_neighbours: int) -> Tensor:
    """Find neighbours by k-d tree, for few channels: points (B, N, C), queries (B, M, C) -> index (B, M, K) int64."""
    trees = build_trees(points)
    num_clouds, num_queries, _ = queries.shape
    # Near queries in turn find their boxes in the cache; the tree order of the points is such an order.
    order = trees.order if queries is points else np.tile(np.arange(num_queries), (num_clouds, 1))
    index = np.empty((num_clouds, num_queries, num_neighbours), dtype=np.int64)
    run_parallel(_search, num_clouds * num_queries, queries.contiguous().numpy(), order, *trees, index)
    return torch.from_numpy(index)


def ball_query_by_tree(points: Tensor, centres: Tensor, limit: float, num_neighbours: int) -> Tensor:
    """Find points by k-d tree within a squared distance: points (B, N, C), centres (B, M, C) -> index (B, M, K) int64.

    The first one fills the slots that are left; where there is none, all contain -1.
    """
    num_clouds, num_centres, _ = centres.shape
    squared_radius = np.array([limit], dtype=points.numpy().dtype)
    index = np.empty((num_clouds, num_centres, num_neighbours), dtype=np.int64)
    trees = build_trees(points)
    run_parallel(_search_balls, num_clouds * num_centres, centres.contiguous().numpy(), squared_radius, *trees, index)
    return torch.from_numpy(index)


def neighbours_by_product(points: Tensor, queries: Tensor, num_neighbours: int) -> Tensor | None:
    """Find neighbours by matrix product, for many channels.

    Points (B, N, C), queries (B, M, C) -> index (B, M, K) int64. Points whose `distance_scores` are within the bound
    for the nearest are measured as in the reference. None if there is no such bound.
    """
    parts = distance_scores(points, queries)
    if parts is None:
        return None
    num_clouds, num_queries, _ = queries.shape
    num_points, scaled_queries = points.shape[1], -2 * parts.queries
    chunk = max(1, _ENTRIES_AT_ONCE // num_points // _ROWS_OF_PRODUCTS) * _ROWS_OF_PRODUCTS
    lowest_of = _num_groups(num_points, num_neighbours)
    index = np.empty((num_clouds, num_queries, num_neighbours), dtype=np.int64)
    for cloud, begin in itertools.product(range(num_clouds), range(0, num_queries, chunk)):
        part = slice(begin, begin + chunk)
        with torch.autocast("cpu", enabled=False):
            scores = linear_map(scaled_queries[cloud, part], parts.points[cloud], parts.squared_norms[cloud])
        tensors = (
            scores,
            parts.slack[cloud, part],
            queries[cloud, part],
            points[cloud],
        )
        run_parallel(
            _rank,
            len(scores),
            *(tensor.contiguous().numpy() for tensor in tensors),
            lowest_of,
            index[cloud, part],
        )
    return torch.from_numpy(index)


def _num_groups(num_points: int, num_neighbours: int) -> int:
    """Return the number of groups that balances the search among groups with the search within them."""
    num_scores = max(2 * num_neighbours, round((num_points * num_neighbours) ** 0.5 / 2))
    return min(num_points, -(-num_scores // LEAF_SIZE) * LEAF_SIZE)


@numba_kernel
def _rank(
    first: int,
    last: int,
    scores_of_rows: np.ndarray,
    slack: np.ndarray,
    queries: np.ndarray,
    points: np.ndarray,
    num_groups: int,
    index: np.ndarray,
) -> None:
    num_points, num_neighbours = scores_of_rows.shape[1], index.shape[1]
    most = 2 * num_neighbours + _SPARE
    lowest = np.empty(num_groups, dtype=scores_of_rows.dtype)
    groups = np.empty(num_groups + 1, dtype=np.int64)
    best = np.empty(num_neighbours, dtype=scores_of_rows.dtype)
    neighbours = np.empty(num_neighbours, dtype=np.int64)
    candidates = np.empty(num_points + 3, dtype=np.int64)
    sorted_scores = np.empty(most, dtype=scores_of_rows.dtype)
    ranked = np.empty(most, dtype=np.int64)
    values = np.empty(most + 3, dtype=scores_of_rows.dtype)
    runs = np.empty((2, most), dtype=np.int64)
    for row in range(first, last):
        scores = scores_of_rows[row]
        _take_lowest(scores, lowest)
        limit = _limit_of_groups(lowest, num_neighbours) + slack[row]
        num_candidates = _collect(scores, lowest, limit, groups, candidates)
        if num_candidates <= most:
            _sort_by_score(scores, candidates, num_candidates, values, sorted_scores, ranked)
            _settle(queries[row], points, slack[row], sorted_scores, ranked, num_candidates, runs, candidates, values)
            for slot in range(num_neighbours):
                index[row, slot] = ranked[slot]
            continue
        candidates[num_candidates : num_candidates + 3] = candidates[0]
        best[:] = np.inf
        neighbours[:] = _NONE
        for begin in range(0, num_candidates, 4):
            _measure_four(queries[row], points, candidates, begin, values)
            _insert_some(best, neighbours, values, candidates[begin : min(begin + 4, num_candidates)])
        for slot in range(num_neighbours):
            index[row, slot] = neighbours[slot]


@numba_kernel
def _sort_by_score(
    scores: np.ndarray,
    candidates: np.ndarray,
    num_candidates: int,
    values: np.ndarray,
    sorted_scores: np.ndarray,
    ranked: np.ndarray,
) -> None:
    """Sort by counting the lower scores: the processor has no branch to guess. `values` is scratch memory."""
    for slot in range(num_candidates):
        values[slot] = scores[candidates[slot]]
    for slot in range(num_candidates):
        value = values[slot]
        rank = np.int32(0)
        for other in range(slot):
            rank = np.int32(rank + np.int32(values[other] <= value))
        for other in range(slot + 1, num_candidates):
            rank = np.int32(rank + np.int32(values[other] < value))
        sorted_scores[rank] = value
        ranked[rank] = candidates[slot]


@numba_kernel
def _settle(
    query: np.ndarray,
    points: np.ndarray,
    slack: float,
    sorted_scores: np.ndarray,
    ranked: np.ndarray,
    num_candidates: int,
    runs: np.ndarray,
    candidates: np.ndarray,
    distances: np.ndarray,
) -> None:
    """Bring points sorted by score into the order of (distance, index).

    Scores further apart than `slack` prove the order of two distances: only the others are measured, and sorted within
    their run of near scores. The last three arrays are scratch memory.
    """
    num_unsure, run = 0, 0
    was_near = False
    for slot in range(num_candidates):
        is_near = slot + 1 < num_candidates and sorted_scores[slot + 1] <= sorted_scores[slot] + slack
        if is_near or was_near:
            runs[0, num_unsure], runs[1, num_unsure] = slot, run
            candidates[num_unsure] = ranked[slot]
            num_unsure += 1
        run += not is_near
        was_near = is_near
    candidates[num_unsure : num_unsure + 3] = candidates[0]
    for begin in range(0, num_unsure, 4):
        _measure_four(query, points, candidates, begin, distances[begin : begin + 4])
    for rank in range(num_unsure):
        distance, point, slot = distances[rank], candidates[rank], rank
        while slot > 0 and runs[1, slot - 1] == runs[1, rank]:
            before = distances[slot - 1]
            if before < distance or (before == distance and candidates[slot - 1] < point):
                break
            distances[slot], candidates[slot] = before, candidates[slot - 1]
            slot -= 1
        distances[slot], candidates[slot] = distance, point
    for rank in range(num_unsure):
        ranked[runs[0, rank]] = candidates[rank]


@numba_kernel
def _insert_some(best: np.ndarray, neighbours: np.ndarray, distances: np.ndarray, candidates: np.ndarray) -> None:
    """Insert the candidates that come before the last neighbour."""
    last_place = len(best) - 1
    worst = best[last_place]
    for slot in range(len(candidates)):
        candidate = candidates[slot]
        if distances[slot] < worst or (distances[slot] == worst and candidate < neighbours[last_place]):
            _insert(best, neighbours, distances[slot], candidate)
            worst = best[last_place]


@numba_kernel
def _measure_four(
    query: np.ndarray, points: np.ndarray, candidates: np.ndarray, begin: int, distances: np.ndarray
) -> None:
    """Compute four squared distances at once, channel by channel: no sum waits for another."""
    a, b, c, d = candidates[begin], candidates[begin + 1], candidates[begin + 2], candidates[begin + 3]
    to_a = to_b = to_c = to_d = points.dtype.type(0)
    for channel in range(len(query)):
        value = query[channel]
        step = value - points[a, channel]
        to_a += step * step
        step = value - points[b, channel]
        to_b += step * step
        step = value - points[c, channel]
        to_c += step * step
        step = value - points[d, channel]
        to_d += step * step
    distances[0], distances[1], distances[2], distances[3] = to_a, to_b, to_c, to_d


@numba_kernel
def _take_lowest(scores: np.ndarray, lowest: np.ndarray) -> None:
    """Write the lowest score of each group: score j belongs to group j modulo the number of groups."""
    num_groups = len(lowest)
    for group in range(num_groups):
        lowest[group] = scores[group]
    for begin in range(num_groups, len(scores), num_groups):
        part = scores[begin : begin + num_groups]
        for group in range(len(part)):
            lowest[group] = part[group] if part[group] < lowest[group] else lowest[group]


@numba_kernel
def _limit_of_groups(lowest: np.ndarray, num_groups: int) -> float:
    """Return a score, near the smallest possible, that at least `num_groups` groups reach with their lowest score.

    Halving an interval takes the same few steps for any scores; sorting them would take as many wrong guesses of the
    processor.
    """
    low = high = lowest[0]
    for score in lowest:
        low, high = min(low, score), max(high, score)
    for _ in range(_HALVINGS):
        middle = low + (high - low) / 2
        count = np.int32(0)  # 16 in a register
        for score in lowest:
            count = np.int32(count + np.int32(score <= middle))
        if count >= num_groups:
            high = middle
        else:
            low = middle
    return high


@numba_kernel
def _collect(scores: np.ndarray, lowest: np.ndarray, limit: float, groups: np.ndarray, candidates: np.ndarray) -> int:
    """Write the indices of all scores up to the limit; return how many there are. `groups` is scratch memory."""
    num_chosen, count = 0, 0
    for group in range(len(lowest)):
        groups[num_chosen] = group
        num_chosen += lowest[group] <= limit
    for group in groups[:num_chosen]:
        for point in range(group, len(scores), len(lowest)):
            candidates[count] = point
            count += scores[point] <= limit
    return count


@numba_kernel
def _search(
    first: int,
    last: int,
    queries: np.ndarray,
    query_order: np.ndarray,
    blocks: np.ndarray,
    order: np.ndarray,
    starts: np.ndarray,
    boxes: np.ndarray,
    index: np.ndarray,
) -> None:
    best = np.empty(index.shape[2], dtype=blocks.dtype)
    neighbours = np.empty(index.shape[2], dtype=np.int64)
    distances = np.empty(LEAF_SIZE, dtype=blocks.dtype)
    waiting = np.empty(_DEEPEST, dtype=np.int64)
    bounds = np.empty(_DEEPEST, dtype=blocks.dtype)
    for row in range(first, last):
        cloud = row // queries.shape[1]
        query_index = query_order[cloud, row % queries.shape[1]]
        best[:] = np.inf
        neighbours[:] = _NONE
        _search_one(
            queries[cloud, query_index],
            blocks[cloud],
            order[cloud],
            starts,
            boxes[cloud],
            best,
            neighbours,
            distances,
            waiting,
            bounds,
        )
        for slot in range(len(neighbours)):
            index[cloud, query_index, slot] = neighbours[slot]


@numba_kernel
def _search_one(
    query: np.ndarray,
    blocks: np.ndarray,
    order: np.ndarray,
    starts: np.ndarray,
    boxes: np.ndarray,
    best: np.ndarray,
    neighbours: np.ndarray,
    distances: np.ndarray,
    waiting: np.ndarray,
    bounds: np.ndarray,
) -> None:
    """Write a query's nearest points into `best` and `neighbours`; the last three arrays are scratch memory."""
    num_leaves, last_place = len(blocks), len(best) - 1
    worst = best[last_place]
    waiting[0], bounds[0], num_waiting = 1, 0, 1
    while num_waiting > 0:
        num_waiting -= 1
        node = waiting[num_waiting]
        # An equal bound may hide a point of the same distance and a lower index.
        if bounds[num_waiting] > worst:
            continue
        while node < num_leaves:
            node, far, bound = _nearer_child(query, boxes, node)
            if bound <= worst:
                waiting[num_waiting], bounds[num_waiting] = far, bound
                num_waiting += 1
        leaf = node - num_leaves
        _measure(query, blocks[leaf], distances)
        for slot in range(starts[leaf + 1] - starts[leaf]):
            candidate = order[starts[leaf] + slot]
            if distances[slot] < worst or (distances[slot] == worst and candidate < neighbours[last_place]):
                _insert(best, neighbours, distances[slot], candidate)
                worst = best[last_place]


@numba_kernel
def _search_balls(
    first: int,
    last: int,
    centres: np.ndarray,
    squared_radius: np.ndarray,
    blocks: np.ndarray,
    order: np.ndarray,
    starts: np.ndarray,
    boxes: np.ndarray,
    index: np.ndarray,
) -> None:
    distances = np.empty(LEAF_SIZE, dtype=blocks.dtype)
    waiting = np.empty(_DEEPEST, dtype=np.int64)
    for row in range(first, last):
        cloud, centre_index = row // centres.shape[1], row % centres.shape[1]
        index[cloud, centre_index] = order.shape[1]
        _search_ball(
            centres[cloud, centre_index],
            squared_radius[0],
            blocks[cloud],
            order[cloud],
            starts,
            boxes[cloud],
            index[cloud, centre_index],
            distances,
            waiting,
        )
        num_found, neighbours = 0, index[cloud, centre_index]
        while num_found < len(neighbours) and neighbours[num_found] < order.shape[1]:
            num_found += 1
        for slot in range(num_found, len(neighbours)):
            neighbours[slot] = neighbours[0] if num_found else -1


@numba_kernel
def _search_ball(
    centre: np.ndarray,
    limit: float,
    blocks: np.ndarray,
    order: np.ndarray,
    starts: np.ndarray,
    boxes: np.ndarray,
    neighbours: np.ndarray,
    distances: np.ndarray,
    waiting: np.ndarray,
) -> None:
    """Write the lowest indices within the limit into `neighbours`; the last two arrays are scratch memory."""
    num_leaves, last_place = len(blocks), len(neighbours) - 1
    waiting[0], num_waiting = 1, 1
    while num_waiting > 0:
        num_waiting -= 1
        node = waiting[num_waiting]
        while node < num_leaves:
            node, far, bound = _nearer_child(centre, boxes, node)
            if bound <= limit:
                waiting[num_waiting] = far
                num_waiting += 1
        leaf = node - num_leaves
        _measure(centre, blocks[leaf], distances)
        for slot in range(starts[leaf + 1] - starts[leaf]):
            candidate = order[starts[leaf] + slot]
            if distances[slot] <= limit and candidate < neighbours[last_place]:
                _insert_index(neighbours, candidate)


@numba_kernel
def _insert_index(neighbours: np.ndarray, point: int) -> None:
    slot = len(neighbours) - 1
    while slot > 0 and point < neighbours[slot - 1]:
        neighbours[slot] = neighbours[slot - 1]
        slot -= 1
    neighbours[slot] = point


@numba_kernel
def _nearer_child(query: np.ndarray, boxes: np.ndarray, node: int) -> tuple[int, int, float]:
    """Return the child with the nearer box, the other child, and a lower bound of the other's squared distance."""
    zero = boxes.dtype.type(0)
    left = right = zero
    for channel in range(len(query)):
        value = query[channel]
        outside = max(boxes[2 * node, 0, channel] - value, value - boxes[2 * node, 1, channel], zero)
        left += outside * outside
        outside = max(boxes[2 * node + 1, 0, channel] - value, value - boxes[2 * node + 1, 1, channel], zero)
        right += outside * outside
    if right < left:
        return 2 * node + 1, 2 * node, left
    return 2 * node, 2 * node + 1, right


@numba_kernel
def _measure(query: np.ndarray, block: np.ndarray, distances: np.ndarray) -> None:
    """Compute the squared distances (LEAF_SIZE,) of a leaf's points, channel by channel."""
    if len(query) == 3:  # the usual case, written out: the sums stay in registers
        x, y, z = query[0], query[1], query[2]
        for slot in range(LEAF_SIZE):
            to_x, to_y, to_z = x - block[0, slot], y - block[1, slot], z - block[2, slot]
            distances[slot] = to_x * to_x + to_y * to_y + to_z * to_z
        return
    distances[:] = 0
    for channel in range(len(query)):
        value = query[channel]
        for slot in range(LEAF_SIZE):
            difference = value - block[channel, slot]
            distances[slot] += difference * difference


@numba_kernel
def _insert(best: np.ndarray, neighbours: np.ndarray, distance: float, point: int) -> None:
    """Insert a point in the order of (distance, index); the last one is dropped."""
    slot = len(best) - 1
    while slot > 0 and distance < best[slot - 1]:
        best[slot], neighbours[slot] = best[slot - 1], neighbours[slot - 1]
        slot -= 1
    while slot > 0 and distance == best[slot - 1] and point < neighbours[slot - 1]:
        best[slot], neighbours[slot] = best[slot - 1], neighbours[slot - 1]
        slot -= 1
    best[slot], neighbours[slot] = distance, point
