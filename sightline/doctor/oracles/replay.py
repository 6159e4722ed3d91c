"""A run's losses as functions of the model's outputs, whatever these are: the task gets a stand-in for its model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sightline.engine.step import batch_step, run_batch
from sightline.engine.train import Job
from sightline.types import Batch

__all__ = ["Replay", "loss_counts", "loss_sums"]

_CPU = torch.device("cpu")


class Replay(nn.Module):
    """Gives these outputs whatever it is asked."""

    def __init__(self, outputs: Mapping[str, Any]) -> None:
        super().__init__()
        self._outputs = dict(outputs)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self._outputs


def loss_sums(job: Job, batch: Batch, outputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The sum of each loss for these outputs, with its gradient."""
    sums, _ = run_batch(job.task, Replay(outputs), batch, _CPU)
    return dict(sums)


def loss_counts(job: Job, batch: Batch, outputs: Mapping[str, Any], device: torch.device = _CPU) -> dict[str, float]:
    """What each loss is divided by."""
    step = batch_step(job.task, Replay(outputs), batch, device)
    return {name: float(count) for name, count in step.counts.items()}
