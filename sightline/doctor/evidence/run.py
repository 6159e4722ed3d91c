"""What the trace of a loop says of it: shifts of inputs, cycles of rates, curves of losses, pulls of micro-batches."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.doctor.attempts import LeftOutError, NotApplicableError
from sightline.doctor.evidence import measure
from sightline.doctor.evidence.data.statistics import Confusion
from sightline.doctor.evidence.levels import Levels
from sightline.doctor.trace import Inputs, Trace, read_numbers

_MIN_BATCHES, _MIN_CURVE, _MIN_PULLS, _MIN_ROWS = 4, 20, 6, 16
_MIN_RATIO, _MIN_SHIFT, _MIN_Z = 2.0, 1.5, 8.0
_LOW, _HIGH = 0.05, 0.9
_MIN_STILL, _MIN_POINTS, _MAX_FALL, _EARLY = 100, 6, 0.02, 0.05
"""Steps, and points of a curve, over which a loss that falls by less is still."""
_MIN_UNLIKE_COUNTS, _MIN_UNIQUE, _MIN_REPEATED = 1.5, 0.9, 0.9


class InputShift(NamedTuple):
    """Means and deviations of a leaf in training and in evaluation (of its channel that differs most)."""

    path: str
    mean: tuple[float, float]
    deviation: tuple[float, float]
    z: float
    is_unlike: bool


@measure()
def input_shifts(trace: Trace) -> list[InputShift]:
    """Compare the inputs of evaluation passes with those of training, leaf by leaf."""
    phases = trace.inputs["train"], trace.inputs["eval"]
    both = [
        (path, train, [each for each in phases[1].get(path, ()) if 2 * each.num_rows >= train[0].num_rows])
        for path, train in phases[0].items()
        if len(train) >= _MIN_BATCHES
    ]
    both = [entry for entry in both if entry[2]]  # a mean of few samples differs by chance
    if not both:
        raise NotApplicableError("no inputs of training and evaluation")
    return [_compare_inputs(path, *map(_stack_inputs, pair)) for path, *pair in both]


def _stack_inputs(batches: list[Inputs]) -> tuple[Tensor, Tensor]:
    """Stack the means and deviations (N, C) of the batches that have as many channels as the first."""
    alike = [each for each in batches if each.mean.shape == batches[0].mean.shape]
    means, deviations = [each.mean for each in alike], [each.deviation for each in alike]
    return torch.stack(means).double().cpu(), torch.stack(deviations).double().cpu()


def _compare_inputs(path: str, train: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> InputShift:
    if train[0].shape[1] != other[0].shape[1]:
        return InputShift(path, (0.0, 0.0), (0.0, 0.0), 0.0, is_unlike=False)
    mean, spread = train[0].mean(0), train[1].mean(0).clamp(min=1e-6)
    shift = (other[0].mean(0) - mean).abs() / spread
    ratio = (other[1].mean(0).clamp(min=1e-6) / spread).log().abs()
    noise = (train[0].std(0) / spread + 0.01, (train[1].clamp(min=1e-6) / spread).log().std(0) + 0.01)
    z = torch.maximum(shift / noise[0], ratio / noise[1])
    unlike = ((shift > _MIN_SHIFT) & (shift / noise[0] > _MIN_Z)) | (
        (ratio > math.log(_MIN_RATIO)) & (ratio / noise[1] > _MIN_Z)
    )
    worst = int((z * unlike).argmax() if bool(unlike.any()) else z.argmax())
    means = float(mean[worst]), float(other[0].mean(0)[worst])
    deviations = float(train[1].mean(0)[worst]), float(other[1].mean(0)[worst])
    return InputShift(path, means, deviations, float(z[worst]), float(unlike.double().mean()) > 0.5)


class Cycle(NamedTuple):
    """How often a learning rate fell to nothing and returned, in how many updates each, and those of an epoch."""

    number: int
    period: float
    epoch: float
    num_updates: int


@measure()
def rate_cycles(trace: Trace) -> dict[str, Cycle]:
    """Count the cycles of the learning rate of each optimiser."""
    if not any(map(any, trace.rates.values())):
        raise NotApplicableError("no updates at a rate above 0")
    lengths = [after - before for before, after in itertools.pairwise(trace.epochs) if after > before]
    epoch = statistics.median(lengths) if lengths else 0.0
    return {name: _count_cycles(rates, epoch) for name, rates in trace.rates.items() if any(rates)}


def _count_cycles(rates: list[float], epoch: float) -> Cycle:
    top, tops, is_low = max(rates), list[int](), True
    for index, rate in enumerate(rates):
        if rate >= _HIGH * top and is_low:
            tops.append(index)
        is_low = rate <= _LOW * top or (is_low and rate < _HIGH * top)
    period = (tops[-1] - tops[0]) / (len(tops) - 1) if len(tops) > 1 else float(len(rates))
    return Cycle(len(tops) - 1, period, epoch, len(rates))


@measure()
def curves(trace: Trace) -> list[list[float]]:
    """Losses of each line that calls backward often enough."""
    read = [series.read() for series in trace.losses.values() if len(series.kept) >= _MIN_CURVE]
    finite = [curve for curve in read if all(map(math.isfinite, curve))]
    if not finite:
        raise LeftOutError(f"fewer than {_MIN_CURVE} losses of a line")
    return finite


@measure()
def loss_curve(trace: Trace) -> list[tuple[int, float]]:
    """Losses of the line that calls backward most often, with the number of each."""
    series = max(trace.losses.values(), key=lambda each: each.num_seen, default=None)
    if series is None or not trace.is_over:
        raise NotApplicableError("no losses of a whole loop")
    return [(place * series.stride, value) for place, value in enumerate(series.read())]


class Plateau(NamedTuple):
    """Steps between which a loss stays where it is until the end, its mean, and that of the first steps."""

    first: int
    last: int
    mean: float
    start: float


@measure()
def plateau(loss_curve: Sequence[tuple[int, float]]) -> Plateau:
    """Find where the last two thirds of a training leave the loss where it was: it falls by no more than its noise."""
    last = loss_curve[-1][0] if loss_curve else 0
    late = [(step, value) for step, value in loss_curve if step >= last / 3]
    if last < _MIN_STILL or len(late) < _MIN_POINTS or not all(math.isfinite(value) for _, value in late):
        raise LeftOutError(f"fewer than {_MIN_STILL} finite losses")
    halves = [[value for _, value in part] for part in (late[: len(late) // 2], late[len(late) // 2 :])]
    means = [statistics.fmean(half) for half in halves]
    noise = math.hypot(*(statistics.pstdev(half) / math.sqrt(len(half)) for half in halves))
    if means[0] - means[1] > max(_MAX_FALL * abs(means[0]), 2 * noise):
        raise NotApplicableError("a loss that falls")
    early = [value for step, value in loss_curve if step <= max(last * _EARLY, loss_curve[0][0])]
    return Plateau(late[0][0], last, statistics.fmean(means), statistics.fmean(early))


@measure()
def trained_levels(level_source: Callable[[], Levels]) -> Levels:
    """Measure what losses the trained network, and outputs that need none, have on the same samples."""
    return level_source()


@measure()
def pull_slope(trace: Trace) -> tuple[float, float, int, int]:
    """Exponent of the counts of micro-batches in the pull at each output, its z, and the least and largest count."""
    windows = [[(float(p.number), float(p.size)) for p in window] for window in trace.pulls]
    windows = [[pair for pair in window if min(pair) > 0] for window in windows]
    windows = [w for w in windows if len(w) > 1 and max(w)[0] > _MIN_UNLIKE_COUNTS * min(w)[0]]
    if sum(map(len, windows)) < _MIN_PULLS:
        raise NotApplicableError("no micro-batches of unlike counts")
    centred = []
    for window in windows:
        logs = torch.tensor(window, dtype=torch.float64).log()
        centred.append(logs - logs.mean(0))
    x, y = torch.cat(centred).T
    slope = (x @ y) / (x @ x)
    rest = y - slope * x
    error = ((rest @ rest) / max(len(x) - len(windows) - 1, 1) / (x @ x)).sqrt() + 1e-3
    counts = [count for window in windows for count, _ in window]
    return float(slope), float(slope.abs() / error), round(min(counts)), round(max(counts))


@measure()
def evaluated_share(trace: Trace) -> tuple[float, int, bool]:
    """Share of the evaluated samples that training has read, their number, and whether their data set is another."""
    trained = trace.trained
    if not trained or not trace.evaluated:
        raise NotApplicableError("no samples of training and evaluation")
    evaluated = [digest for batch in trace.evaluated for digest in batch.digests]
    if len(evaluated) < _MIN_ROWS or len(set(evaluated)) < _MIN_UNIQUE * min(len(evaluated), _MIN_ROWS * 4):
        raise LeftOutError("too few unlike samples evaluated")
    rows, sets = set(evaluated), {batch.data for batch in trace.evaluated} - {0}
    share = sum(digest in trained for digest in rows) / len(rows)
    return share, len(rows), bool(sets) and not sets & trace.trained_sets


def count_answers(trace: Trace) -> Confusion:
    """Count the answers of the last passes of training and of evaluation for each class that their loaders gave."""
    num_classes = max(each.num_classes for each in trace.answers)
    tables = [np.zeros((num_classes, num_classes), dtype=np.int64) for _ in range(2)]
    for each in trace.answers:
        for table, pairs in zip(tables, each[:2], strict=True):
            for answers, classes in pairs:
                np.add.at(table, (classes.cpu().numpy(), answers.cpu().numpy()), 1)
    return Confusion(*tables)


class MixedBatches(NamedTuple):
    """Numbers of evaluated batches with trained samples, and of those that have others, too; of all their samples."""

    touched: int
    mixed: int
    rows: int
    seen: int
    largest: int


@measure()
def mixed_batches(trace: Trace) -> MixedBatches:
    """Count the evaluated batches that hold samples of training beside others."""
    trained = trace.trained
    num_repeated = sum(count > 1 for count in trained.values())
    if not trace.is_over or not trace.is_rich or not trained or num_repeated < _MIN_REPEATED * len(trained):
        raise NotApplicableError("no whole training set beside evaluated samples")  # what is read later looks the same
    touched = [batch.digests for batch in trace.evaluated if any(digest in trained for digest in batch.digests)]
    mixed = [digests for digests in touched if not all(digest in trained for digest in digests)]
    rows = {digest for digests in mixed for digest in digests}
    seen = sum(digest in trained for digest in rows)
    return MixedBatches(len(touched), len(mixed), len(rows), seen, max(map(len, mixed), default=1))


@measure()
def twin_passes(trace: Trace) -> tuple[int, int]:
    """Count the measured losses that read outputs of two passes, and those whose outputs are equal."""
    if not trace.twins:
        raise NotApplicableError("one pass for each loss")
    return len(trace.twins), int(sum(read_numbers([*trace.twins])))
