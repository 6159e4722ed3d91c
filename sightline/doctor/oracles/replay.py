"""Losses of a run as functions of given outputs: the task runs with a stand-in for its model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sightline.engine.step import compute_batch_losses, single_batch_step
from sightline.engine.train import TrainState
from sightline.types import Batch

__all__ = ["FixedOutputs", "loss_counts", "loss_sums"]

_CPU = torch.device("cpu")


class FixedOutputs(nn.Module):
    """Stand-in for a model that returns fixed outputs for any input."""

    def __init__(self, outputs: Mapping[str, Any]) -> None:
        super().__init__()
        self._outputs = dict(outputs)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self._outputs


def loss_sums(job: TrainState, batch: Batch, outputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Compute the sum of each loss for some outputs, differentiable."""
    sums, _ = compute_batch_losses(job.task, FixedOutputs(outputs), batch, _CPU)
    return dict(sums)


def loss_counts(
    job: TrainState, batch: Batch, outputs: Mapping[str, Any], device: torch.device = _CPU
) -> dict[str, float]:
    """Compute the count of each loss, by which its sum is divided."""
    step = single_batch_step(job.task, FixedOutputs(outputs), batch, device)
    return {name: float(count) for name, count in step.counts.items()}
