"""Counts of labelled, predicted and correctly predicted points per shape and part: reference and CPU kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.numba_kernels import can_use_numba, numba_kernel, run_parallel

__all__ = ["PartCounts", "count_parts", "count_parts_reference"]


class PartCounts(NamedTuple):
    """Point counts, int64, of S shapes, C parts, and two rules (predictions among own parts, and among all).

    `labelled` (S, C); `predicted` and `common`, predicted as labelled, (S, 2, C); `confusion` (C, C) of predictions
    among own parts, rows are labels. `faults` (S, 2): the first point of a shape whose probabilities have a NaN, and
    the first whose label is none of its category's parts, counted over all shapes, -1 if there is none. With a fault
    the counts mean nothing.
    """

    labelled: Tensor
    predicted: Tensor
    common: Tensor
    confusion: Tensor
    faults: Tensor


def count_parts(
    probabilities: Tensor,
    target: Tensor,
    cloud_offsets: Tensor,
    category: Tensor,
    parts_of_category: Sequence[Sequence[int]],
) -> PartCounts:
    """Count the points of packed shapes: `probabilities` (P, C), `target` (P,), `cloud_offsets` (S + 1,).

    `category` (S,) is one of those that have parts. The prediction is the most probable part, the lowest among equals.
    """
    if not can_use_numba(probabilities) or len(category) == 0:
        return count_parts_reference(probabilities, target, cloud_offsets, category, parts_of_category)
    num_shapes, num_parts = len(category), probabilities.shape[1]
    longest = max(map(len, parts_of_category))
    parts = np.array([[*sorted(own_parts), *[-1] * (longest - len(own_parts))] for own_parts in parts_of_category])
    counts = np.zeros((num_shapes, 5, num_parts), dtype=np.int64)
    faults = np.full((num_shapes, 2), -1, dtype=np.int64)
    prediction = np.zeros(len(probabilities), dtype=np.int64)
    inputs = (probabilities.detach(), target, cloud_offsets, category)
    arrays = (tensor.contiguous().numpy() for tensor in inputs)
    run_parallel(_count, num_shapes, *arrays, parts, counts, faults, prediction)
    point_counts, first_faults = torch.from_numpy(counts), torch.from_numpy(faults)
    confusion = torch.zeros(num_parts, num_parts, dtype=torch.int64)
    if bool((first_faults < 0).all()):
        confusion = _confusion(torch.from_numpy(prediction), target, num_parts)
    return PartCounts(point_counts[:, 0], point_counts[:, 1:3], point_counts[:, 3:5], confusion, first_faults)


def count_parts_reference(
    probabilities: Tensor,
    target: Tensor,
    cloud_offsets: Tensor,
    category: Tensor,
    parts_of_category: Sequence[Sequence[int]],
) -> PartCounts:
    """Reference of `count_parts`, on any device: `probabilities` (P, C), `target` (P,), `cloud_offsets` (S + 1,)."""
    num_parts, sizes = probabilities.shape[1], cloud_offsets.diff()
    owner = torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)
    is_own = torch.zeros(len(parts_of_category), num_parts, dtype=torch.bool, device=target.device)
    for number, parts in enumerate(parts_of_category):
        is_own[number, list(parts)] = True
    is_own_PC = is_own[category[owner]]
    is_outside = (target < 0) | (target >= num_parts)
    inside = target.clamp(0, num_parts - 1)
    is_foreign = is_outside | ~is_own_PC.gather(1, inside[:, None]).flatten()
    faults = torch.stack([_first(probabilities.isnan().any(dim=1), owner, sizes), _first(is_foreign, owner, sizes)], 1)
    own_prediction = probabilities.where(is_own_PC, -torch.inf).argmax(
        dim=1
    )  # torch promises the first of equal maxima
    predictions = (own_prediction, probabilities.argmax(dim=1))

    def count_points(part: Tensor, chosen: Tensor) -> Tensor:
        flat = torch.bincount(owner[chosen] * num_parts + part[chosen], minlength=len(sizes) * num_parts)
        return flat.view(len(sizes), num_parts)

    everything = torch.ones_like(target, dtype=torch.bool)
    return PartCounts(
        labelled=count_points(inside, everything),
        predicted=torch.stack([count_points(prediction, everything) for prediction in predictions], dim=1),
        common=torch.stack([count_points(inside, prediction == target) for prediction in predictions], dim=1),
        confusion=_confusion(own_prediction, inside, num_parts),
        faults=faults,
    )


def _first(is_faulty: Tensor, owner: Tensor, sizes: Tensor) -> Tensor:
    """Return the first faulty point (S,) of each shape, -1 if there is none."""
    first = torch.full_like(sizes, len(owner))
    points = is_faulty.nonzero().flatten()
    first = first.scatter_reduce(0, owner[points], points, "amin")
    return torch.where(first < len(owner), first, -1)


def _confusion(answer: Tensor, target: Tensor, num_parts: int) -> Tensor:
    return torch.bincount(target * num_parts + answer, minlength=num_parts**2).view(num_parts, num_parts)


@numba_kernel
def _count(
    first: int,
    last: int,
    probabilities: np.ndarray,
    target: np.ndarray,
    offsets: np.ndarray,
    category: np.ndarray,
    parts: np.ndarray,
    counts: np.ndarray,
    faults: np.ndarray,
    prediction: np.ndarray,
) -> None:
    """CPU kernel of `count_parts`; `parts` (categories, max parts) are those of each category, rising, padded with -1.

    `counts` (S, 5, C): labelled, predicted by either rule, common by either rule.
    """
    num_parts, one = probabilities.shape[1], np.int32(1)
    is_part = np.zeros(num_parts, dtype=np.bool_)
    for shape in range(first, last):
        own_parts, num_own = parts[category[shape]], 0
        is_part[:] = False
        while num_own < len(own_parts) and own_parts[num_own] >= 0:
            is_part[own_parts[num_own]] = True
            num_own += 1
        for point in range(offsets[shape], offsets[shape + 1]):
            label, own_prediction = target[point], own_parts[0]
            if not 0 <= label < num_parts or not is_part[label]:
                faults[shape, 1] = point if faults[shape, 1] < 0 else faults[shape, 1]
                continue
            largest = probabilities[point, own_prediction]
            for rank in range(1, num_own):
                is_larger = probabilities[point, own_parts[rank]] > largest
                own_prediction = own_parts[rank] if is_larger else own_prediction
                largest = probabilities[point, own_parts[rank]] if is_larger else largest
            num_not_below = np.int32(0)  # of 32 bits, as what is compared: the compiler makes vectors of it
            for part in range(num_parts):
                num_not_below = np.int32(num_not_below + (np.int32(0) if probabilities[point, part] < largest else one))
            overall = own_prediction if num_not_below == 1 else _first_largest(probabilities, point)
            if overall < 0:
                faults[shape, 0] = point if faults[shape, 0] < 0 else faults[shape, 0]
                continue
            prediction[point] = own_prediction
            counts[shape, 0, label] += 1
            counts[shape, 1, own_prediction] += 1
            counts[shape, 2, overall] += 1
            counts[shape, 3, own_prediction] += own_prediction == label
            counts[shape, 4, overall] += overall == label


@numba_kernel
def _first_largest(probabilities: np.ndarray, point: int) -> int:
    """Return the most probable part, the lowest among equals; -1 if one is NaN."""
    overall = 0
    for part in range(probabilities.shape[1]):
        if probabilities[point, part] != probabilities[point, part]:
            return -1
        if probabilities[point, part] > probabilities[point, overall]:
            overall = part
    return overall
