"""A trained model that predicts the samples that are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sightline.data.loading.batch_reader import BatchReader
from sightline.engine.device import to_device
from sightline.engine.evaluate import BoundMetric
from sightline.engine.precision import Precision
from sightline.engine.step import Task
from sightline.metrics.base import make_state
from sightline.optional_members import MetricMembers
from sightline.types import Batch, SampleKey

__all__ = ["SHOWN", "SamplePredictor"]

SHOWN = {"probabilities": "classes", "joints_mm": "joints"}
"""Of what a task predicts, what can be drawn."""


@dataclass(frozen=True)
class SamplePredictor:
    """A trained model, ready to predict a sample by a run's own evaluation transforms.

    `score` is the least one of the detections that are drawn, that of the task where it is None.
    """

    model: nn.Module
    task: Task
    meters: Sequence[BoundMetric]
    reader: BatchReader
    precision: Precision
    device: torch.device
    score: float | None = None

    def __call__(self, key: SampleKey) -> tuple[Batch, Mapping[str, Any]]:
        """The batch of one sample and what the task predicts of it; one pass, no votes."""
        batch = to_device(self.reader([key]), self.device, float_dtype=self.precision.parameter_dtype)
        self.model.eval()
        with torch.no_grad(), self.precision.autocast(self.device):
            predictions = self.task.predict(self.model, batch)
        return batch, predictions

    def iou(self, batch: Batch, predictions: Mapping[str, Any]) -> float | None:
        """The sample's IoU, where a metric of the run computes it."""
        for meter in self.meters:
            per_sample = MetricMembers.per_sample.get(meter.metric)
            if per_sample is not None:
                alone = {**batch, "sample_index": torch.zeros_like(batch["sample_index"])}
                state = {name: t.to(self.device) for name, t in make_state(meter.metric, num_samples=1).items()}
                meter.metric.update(state, **meter.update.select(alone, predictions))
                scores = per_sample({name: tensor.cpu() for name, tensor in state.items()})
                return float(scores[0])
        return None
