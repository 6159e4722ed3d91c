"""Rules of metrics, asked of predictions whose scores are known: absent classes, scores that depend on the batches.

The labels serve as predictions, once with every class and once with a single one: where only the second score is below
1, the metric scores classes that neither has. The same predictions are scored as one batch and as two, where a metric
of sums and counts gives the same values: synthetic ones for a task that predicts from logits, and the model's own, of
a few evaluated samples, for every task.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.contract.errors import summarise_error
from sightline.contract.metric import Meter
from sightline.contract.pytree import is_float
from sightline.contract.task import Task
from sightline.contract.types import Batch
from sightline.doctor.attempts import MissingError, NotApplicableError, attempt
from sightline.doctor.evidence import measure
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.rules import rule
from sightline.engine.evaluate import BoundMetric
from sightline.instrument import copy_metric
from sightline.workbench.check.context import JudgedMetric
from sightline.workbench.check.dry_evaluation import DryEvaluation
from sightline.workbench.check.dry_run import DryRun, error_location, take_rows_of
from sightline.workbench.check.loss_subjects import FixedOutputs
from sightline.workbench.check.sample_statistics import class_axis, parts_by_category

_LARGE_LOGIT = 100.0  # 1 + e^-100 is 1 in float32: the prediction has probability 1
_MAX_BATCHES = 64
_OF_PIXELS = frozenset({"nearest", "point_range", "whole_label", "whole_offsets"})
"""Keys of a batch that belong to its own points, whatever the labels are."""
_DIVISIONS = ("sample_index", "cloud_offsets", "offsets")

Predicted = tuple[Batch, Mapping[str, Any]]
"""Batch and its predictions."""


class LabelForm(NamedTuple):
    """Form of a run's targets: a training batch, and the axis and number of the classes of its logits.

    `choices` are the classes that targets may have: all that are not ignored, or the parts of each category.
    """

    task: Any
    batch: Batch
    num_classes: int
    axis: int
    choices: tuple[tuple[int, ...], ...]

    @property
    def num_samples(self) -> int:
        return len(self.batch["sample_index"])

    def predict(
        self, first: int = 0, *, choices: Sequence[Sequence[int]] = (), category: int | None = None, wrong: bool = False
    ) -> Predicted:
        """Predict samples from number `first` on correctly, or with `wrong` partly not.

        Their labels are the choices of their category in turn; with one category they go on from sample to sample.
        """
        choices, label = choices or self.choices, self.batch["label"]
        labels, predicted = torch.zeros_like(label), torch.zeros_like(label)
        categories = [(first + row) % len(choices) if category is None else category for row in range(self.num_samples)]
        start = 0 if len(self.choices) > 1 else first // self.num_samples * label.numel()
        for row, rows in enumerate(_list_rows(self.batch)):
            size = labels[rows].numel()
            own = np.asarray(choices[categories[row]], dtype=np.int64)
            wanted = own[np.arange(start, start + size) % len(own)]
            start += size if len(self.choices) == 1 else 0
            for values, made in ((labels, wanted), (predicted, _make_partly_wrong(wanted, row) if wrong else wanted)):
                values[rows] = torch.from_numpy(made).to(label).view(values[rows].shape)
        batch = {name: value for name, value in self.batch.items() if name not in _OF_PIXELS} | {"label": labels}
        batch["sample_index"] = first + torch.arange(self.num_samples, device=label.device)
        if "category" in batch and len(self.choices) > 1:
            batch["category"] = torch.tensor(categories, device=label.device)
        logits = torch.nn.functional.one_hot(predicted, self.num_classes).float() * _LARGE_LOGIT
        return batch, self.task.predict(FixedOutputs({"logits": logits.movedim(-1, self.axis)}), batch)

    def predict_one_class(self) -> list[Predicted]:
        """Predict a batch of one class: the first part of the category with the most parts, or the first class."""
        richest = max(range(len(self.choices)), key=lambda category: len(self.choices[category]))
        return [self.predict(choices=[own[:1] for own in self.choices], category=richest)]

    def predict_every_class(self) -> list[Predicted]:
        """Predict batches in which every class and category occurs; none if too few targets fit."""
        wanted, found, batches = {label for own in self.choices for label in own}, set[int](), list[Predicted]()
        is_open = True
        while is_open and len(batches) < _MAX_BATCHES:
            batches.append(self.predict(len(batches) * self.num_samples))
            found.update(batches[-1][0]["label"].unique().tolist())
            is_open = found < wanted if len(self.choices) == 1 else len(batches) * self.num_samples < len(self.choices)
        return batches if found >= wanted else []


@measure()
def label_form(rehearsal: DryRun, facts: Mapping[str, Any], task: Task) -> LabelForm:
    """Find the form of the targets of a run whose task predicts them from `logits` alone."""
    batch = rehearsal.batch
    logits: Any = rehearsal.seen_outputs.get("logits")
    label: Any = batch.get("label")
    is_labelled = isinstance(logits, Tensor) and isinstance(label, Tensor) and not label.is_floating_point()
    axis, parts = class_axis(logits, label) if is_labelled else None, parts_by_category(facts)
    if axis is None or logits.shape[axis] < 2 or not _is_by_sample(batch, label):
        raise NotApplicableError("no class logits")
    classes = tuple(number for number in range(logits.shape[axis]) if number != facts.get("ignore_index"))
    choices = tuple(map(tuple, parts)) if parts is not None and "category" in batch else (classes,)
    if not all(choices) or any(not 0 <= part < logits.shape[axis] for own in choices for part in own):
        raise NotApplicableError("parts that are no classes")
    asked = attempt("task", lambda: task.predict(FixedOutputs({"logits": logits}), batch), {})
    if isinstance(asked, MissingError):
        raise NotApplicableError("a task that needs more than logits")  # `first-step` reports other reasons
    return LabelForm(task, batch, logits.shape[axis], axis - logits.ndim, choices)


@measure()
def known_form(rehearsal: DryRun, facts: Mapping[str, Any], task: Task) -> LabelForm | None:
    """Find the form of the targets, or None."""
    found = attempt("form", label_form, {"rehearsal": rehearsal, "facts": facts, "task": task})
    return None if isinstance(found, MissingError) else found


def can_score(form: LabelForm, meter: BoundMetric) -> bool:
    """Return True if all that a metric reads is in batches or follows from logits; other outputs are not made."""
    available = {"logits", *form.batch, *form.task.predicts}
    return set(meter.update.names) <= available - _OF_PIXELS


class MetricValues(NamedTuple):
    """Values computed by the updated object, and by a copy from the same state; empty if the copy fails."""

    used: dict[str, float]
    other: dict[str, float]


def metric_values(meter: BoundMetric, batches: Sequence[Predicted]) -> MetricValues:
    """Compute the values of copies of a metric after these batches and their predictions.

    Errors of the metric pass through.
    """
    metric, other = copy_metric(meter.metric), copy_metric(meter.metric)
    used = Meter(metric, num_samples=1 + max(int(batch["sample_index"].max()) for batch, _ in batches))
    for batch, predictions in batches:
        used.update(**meter.update.select(batch, predictions))
    values = dict(used.compute())
    again = attempt("metric", lambda: dict(other.compute(used.state)), {})
    return MetricValues(values, {} if isinstance(again, MissingError) else again)


def take_predicted(predicted: Predicted, names: Sequence[str], rows: Sequence[int]) -> Predicted | None:
    """Take what a metric reads of some samples; None if a value has no rows of samples, or of points."""
    both = {**predicted[0], **predicted[1]}
    division = {name: both[name] for name in _DIVISIONS if name in both}
    wanted = {name: both[name] for name in {*names, *division} if name in both}
    taken = {name: take_rows_of(value, division, rows, name) for name, value in wanted.items()}
    is_whole = any(isinstance(value, Tensor) and taken[name] is value for name, value in wanted.items())
    return None if is_whole or not _OF_PIXELS.isdisjoint(names) else (taken, {})


def _make_partly_wrong(labels: np.ndarray, rank: int) -> np.ndarray:
    """Replace labels by the sample's next class: none, half, half or a quarter of them, by `rank` modulo 4."""
    is_wrong = np.isin(np.arange(len(labels)) % 4, ((), (0, 3), (0, 2), (3,))[rank % 4])
    present, place = np.unique(labels, return_inverse=True)
    only = int(present[0])
    following = np.roll(present, -1) if len(present) > 1 else np.array([only - 1 if only > 0 else 1])
    return np.where(is_wrong, following[place], labels)


def _list_rows(batch: Mapping[str, Any]) -> list[slice | int]:
    """List the rows of the targets of each sample, or its row if it has a single target."""
    if len(batch["label"]) == len(batch["sample_index"]):
        return list(range(len(batch["label"])))
    ends = batch["offsets"].tolist()
    return [slice(start, end) for start, end in itertools.pairwise(ends)]


def _is_by_sample(batch: Mapping[str, Any], label: Tensor) -> bool:
    """Return True if each sample's targets can be located; `broken-offsets` reports offsets that are not valid."""
    offsets, num_samples = batch.get("offsets"), len(batch["sample_index"])
    if label.ndim == 0 or len(label) == num_samples or not isinstance(offsets, Tensor):
        return label.ndim > 0 and len(label) == num_samples
    is_valid = not offsets.is_floating_point() and offsets.shape == (num_samples + 1,)
    return is_valid and bool((offsets.diff() > 0).all()) and int(offsets[-1]) == len(label)


# --- rules ---

_BEST_IS_ONE = re.compile(r"(^|[_\W])(m?iou|accuracy|acc|precision|recall|dice|f1)([_\W]|$)", re.IGNORECASE)
_ROUNDING = 1e-6  # the mean of a thousand float32 ones is nearer to 1


@rule(
    "absent-class-score",
    "error",
    "eval.absent_class eval.protocol eval.decode",
    holds="1 for perfect predictions, for any set of classes",
    do="score a part that both lack as 1 (shapes with parts), or leave the class out of the mean (scenes); never as 0",
)
def absent_class_score(label_form: LabelForm, judged_metrics: list[JudgedMetric]) -> Iterator[Fault]:
    """Score perfect predictions by values named after an IoU, accuracy, precision, recall, Dice or F1."""
    single, full = label_form.predict_one_class(), label_form.predict_every_class()
    for metric in judged_metrics:
        if full and can_score(label_form, metric.meter):
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
    elif absent and not metric.meter.metric.scores_absent_zero:  # else as the config asks for
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
def per_batch_metric(
    known_form: LabelForm | None, evaluations: list[DryEvaluation], judged_metrics: list[JudgedMetric]
) -> Iterator[Fault]:
    """Compare each value for one batch and for two with the same predictions, and after the state alone.

    The rule of a user's own evaluation calls all of it again; a metric of a run is asked without the network.

    The predictions are synthetic, some of them wrong, where labels follow from logits; then those of the model for a
    few evaluated samples.
    """
    form = known_form
    scored = [each for each in evaluations[:1] if each.failure is None]  # else `first-evaluation` reports it
    several = [(each.batch, each.predictions) for each in scored if len(each.batch.get("sample_index", ())) > 1]
    for metric in judged_metrics:
        fault = None
        if form is not None and form.num_samples >= _MIN_SAMPLES and can_score(form, metric.meter):
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
    by_definition = metric.meter.metric.within_batch
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
def metric_unit(rehearsal: DryRun, judged_metrics: list[JudgedMetric]) -> Iterator[Fault]:
    """Score predictions that are off by a known distance."""
    pairs_of = [(metric, list(_iter_pairs(rehearsal.batch, metric))) for metric in judged_metrics]
    if not any(pairs for _, pairs in pairs_of):
        raise NotApplicableError("no places in a unit")
    for metric, pairs in pairs_of:
        if pairs and (fault := _judge_unit(rehearsal.batch, metric, pairs)) is not None:
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
