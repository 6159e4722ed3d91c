"""Trace of a live loop in plain numbers: what went in and came out, in which order, and how far the weights moved."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

MEASURED = frozenset((0, 1, 2, 3, 4, 10, 50, 150))
"""Numbers of the steps that are measured among the first 400; then those whose number doubles."""
_FIRST_DOUBLED = 400


def is_measured(step: int) -> bool:
    """Return True for the first steps, and for ever rarer ones."""
    quotient, rest = divmod(step, _FIRST_DOUBLED)
    return step in MEASURED or (rest == 0 and quotient > 0 and quotient & (quotient - 1) == 0)


@dataclass
class Series:
    """Numbers of a whole loop in bounded memory: each `stride`-th, where the stride doubles as they become many.

    Those of a GPU are kept there until `read`, which waits for it.
    """

    most: int = 1024
    stride: int = 1
    num_seen: int = 0
    kept: list[float | Tensor] = field(default_factory=list)

    def add(self, value: float | Tensor) -> None:
        """Add the next number."""
        if self.num_seen % self.stride == 0:
            if len(self.kept) == self.most:
                self.kept, self.stride = self.kept[::2], 2 * self.stride
            self.kept.append(value)
        self.num_seen += 1

    def read(self) -> list[float]:
        """Read the numbers that are kept."""
        self.kept = list(read_numbers(self.kept))
        return [float(value) for value in self.kept]


def read_numbers(values: list[float | Tensor]) -> list[float]:
    """Read numbers, those of one device at once."""
    on_device = [value for value in values if isinstance(value, Tensor)]
    devices = {value.device for value in on_device}
    read = {
        device: iter(torch.stack([v.double() for v in on_device if v.device == device]).tolist()) for device in devices
    }
    return [next(read[value.device]) if isinstance(value, Tensor) else value for value in values]


class Inputs(NamedTuple):
    """Statistics (C,) of one leaf of a pass's inputs, by channel: mean and standard deviation of all its numbers."""

    mean: Tensor
    deviation: Tensor
    num_rows: int


class Pull(NamedTuple):
    """Number of outputs of a micro-batch that the loss pulls at, and the mean size of a pull."""

    number: Tensor
    size: Tensor


class Clip(NamedTuple):
    """Norms of gradients after the backward pass and before the update, and the update's share of the weights' norm."""

    backward: Tensor
    used: Tensor
    share: Tensor


@dataclass
class BackwardAddends:
    """Parameters, by identity, below each addend of a loss, and those of the optimisers that stepped after it."""

    leaves: list[frozenset[int]]
    updated: set[int] = field(default_factory=set)


class Norm(NamedTuple):
    """Mean norm of a tensor's rows in the model, their relative spread, and the mean norm in the average of weights."""

    own: Tensor
    spread: Tensor
    average: Tensor


@dataclass
class PhaseRows:
    """Digests of the samples that passes of one phase read, and the data sets of the loaders that gave them."""

    digests: list[Tensor] = field(default_factory=list)
    sets: set[int] = field(default_factory=set)


@dataclass
class Trace:
    """Record of a loop. Phases are `train` (training mode, recorded for backward) and `eval` (evaluation mode).

    `rates` are learning rates at each update, by optimiser; `losses` those of each line that calls backward. `epochs`
    are the updates at which a loader began anew for training. `spreads` are mean standard deviations over the samples
    of an output, with the update. `pulls` are those of the micro-batches of each measured update. `held` are all
    parameters that optimisers of the loop hold.
    """

    num_backward: int = 0
    num_training_backward: int = 0
    num_updates: int = 0
    changed: list[Tensor] = field(default_factory=list)
    rates: dict[str, list[float]] = field(default_factory=dict)
    losses: dict[Hashable, Series] = field(default_factory=dict)
    epochs: list[int] = field(default_factory=list)
    inputs: dict[str, dict[str, list[Inputs]]] = field(default_factory=lambda: {"train": {}, "eval": {}})
    rows: dict[str, PhaseRows] = field(default_factory=lambda: {"train": PhaseRows(), "eval": PhaseRows()})
    spreads: dict[str, list[tuple[int, Tensor]]] = field(default_factory=dict)
    pulls: list[list[Pull]] = field(default_factory=list)
    clips: dict[str, list[Clip]] = field(default_factory=dict)
    addends: list[BackwardAddends] = field(default_factory=list)
    held: set[int] = field(default_factory=set)
    norms: dict[str, list[Norm]] = field(default_factory=dict)
    is_over: bool = False
