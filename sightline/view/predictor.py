"""Predictor of a trained model for the samples that are shown."""

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
"""Predictions of a task that can be drawn, and what they are called."""


@dataclass(frozen=True)
class SamplePredictor:
    """Trained model that predicts a sample with the evaluation transforms of its run.

    `score` is the minimum score of the detections that are drawn; None means the task's own.
    """

    model: nn.Module
    task: Task
    meters: Sequence[BoundMetric]
    reader: BatchReader
    precision: Precision
    device: torch.device
    score: float | None = None

    def __call__(self, key: SampleKey) -> tuple[Batch, Mapping[str, Any]]:
        """Return the batch of one sample and the task's predictions for it, from a single pass without voting."""
        batch = to_device(self.reader([key]), self.device, float_dtype=self.precision.parameter_dtype)
        self.model.eval()
        with torch.no_grad(), self.precision.autocast(self.device):
            predictions = self.task.predict(self.model, batch)
        return batch, predictions

    def iou(self, batch: Batch, predictions: Mapping[str, Any]) -> float | None:
        """Compute the sample's IoU if a metric of the run does, else return None."""
        for meter in self.meters:
            per_sample = MetricMembers.per_sample.get(meter.metric)
            if per_sample is not None:
                alone = {**batch, "sample_index": torch.zeros_like(batch["sample_index"])}
                state = {name: t.to(self.device) for name, t in make_state(meter.metric, num_samples=1).items()}
                meter.metric.update(state, **meter.update.select(alone, predictions))
                scores = per_sample({name: tensor.cpu() for name, tensor in state.items()})
                return float(scores[0])
        return None
