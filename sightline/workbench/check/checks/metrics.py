"""Rules of metrics on synthetic predictions: absent classes, scores that depend on the batches.

The labels serve as predictions, once with every class and once with a single one. If only the second score is below 1,
the metric scores classes that neither labels nor predictions have.

The same predictions are scored as one batch and as two; a metric of sums and counts gives the same values. Synthetic
predictions are scored if the task predicts from logits, the model's own of a few evaluated samples for every task.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.contract.errors import summarise_error
from sightline.contract.members import MetricMembers
from sightline.contract.pytree import is_float
from sightline.contract.types import Batch
from sightline.doctor.attempts import MissingError, NotApplicableError, attempt
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.rules import rule
from sightline.workbench.check.checks.synthetic_predictions import (
    Predicted,
    PredictionMaker,
    SyntheticBatch,
    build_prediction_maker,
    can_score,
    metric_values,
    repeat_choices,
    score_metric,
    task_predictions,
)
from sightline.workbench.check.context import Context, JudgedMetric, metrics
from sightline.workbench.check.core.dry_run import error_location

_BEST_IS_ONE = re.compile(r"(^|[_\W])(m?iou|accuracy|acc|precision|recall|dice|f1)([_\W]|$)", re.IGNORECASE)
_ROUNDING = 1e-6  # the mean of a thousand float32 ones is nearer to 1
_MAX_BATCHES = 64


@rule(
    "absent-class-score",
    "error",
    "eval.absent_class eval.protocol eval.decode",
    holds="1 for perfect predictions, for any set of classes",
    do="score a part that both lack as 1 (shapes with parts), or leave the class out of the mean (scenes); never as 0",
)
def absent_class_score(run: Context) -> Iterator[Fault]:
    """Score perfect predictions by values named after an IoU, accuracy, precision, recall, Dice or F1."""
    maker = build_prediction_maker(run)
    if maker is None:
        raise NotApplicableError("no class logits")
    single, full = _make_one_class_batches(maker), _make_every_class_batches(maker)
    for metric in metrics(run):
        if full and can_score(run, metric.meter):
            yield from _absent_class_faults(run, metric, single, full)


def _absent_class_faults(
    context: Context, metric: JudgedMetric, single: list[SyntheticBatch], full: list[SyntheticBatch]
) -> Iterator[Fault]:
    scored = [
        attempt("metric", score_metric, {"context": context, "meter": metric.meter, "sheets": batches})
        for batches in (single, full)
    ]
    if any(isinstance(values, MissingError) for values in scored):
        return  # `per-batch-metric` reports why a metric fails
    single_values, full_values = scored
    below_one = {name: value for name, value in full_values.items() if _falls_short(name, value)}
    absent = {name: value for name, value in single_values.items() if _falls_short(name, value)}
    name, figures = next(iter(below_one or absent), ""), below_one or absent
    listed = ", ".join(f"{name} {value:.6g}" for name, value in list(figures.items())[:3])
    if below_one:
        yield Fault(
            f"'{name}' of the metric '{metric.name}' is below 1 for perfect predictions",
            causes=("eval.decode", "eval.protocol", "eval.aggregation", "eval.absent_class"),
            where=FindingLocation(config_path=metric.path),
            measured=f"{listed} for predictions equal to the labels, with every class among them",
            expected="1, the best score",
            action="check how the metric derives the prediction (argmax over the classes), and its divisor",
            evidence={"figures": figures, "looked_at": "synthetic predictions"},
        )
    elif absent and not MetricMembers.scores_absent_zero.get(metric.meter.metric):  # else as the config asks for
        yield Fault(
            f"'{name}' of the metric '{metric.name}' scores classes that neither labels nor predictions have",
            where=FindingLocation(config_path=metric.path),
            measured=f"{listed} for perfect predictions with a single class; "
            f"{full_values.get(name, math.nan):.6g} with every class",
            evidence={"figures": figures, "looked_at": "synthetic predictions"},
        )


def _falls_short(name: str, value: float) -> bool:
    return _BEST_IS_ONE.search(name) is not None and not math.isnan(value) and value < 1 - _ROUNDING


def _make_one_class_batches(maker: PredictionMaker) -> list[SyntheticBatch]:
    """Make a batch of a single class: the first part of the category with the most parts, or the first class."""
    richest = max(range(len(maker.choices)), key=lambda category: len(maker.choices[category]))

    def choose_labels(rank: int, size: int, category: int) -> np.ndarray:
        return np.full(size, maker.choices[category][0], dtype=np.int64)

    ranks = range(maker.num_samples)
    return [maker.make_batch(list(ranks), choose_labels, get_category=lambda rank: richest, wrong=False)]


def _make_every_class_batches(maker: PredictionMaker) -> list[SyntheticBatch]:
    """Make batches until every class and every category has occurred; an empty list if too few targets fit."""
    used: set[int] = set()
    categories: set[int] = set()
    batches: list[SyntheticBatch] = []
    num_targets = 0

    def get_category(rank: int) -> int:
        return rank % len(maker.choices)

    def choose_labels(rank: int, size: int, category: int) -> np.ndarray:
        nonlocal num_targets
        choices = maker.choices[category]
        start = 0 if len(maker.choices) > 1 else num_targets
        num_targets += size
        labels = repeat_choices(choices, start, size)
        used.update(np.unique(labels).tolist())
        categories.add(category)
        return labels

    wanted = {label for choices in maker.choices for label in choices}
    is_of_parts = len(maker.choices) > 1
    while (len(categories) < len(maker.choices) if is_of_parts else used < wanted) and len(batches) < _MAX_BATCHES:
        first = len(batches) * maker.num_samples
        ranks = list(range(first, first + maker.num_samples))
        batches.append(maker.make_batch(ranks, choose_labels, get_category=get_category, wrong=False))
    return batches if used >= wanted else []


_TOLERANCE = (
    1e-6  # float32 sums in another order differ by less over the few samples here; a mean of batches by far more
)

_MIN_EVALUATED = 2
_MIN_SAMPLES = 3  # two samples only split evenly; a step with fewer gives the form of one of them twice


@rule(
    "per-batch-metric",
    "error",
    "eval.aggregation eval.protocol eval.mode",
    holds="the same value for every split: counts summed over all samples, divided once in `compute`",
    do="keep counts, or a row for each sample, in the state, and take no mean in `update`",
)
def per_batch_metric(run: Context) -> Iterator[Fault]:
    """Compare each value for one batch and for two with the same predictions, and after the state alone."""
    maker = build_prediction_maker(run)
    for metric in metrics(run):
        can_make = maker is not None and can_score(run, metric.meter)
        fault = _judge_synthetic(run, metric, maker) if maker is not None and can_make else None
        fault = fault or _judge_predictions(run, metric)
        if fault is not None:
            yield fault


def _judge_synthetic(context: Context, metric: JudgedMetric, maker: PredictionMaker) -> Fault | None:
    """Compare synthetic predictions, some of them wrong, as one batch and as two uneven ones."""
    ranks = list(range(max(_MIN_SAMPLES, maker.num_samples)))

    def judge() -> Fault | None:
        joint, split = (
            task_predictions(context, _make_batches(maker, *parts)) for parts in ([ranks], [ranks[:1], ranks[1:]])
        )
        return _judge_splits(metric, joint, [split], "synthetic predictions")

    return _take(metric, attempt("metric", judge, {}))


def _judge_predictions(context: Context, metric: JudgedMetric) -> Fault | None:
    """Compare the model's predictions of a few evaluated samples as one batch and as two.

    If the evaluation fails, `first-evaluation` reports it.
    """
    dry = next(iter(context.dry_evaluations), None)
    if dry is None or dry.failure is not None or len(dry.batch.get("sample_index", ())) < _MIN_EVALUATED:
        return None
    ranks = list(range(len(dry.keys)))
    half = len(ranks) // 2

    def judge() -> Fault | None:
        joint, *splits = (
            [row for part in split if (row := dry.rows(part, metric.meter.update.names)) is not None]
            for split in ([ranks], [ranks[:1], ranks[1:]], [ranks[:half], ranks[half:]])
        )
        if not joint or not all(_reads_alike(joint, split, metric.meter.update.names) for split in splits):
            return None  # samples that depend on their batch: `exchanged-rows` reports that
        return _judge_splits(metric, joint, splits, "predictions")

    return _take(metric, attempt("metric", judge, {}))


def _take(metric: JudgedMetric, answer: Fault | MissingError | None) -> Fault | None:
    """Return a fault, also of an error of a metric, which would end the first evaluation."""
    return _make_failure(metric, answer.__cause__) if isinstance(answer, MissingError) else answer


def _reads_alike(joint: Sequence[Predicted], split: Sequence[Predicted], names: Iterable[str]) -> bool:
    """Return True if what a metric reads of the samples has the same values in one batch and in several."""
    for name in names:
        whole, parts = ([batch.get(name) for batch, _ in batches] for batches in (joint, split))
        rows = [value for value in (*whole, *parts) if isinstance(value, Tensor) and value.ndim]
        if len(rows) != len(whole) + len(parts) or len({value.shape[1:] for value in rows}) != 1:
            continue
        if name.endswith("offsets") or sum(map(len, whole)) != sum(map(len, parts)):  # type: ignore[arg-type]
            continue
        one, other = torch.cat(rows[: len(whole)]), torch.cat(rows[len(whole) :])
        if not bool(((one == other) | (one != one)).all()):
            return False
    return True


def _make_batches(maker: PredictionMaker, *batches: list[int]) -> list[SyntheticBatch]:
    """Make batches of these ranks, partly predicted wrongly, regardless of the split."""

    def choose_labels(rank: int, size: int, category: int) -> np.ndarray:
        return repeat_choices(maker.choices[category], rank, size)

    def get_category(rank: int) -> int:
        return rank % len(maker.choices)

    return [maker.make_batch(batch, choose_labels, get_category=get_category, wrong=True) for batch in batches]


def _judge_splits(
    metric: JudgedMetric, joint: Sequence[Predicted], splits: Sequence[Sequence[Predicted]], kind: str
) -> Fault | None:
    values, others = metric_values(metric.meter, joint)
    missed = {
        name: (value, others.get(name)) for name, value in values.items() if not _are_equal(value, others.get(name))
    }
    if missed:
        listed = [
            f"{name} {one:.6g} and {'nothing' if other is None else format(other, '.6g')}"
            for name, (one, other) in missed.items()
        ]
        return Fault(
            f"'{next(iter(missed))}' of the metric '{metric.name}' does not follow from its state alone",
            causes=("eval.aggregation", "eval.protocol"),
            where=FindingLocation(config_path=metric.path),
            measured=f"from the object that was updated, and from another with the same state: {', '.join(listed[:3])}",
            expected="the same value: `compute` runs on the sum of the states of all processes, once per evaluation",
            action="keep what `update` puts on the object in the state: int64 counts, or a row for each sample",
            evidence={"field": metric.path},
        )
    by_definition = MetricMembers.within_batch.get(metric.meter.metric)
    for split in splits:
        apart = metric_values(metric.meter, split).used
        pairs = {
            name: (value, apart[name]) for name, value in values.items() if name in apart and name not in by_definition
        }
        differing = {name: pair for name, pair in pairs.items() if not _are_equal(*pair)}
        if differing:
            sizes = [len(batch["sample_index"]) for batch, _ in split]
            return Fault(
                f"'{next(iter(differing))}' of the metric '{metric.name}' depends on the split of the samples into "
                "batches",
                where=FindingLocation(config_path=metric.path),
                measured=f"{sum(sizes)} samples as one batch, and the same {kind} as batches of {sizes[0]} and "
                f"{sizes[1]}: "
                + ", ".join(f"{name} {one:.6g} and {other:.6g}" for name, (one, other) in list(differing.items())[:3]),
                evidence={
                    "field": metric.path,
                    "figures": {name: list(pair) for name, pair in differing.items()},
                    "looked_at": kind,
                },
            )
    return None


def _are_equal(one: float, other: float | None) -> bool:
    if other is None:
        return False
    return (math.isnan(one) and math.isnan(other)) or math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)


def _make_failure(metric: JudgedMetric, error: BaseException | None) -> Fault:
    assert error is not None, "an error is the cause of what is missing"
    file, line = error_location(error)
    path = metric.path
    return Fault(
        f"the metric '{metric.name}' cannot be computed: {type(error).__name__}",
        where=FindingLocation(file=file, line=line, config_path=path),
        causes=("eval.protocol", "cfg.contract", "eval.decode"),
        measured=summarise_error(error),
        expected="values for predictions in the form of a training batch",
        action="correct the metric: the first evaluation would end the run",
        evidence={"field": path, "looked_at": "synthetic predictions"},
    )


_UNITS = ("mm", "cm", "m", "px")
_DISTANCE = re.compile(r"(mean|median|max|min|error|distance|epe)[a-z_]*_(mm|cm|m|px)$")
_OFFSET, _UNIT_TOLERANCE = 10.0, 0.01


@rule(
    "metric-unit",
    "error",
    "eval.coordinate eval.protocol",
    holds="an error of 10 in the unit that a metric names, where all predictions are 10 of it off",
    do="compute distances in the unit of the predictions: map voxels, cells or pixels of a crop back first",
)
def metric_unit(run: Context) -> Iterator[Fault]:
    """Score predictions that are off by a known distance."""
    pairs_of = [(metric, list(_iter_pairs(run.dry_run.batch, metric))) for metric in metrics(run)]
    if not any(pairs for _, pairs in pairs_of):
        raise NotApplicableError("no places in a unit")
    for metric, pairs in pairs_of:
        if pairs and (fault := _judge_unit(run, metric, pairs)) is not None:
            yield fault


def _judge_unit(context: Context, metric: JudgedMetric, pairs: Sequence[tuple[str, str]]) -> Fault | None:
    batch = context.dry_run.batch
    moved: dict[str, Any] = {}
    for name, target in pairs:
        moved[name] = batch[target].clone()
        moved[name][..., 0] += _OFFSET
    values = attempt("metric", metric_values, {"meter": metric.meter, "batches": [(batch, moved)]})
    if isinstance(values, MissingError):
        return None  # `per-batch-metric` reports why a metric fails
    unit = pairs[0][0].rpartition("_")[2]
    figures = {
        name: value for name, value in values.used.items() if _DISTANCE.search(name) and name.endswith(f"_{unit}")
    }
    wrong = {name: value for name, value in figures.items() if abs(value / _OFFSET - 1) > _UNIT_TOLERANCE}
    if not wrong or len(wrong) < len(figures):
        return None
    name, value = next(iter(wrong.items()))
    return Fault(
        f"'{name}' of the metric '{metric.name}' is not in {unit}{_explain_ratio(context, value / _OFFSET)}",
        where=FindingLocation(config_path=metric.path),
        measured=f"{', '.join(f'{n} {v:.4g}' for n, v in wrong.items())} for predictions {_OFFSET:g} {unit} off",
        expected=f"{_OFFSET:g}",
        action=f"compute distances of '{pairs[0][0]}', in {unit}: map voxels, cells or pixels of a crop back first",
        evidence={"field": metric.path, "ratio": value / _OFFSET},
    )


def _iter_pairs(batch: Batch, metric: JudgedMetric) -> Iterator[tuple[str, str]]:
    """Yield a metric's predictions with a unit in their names, and the fields of the batch that they predict.

    Without any, or with another prediction, whose values are not known, there are none.
    """
    names = [name for name in metric.meter.update.names if name not in batch]
    pairs = [(name, name.rpartition("_")[0]) for name in names]
    if all(name.endswith(tuple(f"_{unit}" for unit in _UNITS)) and _is_place(batch, of) for name, of in pairs):
        yield from pairs


def _is_place(batch: Batch, name: str) -> bool:
    value = batch.get(name)
    return is_float(value) and value.shape[-1] in (2, 3)


def _explain_ratio(context: Context, ratio: float) -> str:
    """Explain the ratio of a metric to its unit by the cube and the grid of the run, if they do."""
    cube = context.built.data.facts.get("cube_mm")
    volume = context.dry_run.batch.get("volume")
    if isinstance(cube, int | float) and isinstance(volume, Tensor) and ratio > 0:
        for size in (volume.shape[-1], volume.shape[-1] / 2):
            if abs(ratio * cube / size - 1) < _UNIT_TOLERANCE:
                return f": it is in {'voxels' if size == volume.shape[-1] else 'cells'} of {cube / size:.3g} mm"
    return ""
