"""Rules of metrics on synthetic predictions: absent classes, scores that depend on the batches.

The labels serve as predictions, once with every class and once with a single one. If only the second score is below 1,
the metric scores classes that neither labels nor predictions have.

The same predictions are scored as one batch and as two; a metric of sums and counts gives the same values. Synthetic
predictions are scored if the task predicts from logits, the model's own of a few evaluated samples for every task.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from sightline.contract.errors import summarise_error
from sightline.contract.members import MetricMembers
from sightline.contract.pytree import is_float
from sightline.contract.types import Batch
from sightline.doctor.attempts import MissingError, NotApplicableError, attempt
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.rules import rule
from sightline.workbench.check.checks.synthetic_predictions import (
    LabelForm,
    Predicted,
    can_score,
    label_form,
    metric_values,
    take_predicted,
)
from sightline.workbench.check.context import Context, JudgedMetric, metrics
from sightline.workbench.check.core.dry_run import error_location

_BEST_IS_ONE = re.compile(r"(^|[_\W])(m?iou|accuracy|acc|precision|recall|dice|f1)([_\W]|$)", re.IGNORECASE)
_ROUNDING = 1e-6  # the mean of a thousand float32 ones is nearer to 1


@rule(
    "absent-class-score",
    "error",
    "eval.absent_class eval.protocol eval.decode",
    holds="1 for perfect predictions, for any set of classes",
    do="score a part that both lack as 1 (shapes with parts), or leave the class out of the mean (scenes); never as 0",
)
def absent_class_score(run: Context, label_form: LabelForm) -> Iterator[Fault]:
    """Score perfect predictions by values named after an IoU, accuracy, precision, recall, Dice or F1."""
    single, full = label_form.predict_one_class(), label_form.predict_every_class()
    for metric in metrics(run):
        if full and can_score(run, metric.meter):
            yield from _absent_class_faults(metric, single, full)


def _absent_class_faults(
    metric: JudgedMetric, single: Sequence[Predicted], full: Sequence[Predicted]
) -> Iterator[Fault]:
    scored = [attempt("metric", metric_values, {"meter": metric.meter, "batches": each}) for each in (single, full)]
    if any(isinstance(values, MissingError) for values in scored):
        return  # `per-batch-metric` reports why a metric fails
    single_values, full_values = (values.used for values in scored)
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


_TOLERANCE = (
    1e-6  # float32 sums in another order differ by less over the few samples here; a mean of batches by far more
)

_MIN_SAMPLES = 3  # two samples only split evenly; a step with fewer gives the form of one of them twice


@rule(
    "per-batch-metric",
    "error",
    "eval.aggregation eval.protocol eval.mode",
    holds="the same value for every split: counts summed over all samples, divided once in `compute`",
    do="keep counts, or a row for each sample, in the state, and take no mean in `update`",
)
def per_batch_metric(run: Context) -> Iterator[Fault]:
    """Compare each value for one batch and for two with the same predictions, and after the state alone.

    The predictions are synthetic, some of them wrong, where labels follow from logits; then those of the model for a
    few evaluated samples.
    """
    form = attempt("form", label_form, {"run": run})
    scored = [each for each in run.dry_evaluations[:1] if each.failure is None]  # else `first-evaluation` reports it
    several = [(each.batch, each.predictions) for each in scored if len(each.batch.get("sample_index", ())) > 1]
    for metric in metrics(run):
        fault = None
        if isinstance(form, LabelForm) and form.num_samples >= _MIN_SAMPLES and can_score(run, metric.meter):
            fault = _judge_predicted(metric, form.predict(wrong=True), "synthetic predictions")
        for predicted in several if fault is None else ():
            fault = _judge_predicted(metric, predicted, "predictions")
        if fault is not None:
            yield fault


def _judge_predicted(metric: JudgedMetric, predicted: Predicted, kind: str) -> Fault | None:
    """Compare the values for a batch with those for the same predictions in two, cut after one sample and in half."""
    names, ranks = metric.meter.update.names, range(len(predicted[0]["sample_index"]))
    splits = []
    for cut in sorted({1, len(ranks) // 2}):
        parts = [take_predicted(predicted, names, rows) for rows in (ranks[:cut], ranks[cut:])]
        splits += [] if None in parts else [[part for part in parts if part is not None]]

    def judge() -> Fault | None:
        return _judge_splits(metric, [predicted], splits, kind)

    answer = attempt("metric", judge, {})
    return _make_failure(metric, answer.__cause__) if isinstance(answer, MissingError) else answer


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
        if pairs and (fault := _judge_unit(run.dry_run.batch, metric, pairs)) is not None:
            yield fault


def _judge_unit(batch: Batch, metric: JudgedMetric, pairs: Sequence[tuple[str, str]]) -> Fault | None:
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
        f"'{name}' of the metric '{metric.name}' is not in {unit}, but in one of {_OFFSET / value:.3g} {unit}",
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
