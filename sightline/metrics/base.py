"""What every metric is: a state that adds up exactly over batches and processes, and numbers computed from it once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from sightline.errors import summary_of
from sightline.members import MetricMembers

__all__ = ["Metric", "State", "fault_of_state", "fresh_state", "is_higher_better", "pool_states"]

State = dict[str, Tensor]

_NUM_TRIED = 3


class Metric(Protocol):
    """A metric whose state is exact in any order of batches and on any number of processes.

    State tensors are int64 counts, or slots (one row per sample, zero elsewhere); both are reduced by SUM. A metric
    with slots names them in an attribute `slots` and takes `num_samples` in `new_state`, one more than the largest
    index that it will be given. `update` names batch keys and prediction keys after the state. `compute` runs on the
    reduced state and returns named numbers (NaN where nothing was counted). Its optional members:
    `members.MetricMembers`.
    """

    update: Callable[..., None]

    def new_state(self) -> State: ...

    def compute(self, state: State) -> dict[str, float]: ...


def fresh_state(metric: Metric, *, num_samples: int = 0) -> State:
    """An empty state; with `num_samples` slots where the metric has slots."""
    if _slots(metric):
        return metric.new_state(num_samples=num_samples)  # type: ignore[call-arg]
    return metric.new_state()


def fault_of_state(metric: Metric) -> str | None:
    """Why the fresh state of a metric, and figures made of it, do not add up exactly; None for a sound one."""
    slots = _slots(metric)
    try:
        state = fresh_state(metric, num_samples=_NUM_TRIED)
        metric.compute(fresh_state(metric))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the metric's, and would end the run without a word
        reason = summary_of(error)
        return f"an empty state cannot be made or computed ({reason}); compute gives NaN where nothing was counted"
    for name in sorted(slots - state.keys()):
        return f"slots names '{name}', which new_state does not return ({', '.join(state)})"
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            return f"state '{name}' is a {type(tensor).__name__}; make it an int64 tensor"
        form = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
        if name in slots and tensor.shape[:1] != (_NUM_TRIED,):
            return f"state '{name}' is {form} for {_NUM_TRIED} samples; slots have num_samples rows"
        if name not in slots and tensor.dtype != torch.int64:
            return (
                f"state '{name}' is {form}, a running sum that depends on the order and size of batches; keep int64 "
                "counts, or a row per sample: name it in `slots` and give it num_samples rows in new_state"
            )
        if bool(tensor.any()):
            return f"state '{name}' does not begin at zero, and states are added over processes; begin with zeros"
    return None


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
    stated = MetricMembers.higher_is_better.of(metric)
    better = stated.get(figure) if isinstance(stated, Mapping) else stated
    if better is not None and not isinstance(better, bool):
        raise TypeError(f"higher_is_better of '{figure}' is {better!r}; give True or False")
    return better


def _slots(metric: Metric) -> frozenset[str]:
    return frozenset(MetricMembers.slots.of(metric))
