"""Base of metrics: a state that adds up exactly over batches and processes, and numbers computed from it once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sightline.contract.errors import summarise_error
from sightline.contract.members import MetricMembers

State = dict[str, Tensor]

_NUM_TRIED = 3
_LEVEL, _NUM_RESAMPLINGS = 0.95, 1000


class Metric(Protocol):
    """Metric with a state that is exact in any order of batches and on any number of processes.

    State tensors are int64 counts, or slots (one row per sample, zero elsewhere); both are reduced by SUM. A metric
    with slots names them in an attribute `slots` and takes `num_samples` in `new_state`, one more than the largest
    index that it will get. If samples have any number of rows each, such as detections, the attribute `rows`
    names float64 states (0, 1 + K) that `update` extends by `append_rows`; they are gathered, in the order of samples.
    `update` names batch keys and prediction keys after the state. `compute` runs on the reduced state and returns named
    numbers (NaN if nothing was counted). Its optional members: `members.MetricMembers`.
    """

    update: Callable[..., None]

    def new_state(self) -> State: ...

    def compute(self, state: State) -> dict[str, float]: ...


@dataclass(frozen=True, eq=False)
class SampleSums:
    """Sums over samples that a figure is made of: it is the mean of K ratios of summed numerators and denominators.

    Both are (S, K): a row per sample or, with `counts` (S,), per kind of sample. A ratio of 0 to 0 is left out of the
    mean, or is `empty`.
    """

    numerators: Tensor
    denominators: Tensor
    counts: Tensor | None = None
    empty: float = math.nan

    def interval(self) -> dict[str, Any] | None:
        """Compute the 95 % interval of the figure by a bootstrap over the samples that count; None for fewer than two.

        The samples are drawn with a fixed seed, in their order, and summed in float64 by one thread: the interval is
        the same for batches of any size and any number of processes. Source: Efron 1979, the percentile interval.
        """
        numerators, denominators = self.numerators.double().numpy(), self.denominators.double().numpy()
        counts = np.ones(len(numerators), dtype=np.int64) if self.counts is None else self.counts.numpy()
        rows = np.repeat(np.arange(len(counts)), np.where((denominators != 0).any(axis=1), counts, 0))
        if len(rows) < 2:
            return None
        generator = np.random.Generator(np.random.PCG64(0))
        sums = np.empty((_NUM_RESAMPLINGS, 2, numerators.shape[1]))
        for resampled in sums:
            times = np.bincount(rows[generator.integers(len(rows), size=len(rows))], minlength=len(counts))[:, None]
            resampled[:] = (times * numerators).sum(axis=0), (times * denominators).sum(axis=0)
        is_empty = sums[:, 1] == 0
        ratios = np.where(is_empty, self.empty, sums[:, 0] / np.where(is_empty, 1, sums[:, 1]))
        is_valid = ~np.isnan(ratios)
        figures = np.where(is_valid, ratios, 0).sum(axis=1) / is_valid.sum(axis=1)  # one row at least counts
        low, high = np.quantile(figures, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]).tolist()
        return {"low": low, "high": high, "level": _LEVEL, "num_samples": len(rows)}


def make_state(metric: Metric, *, num_samples: int = 0) -> State:
    """Make an empty state; with `num_samples` slots if the metric has slots."""
    if _slots(metric):
        return metric.new_state(num_samples=num_samples)  # type: ignore[call-arg]
    return metric.new_state()


def append_rows(state: State, name: str, sample_index: Tensor, rows: Tensor) -> None:
    """Append `rows` (n, K) of the samples `sample_index` (n,) to a state named in `rows`.

    The memory of a state is doubled when it is full, so that the time of an evaluation is linear in its rows. Existing
    rows stay in place: append to a state or to a copy of its tensors, not to both.
    """
    indexed = torch.cat([sample_index.double()[:, None], rows.double()], dim=1)
    old = state[name]
    count, columns = len(old) + len(indexed), indexed.shape[1]
    if old.storage_offset() or old.untyped_storage().nbytes() < count * columns * old.itemsize:
        room = old.new_empty(max(2 * count, 64), columns)
        room[: len(old)] = old
    else:
        room = old
    state[name] = room.as_strided((count, columns), (columns, 1))
    state[name][len(old) :] = indexed.detach().to(old.device)


def sorted_rows(rows: Tensor) -> Tensor:
    """Sort rows (n, 1 + K) by sample: the same on any number of processes, each of which saw whole samples."""
    return rows[torch.argsort(rows[:, 0], stable=True)]


def row_states(metric: Metric) -> frozenset[str]:
    """Return the names of the states with any number of rows per sample."""
    return frozenset(MetricMembers.rows.get(metric))


def find_state_fault(metric: Metric) -> str | None:
    """Return the reason why a metric's fresh state, or numbers computed from it, do not add up exactly.

    None if they do.
    """
    slots, ragged = _slots(metric), row_states(metric)
    try:
        state = make_state(metric, num_samples=_NUM_TRIED)
        metric.compute(make_state(metric))
    except Exception as error:  # noqa: BLE001 - an error of the metric would end the run without a word
        reason = summarise_error(error)
        return f"an empty state cannot be made or computed ({reason}); compute gives NaN where nothing was counted"
    for kind, names in (("slots", slots), ("rows", ragged)):
        for name in sorted(names - state.keys()):
            return f"{kind} names '{name}', which new_state does not return ({', '.join(state)})"
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            return f"state '{name}' is a {type(tensor).__name__}; make it an int64 tensor"
        form = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
        if name in ragged:
            if tensor.dtype != torch.float64 or tensor.ndim != 2 or len(tensor) or tensor.shape[1] < 2:
                return f"state '{name}' is {form}; rows begin as float64 (0, 1 + K): a sample's index and K numbers"
            continue
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
    """Pool the states of evaluations of different samples: counts are added, slots concatenated.

    Rows are concatenated, too, with their samples renumbered.
    """
    slots, ragged = _slots(metric), row_states(metric)
    pooled = {}
    sizes = [1 + max((float(s[name][:, 0].max()) for name in ragged if len(s[name])), default=-1.0) for s in states]
    for name in states[0]:
        parts = [state[name] for state in states]
        if name in ragged:
            pooled[name] = _renumber_rows(parts, sizes)
        else:
            pooled[name] = torch.cat(parts) if name in slots else torch.stack(parts).sum(dim=0)
    return pooled


def _renumber_rows(parts: Sequence[Tensor], sizes: Sequence[float]) -> Tensor:
    """Concatenate rows of several evaluations, each part's samples numbered after those before it.

    `sizes` are one more than the largest number in any rows of a part, so that all states number a sample alike.
    """
    shifted, following = [], 0.0
    for rows, size in zip(parts, sizes, strict=True):
        shift = torch.zeros(rows.shape[1], dtype=rows.dtype)
        shift[0] = following
        shifted.append(rows + shift)
        following += size
    return torch.cat(shifted)


class Meter:
    """Metric with a state of its own, for use without a run: `update` with each batch, then `compute`.

    `update` takes the arguments of the metric's `update` after the state, from batches of any size in any order. Where
    `sample_index` is one of them, it numbers all samples from 0; slots are added for it beyond `num_samples`.
    """

    def __init__(self, metric: Metric, *, num_samples: int = 0) -> None:
        self.metric = metric
        self._state = make_state(metric, num_samples=num_samples)

    @torch.no_grad()
    def update(self, **batch: Any) -> None:
        """Add a batch, on any device."""
        device = next((value.device for value in batch.values() if isinstance(value, Tensor)), None)
        self._state = {name: tensor.to(device=device) for name, tensor in self._state.items()}
        for name in _slots(self.metric) if "sample_index" in batch else ():
            slots = self._state[name]
            num_new = max([0, *(batch["sample_index"] + 1 - len(slots)).tolist()])
            self._state[name] = torch.cat([slots, slots.new_zeros(num_new, *slots.shape[1:])])
        self.metric.update(self._state, **batch)

    def compute(self) -> dict[str, float]:
        """Compute the named numbers of all batches; NaN where nothing was counted."""
        return self.metric.compute(self.state)

    @property
    def state(self) -> State:
        """A copy of the state on the CPU, rows in the order of samples, as `per_class` and other members take it."""
        ragged = row_states(self.metric)
        return {
            name: sorted_rows(t.cpu()) if name in ragged else t.to("cpu", copy=True) for name, t in self._state.items()
        }


def is_higher_better(metric: Metric | Callable[..., Metric], figure: str) -> bool | None:
    """Return True if a higher value of a metric's figure is better, False if not, None if the metric does not state it.

    Raises TypeError for a statement that is neither True nor False.
    """
    stated = MetricMembers.higher_is_better.get(metric)
    better = stated.get(figure) if isinstance(stated, Mapping) else stated
    if better is not None and not isinstance(better, bool):
        raise TypeError(f"higher_is_better of '{figure}' is {better!r}; give True or False")
    return better


def _slots(metric: Metric) -> frozenset[str]:
    return frozenset(MetricMembers.slots.get(metric))
