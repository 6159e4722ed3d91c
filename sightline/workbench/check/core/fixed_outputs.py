"""Losses of a run as a function of outputs: a stand-in for its model, and the sum that a step minimises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sightline.contract.types import Batch
from sightline.engine.device import Precision
from sightline.engine.step import single_batch_step, weighted_sum
from sightline.engine.train import TrainState


class FixedOutputs(nn.Module):
    """Stand-in for a model that returns fixed outputs for any input."""

    def __init__(self, outputs: Mapping[str, Any]) -> None:
        super().__init__()
        self._outputs = outputs

    def forward(self, *args: Any, **kwargs: Any) -> Mapping[str, Any]:
        return self._outputs


class RunLoss:
    """Weighted mean losses of a run, at the weights of a step, as one function of the outputs and the batch."""

    def __init__(self, job: TrainState, *, step: int, precision: Precision) -> None:
        self._job, self._weights, self._precision = job, job.loss_weights_at(step), precision

    def __call__(self, outputs: Mapping[str, Any], batch: Batch) -> Tensor:
        """Compute the loss that training minimises, in float64."""
        model = FixedOutputs(outputs)
        step = single_batch_step(self._job.task, model, batch, self._job.device, self._precision)
        means = step.loss_means(step.loss_sums(model))
        return weighted_sum({name: mean.double() for name, mean in means.items()}, self._weights)
