"""Result of the oracles for one kind of layer, or for one loss.

Nested containers of tensors: functions applied to every tensor.

Losses of a run as functions of given outputs: the task runs with a stand-in for its model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline.contract import pytree
from sightline.contract.types import Batch
from sightline.engine.step import Task, compute_batch_losses, single_batch_step
from sightline.engine.train import TrainState
from sightline.parts.tasks.supervised import Supervised

FORWARD = 1e-10
"""Maximum error of a float64 output against its NumPy reference, relative to the largest value or 1."""
GRADIENT = 1e-3
"""Maximum relative error of a gradient against finite differences; whole models stay below 1e-4."""
EXACT_GRADIENT = 1e-5
"""Maximum relative error of a gradient of losses, and of torch's layers on inputs away from edges (below 1e-7)."""
DRIFT = 1e-5
"""Maximum median error of a layer's float32 output against float64, relative to the largest value."""


@dataclass(frozen=True)
class OracleResult:
    """Errors of a kind of layer, or of a loss, against its oracles; None for what was not compared.

    `kind` is the type and arguments, `place` the first such module (or the loss), `count` the number of modules.
    `gradient_error` and `second` are errors of first and second derivatives, `weakest` is the tensor with the largest
    gradient error, and `tolerance` its limit; `drift_limit` is the float32 error that rounding explains. `declared`
    names surrogate gradients, which are not compared.
    """

    kind: str
    place: str
    count: int = 1
    is_loss: bool = False
    forward: float | None = None
    gradient_error: float | None = None
    second: float | None = None
    drift: float | None = None
    weakest: str = ""
    tolerance: float = GRADIENT
    drift_limit: float = DRIFT
    declared: tuple[str, ...] = ()
    note: str = ""
    file: tuple[str | None, int | None] = (None, None)

    @property
    def verdict(self) -> str:
        """`wrong`, `declared` (a surrogate gradient), `checked`, `half-checked` (gradients only) or `not checked`."""
        if self.is_wrong_forward or self.is_wrong_backward or self.is_drifting:
            return "wrong"
        if self.declared:
            return "declared"
        if self.gradient_error is None and self.forward is None:
            return "not checked"
        return "half-checked" if self.forward is None else "checked"

    @property
    def is_wrong_forward(self) -> bool:
        return self.forward is not None and not self.forward <= FORWARD

    @property
    def is_wrong_backward(self) -> bool:
        return any(value is not None and not value <= self.tolerance for value in (self.gradient_error, self.second))

    @property
    def is_drifting(self) -> bool:
        return self.drift is not None and not self.drift <= self.drift_limit


def class_location(cls: Any) -> tuple[str | None, int | None]:
    """Return the file and first line of a class; None for classes of installed libraries."""
    try:
        file, line = inspect.getsourcefile(cls), inspect.getsourcelines(cls)[1]
    except (OSError, TypeError):
        return None, None
    return (file, line) if file and "site-packages" not in Path(file).parts else (None, None)


def tree_map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply `change` to every tensor of a nested container; other values stay unchanged."""
    return pytree.tree_map(value, lambda _, tensor: change(tensor))


def clone_detached(tensor: Tensor) -> Tensor:
    """Copy a tensor without its autograd history; later in-place changes do not affect the copy."""
    return tensor.detach().clone()


def float64(tensor: Tensor) -> Tensor:
    """Copy a tensor without its autograd history; floating-point tensors become float64."""
    return clone_detached(tensor).double() if tensor.is_floating_point() else clone_detached(tensor)


def float32(tensor: Tensor) -> Tensor:
    """Copy a tensor without its autograd history; floating-point tensors become float32."""
    return clone_detached(tensor).float() if tensor.is_floating_point() else clone_detached(tensor)


def with_history(tensor: Tensor) -> Tensor:
    """Clone a floating-point tensor with its autograd history, so that a layer may modify it in place."""
    return tensor.clone() if tensor.is_floating_point() else tensor


_CPU = torch.device("cpu")


class FixedOutputs(nn.Module):
    """Stand-in for a model that returns fixed outputs for any input."""

    def __init__(self, outputs: Mapping[str, Any]) -> None:
        super().__init__()
        self._outputs = outputs

    def forward(self, *args: Any, **kwargs: Any) -> Mapping[str, Any]:
        return self._outputs


def task_with(job: TrainState, loss: str | None) -> Task:
    """Return the task with one loss, which is all that is computed then; the task itself if it cannot divide them."""
    if loss is not None and isinstance(job.task, Supervised) and loss in job.task._terms:
        return job.task.with_one_loss(loss)
    return job.task


def loss_sums(
    job: TrainState, batch: Batch, outputs: Mapping[str, Any], *, loss: str | None = None
) -> dict[str, Tensor]:
    """Compute the sum of each loss, or of one, for some outputs, differentiable."""
    sums, _ = compute_batch_losses(task_with(job, loss), FixedOutputs(outputs), batch, _CPU)
    return dict(sums)


def loss_counts(
    job: TrainState,
    batch: Batch,
    outputs: Mapping[str, Any],
    device: torch.device = _CPU,
    *,
    loss: str | None = None,
) -> dict[str, float]:
    """Compute the count of each loss, or of one, by which its sum is divided."""
    step = single_batch_step(task_with(job, loss), FixedOutputs(outputs), batch, device)
    return {name: float(count) for name, count in step.counts.items()}
