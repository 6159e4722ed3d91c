"""The exam of a metric: a reference's numbers, and the same bits from any split, number format and memory layout."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.contract import registry
from sightline.contract.metric import Meter, Metric, State, find_state_fault, make_state, row_states, sorted_rows

Sample = dict[str, np.ndarray]
Batch = dict[str, Tensor]
Split = Sequence[Sequence[int]]
SEEDS = range(5)
NUM_PROCESSES = (1, 2, 3)


@dataclass(frozen=True)
class Case:
    """A registered metric with its arguments and facts, seeded samples, and a reference that shares no code with it.

    `draw` returns at least six samples, arrays by the names that `update` takes. `joined` names those of any length,
    and the key of their offsets ("" if the metric takes none). `reference` gets the samples in batches and returns all
    that the metric does: figures, `class/figure` of `per_class`, `sample 0` of `per_sample`. `ignore` makes of a sample
    one of which nothing counts. `exact` are keys that the engine leaves in float64.
    """

    metric: str
    draw: Callable[[np.random.Generator], list[Sample]]
    reference: Callable[[Sequence[Sequence[Sample]]], Mapping[str, float]]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    joined: Mapping[str, str] = field(default_factory=dict)
    ignore: Callable[[Sample], Sample] | None = None
    exact: frozenset[str] = frozenset()

    def __str__(self) -> str:
        """The metric's name, with the arguments that configs give."""
        given = [f"{name}={value}" for name, value in self.arguments.items() if name not in registry.FACTS]
        return " ".join([self.metric, *given])

    def build(self) -> Metric:
        return registry.metrics.get_entry(self.metric).builder(**self.arguments)

    def samples(self, seed: int = 0) -> list[Sample]:
        """Draw samples whose numbers float32 holds, so that both formats compute from the same ones."""
        drawn = self.draw(np.random.default_rng(seed))
        return [{key: value if key in self.exact else _round(value) for key, value in one.items()} for one in drawn]

    def batch(self, samples: Sequence[Sample], chosen: Sequence[int]) -> Batch:
        """Make the batch of these samples; sample i has the index 2 i + 1, so that some indices never occur."""
        batch = {"sample_index": torch.tensor([2 * i + 1 for i in chosen], dtype=torch.int64)}
        for key, first in samples[0].items():
            values = [samples[i][key] for i in chosen]
            rows = values if key in self.joined else [value[None] for value in values]
            none = first[:0] if key in self.joined else first[None][:0]
            batch[key] = torch.from_numpy(np.concatenate([none, *rows]))
            if self.joined.get(key):
                batch[self.joined[key]] = torch.tensor([0, *map(len, values)]).cumsum(0)
        return {name: batch[name] for name in inspect.signature(self.build().update).parameters if name in batch}

    def batches(self, samples: Sequence[Sample], split: Split) -> list[Batch]:
        return [self.batch(samples, chosen) for chosen in split]


def _round(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float32).astype(np.float64) if value.dtype.kind == "f" else value


def evaluate(metric: Metric, batches: Sequence[Batch], num_samples: int, num_processes: int = 1) -> State:
    """Update a state in each process with its share of the batches, and add the states up as an evaluation does."""
    states = [make_state(metric, num_samples=2 * num_samples + 1) for _ in range(num_processes)]
    for number, batch in enumerate(batches):
        metric.update(states[number % num_processes], **batch)
    return {
        name: sorted_rows(torch.cat([state[name] for state in states]))
        if name in row_states(metric)
        else torch.stack([state[name] for state in states]).sum(dim=0)
        for name in states[0]
    }


def figures(metric: Metric, state: State) -> dict[str, float]:
    """All numbers of a state, under the names that a reference has for them."""
    numbers: dict[str, Any] = dict(metric.compute(state))
    numbers |= {f"{name}/{key}": value for name, row in metric.per_class(state).items() for key, value in row.items()}
    if (per_sample := metric.per_sample) is not None:
        scores = per_sample(state).tolist()
        assert all(map(math.isnan, scores[::2])), "a sample that was not evaluated has a score"
        numbers |= {f"sample {number}": score for number, score in enumerate(scores[1::2])}
    return numbers


def bits(metric: Metric, state: State, *, without: frozenset[str] = frozenset()) -> str:
    """All that a metric makes of a state, to the last bit: numbers, and tables."""
    numbers = {name: value for name, value in figures(metric, state).items() if name not in without}
    return str((numbers, metric.tables(state)))


def splits(num_samples: int) -> dict[str, Split]:
    """Ways to split samples into batches."""
    order = np.random.default_rng(5).permutation(num_samples).tolist()
    cut = lambda numbers, *edges: [numbers[a:b] for a, b in itertools.pairwise((0, *edges, num_samples))]  # noqa: E731
    return {
        "whole": [range(num_samples)],
        "singles": [[number] for number in range(num_samples)],
        "uneven": cut(range(num_samples), 1, num_samples - 2),
        "shuffled": cut(order, 3, 4),
        "with empty batches": [[], *cut(order[::-1], 2, 2, 5), []],
    }


SPLITS = ("uneven", "shuffled")


# --- the exam ---------------------------------------------------------------------------------------------------------


def agrees_with_its_reference(case: Case) -> None:
    """All numbers are the reference's, to the rounding of sums in another order."""
    metric = case.build()
    assert find_state_fault(metric) is None
    for seed in SEEDS:
        samples = case.samples(seed)
        for split in (splits(len(samples))["whole"], splits(len(samples))["uneven"]):
            found = figures(metric, evaluate(metric, case.batches(samples, split), len(samples)))
            expected = dict(case.reference([[samples[number] for number in chosen] for chosen in split]))
            assert not all(map(math.isnan, expected.values())), "samples of which nothing counts prove nothing"
            assert found == pytest.approx(expected, rel=1e-11, abs=1e-11, nan_ok=True)


def has_the_same_bits_from_any_split(case: Case) -> None:
    """Batches of any size in any order, some of them empty, on 1, 2 and 3 processes.

    Numbers that compare the samples of a batch have the same bits for the same batches, in any order.
    """
    metric, samples = case.build(), case.samples()
    of_batches = frozenset(metric.within_batch)
    whole = bits(
        metric, evaluate(metric, case.batches(samples, [range(len(samples))]), len(samples)), without=of_batches
    )
    for name, split in splits(len(samples)).items():
        batches = case.batches(samples, split)
        once = bits(metric, evaluate(metric, batches, len(samples)))
        for count, order in itertools.product(NUM_PROCESSES, (1, -1)):
            state = evaluate(metric, batches[::order], len(samples), count)
            assert bits(metric, state, without=of_batches) == whole, f"{name}, {count} processes"
            assert bits(metric, state) == once, f"{name}, {count} processes"


def has_the_same_bits_in_any_format(case: Case) -> None:
    """Numbers in float32, float64 and some of each, in rows with gaps or turned; inputs are left as they were."""
    metric, samples = case.build(), case.samples()
    batches = case.batches(samples, splits(len(samples))["uneven"])
    whole = bits(metric, evaluate(metric, batches, len(samples)))
    single, double = torch.float32, torch.float64
    for name, types in {"float32": (single, single), "one": (single, double), "other": (double, single)}.items():
        cast = [_cast(batch, types, case.exact) for batch in batches]
        assert bits(metric, evaluate(metric, cast, len(samples))) == whole, name
    for layout in (_gapped, _turned):
        laid = [{key: layout(tensor) for key, tensor in batch.items()} for batch in batches]
        assert bits(metric, evaluate(metric, laid, len(samples))) == whole, layout.__name__
        for ours, before in zip(laid, batches, strict=True):
            torch.testing.assert_close(ours, before, rtol=0, atol=0, equal_nan=True)


def _cast(batch: Batch, types: tuple[torch.dtype, torch.dtype], exact: frozenset[str]) -> Batch:
    turns = itertools.cycle(types)
    is_cast = {key: tensor.is_floating_point() and key not in exact for key, tensor in batch.items()}
    return {key: tensor.to(next(turns)) if is_cast[key] else tensor for key, tensor in batch.items()}


def _gapped(tensor: Tensor) -> Tensor:
    """The same values, each beside a foreign one."""
    return torch.stack([torch.ones_like(tensor), tensor], dim=-1)[..., 1]


def _turned(tensor: Tensor) -> Tensor:
    """The same values, the first axis fastest in memory."""
    return tensor.permute(*reversed(range(tensor.ndim))).contiguous().permute(*reversed(range(tensor.ndim)))


def has_no_number_where_nothing_counts(case: Case) -> None:
    """Without a sample, after an empty batch, and where all of every sample is ignored."""
    metric, samples = case.build(), case.samples()
    states = [make_state(metric), evaluate(metric, case.batches(samples, [[]]), 0)]
    if case.ignore is not None:
        samples = [case.ignore(sample) for sample in samples]
        states.append(evaluate(metric, case.batches(samples, splits(len(samples))["uneven"]), len(samples)))
    for state in states:
        assert all(map(math.isnan, metric.compute(state).values()))


def refuses_what_is_no_number(case: Case) -> None:
    """Probabilities and places that are NaN are an error, not an answer."""
    metric, samples = case.build(), case.samples()
    batch = case.batch(samples, range(len(samples)))
    for key in batch.keys() & {"probabilities", "joints_mm", "centre_mm"}:
        with pytest.raises(ValueError, match=r"NaN|not finite"):
            evaluate(metric, [{**batch, key: torch.full_like(batch[key], torch.nan)}], len(samples))


def is_used_alone_in_three_lines(case: Case) -> None:
    """Batches in any order, without the number of samples; gradients are not followed."""
    samples = case.samples()
    batches = case.batches(samples, splits(len(samples))["shuffled"])
    expected = evaluate(case.build(), batches, len(samples))
    meter = Meter(case.build())
    for batch in batches:
        meter.update(**{k: t.requires_grad_() if t.is_floating_point() else t for k, t in batch.items()})
    assert str(meter.compute()) == str(meter.metric.compute(expected))
    assert meter.state.keys() == expected.keys()
    assert not any(tensor.requires_grad for tensor in meter.state.values())


def is_made_of_the_sums_that_it_states(case: Case) -> None:
    """The mean of the ratios of all sums is the figure, and an interval is the same from any split."""
    metric, samples = case.build(), case.samples()
    sums_of = metric.sums
    if type(metric).sums is Metric.sums:
        return
    states = [evaluate(metric, case.batches(samples, splits(len(samples))[name]), len(samples)) for name in SPLITS]
    for name, sums in sums_of(states[0]).items():
        counts = 1 if sums.counts is None else sums.counts[:, None]
        ratios = (sums.numerators * counts).sum(dim=0).double() / (sums.denominators * counts).sum(dim=0)
        ratios = ratios.nan_to_num(nan=sums.empty)
        figure = metric.compute(states[0])[name]
        assert ratios.nanmean().item() == pytest.approx(figure, rel=1e-12)
        interval = sums.interval()
        assert interval is not None
        assert interval["low"] <= figure <= interval["high"]
        assert interval == sums_of(states[1])[name].interval()


def has_an_interval_for_each_class(case: Case) -> None:
    """The sums of a class make its figure, which is within its interval, and both are the same from any split."""
    metric, samples = case.build(), case.samples()
    sums_of = metric.class_intervals
    if type(metric).class_intervals is Metric.class_intervals:
        return
    states = [evaluate(metric, case.batches(samples, splits(len(samples))[name]), len(samples)) for name in SPLITS]
    rows = metric.per_class(states[0])
    for figure, sums in sums_of(states[0]).items():
        assert sums.num_samples <= len(samples) or "confusion" in states[0]  # where labels of points are counted
        assert len(sums.intervals()) == len(rows)
        intervals = sums.intervals()
        assert intervals == sums_of(states[1])[figure].intervals()
        for (name, row), interval in zip(rows.items(), intervals, strict=True):
            if interval["low"] is not None:
                assert interval["low"] <= row[figure] <= interval["high"], name


CHECKS = (
    has_an_interval_for_each_class,
    is_made_of_the_sums_that_it_states,
    agrees_with_its_reference,
    has_the_same_bits_from_any_split,
    has_the_same_bits_in_any_format,
    has_no_number_where_nothing_counts,
    refuses_what_is_no_number,
    is_used_alone_in_three_lines,
)
