"""Exact farthest-point sampling (FPS): the reference loop, and the choice of a faster form that agrees with it.

CPU kernel of farthest-point sampling: tree nodes whose distances cannot change are skipped.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sightline.ops.distances import assert_finite, paired_squared_distances, upcast_for_comparison
from sightline.ops.numba_kernels import can_use_numba, numba_kernel, run_parallel
from sightline.ops.trees import LEAF_SIZE, build_curve_trees
from sightline.ops.waits import is_exporting, require

FAN = 16
"""Nodes whose bounds are computed at once: four levels of a tree below a node, which are adjacent in memory."""


def sample_by_trees(points: Tensor, *, nearest: Tensor, first: Tensor, num_samples: int) -> Tensor:
    """Farthest-point sampling with trees: points (B, N, C) -> index (B, num_samples) int64, equal to the reference.

    `nearest` (B, N) are the initial distances and `first` (B,) the first index; neither is changed. Each node keeps the
    largest distance below it. A chosen point whose bound to the node's box is not below that changes nothing in the
    node, so that a choice costs the leaves around it and the way to them, however large the cloud.
    Source: the pruning of Han et al. 2023 (QuickFPS), section III; the bound, `trees`.
    """
    trees = build_curve_trees(points)
    index = np.empty((len(points), num_samples), dtype=np.int64)
    run_parallel(_sample, len(points), points.contiguous().numpy(), nearest.numpy(), first.numpy(), *trees, index)
    return torch.from_numpy(index)


@numba_kernel
def _sample(
    first: int,
    last: int,
    points: np.ndarray,
    nearest: np.ndarray,
    starts_at: np.ndarray,
    blocks: np.ndarray,
    order: np.ndarray,
    starts: np.ndarray,
    boxes: np.ndarray,
    index: np.ndarray,
) -> None:
    num_leaves, num_channels = blocks.shape[1], blocks.shape[2]
    distances = np.empty((num_leaves, LEAF_SIZE), dtype=blocks.dtype)
    measured = np.empty(LEAF_SIZE, dtype=blocks.dtype)
    bounds = np.empty(FAN, dtype=blocks.dtype)
    slots = np.empty(num_leaves, dtype=np.int64)
    largest = np.empty(2 * num_leaves, dtype=blocks.dtype)  # of nodes; 0 is that of the whole cloud
    where = np.empty(2 * num_leaves, dtype=np.int64)
    opened = np.empty(2 * num_leaves, dtype=np.int64)
    low = np.empty((num_channels, 2 * num_leaves), dtype=blocks.dtype)
    high = np.empty((num_channels, 2 * num_leaves), dtype=blocks.dtype)
    top = num_leaves
    while top > FAN:
        top //= FAN
    for cloud in range(first, last):
        own_order, own_blocks = order[cloud], blocks[cloud]
        for node in range(1, 2 * num_leaves):
            for channel in range(num_channels):
                low[channel, node], high[channel, node] = boxes[cloud, node, 0, channel], boxes[cloud, node, 1, channel]
        for leaf in range(num_leaves):
            distances[leaf] = -np.inf
            for slot in range(starts[leaf + 1] - starts[leaf]):
                distances[leaf, slot] = nearest[cloud, own_order[starts[leaf] + slot]]
            _take_farthest_slot(leaf, distances, own_order, starts, slots, largest, where)
        level = num_leaves
        while level > top:
            level //= FAN
            for node in range(level, 2 * level):
                _take_farthest_node(node, FAN * node, FAN, largest, where)
        _take_farthest_node(0, top, top, largest, where)
        point = starts_at[cloud]
        for sample in range(index.shape[1]):
            index[cloud, sample] = point
            centre = points[cloud, point]
            num_opened, turn = _open(centre, top, top, low, high, largest, bounds, opened, 0), 0
            while turn < num_opened:
                node = opened[turn]
                turn += 1
                if node < num_leaves:
                    num_opened = _open(centre, FAN * node, FAN, low, high, largest, bounds, opened, num_opened)
                    continue
                leaf = node - num_leaves
                _approach(centre, leaf, own_blocks, measured, distances)
                if distances[leaf, slots[leaf]] < largest[node]:  # distances only fall: else it is the largest still
                    _take_farthest_slot(leaf, distances, own_order, starts, slots, largest, where)
            for turn in range(num_opened - 1, -1, -1):
                if opened[turn] < num_leaves:
                    _take_farthest_node(opened[turn], FAN * opened[turn], FAN, largest, where)
            _take_farthest_node(0, top, top, largest, where)
            point = where[0]


@numba_kernel
def _open(
    centre: np.ndarray,
    begin: int,
    count: int,
    low: np.ndarray,
    high: np.ndarray,
    largest: np.ndarray,
    bounds: np.ndarray,
    opened: np.ndarray,
    num_opened: int,
) -> int:
    """Append those of `count` nodes from `begin` on to `opened` in which the centre can lower a distance."""
    zero = bounds.dtype.type(0)
    bounds[:] = 0
    for channel in range(len(centre)):
        value = centre[channel]
        for child in range(count):
            node = begin + child
            outside = max(low[channel, node] - value, value - high[channel, node], zero)
            bounds[child] += outside * outside
    for child in range(count):
        if bounds[child] < largest[begin + child]:
            opened[num_opened] = begin + child
            num_opened += 1
    return num_opened


@numba_kernel
def _take_farthest_node(node: int, begin: int, count: int, largest: np.ndarray, where: np.ndarray) -> None:
    """Set a node's largest distance and point index from `count` other nodes; ties go to the lowest index."""
    farthest, index = largest[begin], where[begin]
    for other in range(begin + 1, begin + count):
        distance = largest[other]
        if distance >= farthest and (distance > farthest or where[other] < index):
            farthest, index = distance, where[other]
    largest[node], where[node] = farthest, index


@numba_kernel
def _take_farthest_slot(
    leaf: int,
    distances: np.ndarray,
    order: np.ndarray,
    starts: np.ndarray,
    slots: np.ndarray,
    largest: np.ndarray,
    where: np.ndarray,
) -> None:
    """Set a leaf's largest distance, its slot and the index of its point; ties go to the lowest index."""
    quarter, highest = LEAF_SIZE // 4, distances[leaf, 0]
    for slot in range(quarter):  # in this form the compiler makes vectors of it
        one = max(distances[leaf, slot], distances[leaf, slot + quarter])
        other = max(distances[leaf, slot + 2 * quarter], distances[leaf, slot + 3 * quarter])
        highest = max(highest, max(one, other))
    begin, chosen = starts[leaf], -1
    for slot in range(starts[leaf + 1] - begin):
        if distances[leaf, slot] == highest and (chosen < 0 or order[begin + slot] < order[begin + chosen]):
            chosen = slot
    node = len(starts) - 1 + leaf
    slots[leaf], largest[node], where[node] = chosen, highest, order[begin + chosen]


@numba_kernel
def _approach(centre: np.ndarray, leaf: int, blocks: np.ndarray, measured: np.ndarray, distances: np.ndarray) -> None:
    """Lower the distances of a leaf's points to those from the centre, if these are smaller."""
    if len(centre) == 3:  # the usual case, written out: the sums stay in registers
        x, y, z = centre[0], centre[1], centre[2]
        for slot in range(LEAF_SIZE):
            to_x, to_y, to_z = blocks[leaf, 0, slot] - x, blocks[leaf, 1, slot] - y, blocks[leaf, 2, slot] - z
            distances[leaf, slot] = min(distances[leaf, slot], to_x * to_x + to_y * to_y + to_z * to_z)
        return
    measured[:] = 0
    for channel in range(len(centre)):
        value = centre[channel]
        for slot in range(LEAF_SIZE):
            difference = blocks[leaf, channel, slot] - value
            measured[slot] += difference * difference
    for slot in range(LEAF_SIZE):
        distances[leaf, slot] = min(distances[leaf, slot], measured[slot])


_FAR = 1e10


@torch.no_grad()
def farthest_point_sample(
    points: Tensor, *, num_samples: int, start: int | Tensor = 0, min_squared_norm: float | None = None
) -> Tensor:
    """Farthest-point sampling: each chosen point is the farthest from those chosen before it.

    Ties go to the lower index.
    `points` (B, N, C) -> index (B, num_samples) int64, beginning with `start`: one index for all samples, or (B,).
    Distances above 1e5 count as 1e5, as in the published codes. With `min_squared_norm`, points whose squared norm is
    not above it are never chosen after the first; where no other is left, index 0 is (1e-3: the CUDA library that PCT
    and Point-BERT use).
    Raises ValueError for more samples than points, a start outside the cloud, and values that are not finite.
    Source: Gonzalez 1985; Eldar et al. 1997; its use here, Qi et al. 2017 (PointNet++), section 3.2.
    """
    assert_finite(points, name="points")
    num_points = points.shape[1]
    if num_samples > num_points:
        raise ValueError(
            f"{num_samples} samples asked for in clouds of {num_points} points; lower num_samples or give clouds of at "
            f"least {num_samples} points"
        )
    first, points = _first_index(start, points), upcast_for_comparison(points)
    nearest_BN = torch.full(points.shape[:2], _FAR, dtype=points.dtype, device=points.device)
    if min_squared_norm is not None:
        is_barred = paired_squared_distances(points, torch.zeros_like(points)) <= min_squared_norm
        nearest_BN.masked_fill_(is_barred, -1)  # below every distance, and stays so
    if is_exporting():
        return _sample_in_graph(points, nearest=nearest_BN, first=first, num_samples=num_samples)
    if torch.compiler.is_compiling():
        return _sample_as_operator(points, nearest_BN, first, num_samples)
    return _sample_eagerly(points, nearest=nearest_BN, first=first, num_samples=num_samples)


def _first_index(start: int | Tensor, points: Tensor) -> Tensor:
    """Return `start` as (B,) int64 on the points' device; raise ValueError if it is outside the clouds."""
    num_samples, num_points, _ = points.shape
    if not isinstance(start, Tensor):
        start = torch.full((), start, dtype=torch.int64, device=points.device)
    first = start.to(points.device, torch.int64).expand(num_samples)
    is_inside = (first >= 0) & (first < num_points)

    def make_error() -> ValueError:
        sample = int((~is_inside).nonzero()[0])
        return ValueError(
            f"start[{sample}]: {int(first[sample])} is outside 0..{num_points - 1}; give an index of a point"
        )

    require(is_inside, make_error)
    return first


def _sample_eagerly(points: Tensor, *, nearest: Tensor, first: Tensor, num_samples: int) -> Tensor:
    sample = sample_by_trees if can_use_numba(points) and points.numel() else _sample_reference
    return sample(points, nearest=nearest, first=first, num_samples=num_samples)


@torch.library.custom_op(
    "sightline::farthest_point_sample",
    mutates_args=(),
    schema="(Tensor points, Tensor nearest, Tensor first, int num_samples) -> Tensor",
)
def _sample_as_operator(points: Tensor, nearest: Tensor, first: Tensor, num_samples: int) -> Tensor:
    """Sample in one operator of a compiled graph: torch.compile would write the loop out, turn by turn."""
    return _sample_eagerly(points, nearest=nearest, first=first, num_samples=num_samples)


@_sample_as_operator.register_fake
def _(points: Tensor, nearest: Tensor, first: Tensor, num_samples: int) -> Tensor:
    return first.new_empty((len(points), num_samples))


def _sample_in_graph(points: Tensor, *, nearest: Tensor, first: Tensor, num_samples: int) -> Tensor:
    """Sample farthest points in a loop that a graph records once, not `num_samples` times."""
    from torch._higher_order_ops.scan import scan

    def choose(state: tuple[Tensor, Tensor], turn: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        nearest, chosen = state
        centre = points.gather(1, chosen[:, None, None].expand(-1, 1, points.shape[2]))
        nearest = torch.minimum(nearest, (points - centre).square().sum(-1))
        return (nearest, nearest.argmax(dim=1)), chosen.clone()

    _, index = scan(choose, (nearest, first.clone()), torch.arange(num_samples, device=points.device))
    return index.T


def _sample_reference(points: Tensor, *, nearest: Tensor, first: Tensor, num_samples: int) -> Tensor:
    """Compute the reference of farthest-point sampling, on any device: distances to all points for every chosen one."""
    rows = torch.arange(len(points), device=points.device)
    index = torch.empty((len(points), num_samples), dtype=torch.int64, device=points.device)
    for sample in range(num_samples):
        index[:, sample] = first
        distance_BN = paired_squared_distances(points, points[rows, first][:, None])
        nearest = torch.minimum(nearest, distance_BN)
        first = nearest.argmax(dim=1)  # the first of equal ones
    return index
