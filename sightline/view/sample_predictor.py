"""Predictor of a trained model for the samples that are shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sightline.contract.task import Task
from sightline.contract.types import Batch, SampleKey
from sightline.engine.device.numerics import Precision
from sightline.engine.device.transfer import to_device
from sightline.store.loading.batch_reader import BatchReader

SHOWN = {"probabilities": "classes", "joints_mm": "joints", "detections3d": "boxes in clouds"}
"""Predictions of a task that can be drawn, and what they are called."""


@dataclass(frozen=True)
class SamplePredictor:
    """Trained model that predicts a sample with the evaluation transforms of its run.

    `score` is the minimum score of the detections that are drawn; None means the task's own.
    """

    model: nn.Module
    task: Task
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
