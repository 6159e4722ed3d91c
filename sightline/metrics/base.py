"""What every metric is: a state that adds up exactly over batches and processes, and numbers computed from it once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["Metric", "State", "fresh_state", "is_higher_better", "pool_states"]

State = dict[str, Tensor]


class Metric(Protocol):
    """A metric whose state is exact in any order of batches and on any number of processes.

    State tensors are int64 counts, or slots (one row per sample, zero elsewhere); both are reduced by SUM. A metric
    with slots names them in an attribute `slots` and takes `num_samples` in `new_state`, one more than the largest
    index that it will be given. `update` names batch keys and prediction keys after the state. `compute` runs on the
    reduced state and returns named numbers (NaN where nothing was counted). A metric may also offer
    `per_class(state)`: class name -> {name: number}; `per_sample(state)`: a number for each sample, NaN where there is
    none; and `tables(state)`: name -> plain values, which the JSON of an evaluation keeps. `higher_is_better` states
    the direction of its numbers: True, False, or name -> True or False; `evaluate.mode` is then not needed.
    """

    update: Callable[..., None]

    def new_state(self) -> State: ...

    def compute(self, state: State) -> dict[str, float]: ...

    def per_class(self, state: State) -> dict[str, dict[str, Any]]: ...


def fresh_state(metric: Metric, *, num_samples: int = 0) -> State:
    """An empty state; with `num_samples` slots where the metric has slots."""
    if _slots(metric):
        return metric.new_state(num_samples=num_samples)  # type: ignore[call-arg]
    return metric.new_state()


def pool_states(metric: Metric, states: Sequence[State]) -> State:
    """The state of several evaluations of different samples as one: counts add up, slots stand one after another."""
    return {
        name: torch.cat([state[name] for state in states])
        if name in _slots(metric)
        else torch.stack([state[name] for state in states]).sum(dim=0)
        for name in states[0]
    }


def is_higher_better(metric: Metric | Callable[..., Metric], figure: str) -> bool | None:
    """Whether a higher value of a metric's figure is better, as the metric or its class states; None where unstated.

    Raises TypeError for a statement that is neither True nor False.
    """
    stated = getattr(metric, "higher_is_better", None)
    better = stated.get(figure) if isinstance(stated, Mapping) else stated
    if better is not None and not isinstance(better, bool):
        raise TypeError(f"higher_is_better of '{figure}' is {better!r}; give True or False")
    return better


def _slots(metric: Metric) -> frozenset[str]:
    return getattr(metric, "slots", frozenset())
