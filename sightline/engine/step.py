"""The forward pass of a step: prepare, losses, the weighted mean. Whoever runs a task's losses does it here."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd import profiler

from sightline.engine.distributed import World
from sightline.engine.precision import Precision
from sightline.optional_members import TaskMembers
from sightline.types import Batch

__all__ = [
    "PROFILER_END_PREFIX",
    "Step",
    "StepTimer",
    "Task",
    "compute_batch_losses",
    "divide_by_count",
    "prepare_step",
    "single_batch_step",
    "weighted_sum",
    "with_prepare",
]

PROFILER_END_PREFIX = "end of "
"""Before the name of a part: what a profiler sees where the part ends."""
_FLOAT32 = Precision("float32")  # without autocast


class Task(Protocol):
    """What the loop requires of a task; sums, so that any split of a step gives the same numbers."""

    def prepare(
        self, model: nn.Module, micro_batches: Sequence[Batch], world: World
    ) -> tuple[Mapping[str, Tensor], Sequence[Any]]:
        """What the whole step must know first: each loss's count over everything, and something per micro-batch."""
        ...

    def losses(self, model: nn.Module, batch: Batch, context: Any) -> Mapping[str, Tensor]:
        """The sum of each loss over this micro-batch."""
        ...

    def predict(self, model: nn.Module, batch: Batch) -> Mapping[str, Any]:
        """What metrics read."""
        ...

    def losses_and_predictions(
        self, model: nn.Module, batch: Batch, context: Any
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        """Loss sums and predictions of one forward pass."""
        ...

    # Optional: gauges(losses, num_samples, num_processes) -> dict[str, float], what a step is to be judged by;
    # tallies(contexts) -> dict[str, Tensor], counts of a step that are added over all processes.


@dataclass(frozen=True)
class Step:
    """The micro-batches of a step on this process, and what its task prepared over all of them.

    `counts` are what losses are divided by; `contexts` hold what the task needs for each micro-batch.
    """

    task: Task
    micro_batches: Sequence[Batch]
    counts: Mapping[str, Tensor]
    contexts: Sequence[Any]
    precision: Precision
    device: torch.device

    def loss_sums(self, model: nn.Module, index: int = 0) -> Mapping[str, Tensor]:
        """The sum of each loss over a micro-batch."""
        with self.precision.autocast(self.device):
            return self.task.losses(model, self.micro_batches[index], self.contexts[index])

    def loss_sums_and_predictions(
        self, model: nn.Module, index: int = 0
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        """Loss sums and predictions of a micro-batch."""
        with self.precision.autocast(self.device):
            return self.task.losses_and_predictions(model, self.micro_batches[index], self.contexts[index])

    def loss_means(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The share of each loss's mean over the step that these sums make up."""
        return {name: divide_by_count(total, self.counts[name]) for name, total in sums.items()}


class StepTimer:
    """Wall time in `seconds` by what it was spent on, between calls of `lap`.

    Where the task reports its own parts, `forward` is the network alone, and `rest` what follows it up to the lap of
    that name. Work that a GPU has only queued counts for the part that waits for it.
    """

    def __init__(self, task: Task, *, remainder: str) -> None:
        self.seconds: dict[str, float] = {}
        self._rest = remainder
        self._is_split = False
        self._last = time.perf_counter()
        if TaskMembers.on_phase_end.get(task) is not None:
            task.on_phase_end = partial(self.end_phase, is_own=True)  # type: ignore[attr-defined]

    def end_phase(self, name: str, *, is_own: bool = False) -> None:
        """End a part; `is_own` one that the task reports."""
        name = self._rest if name == "forward" and self._is_split and not is_own else name
        self._is_split = is_own
        if profiler._is_profiler_enabled:
            with profiler.record_function(PROFILER_END_PREFIX + name):  # `sightline profile` divides the step there
                pass
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


def prepare_step(
    task: Task, model: nn.Module, micro_batches: Sequence[Batch], world: World, precision: Precision = _FLOAT32
) -> Step:
    """A step whose forward passes can be run: the collectives of its losses happen here."""
    with precision.autocast(world.device):
        counts, contexts = task.prepare(model, micro_batches, world)
    return Step(task, micro_batches, counts, contexts, precision, world.device)


def with_prepare(task: Task, prepare: Callable[..., Any]) -> Task:
    """A copy of the task, whose own `prepare` is called by another: `prepare(own, model, micro_batches, world)`."""
    copied = copy.copy(task)
    copied.prepare = partial(prepare, task.prepare)  # type: ignore[method-assign]
    return copied


def single_batch_step(
    task: Task, model: nn.Module, batch: Batch, device: torch.device, precision: Precision = _FLOAT32
) -> Step:
    """One batch as a step of its own on one process, prepared."""
    return prepare_step(task, model, [batch], World(device=device), precision)


def compute_batch_losses(
    task: Task, model: nn.Module, batch: Batch, device: torch.device, precision: Precision = _FLOAT32
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """Loss sums and counts of one batch as a step of its own on one process."""
    step = single_batch_step(task, model, batch, device, precision)
    return step.loss_sums(model), step.counts


def divide_by_count(total: Tensor, count: Tensor) -> Tensor:
    """The sum over everything divided by the count of everything, or by 1 where nothing was counted."""
    divisor = count.to(total.device)
    return total / torch.where(divisor > 0, divisor, torch.ones_like(divisor)).to(total.dtype)


def weighted_sum(means: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The loss that training minimises, of the means of its terms."""
    return torch.stack([weights[name] * value for name, value in means.items()]).sum()
