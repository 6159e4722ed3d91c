"""Farthest-point sampling compiled for the CPU: leaves whose points cannot have come nearer are left alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sightline.compiled import compiled, in_threads
from sightline.geometry.trees import LEAF, build_trees

__all__ = ["sample_by_leaves"]


def sample_by_leaves(points: Tensor, *, nearest: Tensor, first: Tensor, num_samples: int) -> Tensor:
    """The plain loop's choice. `nearest` (B, N): what each point's distance starts from; it is not changed.

    Each leaf keeps the largest distance in it. A chosen point whose bound to the leaf's box is not below that changes
    nothing in the leaf. Source: the pruning of Han et al. 2023 (QuickFPS), section III; the bound, `trees`.
    """
    trees = build_trees(points)
    index = np.empty((len(points), num_samples), dtype=np.int64)
    in_threads(_sample, len(points), points.contiguous().numpy(), nearest.numpy(), first.numpy(), *trees, index)
    return torch.from_numpy(index)


@compiled
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
    distances = np.empty((num_leaves, LEAF), dtype=blocks.dtype)
    measured = np.empty(LEAF, dtype=blocks.dtype)
    bounds = np.empty(num_leaves, dtype=blocks.dtype)
    largest = np.empty(num_leaves, dtype=blocks.dtype)
    where = np.empty(num_leaves, dtype=np.int64)
    slots = np.empty(num_leaves, dtype=np.int64)
    low = np.empty((num_channels, num_leaves), dtype=blocks.dtype)
    high = np.empty((num_channels, num_leaves), dtype=blocks.dtype)
    for cloud in range(first, last):
        own_order = order[cloud]
        for leaf in range(num_leaves):
            low[:, leaf], high[:, leaf] = boxes[cloud, num_leaves + leaf, 0], boxes[cloud, num_leaves + leaf, 1]
            distances[leaf] = -np.inf
            for slot in range(starts[leaf + 1] - starts[leaf]):
                distances[leaf, slot] = nearest[cloud, own_order[starts[leaf] + slot]]
            slots[leaf] = _slot_of_largest(distances[leaf], own_order, starts[leaf], starts[leaf + 1])
            largest[leaf], where[leaf] = distances[leaf, slots[leaf]], own_order[starts[leaf] + slots[leaf]]
        place = starts_at[cloud]
        for sample in range(index.shape[1]):
            index[cloud, sample] = place
            centre = points[cloud, place]
            _bound_all(centre, low, high, bounds)
            place = _farthest_after(
                centre, bounds, blocks[cloud], own_order, starts, measured, distances, slots, largest, where
            )


@compiled
def _farthest_after(
    centre: np.ndarray,
    bounds: np.ndarray,
    blocks: np.ndarray,
    order: np.ndarray,
    starts: np.ndarray,
    measured: np.ndarray,
    distances: np.ndarray,
    slots: np.ndarray,
    largest: np.ndarray,
    where: np.ndarray,
) -> int:
    """The index of the point farthest from all chosen ones, the centre among them; of equal ones, the lowest."""
    farthest, place = blocks.dtype.type(-2), where[0]  # below every distance
    for leaf in range(len(bounds)):
        if bounds[leaf] < largest[leaf]:
            _approach(centre, blocks[leaf], measured, distances[leaf])
            # Distances only fall: where the largest stays, it is the largest still.
            if distances[leaf, slots[leaf]] < largest[leaf]:
                slots[leaf] = _slot_of_largest(distances[leaf], order, starts[leaf], starts[leaf + 1])
                largest[leaf] = distances[leaf, slots[leaf]]
                where[leaf] = order[starts[leaf] + slots[leaf]]
        distance = largest[leaf]
        if distance >= farthest and (distance > farthest or where[leaf] < place):
            farthest, place = distance, where[leaf]
    return place


@compiled
def _bound_all(centre: np.ndarray, low: np.ndarray, high: np.ndarray, bounds: np.ndarray) -> None:
    """What the squared distance from the centre to any point of each box is at least; see `trees`."""
    zero = bounds.dtype.type(0)
    bounds[:] = 0
    for channel in range(len(centre)):
        value = centre[channel]
        for leaf in range(len(bounds)):
            outside = max(low[channel, leaf] - value, value - high[channel, leaf], zero)
            bounds[leaf] += outside * outside


@compiled
def _approach(centre: np.ndarray, block: np.ndarray, measured: np.ndarray, distances: np.ndarray) -> None:
    """Lowers the distances of a leaf's places to those from the centre, where these are smaller."""
    if len(centre) == 3:  # the usual case, written out: the sums stay in registers
        x, y, z = centre[0], centre[1], centre[2]
        for slot in range(LEAF):
            to_x, to_y, to_z = block[0, slot] - x, block[1, slot] - y, block[2, slot] - z
            distances[slot] = min(distances[slot], to_x * to_x + to_y * to_y + to_z * to_z)
        return
    measured[:] = 0
    for channel in range(len(centre)):
        value = centre[channel]
        for slot in range(LEAF):
            difference = block[channel, slot] - value
            measured[slot] += difference * difference
    for slot in range(LEAF):
        distances[slot] = min(distances[slot], measured[slot])


@compiled
def _slot_of_largest(distances: np.ndarray, order: np.ndarray, begin: int, end: int) -> int:
    """The slot of a leaf's largest distance; of equal ones, that of the lowest index."""
    chosen, highest = 0, distances[0]
    for slot in range(1, end - begin):
        distance = distances[slot]
        if distance >= highest and (distance > highest or order[begin + slot] < order[begin + chosen]):
            chosen, highest = slot, distance
    return chosen
