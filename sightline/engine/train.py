"""Training step: prepare, forward, backward, clip, update. Only this module changes weights."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sightline.contract.errors import RunError
from sightline.contract.loss import bad_count_error
from sightline.contract.task import Task
from sightline.contract.types import Batch, LinearRamp
from sightline.engine.batches.stream import BatchStream
from sightline.engine.device.numerics import Precision
from sightline.engine.device.transfer import PhaseTimer
from sightline.engine.distributed import World
from sightline.engine.gradients import clip_gradients, module_gradient_norms
from sightline.engine.learnt_losses import LearntLosses, combine_modules
from sightline.engine.optimizers import FrozenModules, apply_freezing, set_momentum
from sightline.engine.queued_step import Gate, Key, QueuedStep, read_values
from sightline.engine.schedules import Schedule
from sightline.engine.step import divide, prepare_trained_step, weighted_sum
from sightline.engine.step_graph import StepGraphs
from sightline.ops.waits import deferred_checks, is_on_host, require


class StepWatch(Protocol):
    """Interface of a step monitor; steps it does not ask for may be replayed from a CUDA graph."""

    @property
    def is_asked(self) -> bool:
        """True if the monitor measures the next step, which then cannot be replayed."""

    def pass_over(self) -> AbstractContextManager[None]:
        """Return a context for a step that the monitor counts, but does not measure."""

    def ask(self, step: int) -> None:
        """Measure the step that follows `step` finished ones: one that failed unmeasured is computed again."""


@dataclass
class TrainState:
    """Training state: model, losses, optimiser, scaler, EMA and the number of finished steps (`step`).

    `losses` are the task's losses with parameters; `losses_ema` is their EMA, as `ema` is the model's. `num_skipped` of
    the steps changed nothing, as fp16's loss scale was too large: they do not advance the schedule.
    """

    model: nn.Module
    task: Task
    optimizer: torch.optim.Optimizer
    schedule: Any
    stream: BatchStream
    num_steps: int
    loss_weights: Mapping[str, float | LinearRamp]
    precision: Precision = field(default_factory=lambda: Precision("float32"))
    clip_norm: float | None = None
    frozen: tuple[FrozenModules, ...] = ()
    ema_decay: float | None = None
    ema: nn.Module | None = None
    losses: LearntLosses = field(default_factory=LearntLosses)
    losses_ema: LearntLosses | None = None
    compile: bool = False
    logs_gradients: bool = False
    graph: str = "off"
    finishes_on_device: bool = False
    graphs: StepGraphs | None = None
    watch: StepWatch | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    step: int = 0
    num_skipped: int = 0

    def __post_init__(self) -> None:
        self.scaler = self.precision.scaler(self.device)
        if self.ema_decay is not None and self.ema is None:
            self.ema = copy.deepcopy(self.model).requires_grad_(False)
            self.losses_ema = copy.deepcopy(self.losses).requires_grad_(False)

    @cached_property
    def gate(self) -> Gate | None:
        """Gate by which a device skips an update by itself; None where the host decides.

        The host decides on a CPU, and where the loss is scaled (fp16): it repeats a step with a smaller scale.
        """
        is_free = is_on_host(torch.empty(0, device=self.device))
        return None if is_free or self.scaler.is_enabled() else Gate(self.device, len(self.optimizer.param_groups))

    @property
    def epoch(self) -> int:
        """The epoch of the next step, counted from 0."""
        return self.stream.plan.compute_epoch(self.step)

    def loss_weights_at(self, step: int) -> dict[str, float]:
        """Return the weight of each loss at a step, counted from 0."""
        steps_per_epoch = self.stream.plan.steps_per_epoch
        return {
            n: w.value_at(step, steps_per_epoch=steps_per_epoch) if isinstance(w, LinearRamp) else w
            for n, w in self.loss_weights.items()
        }

    @property
    def trained_module(self) -> nn.Module:
        """Everything that an optimiser may train, as one module: the model, and losses with parameters."""
        return combine_modules(self.model, self.losses)

    @property
    def evaluation_model(self) -> nn.Module:
        """The model to evaluate: the EMA of the weights, if there is one."""
        return self.model if self.ema is None else self.ema


def train_step(
    job: TrainState,
    network: nn.Module,
    micro_batches: Sequence[Batch],
    world: World,
    clock: PhaseTimer,
) -> QueuedStep:
    """Run one optimiser step, as `queue_step` does, and read its numbers."""
    return read_steps(job, [queue_step(job, network, micro_batches, world, clock)])[0]


def queue_step(
    job: TrainState,
    network: nn.Module,
    micro_batches: Sequence[Batch],
    world: World,
    clock: PhaseTimer,
    *,
    stop_requested: bool = False,
    meanwhile: Callable[[PhaseTimer], None] | None = None,
    graphs: StepGraphs | None = None,
    finish: Callable[[Batch], Batch] | None = None,
) -> QueuedStep:
    """Queue one optimiser step; results do not depend on the split into micro-batches and processes.

    Weights change only if all numbers of the step are finite and its checks hold: on a device by its own decision where
    the job has a gate, which also skips the steps after a failed one; else the host reads the numbers here. `meanwhile`
    is called when the step is queued, before the host waits for its numbers. `finish` is what is left to do with each
    micro-batch, on the device.
    """
    rates = _set_rates(job)
    num_samples = sum(len(batch["sample_index"]) for batch in micro_batches)
    host: dict[str, float] = {Key.SAMPLES: float(num_samples), Key.STOP: float(stop_requested)}
    has_state = bool(job.optimizer.state)

    def work(batches: Sequence[Batch]) -> QueuedStep:
        _begin_step(job)
        is_free = is_on_host(torch.empty(0, device=job.device))
        with contextlib.nullcontext(()) if is_free else deferred_checks() as checks:
            finished = [*batches] if finish is None else [*map(finish, batches)]
            deciding, reported = _compute_numbers(job, network, finished, world, clock, host if world.size > 1 else {})
            host_numbers = {} if is_free else _pop_host_numbers(deciding) | _pop_host_numbers(reported)
            queued = QueuedStep.pack(
                deciding, reported, host_numbers=host_numbers, checks=tuple(checks), micro_batches=finished
            )
        if job.gate is not None:
            job.gate.close_unless_finite(queued.deciding)
            _update(job, job.gate)
        return queued

    if graphs is None or graphs.reason or (job.watch is not None and job.watch.is_asked):
        queued = work(micro_batches)
    else:
        weights = tuple(job.loss_weights_at(job.step).values())
        is_frozen = tuple(job.epoch < entry.get("until_epoch", job.epoch + 1) for entry in job.frozen)
        with contextlib.nullcontext() if job.watch is None else job.watch.pass_over():
            queued = graphs.run((weights, is_frozen), micro_batches, work, _StepState(job))
        clock.end_phase("forward" if queued.is_released else "optimise")
    queued.step, queued.epoch, queued.lr, queued.has_state = job.step, job.epoch, max(rates), has_state
    queued.samples = [batch["sample_index"] for batch in micro_batches]
    if world.size == 1:
        queued.host_numbers = {**queued.host_numbers, **host}
    if meanwhile is not None:
        meanwhile(clock)
    if job.gate is None:
        read_values([queued])
        _raise_failure(job, queued)
        is_skipped = not math.isfinite(queued.grad_norm)
        _update(job, None, is_averaged=not is_skipped)
        job.num_skipped += is_skipped
    clock.end_phase("optimise")
    return queued


def _pop_host_numbers(numbers: dict[str, Tensor]) -> dict[str, float]:
    """Remove the numbers that lie on the host, and return their values."""
    names = [name for name, number in numbers.items() if is_on_host(number)]
    return {name: numbers.pop(name).item() for name in names}


class _StepState:
    """Tensors that a step of a job changes, which a CUDA graph of the step has to restore or to keep still."""

    def __init__(self, job: TrainState) -> None:
        self._job = job

    def list_moved(self) -> list[Tensor]:
        """List the weights and their averages: what stays as it is where rates are 0."""
        job = self._job
        modules = [module for module in (job.model, job.losses, job.ema, job.losses_ema) if module is not None]
        return [tensor for module in modules for tensor in module.parameters()]

    def list_all(self) -> list[Tensor]:
        """List all tensors that a step changes: with buffers, states of the optimiser, and the gate."""
        job = self._job
        modules = [module for module in (job.model, job.losses, job.ema, job.losses_ema) if module is not None]
        buffers = [tensor for module in modules for tensor in module.buffers()]
        states = [v for state in job.optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
        return [*self.list_moved(), *buffers, *states, *([] if job.gate is None else [job.gate.is_closed])]

    def stilled(self) -> AbstractContextManager[None]:
        """Return a context in which rates are 0."""
        assert self._job.gate is not None
        return self._job.gate.stilled()


def read_steps(job: TrainState, steps: Sequence[QueuedStep]) -> list[QueuedStep]:
    """Read the numbers of queued steps, in one transfer; return those before the first that failed and is released.

    Raises the error of one that has its checks, with `job.step` as it was before that step, like the weights.
    """
    if job.gate is None:  # read as they were queued
        return [*steps]
    read_values(steps)
    for index, queued in enumerate(steps):
        if not queued.is_sound:
            job.gate.open()
            job.step = queued.step
            if not queued.has_state:
                job.optimizer.state.clear()  # made by the step that failed
            if queued.is_released:
                return [*steps[:index]]
        _raise_failure(job, queued)
    return [*steps]


def _compute_numbers(
    job: TrainState,
    network: nn.Module,
    micro_batches: Sequence[Batch],
    world: World,
    clock: PhaseTimer,
    host: Mapping[str, float],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Compute gradients and the numbers of the step (0-d), with those of the host summed over processes.

    The first mapping decides whether the step counts: means of losses, their divisors, and the norm of the gradient.
    The second is only reported.
    """
    trained = job.trained_module
    step = prepare_trained_step(job.task, job.model, network, micro_batches, world, job.precision)
    clock.end_phase("prepare")
    for name, count in step.counts.items():
        if not is_on_host(count):
            require(count >= 0, partial(bad_count_error, name, count))
    weights = job.loss_weights_at(job.step)
    sums: dict[str, Tensor] = {}
    for index in range(len(micro_batches)):
        is_last = index == len(micro_batches) - 1
        terms = step.loss_sums(network, index)
        loss = weighted_sum(step.loss_means(terms), weights)
        clock.end_phase("forward")
        if not loss.requires_grad:
            raise RunError(
                f"step {job.step}: no loss ({', '.join(terms)}) depends on weights that train; look for detach(), "
                "no_grad, argmax or whole numbers in the model's forward and in the losses, or for a frozen model"
            )
        with world.reduce_gradients(trained, is_last_micro_batch=is_last):
            job.scaler.scale(loss).backward()
            clock.end_phase("backward")
        for name, term in terms.items():
            total = term.detach().double()
            sums[name] = sums[name] + total if name in sums else total
    if world.size > 1:
        clock.end_phase("reduce")
    for parameter in apply_freezing(trained, job.frozen, job.epoch):
        parameter.grad = None
    job.scaler.unscale_(job.optimizer)
    gradients = module_gradient_norms(trained) if job.logs_gradients else {}
    norm = clip_gradients(trained, job.clip_norm)
    counts = job.task.step_counts(step.contexts)
    extra = {**host, **{Key.COUNT + name: count for name, count in counts.items()}}
    totals = world.all_reduce_sum(
        sums | {name: torch.as_tensor(number).double() for name, number in extra.items()}, operation="losses"
    )
    means = {name: divide(totals[name], step.divisors[name]) for name in sums}
    deciding = {
        **{Key.MEAN + name: mean for name, mean in means.items()},
        **{Key.DIVISOR + name: step.counts[name] for name in means},
        Key.NORM: norm,
    }
    reported = {name: total for name, total in totals.items() if name not in sums}
    return deciding, reported | {Key.GRADIENT + path: gradient for path, gradient in gradients.items()}


def _update(job: TrainState, gate: Gate | None, *, is_averaged: bool = True) -> None:
    """Let the optimiser and the averages of weights take a step, unless the gate is closed."""
    with contextlib.nullcontext() if gate is None else gate.guard(job.optimizer):
        job.scaler.step(job.optimizer)
    job.scaler.update()
    if is_averaged and job.ema is not None and job.ema_decay is not None:
        decay = compute_ema_decay(job.ema_decay, job.step)
        update_ema(job.ema, job.model, decay, gate)
        if job.losses_ema is not None:
            update_ema(job.losses_ema, job.losses, decay, gate)


def _raise_failure(job: TrainState, queued: QueuedStep) -> None:
    """Raise the error of a step that was read, if a check failed, a count is invalid, or a number is not finite."""
    if queued.failed_check is not None:
        raise queued.failed_check.make_error()
    for name, divisor in queued.divisors.items():
        if not 0 <= divisor < math.inf:
            raise bad_count_error(name, divisor)
    losses, norm = queued.losses, queued.grad_norm
    is_finite = all(map(math.isfinite, (norm, *losses.values())))
    if not is_finite and not _may_be_skipped(job, losses.values()):
        raise NonFiniteGradientError(job, queued.micro_batches, losses, norm)


def _begin_step(job: TrainState) -> None:
    """Set training mode and freezing of a step, and clear the gradients."""
    job.model.train()
    job.losses.train()
    apply_freezing(job.trained_module, job.frozen, job.epoch)
    job.optimizer.zero_grad(set_to_none=True)


def _set_rates(job: TrainState) -> list[float]:
    """Set the learning rates of a step, and return them; and the momenta, if the schedule has them."""
    step = job.step - job.num_skipped
    factor = job.schedule(step)
    momentum = job.schedule.momentum(step) if isinstance(job.schedule, Schedule) else None
    for group in job.optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
        if momentum is not None:
            set_momentum(group, momentum)
    rates = [group["lr"] for group in job.optimizer.param_groups]
    if job.gate is not None:
        job.gate.set_numbers(rates, 0.0 if job.ema_decay is None else 1.0 - compute_ema_decay(job.ema_decay, job.step))
    return rates


def _may_be_skipped(job: TrainState, losses: Iterable[float]) -> bool:
    """Return True if a non-finite gradient only shows that fp16's loss scale is still too large.

    The step then changes nothing and the scale is halved; a loss that is not finite itself, or a gradient that stays so
    down to a scale of 1, is not due to the scale. Source: Micikevicius et al. 2018, section 3.2.
    """
    return job.scaler.is_enabled() and job.scaler.get_scale() > 1.0 and all(map(math.isfinite, losses))


class NonFiniteGradientError(RunError):
    """Error for a gradient or a loss that is not finite: weights are unchanged, and the step can be repeated.

    `losses` are the step's mean losses.
    """

    def __init__(
        self, job: TrainState, micro_batches: Sequence[Batch], losses: Mapping[str, float], grad_norm: float
    ) -> None:
        self.job = job
        self.micro_batches = micro_batches
        self.losses = losses
        values = ", ".join(f"{name} {value:g}" for name, value in losses.items())
        super().__init__(
            f"step {job.step}: the gradient's norm is {grad_norm} (losses: {values}); the weights are unchanged"
        )


def compute_ema_decay(decay: float, step: int) -> float:
    """Compute the decay of the EMA at a step, counted from 0: at most (1 + step) / (10 + step).

    Without this limit, the average of a short training would consist mostly of the random weights that it began with:
    after 200 steps at a decay of 0.998, of 67 %. Source: TensorFlow's ExponentialMovingAverage, `num_updates`.
    """
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update_ema(average: nn.Module, model: nn.Module, decay: float, gate: Gate | None = None) -> None:
    """Update the EMA: average <- decay * average + (1 - decay) * model for parameters; buffers are copied.

    With a gate, its share stands in place of 1 - decay: all stays as it is while it is closed.
    """
    averaged: list[Tensor] = list(average.parameters())
    if averaged and gate is None:
        torch._foreach_lerp_(averaged, list(model.parameters()), 1.0 - decay)
    elif averaged:
        assert gate is not None
        moves = torch._foreach_sub(list(model.parameters()), averaged)
        torch._foreach_mul_(moves, gate.share)
        torch._foreach_add_(averaged, moves)
    buffers, averages = dict(model.named_buffers(remove_duplicate=False)), {}
    for name, buffer in average.named_buffers(remove_duplicate=False):
        if name in buffers:  # a buffer that is made at a module's first call is not yet in both
            averages[name] = buffer.resize_(buffers[name].shape)  # a cache may have grown with its batch
    sources = [buffers[name] for name in averages]
    if gate is not None:
        gate.copy([*averages.values()], sources)
    elif averages:
        torch._foreach_copy_([*averages.values()], sources)
