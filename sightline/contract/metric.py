"""Base of metrics: a state that adds up exactly over batches and processes, and numbers computed from it once."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.contract.errors import summarise_error
from sightline.contract.intervals import LEVEL, describe_interval, describe_jackknife, ratio_interval, wilson_interval

State = dict[str, Tensor]
"""State of a metric: its tensors by name."""

_NUM_TRIED = 3
_NUM_RESAMPLINGS = 1000


@dataclass(frozen=True, eq=False)
class SampleSums:
    """Sums over samples that a figure is made of: it is the mean of K ratios of summed numerators and denominators.

    Both are (S, K): a row per sample or, with `counts` (S,), per kind of sample. A ratio of 0 to 0 is left out of the
    mean, or is `empty`. No ratio is outside of `bounds`.
    """

    numerators: Tensor
    denominators: Tensor
    counts: Tensor | None = None
    empty: float = math.nan
    bounds: tuple[float, float] = (-math.inf, math.inf)

    @property
    def num_samples(self) -> int:
        """The number of samples that count in any of the ratios."""
        return len(self._list_rows())

    def interval(self) -> dict[str, Any] | None:
        """Compute the 95 % interval of the figure by a bootstrap over the samples that count; None for fewer than two.

        The samples are drawn with a fixed seed, in their order, and summed in float64 by one thread: the interval is
        the same for batches of any size and any number of processes. Source: Efron 1979, the percentile interval.
        """
        numerators, denominators = self.numerators.double().numpy(), self.denominators.double().numpy()
        rows = self._list_rows()
        if len(rows) < 2:
            return None
        generator = np.random.Generator(np.random.PCG64(0))
        sums = np.empty((_NUM_RESAMPLINGS, 2, numerators.shape[1]))
        for resampled in sums:
            drawn = rows[generator.integers(len(rows), size=len(rows))]
            times = np.bincount(drawn, minlength=len(numerators))[:, None]
            resampled[:] = (times * numerators).sum(axis=0), (times * denominators).sum(axis=0)
        is_empty = sums[:, 1] == 0
        ratios = np.where(is_empty, self.empty, sums[:, 0] / np.where(is_empty, 1, sums[:, 1]))
        is_valid = ~np.isnan(ratios)
        figures = np.where(is_valid, ratios, 0).sum(axis=1) / is_valid.sum(axis=1)  # one row at least counts
        low, high = np.quantile(figures, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
        return {"low": low, "high": high, "level": LEVEL, "num_samples": len(rows)}

    def intervals(self) -> list[dict[str, Any]]:
        """Compute the 95 % interval of each ratio over the samples in which it counts, `num_samples`.

        The ends are None for fewer than two. Few samples give a wide interval (`ratio_interval`), where a bootstrap,
        which never draws what they lack, would be too narrow.
        """
        rows = self._list_rows()
        numerators, denominators = (sums[rows].double().numpy() for sums in (self.numerators, self.denominators))
        described = []
        for above, below in zip(numerators.T, denominators.T, strict=True):
            is_counted = below != 0
            ends = ratio_interval(above[is_counted], below[is_counted])
            described.append(describe_jackknife(ends, int(is_counted.sum()), self.bounds))
        return described

    def _list_rows(self) -> np.ndarray:
        """List the row of each sample that counts."""
        counts = np.ones(len(self.numerators), dtype=np.int64) if self.counts is None else self.counts.numpy()
        return np.repeat(np.arange(len(counts)), np.where((self.denominators != 0).numpy().any(axis=1), counts, 0))


@dataclass(frozen=True, eq=False)
class SampleShares:
    """Counts of samples that K shares are made of: `right` of `total` (K,), of samples that are right or wrong.

    `num_samples` is the number of different ones: a sample may count in several shares.
    """

    right: Tensor
    total: Tensor
    num_samples: int

    def intervals(self) -> list[dict[str, Any]]:
        """Compute the 95 % interval of each share (`wilson_interval`); its ends are None without samples."""
        return [
            describe_interval("Wilson score", wilson_interval(right, total) if total else None, total)
            for right, total in zip(self.right.tolist(), self.total.tolist(), strict=True)
        ]


@dataclass(frozen=True)
class WorstSamples:
    """Samples with the most errors of each kind: kind → index of a sample → number of errors, the worst first.

    Predictions from `min_score` on were counted.
    """

    of_kind: Mapping[str, Mapping[int, int]]
    min_score: float

    def list_counts(self) -> dict[int, dict[str, int]]:
        """Return index → kind → number of errors: first the worst sample of each kind, then the second of each."""
        ranked = [
            (rank, index, kind, count)
            for kind, samples in self.of_kind.items()
            for rank, (index, count) in enumerate(samples.items())
        ]
        counts: dict[int, dict[str, int]] = {}
        for _, index, kind, count in sorted(ranked, key=lambda row: row[0]):
            counts.setdefault(index, {})[kind] = count
        return counts

    def to_dict(self, name_of: Callable[[int], str]) -> dict[str, Any]:
        """Convert to plain values for JSON, with the names of samples, which several may share."""
        kinds = {
            kind: [{"name": name_of(index), "count": count} for index, count in samples.items()]
            for kind, samples in self.of_kind.items()
        }
        return {"min_score": self.min_score, "kinds": kinds}


class Metric(ABC):
    """Metric with a state that is exact in any order of batches and on any number of processes.

    State tensors are int64 counts, or slots (one row per sample, zero elsewhere); both are reduced by SUM. A metric
    with slots names them in `slots` and takes `num_samples` in `new_state`, one more than the largest index that it
    will get. If samples have any number of rows each, such as detections, `rows` names float64 states (0, 1 + K) that
    `update` extends by `append_rows`; they are gathered, in the order of samples. All methods but the first two get the
    reduced state of a whole split, and read nothing that `update` has set on the metric: it may have run elsewhere.
    """

    higher_is_better: bool | Mapping[str, bool] | None = None
    """True, False, or figure → True or False; `evaluate.mode` is then not needed."""
    slots: Collection[str] = ()
    """Names of states with a row per sample."""
    rows: Collection[str] = ()
    """Names of states with any number of rows per sample (float64, the sample's index first)."""
    within_batch: Collection[str] = frozenset()
    """Names of figures that by definition depend on the batch size."""
    scores_absent_zero: bool = False
    """True where a class that neither labels nor predictions have counts 0 by the protocol."""
    update_labels: Callable[..., None] | None = None
    """`update_labels(state, *, labels, ...)`: as `update`, of predicted labels where only these are known."""
    per_sample: Callable[[State], Tensor] | None = None
    """`per_sample(state)`: a number for each sample."""
    worst_samples: Callable[[State], WorstSamples] | None = None
    """`worst_samples(state)`: `sightline.WorstSamples`, the samples with the most errors of each kind.

    Evaluations with pictures and `view` draw them.
    """

    @abstractmethod
    def new_state(self) -> State:
        """Return the state in which nothing is counted: zeros, by name."""

    @abstractmethod
    def update(self, state: State, *args: Any, **kwargs: Any) -> None:
        """Add a batch to the state; the further arguments name batch keys and prediction keys."""

    @abstractmethod
    def compute(self, state: State) -> dict[str, float]:
        """Return the named numbers of a reduced state, NaN if nothing was counted."""

    def per_class(self, state: State) -> Mapping[str, Mapping[str, Any]]:
        """Return class → {figure: number}."""
        return {}

    def sums(self, state: State) -> Mapping[str, SampleSums]:
        """Return figure → `sightline.SampleSums` that it is made of, for its interval."""
        return {}

    def class_intervals(self, state: State) -> Mapping[str, Any]:
        """Return figure of `per_class` → what its intervals are made of, for each of its classes.

        It is `sightline.SampleSums` with a column, or `sightline.SampleShares` or `LeftOutFigures` with a number, of
        each class.
        """
        return {}

    def tables(self, state: State) -> Mapping[str, Any]:
        """Return name → plain values, kept in JSON."""
        return {}

    def pictures(self, state: State) -> Sequence[Any]:
        """Return `sightline.Picture`s of the whole part, for TensorBoard and `predictions/`."""
        return ()


class MeanMetric(Metric):
    """Metric of means over all samples of a split: a subclass names its `figures`, and defines `values`.

    `values` names batch keys and prediction keys. It returns a number for each sample (B,), or for each of its elements
    (B, ...), such as joints; with weights of the same shape, `(values, weights)`. For several figures it returns a dict
    of these. A figure is the sum of all weighted values by the sum of all weights, 1 each by default; a value of weight
    0 does not count, and NaN is the mean of none. The sum of a sample's elements, and that of all samples, is exact and
    rounded once: the figure has the same bits in batches of any size and order, and on any number of processes.

    `update` raises ValueError for anything but a number per sample, for values that are not finite, for weights below
    0, and for values on another device than the batch. A mean over all points of joined clouds has
    the mean of each cloud as its value, and the number of its points as the weight.

    >>> import torch
    >>> import sightline
    >>> class AbsoluteError(sightline.MeanMetric):
    ...     figures = ("absolute_error",)
    ...     def values(self, *, predicted, target):
    ...         return (predicted - target).abs()
    >>> meter = sightline.Meter(AbsoluteError())
    >>> meter.update(predicted=torch.tensor([1.0, 4.0]), target=torch.tensor([0.0, 2.0]), sample_index=torch.arange(2))
    >>> meter.compute()
    {'absolute_error': 1.5}
    """

    figures: tuple[str, ...] = ()
    slots = frozenset({"sums", "weights"})
    values: Callable[..., Any]

    def __init_subclass__(cls) -> None:
        """Give a class that defines `values` an `update` with its arguments, the state and `sample_index`."""
        super().__init_subclass__()
        if not hasattr(cls, "values"):
            return
        names = inspect.signature(cls.values).parameters

        def update(self: MeanMetric, state: State, *, sample_index: Tensor, **tensors: Any) -> None:
            index = {"sample_index": sample_index} if "sample_index" in names else {}
            self._add(state, self.values(**tensors, **index), sample_index)

        keyword, positional = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = {name: inspect.Parameter(name, positional) for name in ("self", "state")}
        parameters |= {"sample_index": inspect.Parameter("sample_index", keyword)}
        parameters |= {name: parameter.replace(kind=keyword) for name, parameter in names.items() if name != "self"}
        update.__signature__ = inspect.Signature([*parameters.values()])  # type: ignore[attr-defined]
        cls.update = update  # type: ignore[method-assign]

    def update(self, state: State, *args: Any, **kwargs: Any) -> None:
        """Add the values of each sample to its row: a subclass that defines `values` names their arguments here."""
        raise TypeError("a MeanMetric has a method `values`")

    def new_state(self, *, num_samples: int = 0) -> State:
        """Return a row of 0 per sample: the `sums` of its weighted values, and of its `weights`, by figure."""
        if not (hasattr(self, "values") and self.figures and isinstance(self.figures, tuple)):
            raise TypeError('a MeanMetric has a method `values`, and a tuple of names `figures`: ("mean_error",)')
        return {name: torch.zeros(num_samples, len(self.figures), dtype=torch.float64) for name in ("sums", "weights")}

    def _add(self, state: State, returned: Any, sample_index: Tensor) -> None:
        by_figure = returned if isinstance(returned, Mapping) else {self.figures[0]: returned}
        if by_figure.keys() != {*self.figures}:
            raise ValueError(f"values returned {', '.join(by_figure)}; figures names {', '.join(self.figures)}")
        for column, name in enumerate(self.figures):
            sums, weights = _sum_samples(name, by_figure[name], sample_index)
            state["sums"][sample_index, column] += sums.to(state["sums"].device)
            state["weights"][sample_index, column] += weights.to(state["sums"].device)

    def compute(self, state: State) -> dict[str, float]:
        """Compute the mean of each figure."""
        sums, weights = (map(math.fsum, state[name].T.tolist()) for name in ("sums", "weights"))
        ratios = (total / weight if weight else math.nan for total, weight in zip(sums, weights, strict=True))
        return dict(zip(self.figures, ratios, strict=True))

    def per_sample(self, state: State) -> Tensor:
        """Return the mean (num_samples,) float64 of the first figure in each sample; NaN where nothing counts."""
        return state["sums"][:, 0] / state["weights"][:, 0]

    def sums(self, state: State) -> dict[str, SampleSums]:
        """Return the sums of each figure that does not depend on the batch, of each sample."""
        return {
            name: SampleSums(state["sums"][:, [column]], state["weights"][:, [column]])
            for column, name in enumerate(self.figures)
            if name not in self.within_batch
        }


def _sum_samples(name: str, returned: Any, sample_index: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the weighted values of a figure, and the weights, of each sample (B,) float64, exactly."""
    values, weights = returned if isinstance(returned, tuple) else (returned, None)
    weights = torch.ones_like(values) if weights is None and isinstance(values, Tensor) else weights
    for noun, tensor in (("values", values), ("weights", weights)):
        size, what = len(sample_index), f"figure '{name}': its {noun}"
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{what} are a {type(tensor).__name__}; return a tensor ({size},), a number per sample")
        if tensor.shape[:1] != (size,) or tensor.shape != values.shape:
            raise ValueError(
                f"{what} have the shape {tuple(tensor.shape)} for {size} samples; return a number per sample ({size},) "
                f"or per element ({size}, ...), and weights of the same shape"
            )
        if tensor.device != sample_index.device:
            raise ValueError(
                f"{what} are on {tensor.device}, the batch is on {sample_index.device}; make them from its tensors"
            )
    values, weights = (tensor.detach().double()[:, None].flatten(1) for tensor in (values, weights))
    for noun, is_bad in (
        ("values are not finite", ~values.isfinite() & (weights != 0)),
        ("weights are below 0 or not finite", ~((weights >= 0) & weights.isfinite())),
    ):
        if bool(is_bad.any()):
            sample = int(sample_index[is_bad.any(dim=1)][0])
            raise ValueError(
                f"figure '{name}': {int(is_bad.sum())} of {is_bad.numel()} {noun}, first in sample {sample}; look for "
                "NaN in what the model predicts (`sightline check`), or give what does not count a weight of 0"
            )
    rows = torch.where(weights != 0, values * weights, 0.0), weights
    sums, totals = (torch.tensor([*map(math.fsum, row.tolist())], dtype=torch.float64) for row in rows)
    return sums, totals


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
    return frozenset(metric.rows)


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


def is_higher_better(metric: Metric | type[Metric], figure: str) -> bool | None:
    """Return True if a higher value of a metric's figure is better, False if not, None if the metric does not state it.

    Raises TypeError for a statement that is neither True nor False.
    """
    stated = metric.higher_is_better
    better = stated.get(figure) if isinstance(stated, Mapping) else stated
    if better is not None and not isinstance(better, bool):
        raise TypeError(f"higher_is_better of '{figure}' is {better!r}; give True or False")
    return better


def _slots(metric: Metric) -> frozenset[str]:
    return frozenset(metric.slots)
