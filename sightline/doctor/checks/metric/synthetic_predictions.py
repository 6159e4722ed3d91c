"""Predictions of our own making, given to a run's metrics through its task: it is known which are right.

Labels are made as well, of the form of a training batch, so that neither data nor weights can blur what a metric does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sightline.doctor.context import Context
from sightline.doctor.core.class_axes import class_axis
from sightline.doctor.core.dry_run import read_batch, step_keys
from sightline.doctor.core.sample_statistics import parts_by_category
from sightline.engine.evaluate import BoundMetric
from sightline.metrics.base import make_state
from sightline.optional_members import TaskMembers
from sightline.types import Batch

__all__ = [
    "MetricValues",
    "Predicted",
    "PredictionMaker",
    "SyntheticBatch",
    "can_score",
    "maker_of",
    "metric_values",
    "name_of_metric",
    "score_metric",
    "task_predictions",
]

_SURE = 100.0  # e^-100 is lost beside 1 in float32: the prediction has probability 1
_THINNED = ("nearest", "point_range", "whole_label", "whole_offsets")


class SyntheticBatch(NamedTuple):
    """A batch with made labels, and the logits that stand in for the model's."""

    batch: Batch
    logits: Tensor


class _StandIn:
    """Returns given logits for every input."""

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {"logits": self._logits}


Predicted = tuple[Batch, Mapping[str, Any]]
"""A batch and what was predicted of it."""
LabelOf = Callable[[int, int, int], list[int]]
"""The labels of sample `rank` with `size` targets, of a given category: (rank, size, category) -> labels."""


@dataclass(frozen=True)
class PredictionMaker:
    """Makes sheets in the form of a run's training batches.

    `choices` are the classes that targets may have: all that are not ignored, or the parts of each category.
    """

    context: Context
    num_samples: int
    num_classes: int
    axis: int
    choices: tuple[tuple[int, ...], ...]
    has_category: bool

    def sheet(
        self, ranks: Sequence[int], label_of: LabelOf, *, category_of: Callable[[int], int], wrong: bool
    ) -> SyntheticBatch:
        """The samples of these ranks; predicted rightly, or with `wrong` in part wrongly, the same way in any batch."""
        device = self.context.world.device
        batch = {name: value for name, value in self._read(ranks).items() if name not in _THINNED}
        labels, chosen = torch.zeros_like(batch["label"]), torch.zeros_like(batch["label"])
        for row, rank in enumerate(ranks):
            place = _rows(batch, row)
            size = labels[place].numel()
            own = label_of(rank, size, category_of(rank))
            given = _partly_wrong(own, rank) if wrong else own
            labels[place] = torch.tensor(own, device=device).view(labels[place].shape)
            chosen[place] = torch.tensor(given, device=device).view(labels[place].shape)
        batch["label"] = labels
        batch["sample_index"] = torch.tensor(list(ranks), dtype=torch.int64, device=device)
        if self.has_category:
            batch["category"] = torch.tensor([category_of(rank) for rank in ranks], dtype=torch.int64, device=device)
        logits = torch.nn.functional.one_hot(chosen, self.num_classes).float() * _SURE
        return SyntheticBatch(batch, logits.movedim(-1, self.axis))

    def _read(self, ranks: Sequence[int]) -> Batch:
        """Training samples that lend their form; those of the rehearsal are at hand."""
        rehearsal, job = self.context.dry_run, self.context.built.job
        rows = [rank % self.num_samples for rank in ranks]
        if rows == list(range(self.num_samples)):
            return rehearsal.batch
        keys = step_keys(job, step=0)
        return read_batch(job, [keys[row] for row in rows], self.context.world.device)


def maker_of(context: Context) -> PredictionMaker | None:
    """A maker for this run; None where its task does not predict targets of the batch by `logits`."""
    rehearsal, facts = context.dry_run, context.built.data.facts
    logits, label = rehearsal.seen_outputs.get("logits"), rehearsal.batch.get("label")
    if not isinstance(logits, Tensor) or not isinstance(label, Tensor) or label.is_floating_point():
        return None
    axis = class_axis(logits, label)
    if axis is None or logits.shape[axis] < 2 or not _is_by_sample(rehearsal.batch, label):
        return None
    num_classes = logits.shape[axis]
    table = parts_by_category(facts)
    has_category = table is not None and "category" in rehearsal.batch
    classes = tuple(number for number in range(num_classes) if number != facts.get("ignore_index"))
    choices = tuple(map(tuple, table)) if has_category and table is not None else (classes,)
    if not all(choices) or any(not 0 <= part < num_classes for parts in choices for part in parts):
        return None
    try:
        context.built.job.task.predict(_StandIn(logits), rehearsal.batch)  # type: ignore[arg-type]
    except Exception:  # noqa: BLE001 - a task that needs more than logits; what else it may be, `first-step` reports
        return None
    return PredictionMaker(context, rehearsal.num_samples, num_classes, axis - logits.ndim, choices, has_category)


def can_score(context: Context, meter: BoundMetric) -> bool:
    """Whether all that a metric reads is in batches or follows from logits; further outputs of a model are not made."""
    offered = {"logits", *context.dry_run.batch, *TaskMembers.predicts.get(context.built.job.task)}
    return set(meter.update.names) <= offered - set(_THINNED)


def score_metric(context: Context, meter: BoundMetric, sheets: Sequence[SyntheticBatch]) -> dict[str, float]:
    """The numbers of a metric after these sheets, one batch after another.

    Raises whatever the metric or the task raises.
    """
    return metric_values(meter, task_predictions(context, sheets)).used


class MetricValues(NamedTuple):
    """The numbers by the object that was updated, and by another with the same state; empty where that one fails."""

    used: dict[str, float]
    other: dict[str, float]


def metric_values(meter: BoundMetric, batches: Sequence[Predicted]) -> MetricValues:
    """What copies of a metric compute after these batches and their predictions. Raises whatever the metric raises."""
    metric, other = copy.deepcopy(meter.metric), copy.deepcopy(meter.metric)
    highest = max(int(batch["sample_index"].max()) for batch, _ in batches)
    device = batches[0][0]["sample_index"].device
    state = {name: tensor.to(device) for name, tensor in make_state(metric, num_samples=highest + 1).items()}
    with torch.no_grad():
        for batch, predictions in batches:
            metric.update(state, **meter.update.select(batch, predictions))
    reduced = {name: tensor.cpu() for name, tensor in state.items()}
    used = dict(metric.compute(reduced))
    try:
        return MetricValues(used, dict(other.compute(reduced)))
    except Exception:  # noqa: BLE001 - it lacks what `update` put on the first one, which its missing figures report
        return MetricValues(used, {})


def task_predictions(context: Context, sheets: Sequence[SyntheticBatch]) -> list[Predicted]:
    """Each sheet's batch and what the task makes of its logits. Raises whatever the task raises."""
    task = context.built.job.task
    return [(sheet.batch, task.predict(_StandIn(sheet.logits), sheet.batch)) for sheet in sheets]  # type: ignore[arg-type]


def name_of_metric(context: Context, meter: BoundMetric) -> tuple[str, str]:
    """A metric's name and its place in the config."""
    place = next(i for i, each in enumerate(context.built.selection_evaluator.metrics) if each is meter)
    names = [component.name for component in context.config.metrics]
    return (names[place] if place < len(names) else type(meter.metric).__name__), f"metrics.{place}"


def _partly_wrong(labels: list[int], rank: int) -> list[int]:
    """None, a half, a half and a quarter of each four samples' targets are predicted as the sample's next class."""
    wrong = ((), (0, 3), (0, 2), (3,))[rank % 4]
    present = sorted(set(labels))
    others = present if len(present) > 1 else [present[0], max(present[0] - 1, 0) if present[0] else 1]
    following = dict(zip(others, [*others[1:], others[0]], strict=True))
    return [following[label] if place % 4 in wrong else label for place, label in enumerate(labels)]


def _rows(batch: Mapping[str, Any], row: int) -> slice | int:
    """Where the targets of a sample stand."""
    if len(batch["label"]) == len(batch["sample_index"]):
        return row
    start, end = batch["offsets"][row : row + 2].tolist()
    return slice(start, end)


def _is_by_sample(batch: Mapping[str, Any], label: Tensor) -> bool:
    """Whether each sample's targets can be found; `broken-offsets` reports offsets that are not valid."""
    offsets, num_samples = batch.get("offsets"), len(batch["sample_index"])
    if label.ndim == 0 or len(label) == num_samples or not isinstance(offsets, Tensor):
        return label.ndim > 0 and len(label) == num_samples
    is_whole = not offsets.is_floating_point() and offsets.shape == (num_samples + 1,)
    return is_whole and bool((offsets.diff() > 0).all()) and int(offsets[-1]) == len(label)
