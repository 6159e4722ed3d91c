"""Points that lie beside another class's: how many of a class are, and how many of those that are wrongly predicted."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sightline.contract.types import Batch
from sightline.engine.distributed import World
from sightline.engine.evaluate import BatchCallback, Evaluation, Evaluator
from sightline.engine.run_data import DataSubset
from sightline.engine.run_loading import OpenRun
from sightline.ops import packed_nearest_neighbours
from sightline.ops.dtypes import widen_labels
from sightline.parts.metrics.predicted_labels import predict_labels
from sightline.runs.class_causes import group_classes

_NUM_NEIGHBOURS = 8
_COLUMNS = ("points", "beside", "wrong", "wrong_beside")


def evaluate_with_surroundings(
    run: OpenRun, part: DataSubset, evaluator: Evaluator | None = None, *, on_batch: BatchCallback | None = None
) -> Evaluation:
    """Evaluate a run as its evaluator does, and add the table `class_surroundings` where points have classes."""
    evaluator = run.evaluator(part) if evaluator is None else evaluator
    if "seen" not in run.task.predicts:
        return evaluator(run.model, run.world, on_batch=on_batch)
    surroundings = Surroundings(run.facts, run.world)

    def observe(batch: Batch, predictions: Mapping[str, Any]) -> None:
        surroundings(batch, predictions)
        if on_batch is not None:
            on_batch(batch, predictions)

    evaluation = evaluator(run.model, run.world, on_batch=observe)
    rows = {name: row for name, row in surroundings.finish().items() if name in evaluation.per_class}
    tables = {**evaluation.tables, **({"class_surroundings": rows} if rows else {})}
    return dataclasses.replace(evaluation, tables=tables)


class Surroundings:
    """Counter of the points of each class, called with every batch of a process and its predictions.

    A point lies beside another class if one of its 8 nearest neighbours in the same cloud has another label. Points
    are those that the network gets, of a thinned cloud not all; points without a label are not counted, and are no
    other class. Range images are not counted, because their pixels have no points.
    """

    def __init__(self, facts: Mapping[str, Any], world: World) -> None:
        self._facts = facts
        self._world = world
        num_classes = facts.get("num_classes", 0)
        self._counts = torch.zeros(len(_COLUMNS), num_classes, dtype=torch.int64, device=world.device)

    @torch.no_grad()
    def __call__(self, batch: Batch, predictions: Mapping[str, Any]) -> None:
        """Count the points of a batch, if it has points with labels."""
        points, label = batch.get("points"), batch.get("label")
        if points is None or label is None or label.shape != points.shape[:-1]:
            return
        label = widen_labels(label).flatten()
        offsets = batch["offsets"] if points.ndim == 2 else torch.arange(len(points) + 1) * points.shape[1]
        seen = predictions["seen"] if "nearest" in batch else torch.cat(predict_labels(batch, predictions, self._facts))
        is_beside = self._find_beside(points.flatten(0, -2), offsets.to(points.device), label)
        is_counted, is_wrong = self._is_labelled(label), seen.flatten() != label
        for row, chosen in enumerate((is_counted, is_beside, is_wrong, is_wrong & is_beside)):
            self._counts[row] += torch.bincount(label[chosen & is_counted], minlength=self._counts.shape[1])

    def finish(self) -> dict[str, dict[str, int]]:
        """Return the counts over all processes: class or category → `points`, `beside`, `wrong`, `wrong_beside`."""
        counts = self._world.all_reduce_sum({"surroundings": self._counts}, operation="points beside another class")
        by_class = counts["surroundings"].T.tolist()
        rows = {
            name: [sum(column) for column in zip(*(by_class[index] for index in indices), strict=True)]
            for name, indices in group_classes(self._facts).items()
        }
        return {name: dict(zip(_COLUMNS, row, strict=True)) for name, row in rows.items() if any(row)}

    def _is_labelled(self, label: Tensor) -> Tensor:
        ignored = self._facts.get("ignore_index")
        return torch.ones_like(label, dtype=torch.bool) if ignored is None else label != ignored

    def _find_beside(self, points: Tensor, offsets: Tensor, label: Tensor) -> Tensor:
        near = packed_nearest_neighbours(points, offsets=offsets, num_neighbours=_NUM_NEIGHBOURS + 1)
        other = label[near.index]
        is_other: Tensor = (other != label[:, None]) & near.is_valid & self._is_labelled(other)
        return is_other.any(dim=1)
