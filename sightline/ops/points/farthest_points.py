"""Exact farthest-point sampling: each chosen point is the farthest from those chosen before it.

Source: Gonzalez 1985; Eldar et al. 1997; its use here, Qi et al. 2017 (PointNet++), section 3.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.ops.gpu_kernels import as_type, clamp_index, gpu_kernel, next_power_of_2, tl
from sightline.ops.numba_kernels import inlined_kernel, numba_kernel, run_parallel
from sightline.ops.operator import operator
from sightline.ops.points.distances import (
    assert_clouds,
    assert_finite,
    assert_finite_rows,
    paired_squared_distances,
    upcast_for_comparison,
)
from sightline.ops.points.trees import LEAF_SIZE, build_trees
from sightline.ops.segments.offsets import (
    first_rows,
    list_runs,
    locate_row,
    read_sizes,
)
from sightline.ops.waits import read_list, require, require_between, send, send_list

FAN = 16
"""Nodes whose bounds are computed at once: four levels of a tree below a node, which are adjacent in memory."""


@torch.no_grad()
def farthest_points(
    points: Tensor,
    num_samples: int,
    *,
    start: int | Tensor = 0,
    max_distance: float = math.inf,
    min_squared_norm: float | None = None,
) -> Tensor:
    """Sample the points (B, N, C) that are farthest from those chosen before them: index (B, num_samples) int64.

    The first is `start`, one index for all clouds or one for each, (B,). The same indices on every device and for any
    number of threads: squared distances are summed channel after channel, each operation rounded, in the points'
    precision (half precision in float32), and of equal ones the lowest index is taken. Distances above `max_distance`
    count as it (published codes: 1e5). With `min_squared_norm`, points whose squared norm is not above it are never
    chosen after the first; where no other is left, index 0 is (1e-3: the CUDA library that PCT and Point-BERT use).
    Raises ValueError for another shape, more samples than points, a start outside the cloud, and values that are not
    finite, naming the cloud.
    """
    assert_clouds(points, name="points")
    if not max_distance >= 0:
        raise ValueError(f"max_distance: found {max_distance:g}, expected 0 or more")
    if not 0 <= num_samples <= points.shape[1]:
        raise ValueError(
            f"{num_samples} samples asked for in clouds of {points.shape[1]} points; lower num_samples or give clouds "
            f"of at least {num_samples} points"
        )
    first = start if isinstance(start, Tensor) else torch.full((), start, dtype=torch.int64, device=points.device)
    first = first.to(points.device, torch.int64).expand(points.shape[0])  # not len, which makes a number of a free size
    barred = -1.0 if min_squared_norm is None else min_squared_norm
    return _farthest_points(upcast_for_comparison(points), first, num_samples, max_distance, barred)


@dataclass(frozen=True, slots=True)
class PackedSample:
    """Rows (M,) int64 of the sampled points among the packed ones, and the offsets (S+1,) of their segments."""

    index: Tensor
    offsets: Tensor


@torch.no_grad()
def packed_farthest_points(
    points: Tensor, num_samples: Tensor, *, offsets: Tensor, start: int | Tensor = 0, max_distance: float = math.inf
) -> PackedSample:
    """Sample `num_samples` (S,) points of each segment of `points` (P, C): rows (M,) int64, and their offsets (S+1,).

    `offsets` (S+1,) are those of the segments; `start` counts within the segment: one for all, or (S,). An empty
    segment takes 0 samples. Offsets and numbers are read, unless the host sent them. Otherwise as `farthest_points`.
    Raises ValueError for offsets that do not fit and for more samples than points, naming the segment. `num_samples` of
    max(1, n // 4) is the transition of Zhao et al. 2021.
    """
    sizes, counts = read_sizes(points, offsets, name="offsets"), read_list(num_samples)
    if len(counts) != len(sizes):
        raise ValueError(f"num_samples: found {len(counts)} numbers for {len(sizes)} segments; give one for each")
    for segment, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        if count < 0:
            raise ValueError(f"segment {segment}: {count} samples asked for; num_samples is at least 0")
        if count > size:
            raise ValueError(f"segment {segment}: {count} samples asked for in {size} points; lower num_samples")
    sample_offsets = send_list([sum(counts[:segment]) for segment in range(len(counts) + 1)], points.device)
    first = start if isinstance(start, Tensor) else torch.full((), start, dtype=torch.int64, device=points.device)
    first = first.to(points.device, torch.int64).expand(len(sizes))
    points = upcast_for_comparison(points)
    index = _packed_farthest_points(points, offsets, first, sample_offsets, sizes, counts, max_distance)
    return PackedSample(index, sample_offsets)


def draw_starts(sizes: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw the index (S,) of a point of each cloud of `sizes` (S,), without reading them; 0 of an empty one."""
    device = sizes.device if generator is None else generator.device
    drawn = torch.rand(sizes.shape, dtype=torch.float64, generator=generator, device=device)
    return (send(drawn, sizes.device) * sizes).long()


def _check(points: Tensor, first: Tensor, num_samples: int, max_distance: float, min_squared_norm: float) -> None:
    assert_finite(points, name="points")
    num_points = points.shape[1]

    def make_error() -> ValueError:
        cloud = int(((first < 0) | (first >= num_points)).int().argmax())
        return ValueError(
            f"start[{cloud}]: {int(first[cloud])} is outside 0..{num_points - 1}; give an index of a point"
        )

    require_between(first, 0, num_points - 1, make_error)


@operator(launches=1, check=_check, differentiable=False, stacked=True)
def _farthest_points(
    points: Tensor, first: Tensor, num_samples: int, max_distance: float, min_squared_norm: float
) -> Tensor:
    rows, nearest = (
        torch.arange(points.shape[0], device=points.device),
        _initial(points, max_distance, min_squared_norm),
    )
    index = torch.empty((points.shape[0], num_samples), dtype=torch.int64, device=points.device)
    for sample in range(num_samples):
        index[:, sample] = first
        distance_BN = paired_squared_distances(points, points[rows, first][:, None])
        nearest = torch.minimum(nearest, distance_BN)
        first = nearest.argmax(dim=1)  # the first of equal ones
    return index


def _initial(points: Tensor, max_distance: float, min_squared_norm: float) -> Tensor:
    """Return the squared distances (B, N) before the first choice; -1, and so below all others, for barred points."""
    nearest_BN = torch.full(points.shape[:2], max_distance**2, dtype=points.dtype, device=points.device)
    if min_squared_norm >= 0:
        is_barred = paired_squared_distances(points, torch.zeros_like(points)) <= min_squared_norm
        nearest_BN.masked_fill_(is_barred, -1)
    return nearest_BN


@_farthest_points.fake
def _(points: Tensor, first: Tensor, num_samples: int, max_distance: float, min_squared_norm: float) -> Tensor:
    return first.new_empty((points.shape[0], num_samples))


def _sample_in_graph(
    points: Tensor, first: Tensor, num_samples: int, max_distance: float, min_squared_norm: float
) -> Tensor:
    """Sample farthest points in a loop that a graph records once, not `num_samples` times."""
    from torch._higher_order_ops.scan import scan

    if torch.jit.is_tracing():
        return _farthest_points.plain(points, first, num_samples, max_distance, min_squared_norm)

    def choose(state: tuple[Tensor, Tensor], turn: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        nearest, chosen = state
        centre = points.gather(1, chosen[:, None, None].expand(-1, 1, points.shape[2]))
        nearest = torch.minimum(nearest, (points - centre).square().sum(-1))
        return (nearest, nearest.argmax(dim=1)), chosen.clone()

    nearest = _initial(points, max_distance, min_squared_norm)
    _, index = scan(choose, (nearest, first.clone()), torch.arange(num_samples, device=points.device))
    return index.T


_farthest_points.graph = _sample_in_graph


def _check_packed(
    points: Tensor, offsets: Tensor, first: Tensor, sample_offsets: Tensor, sizes: list[int], counts: list[int], *_: Any
) -> None:
    assert_finite_rows(points, lambda row: locate_row(row, offsets), name="points")
    is_inside = (first >= 0) & (first < offsets.diff())
    if not all(counts):  # a segment of which nothing is sampled needs no start
        is_inside = is_inside | (sample_offsets.diff() == 0)

    def make_error() -> ValueError:
        segment = int((~is_inside).nonzero()[0])
        return ValueError(
            f"start[{segment}]: {int(first[segment])} is outside 0..{sizes[segment] - 1}; give an index of a point of "
            "the segment"
        )

    require(is_inside, make_error)


@operator(launches=1, check=_check_packed, differentiable=False)
def _packed_farthest_points(
    points: Tensor,
    offsets: Tensor,
    first: Tensor,
    sample_offsets: Tensor,
    sizes: list[int],
    counts: list[int],
    max_distance: float,
) -> Tensor:
    parts = [first.new_empty(0)]
    for run in list_runs(sizes, counts):
        stacked = points[run.rows].unflatten(0, (run.count, -1))
        samples = _farthest_points(stacked, first[run.segments], run.other_size, max_distance, -1.0)
        parts.append((samples + first_rows(run, points.device)[:, None]).flatten())
    return torch.cat(parts)


@_packed_farthest_points.fake
def _(
    points: Tensor,
    offsets: Tensor,
    first: Tensor,
    sample_offsets: Tensor,
    sizes: list[int],
    counts: list[int],
    max_distance: float,
) -> Tensor:
    return first.new_empty(sum(counts))


# --- CPU: nodes of trees whose distances cannot change are skipped ----------------------------------------------------


@_farthest_points.cpu_kernel
def _(points: Tensor, first: Tensor, num_samples: int, max_distance: float, min_squared_norm: float) -> Tensor:
    """Sample with trees. Each node keeps the largest distance below it.

    A chosen point whose bound to the node's box is not below that changes nothing in the node, so that a choice costs
    the leaves around it and the way to them, however large the cloud.
    Source: the pruning of Han et al. 2023 (QuickFPS), section III; the bound, `trees`.
    """
    if not points.numel():
        return _farthest_points.plain(points, first, num_samples, max_distance, min_squared_norm)
    points, first = points.contiguous(), first.contiguous()
    index = np.empty((len(points), num_samples), dtype=np.int64)
    nearest = _initial(points, max_distance, min_squared_norm).numpy()
    trees = build_trees(points)
    run_parallel(_sample, len(points), points.numpy(), nearest, first.numpy(), *trees, index)
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
    opened = np.empty(2 * num_leaves + 1, dtype=np.int64)
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


@inlined_kernel
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
        opened[num_opened] = begin + child
        num_opened += int(bounds[child] < largest[begin + child])
    return num_opened


@inlined_kernel
def _take_farthest_node(node: int, begin: int, count: int, largest: np.ndarray, where: np.ndarray) -> None:
    """Set a node's largest distance and point index from `count` other nodes; ties go to the lowest index."""
    farthest, index = largest[begin], where[begin]
    for other in range(begin + 1, begin + count):
        distance = largest[other]
        if distance >= farthest and (distance > farthest or where[other] < index):
            farthest, index = distance, where[other]
    largest[node], where[node] = farthest, index


@inlined_kernel
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


@inlined_kernel
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


# --- GPU: a program a cloud ------------------------------------------------------------------------------------------

_MOST_IN_REGISTERS = 2**15
"""Bytes of one coordinate of all points, up to which coordinates and distances of a cloud stay in registers."""
_BYTES_OF_A_CHUNK = 2**14
"""Bytes of one coordinate of a part of the points, which 16 warps look at at a time."""
_SMALLEST_BLOCK = 256
"""Points of a block are powers of two from here on, for each of which a kernel is compiled."""


@_farthest_points.gpu_kernel()
def _(points: Tensor, first: Tensor, num_samples: int, max_distance: float, min_squared_norm: float) -> Tensor:
    num_clouds, num_points, _ = points.shape
    samples = first.new_empty((num_clouds, num_samples))
    limits = (max_distance**2, min_squared_norm)
    _launch(num_clouds, points, None, first, None, samples, num_points, num_samples, *limits)
    return samples


@_packed_farthest_points.gpu_kernel()
def _(
    points: Tensor,
    offsets: Tensor,
    first: Tensor,
    sample_offsets: Tensor,
    sizes: list[int],
    counts: list[int],
    max_distance: float,
) -> Tensor:
    samples = first.new_empty(sum(counts))
    largest = max(sizes, default=0)
    _launch(len(sizes), points, offsets, first, sample_offsets, samples, largest, 0, max_distance**2, -1.0)
    return samples


def _launch(
    num_clouds: int,
    points: Tensor,
    offsets: Tensor | None,
    first: Tensor,
    sample_offsets: Tensor | None,
    samples: Tensor,
    num_points: int,
    num_samples: int,
    limit: float,
    min_squared_norm: float,
) -> None:
    if not samples.numel():
        return
    block = next_power_of_2(max(num_points, _SMALLEST_BLOCK))
    tensors = (points.contiguous(), offsets, first.contiguous(), sample_offsets, samples)
    numbers = (num_points, num_samples, limit, min_squared_norm)
    if points.shape[-1] == 3 and block * points.itemsize <= _MOST_IN_REGISTERS:
        num_warps = min(block // 256, 16)
        _sample_in_registers.launch(num_clouds, *tensors, *numbers, BLOCK=block, num_warps=num_warps)
    else:
        nearest, block = points.new_empty(points.shape[:-1]), min(block, _BYTES_OF_A_CHUNK // points.itemsize)
        num_warps = min(32 * block * points.itemsize // _BYTES_OF_A_CHUNK, 16)
        sizes = {"CHANNELS": points.shape[-1], "BLOCK": block, "num_warps": num_warps}
        _sample_in_chunks.launch(num_clouds, *tensors, nearest, *numbers, **sizes)


@gpu_kernel
def _find_cloud(offsets, sample_offsets, num_points, num_samples):  # type: ignore[no-untyped-def]
    """Return a cloud's first row, its number of points, its first sample and its number of samples."""
    cloud = tl.program_id(0).to(tl.int64)
    if offsets is None:
        row, count, first_sample, num_chosen = cloud * num_points, num_points, cloud * num_samples, num_samples
    else:
        row, first_sample = tl.load(offsets + cloud), tl.load(sample_offsets + cloud)
        count = (tl.load(offsets + cloud + 1) - row).to(tl.int32)
        num_chosen = (tl.load(sample_offsets + cloud + 1) - first_sample).to(tl.int32)
    return row, count, first_sample, num_chosen


@gpu_kernel
def _initial_distances(squared_norms, is_point, limit, min_squared_norm):  # type: ignore[no-untyped-def]
    kind = squared_norms.dtype
    is_free = squared_norms > as_type(min_squared_norm, kind)
    barred = tl.where(is_point, as_type(-1.0, kind), as_type(-2.0, kind))
    return tl.where(is_point & is_free, as_type(limit, kind), barred)


@gpu_kernel
def _sample_in_registers(  # type: ignore[no-untyped-def]
    points,
    offsets,
    first,
    sample_offsets,
    samples,
    num_points: tl.int32,
    num_samples: tl.int32,
    limit: tl.float64,
    min_squared_norm: tl.float64,
    BLOCK: tl.constexpr,
):
    row, count, first_sample, num_chosen = _find_cloud(offsets, sample_offsets, num_points, num_samples)
    slot = tl.arange(0, BLOCK)
    base, is_point = points + row * 3, slot < count
    x = tl.load(base + slot * 3, mask=is_point, other=0.0)
    y = tl.load(base + slot * 3 + 1, mask=is_point, other=0.0)
    z = tl.load(base + slot * 3 + 2, mask=is_point, other=0.0)
    nearest = _initial_distances((x * x + y * y) + z * z, is_point, limit, min_squared_norm)
    chosen = clamp_index(tl.load(first + tl.program_id(0)), count).to(tl.int32)
    for sample in range(num_chosen):
        tl.store(samples + first_sample + sample, chosen.to(tl.int64) + (0 if offsets is None else row))
        centre = base + chosen * 3
        to_x, to_y, to_z = x - tl.load(centre), y - tl.load(centre + 1), z - tl.load(centre + 2)
        nearest = tl.minimum(nearest, (to_x * to_x + to_y * to_y) + to_z * to_z)
        chosen = tl.argmax(nearest, axis=0, tie_break_left=True)


@gpu_kernel
def _sample_in_chunks(  # type: ignore[no-untyped-def]
    points,
    offsets,
    first,
    sample_offsets,
    samples,
    scratch,
    num_points: tl.int32,
    num_samples: tl.int32,
    limit: tl.float64,
    min_squared_norm: tl.float64,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, count, first_sample, num_chosen = _find_cloud(offsets, sample_offsets, num_points, num_samples)
    base, scratch = points + row * CHANNELS, scratch + row
    kind = points.dtype.element_ty
    chosen = clamp_index(tl.load(first + tl.program_id(0)), count).to(tl.int32)
    for sample in range(num_chosen):
        tl.store(samples + first_sample + sample, chosen.to(tl.int64) + (0 if offsets is None else row))
        centre = base + chosen.to(tl.int64) * CHANNELS
        farthest, next_chosen = as_type(-3.0, kind), 0
        for begin in range(0, count, BLOCK):
            slot = begin + tl.arange(0, BLOCK)
            is_point, address = slot < count, base + slot.to(tl.int64) * CHANNELS
            distances = _distances_to(address, is_point, centre, CHANNELS)
            if sample == 0:
                norms = _distances_to(address, is_point, None, CHANNELS)
                nearest = _initial_distances(norms, is_point, limit, min_squared_norm)
            else:  # written before the barrier of the last maximum
                nearest = tl.load(scratch + slot, mask=is_point, other=-2.0)
            nearest = tl.minimum(nearest, distances)
            tl.store(scratch + slot, nearest, mask=is_point)
            best, where = tl.max(nearest, axis=0, return_indices=True, return_indices_tie_break_left=True)
            next_chosen = tl.where(best > farthest, begin + where, next_chosen)
            farthest = tl.maximum(farthest, best)
        chosen = next_chosen


@gpu_kernel
def _distances_to(address, is_point, centre, CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the squared distances of points to a centre, or without one to the origin, channel after channel."""
    squared = tl.zeros(is_point.shape, address.dtype.element_ty)
    for channel in range(CHANNELS):
        difference = tl.load(address + channel, mask=is_point, other=0.0)
        if centre is not None:
            difference -= tl.load(centre + channel)
        squared += difference * difference
    return squared
