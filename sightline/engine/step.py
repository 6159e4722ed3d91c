"""Forward pass of a step: preparation, losses and their weighted sum, for every caller of a task's losses."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import profiler

from sightline.contract.task import Task
from sightline.contract.types import Batch
from sightline.engine.device.numerics import Precision
from sightline.engine.distributed import World
from sightline.ops.waits import is_on_host, send

PROFILER_END_PREFIX = "end of "
"""Prefix of a profiler event that marks the end of a phase, before the phase's name."""
_FLOAT32 = Precision("float32")  # without autocast
_HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Step:
    """Prepared step: its micro-batches on this process, and counts and contexts from the task.

    `counts` are the divisors of the losses; `contexts` contain what the task needs for each micro-batch. `outputs` are
    those of the only batch, where the task has needed them.
    """

    task: Task
    micro_batches: Sequence[Batch]
    counts: Mapping[str, Tensor]
    contexts: Sequence[Any]
    precision: Precision
    device: torch.device
    outputs: Any = None

    def loss_sums(self, model: nn.Module, index: int = 0) -> Mapping[str, Tensor]:
        """Return the sum of each loss over a micro-batch."""
        with self.precision.autocast(self.device):
            if self.outputs is not None:
                return self.task.losses_of(self.micro_batches[index], self.outputs, self.contexts[index])
            return self.task.losses(model, self.micro_batches[index], self.contexts[index])

    def loss_sums_and_predictions(
        self, model: nn.Module, index: int = 0
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        """Return loss sums and predictions of a micro-batch."""
        with self.precision.autocast(self.device):
            return self.task.losses_and_predictions(model, self.micro_batches[index], self.contexts[index])

    def loss_means(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Divide sums of losses by the counts of the step: their shares of each loss's mean."""
        return {name: divide(total, self.divisors[name]) for name, total in sums.items()}

    @cached_property
    def divisors(self) -> Mapping[str, Divisor]:
        """Divisor of the sum of each loss, on the device of the step."""
        return {name: make_divisor(count, self.device) for name, count in self.counts.items()}


class StepTimer:
    """Timer of a step: wall time in `seconds` by phase, between calls of `end_phase`.

    If the task reports its own phases, `forward` is the network alone, and `remainder` the time after it up to the
    next call. Work that a GPU has only queued counts for the phase that waits for it.
    """

    def __init__(self, task: Task, *, remainder: str) -> None:
        self.seconds: dict[str, float] = {}
        self._remainder = remainder
        self._is_split = False
        self._last = time.perf_counter()
        task.on_phase_end = partial(self.end_phase, is_own=True)

    def end_phase(self, name: str, *, is_own: bool = False) -> None:
        """End a phase; `is_own` marks one that the task reports."""
        name = self._remainder if name == "forward" and self._is_split and not is_own else name
        self._is_split = is_own
        if profiler._is_profiler_enabled:
            with profiler.record_function(PROFILER_END_PREFIX + name):  # a mark in the trace of `sightline profile`
                pass
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


def prepare_step(
    task: Task, model: nn.Module, micro_batches: Sequence[Batch], world: World, precision: Precision = _FLOAT32
) -> Step:
    """Prepare a step for its forward passes, with the collectives of its losses."""
    with precision.autocast(world.device):
        counts, contexts = task.prepare(model, micro_batches, world)
    return Step(task, micro_batches, counts, contexts, precision, world.device)


def prepare_trained_step(
    task: Task,
    model: nn.Module,
    network: nn.Module,
    micro_batches: Sequence[Batch],
    world: World,
    precision: Precision = _FLOAT32,
) -> Step:
    """Prepare a step of `network`, the trained form of `model`; its weights stay until its losses are computed.

    A task that needs the outputs of a single batch computes them once, for its losses too.
    """
    if len(micro_batches) == 1:
        with precision.autocast(world.device):
            prepared = task.prepare_outputs(network, micro_batches[0], world)
        if prepared is not None:
            counts, contexts, outputs = prepared
            return Step(task, micro_batches, counts, contexts, precision, world.device, outputs)
    return prepare_step(task, model, micro_batches, world, precision)


def with_prepare(task: Task, prepare: Callable[..., Any]) -> Task:
    """Copy a task with its `prepare` replaced by `prepare(original, model, micro_batches, world)`."""
    copied = copy.copy(task)
    copied.prepare = partial(prepare, task.prepare)  # type: ignore[method-assign]
    return copied


def single_batch_step(
    task: Task, model: nn.Module, batch: Batch, device: torch.device, precision: Precision = _FLOAT32
) -> Step:
    """Prepare one batch as a step on one process."""
    return prepare_step(task, model, [batch], World(device=device), precision)


def compute_batch_losses(
    task: Task, model: nn.Module, batch: Batch, device: torch.device, precision: Precision = _FLOAT32
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """Compute loss sums and counts of one batch as a step on one process."""
    step = single_batch_step(task, model, batch, device, precision)
    return step.loss_sums(model), step.counts


Divisor = Tensor | float
"""Count of a loss to divide by, or 1 if it is 0: a number where the host knows it beside a device."""


def make_divisor(count: Tensor, device: torch.device) -> Divisor:
    """Return what a total on a device is divided by for a count (0-d) of the device, or of the host."""
    if is_on_host(count) and not is_on_host(torch.empty(0, device=device)):
        return count.item() or 1
    sent = send(count, device)
    return sent + (sent == 0)


def divide(total: Tensor, divisor: Divisor) -> Tensor:
    """Divide a total (0-d) in its own type of numbers."""
    is_plain = not isinstance(divisor, Tensor) or not (divisor.is_floating_point() or total.dtype in _HALVES)
    return total / (divisor if is_plain else divisor.to(total.dtype))  # type: ignore[union-attr]


def divide_by_count(total: Tensor, count: Tensor) -> Tensor:
    """Divide a total by its count, or by 1 if the count is 0."""
    return divide(total, make_divisor(count, total.device))


def weighted_sum(means: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the weighted sum of the mean losses, which training minimises."""
    return torch.stack([weights[name] * value for name, value in means.items()]).sum()
