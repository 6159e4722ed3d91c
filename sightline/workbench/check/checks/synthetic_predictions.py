"""Synthetic predictions with known errors, passed to a run's metrics through its task.

Labels are synthetic as well, in the form of a training batch, so that neither data nor weights affect the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.contract.members import DataMembers, TaskMembers
from sightline.contract.metric import Meter
from sightline.contract.types import Batch
from sightline.doctor.attempts import MissingError, attempt
from sightline.engine.evaluate import BoundMetric
from sightline.instrument import copy_metric
from sightline.workbench.check.context import Context
from sightline.workbench.check.core.dry_run import read_batch, step_keys, take_samples
from sightline.workbench.check.core.fixed_outputs import FixedOutputs
from sightline.workbench.check.core.sample_statistics import class_axis, parts_by_category

_LARGE_LOGIT = 100.0  # 1 + e^-100 is 1 in float32: the prediction has probability 1
_THINNED = ("nearest", "point_range", "whole_label", "whole_offsets")


class SyntheticBatch(NamedTuple):
    """Batch with synthetic labels, and the logits that replace those of the model."""

    batch: Batch
    logits: Tensor


Predicted = tuple[Batch, Mapping[str, Any]]
"""Batch and its predictions."""
ChooseLabels = Callable[[int, int, int], np.ndarray]
"""Function (rank, size, category) -> labels (size,) int64 of sample `rank`, which has this category."""


@dataclass(frozen=True)
class PredictionMaker:
    """Maker of synthetic batches in the form of a run's training batches.

    `choices` are the classes that targets may have: all that are not ignored, or the parts of each category.
    """

    context: Context
    num_samples: int
    num_classes: int
    axis: int
    choices: tuple[tuple[int, ...], ...]
    has_category: bool

    def make_batch(
        self, ranks: Sequence[int], choose_labels: ChooseLabels, *, get_category: Callable[[int], int], wrong: bool
    ) -> SyntheticBatch:
        """Make the batch of these ranks, predicted correctly, or with `wrong` partly not; the same way in any batch."""
        device = self.context.world.device
        batch = {name: value for name, value in self._read(ranks).items() if name not in _THINNED}
        labels, predictions = torch.zeros_like(batch["label"]), torch.zeros_like(batch["label"])
        for row, rank in enumerate(ranks):
            rows = _find_rows(batch, row)
            size = labels[rows].numel()
            target_labels = choose_labels(rank, size, get_category(rank))
            predicted_labels = _make_partly_wrong(target_labels, rank) if wrong else target_labels
            labels[rows] = torch.from_numpy(target_labels).to(device).view(labels[rows].shape)
            predictions[rows] = torch.from_numpy(predicted_labels).to(device).view(labels[rows].shape)
        batch["label"] = labels
        batch["sample_index"] = torch.tensor(list(ranks), dtype=torch.int64, device=device)
        if self.has_category:
            batch["category"] = torch.tensor([get_category(rank) for rank in ranks], dtype=torch.int64, device=device)
        logits = torch.nn.functional.one_hot(predictions, self.num_classes).float() * _LARGE_LOGIT
        return SyntheticBatch(batch, logits.movedim(-1, self.axis))

    def _read(self, ranks: Sequence[int]) -> Batch:
        """Return the training samples that give the batch its form: rows of the dry run's batch.

        A set that makes its batches itself reads them, for it may put samples together in a way of its own.
        """
        dry_run, job = self.context.dry_run, self.context.built.job
        rows = [rank % self.num_samples for rank in ranks]
        if rows == list(range(self.num_samples)):
            return dry_run.batch
        if DataMembers.collate.get(self.context.built.data.train.dataset) is None:
            return take_samples(dry_run.batch, dry_run.batch, rows)
        keys = step_keys(job, step=0)
        return read_batch(job, [keys[row] for row in rows], self.context.world.device)


def build_prediction_maker(context: Context) -> PredictionMaker | None:
    """Build the maker for this run; None if its task does not predict targets of the batch from `logits`."""
    dry_run, facts = context.dry_run, context.built.data.facts
    logits, label = dry_run.seen_outputs.get("logits"), dry_run.batch.get("label")
    if not isinstance(logits, Tensor) or not isinstance(label, Tensor) or label.is_floating_point():
        return None
    axis = class_axis(logits, label)
    if axis is None or logits.shape[axis] < 2 or not _is_by_sample(dry_run.batch, label):
        return None
    num_classes = logits.shape[axis]
    table = parts_by_category(facts)
    has_category = table is not None and "category" in dry_run.batch
    classes = tuple(number for number in range(num_classes) if number != facts.get("ignore_index"))
    choices = tuple(map(tuple, table)) if has_category and table is not None else (classes,)
    if not all(choices) or any(not 0 <= part < num_classes for parts in choices for part in parts):
        return None
    predict = context.built.job.task.predict
    if isinstance(attempt("task", lambda: predict(FixedOutputs({"logits": logits}), dry_run.batch), {}), MissingError):
        return None  # it needs more than logits; `first-step` reports other reasons
    return PredictionMaker(context, dry_run.num_samples, num_classes, axis - logits.ndim, choices, has_category)


def can_score(context: Context, meter: BoundMetric) -> bool:
    """Return True if all that a metric reads is in batches or follows from logits; other outputs are not made."""
    available = {"logits", *context.dry_run.batch, *TaskMembers.predicts.get(context.built.job.task)}
    return set(meter.update.names) <= available - set(_THINNED)


def score_metric(context: Context, meter: BoundMetric, sheets: Sequence[SyntheticBatch]) -> dict[str, float]:
    """Compute the values of a metric after these batches, in their order.

    Errors of the metric and the task pass through.
    """
    return metric_values(meter, task_predictions(context, sheets)).used


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


def task_predictions(context: Context, sheets: Sequence[SyntheticBatch]) -> list[Predicted]:
    """Return each batch with the task's predictions from its logits. Errors of the task pass through."""
    task = context.built.job.task
    return [(item.batch, task.predict(FixedOutputs({"logits": item.logits}), item.batch)) for item in sheets]


def repeat_choices(choices: Sequence[int], start: int, size: int) -> np.ndarray:
    """Repeat the choices in their order, from place `start` on: (size,) int64."""
    return np.asarray(choices, dtype=np.int64)[np.arange(start, start + size) % len(choices)]


def _make_partly_wrong(labels: np.ndarray, rank: int) -> np.ndarray:
    """Replace labels by the sample's next class: none, half, half or a quarter of them, by `rank` modulo 4."""
    is_wrong = np.isin(np.arange(len(labels)) % 4, ((), (0, 3), (0, 2), (3,))[rank % 4])
    present, place = np.unique(labels, return_inverse=True)
    only = int(present[0])
    following = np.roll(present, -1) if len(present) > 1 else np.array([only - 1 if only > 0 else 1])
    return np.where(is_wrong, following[place], labels)


def _find_rows(batch: Mapping[str, Any], row: int) -> slice | int:
    """Return the rows of a sample's targets, or its row if it has a single target."""
    if len(batch["label"]) == len(batch["sample_index"]):
        return row
    start, end = batch["offsets"][row : row + 2].tolist()
    return slice(start, end)


def _is_by_sample(batch: Mapping[str, Any], label: Tensor) -> bool:
    """Return True if each sample's targets can be located; `broken-offsets` reports offsets that are not valid."""
    offsets, num_samples = batch.get("offsets"), len(batch["sample_index"])
    if label.ndim == 0 or len(label) == num_samples or not isinstance(offsets, Tensor):
        return label.ndim > 0 and len(label) == num_samples
    is_valid = not offsets.is_floating_point() and offsets.shape == (num_samples + 1,)
    return is_valid and bool((offsets.diff() > 0).all()) and int(offsets[-1]) == len(label)
