"""Synthetic predictions with known errors, passed to a run's metrics through its task.

Labels are synthetic as well, in the form of a training batch, so that neither data nor weights affect the result.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.contract.members import TaskMembers
from sightline.contract.metric import Meter
from sightline.contract.types import Batch
from sightline.doctor.attempts import MissingError, NotApplicableError, attempt
from sightline.doctor.evidence import measure
from sightline.engine.evaluate import BoundMetric
from sightline.instrument import copy_metric
from sightline.workbench.check.context import Context
from sightline.workbench.check.core.dry_run import take_rows_of
from sightline.workbench.check.core.fixed_outputs import FixedOutputs
from sightline.workbench.check.core.sample_statistics import class_axis, parts_by_category

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
def label_form(run: Context) -> LabelForm:
    """Find the form of the targets of a run whose task predicts them from `logits` alone."""
    batch, facts, task = run.dry_run.batch, run.built.data.facts, run.built.job.task
    logits, label = run.dry_run.seen_outputs.get("logits"), batch.get("label")
    if not isinstance(logits, Tensor) or not isinstance(label, Tensor) or label.is_floating_point():
        raise NotApplicableError("no class logits")
    axis, parts = class_axis(logits, label), parts_by_category(facts)
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


def can_score(context: Context, meter: BoundMetric) -> bool:
    """Return True if all that a metric reads is in batches or follows from logits; other outputs are not made."""
    available = {"logits", *context.dry_run.batch, *TaskMembers.predicts.get(context.built.job.task)}
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
