"""One tensor in two layouts: axes in another order, or several as one, as (B, N, C) beside (B, C, N) or (B*N, C)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import prod

import torch
from torch import Tensor

__all__ = ["TensorLayout", "layouts_between", "nearest_layout"]

_MOST_AXES = 6


@dataclass(frozen=True)
class TensorLayout:
    """Brings a tensor into another layout: reshaped to `first`, its axes permuted, and reshaped to `last`."""

    first: tuple[int, ...]
    order: tuple[int, ...]
    last: tuple[int, ...]

    def __call__(self, tensor: Tensor) -> Tensor:
        return tensor.reshape(self.first).permute(self.order).reshape(self.last)

    @property
    def is_plain(self) -> bool:
        """Whether no axes change places."""
        return self.order == tuple(range(len(self.order)))


def layouts_between(ours: Sequence[int], theirs: Sequence[int]) -> list[TensorLayout]:
    """Every way in which axes of one shape can be those of the other, those that leave the order alone first.

    Axes of length 1 may come and go; neighbouring axes may be one axis of the other.
    """
    ours, theirs = tuple(ours), tuple(theirs)
    if prod(ours) != prod(theirs):
        return []
    found = (
        [TensorLayout(ours, tuple(range(len(ours))), theirs)] if _merges(ours, theirs) or _merges(theirs, ours) else []
    )
    for order in _orders(theirs):  # ours, split into their axes in another order
        ordered = tuple(theirs[axis] for axis in order)
        if _merges(ordered, ours):
            back = tuple(order.index(axis) for axis in range(len(theirs)))
            found.append(TensorLayout(ordered, back, theirs))
    for order in _orders(ours):  # ours in another order, some of its axes joined
        if _merges(tuple(ours[axis] for axis in order), theirs):
            found.append(TensorLayout(ours, order, theirs))
    return list(dict.fromkeys(found))


def nearest_layout(ours: Tensor, theirs: Tensor) -> TensorLayout | None:
    """The layout in which a tensor is nearest to the other network's own; None where the shapes allow none."""
    candidates = layouts_between(ours.shape, theirs.shape)
    if len(candidates) < 2 or not theirs.is_floating_point():
        return candidates[0] if candidates else None
    wide = theirs.double()
    distances = [float((layout(ours).to(wide) - wide).abs().nan_to_num(torch.inf).mean()) for layout in candidates]
    return candidates[min(range(len(candidates)), key=lambda place: distances[place])]


def _orders(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    if len(shape) <= _MOST_AXES:
        yield from permutations(range(len(shape)))


def _merges(fine: tuple[int, ...], coarse: tuple[int, ...]) -> bool:
    """Whether neighbouring axes of the first, joined, are the axes of the second."""
    ends = {1}
    for size in fine:
        ends.add(max(ends) * size)
    return all(end in ends for end in _running(coarse))


def _running(shape: tuple[int, ...]) -> list[int]:
    return [prod(shape[: place + 1]) for place in range(len(shape))]
