"""Tensor layouts: axes permuted or merged, as (B, N, C) and (B, C, N) or (B*N, C)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import prod

import torch
from torch import Tensor

__all__ = ["TensorLayout", "layouts_between", "nearest_layout"]

_MAX_AXES = 6


@dataclass(frozen=True)
class TensorLayout:
    """Conversion to another layout: reshape to `first`, permute the axes by `order`, reshape to `last`."""

    first: tuple[int, ...]
    order: tuple[int, ...]
    last: tuple[int, ...]

    def __call__(self, tensor: Tensor) -> Tensor:
        return tensor.reshape(self.first).permute(self.order).reshape(self.last)

    @property
    def is_plain(self) -> bool:
        """True if no axes are permuted."""
        return self.order == tuple(range(len(self.order)))


def layouts_between(ours: Sequence[int], theirs: Sequence[int]) -> list[TensorLayout]:
    """List the layouts that convert one shape to the other, those that keep the order of axes first.

    Axes of length 1 may be added or removed; neighbouring axes may be merged or split.
    """
    ours, theirs = tuple(ours), tuple(theirs)
    if prod(ours) != prod(theirs):
        return []
    layouts = (
        [TensorLayout(ours, tuple(range(len(ours))), theirs)]
        if _can_merge(ours, theirs) or _can_merge(theirs, ours)
        else []
    )
    for order in _axis_orders(theirs):  # ours, split into their axes in another order
        ordered = tuple(theirs[axis] for axis in order)
        if _can_merge(ordered, ours):
            inverse = tuple(order.index(axis) for axis in range(len(theirs)))
            layouts.append(TensorLayout(ordered, inverse, theirs))
    for order in _axis_orders(ours):  # ours in another order, some of its axes joined
        if _can_merge(tuple(ours[axis] for axis in order), theirs):
            layouts.append(TensorLayout(ours, order, theirs))
    return list(dict.fromkeys(layouts))


def nearest_layout(ours: Tensor, theirs: Tensor) -> TensorLayout | None:
    """Return the layout with the smallest mean distance from `ours` to `theirs`; None if the shapes allow none."""
    candidates = layouts_between(ours.shape, theirs.shape)
    if len(candidates) < 2 or not theirs.is_floating_point():
        return candidates[0] if candidates else None
    wide = theirs.double()
    distances = [float((layout(ours).to(wide) - wide).abs().nan_to_num(torch.inf).mean()) for layout in candidates]
    return candidates[min(range(len(candidates)), key=lambda index: distances[index])]


def _axis_orders(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    if len(shape) <= _MAX_AXES:
        yield from permutations(range(len(shape)))


def _can_merge(fine: tuple[int, ...], coarse: tuple[int, ...]) -> bool:
    """Return True if merging neighbouring axes of `fine` gives the axes of `coarse`."""
    ends = {1}
    for size in fine:
        ends.add(max(ends) * size)
    return all(end in ends for end in _cumulative_sizes(coarse))


def _cumulative_sizes(shape: tuple[int, ...]) -> list[int]:
    return [prod(shape[: axis + 1]) for axis in range(len(shape))]
