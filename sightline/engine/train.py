"""Training loop: read, prepare, forward, backward, clip, step, record. Only this module changes weights."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sightline.contract.errors import RunError, join_some
from sightline.contract.loss import bad_count_error
from sightline.contract.members import TaskMembers
from sightline.contract.types import Batch, LinearRamp
from sightline.engine.batch_stream import BatchStream
from sightline.engine.device import BatchTransfer, CopyStream, PhaseTimer, Precision
from sightline.engine.device_data import DeviceData, find_device_data
from sightline.engine.distributed import World
from sightline.engine.learnt_losses import LearntLosses, combine_modules, module_gradient_norms
from sightline.engine.optimizers import FrozenModules, apply_freezing
from sightline.engine.queued_step import Gate, QueuedStep, RandomStates, pack_numbers, read_values
from sightline.engine.records import StepRecord
from sightline.engine.step import StepTimer, Task, divide_by_count, prepare_step, weighted_sum
from sightline.engine.step_graph import StepGraphs, StepValues
from sightline.ops.waits import deferred_checks, is_free_to_read, require

logger = logging.getLogger(__name__)

_SAMPLES, _STOP, _COUNT_PREFIX = "(samples)", "(stop)", "(tally) "
"""Keys of further sums in the collective of the losses; no loss can have such a name."""
_NORM, _MEAN_PREFIX, _DIVISOR_PREFIX, _GRADIENT_PREFIX = "(norm)", "(mean) ", "(count) ", "(gradient) "
"""Keys of the numbers that a step reads besides these sums."""
_MAX_LISTED = 6


class StepWatch(Protocol):
    """Interface of what looks at steps: those that it asks for are computed, others may be replayed unseen."""

    @property
    def is_asked(self) -> bool: ...

    def pass_over(self) -> AbstractContextManager[None]: ...


@dataclass
class TrainState:
    """Training state: model, losses, optimiser, scaler, EMA and the number of finished steps (`step`).

    `losses` are the task's losses with parameters; `losses_ema` is their EMA, as `ema` is the model's.
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

    def __post_init__(self) -> None:
        self.scaler = self.precision.scaler(self.device)
        if self.ema_decay is not None and self.ema is None:
            self.ema = copy.deepcopy(self.model).requires_grad_(False)
            self.losses_ema = copy.deepcopy(self.losses).requires_grad_(False)

    @cached_property
    def gate(self) -> Gate | None:
        """Gate of a device that skips an update by itself; None where the host decides.

        It does on a CPU, and where the loss is scaled: a smaller scale repeats a step.
        """
        is_free = is_free_to_read(torch.empty(0, device=self.device))
        return None if is_free or self.scaler.is_enabled() else Gate(self.device, len(self.optimizer.param_groups))

    @property
    def epoch(self) -> int:
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


@dataclass(frozen=True)
class StepTotals:
    """Results of one optimiser step over all processes.

    `losses` are means by name, `counts` sums of the task's `step_counts`, `gradient_norms` norms by module path if they
    are logged. `stop_requested` is True if any process requested a stop. `uncounted` are losses whose count is 0.
    """

    losses: Mapping[str, float]
    grad_norm: float
    lr: float
    num_samples: int
    stop_requested: bool
    counts: Mapping[str, float]
    gradient_norms: Mapping[str, float]
    uncounted: frozenset[str]


class StepCallback(Protocol):
    """Callback after every step, on every process alike: evaluates, saves, or ends the run (returns True)."""

    def __call__(self, record: StepRecord, stop_asked: bool) -> bool: ...


def train(
    job: TrainState,
    world: World,
    on_step_end: StepCallback,
    stop: Any = None,
    is_read_after: Callable[[int], bool] = lambda step: True,
) -> None:
    """Run optimiser steps from `job.step` to `job.num_steps`, or until `on_step_end` returns true.

    A device whose host would have to wait is asked for numbers after the steps for which `is_read_after`, of the number
    of finished steps, is True; then come the records of all steps before, in their order. Each step is read on a CPU,
    with several processes, and under fp16.

    Raises RunError if a loss or a gradient is not finite; the weights are then still those of the step before.
    """
    replica = world.broadcast_weights(job.model)
    if job.losses:
        world.broadcast_weights(job.losses)
    if job.compile:
        replica = torch.compile(replica)  # type: ignore[assignment]
    started, all_counted = time.perf_counter(), set(job.loss_weights)
    can_wait = job.gate is not None and world.size == 1
    job.graphs = _make_graphs(job, world)
    data = _find_device_data(job)
    open_steps: list[tuple[QueuedStep, RandomStates | None]] = []
    with contextlib.closing(data.stream.iterate(job.step, job.num_steps)) as steps:
        copies = CopyStream(world.device) if world.device.type == "cuda" else None
        batches = BatchTransfer(steps, world.device, job.precision.parameter_dtype, copies)
        while job.step < job.num_steps:
            clock = StepTimer(job.task, remainder="loss")
            micro_batches = batches.receive(clock)
            states = RandomStates.read(job.device) if can_wait else None
            queued = queue_step(
                job,
                replica,
                micro_batches,
                world,
                clock,
                stop_requested=bool(stop),
                meanwhile=batches.read_ahead,
                graphs=job.graphs,
                finish=data.finish,
            )
            job.step += 1
            queued.seconds, queued.wall_s = clock.seconds, time.perf_counter() - started
            open_steps.append((queued, states))
            if can_wait and not stop and job.step < job.num_steps and not is_read_after(job.step):
                queued.forget()
                continue
            all_totals = _read_open(job, replica, world, open_steps, data)
            for (each, _), totals in zip(open_steps, all_totals, strict=True):
                if uncounted := all_counted & totals.uncounted:
                    all_counted -= uncounted
                    world.rank_zero_only(_warn_of_uncounted)(each, sorted(uncounted), world.size)
                if on_step_end(_record(job, each, totals, world.size), totals.stop_requested):
                    return
            open_steps.clear()


def _make_graphs(job: TrainState, world: World) -> StepGraphs | None:
    """Return the graphs of a run on a GPU, with the reason if its steps cannot be replayed."""
    if job.device.type != "cuda" or job.graph == "off":
        return None
    hooked = (path for path, module in job.model.named_modules() if _has_own_hooks(module))
    reasons = {
        "several processes": world.size > 1,
        "train.compile": job.compile,
        f"train.precision={job.precision.name}": job.precision.name in ("fp16", "float64"),
        f"a hook of the module '{(hook := next(hooked, None))}'": hook is not None,
    }
    reason = next((reason for reason, holds in reasons.items() if holds), "")
    return StepGraphs(job.device, reason=reason, is_strict=torch.get_deterministic_debug_mode() == 2)


def _has_own_hooks(module: nn.Module) -> bool:
    """Return True for a module with hooks that are not those of a `StepWatch`."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(not getattr(hook, "can_be_suspended", False) for hook in hooks)


def _find_device_data(job: TrainState) -> DeviceData:
    """Return the stream to train on, and what finishes its batches: nothing, if they are finished on the host."""
    is_asked = job.device.type == "cuda" and job.finishes_on_device and job.precision.parameter_dtype == torch.float32
    found = find_device_data(job.stream, job.device, job.step) if is_asked and job.step < job.num_steps else None
    return found or DeviceData(job.stream, lambda batch: batch)


def _read_open(
    job: TrainState,
    network: nn.Module,
    world: World,
    steps: Sequence[tuple[QueuedStep, RandomStates | None]],
    data: DeviceData,
) -> list[StepTotals]:
    """Read steps. One that failed is computed again, from the same weights and draws, and raises its error."""
    try:
        return read_steps(job, [queued for queued, _ in steps])
    except _ForgottenStepError as error:
        failed, states = steps[error.place]
    assert states is not None
    states.restore(job.device)
    with contextlib.closing(data.stream.iterate(failed.step, failed.step + 1)) as again:
        batches = BatchTransfer(again, world.device, job.precision.parameter_dtype, None)
        clock = StepTimer(job.task, remainder="loss")
        read_steps(job, [queue_step(job, network, batches.receive(clock), world, clock, finish=data.finish)])
    raise RunError(
        f"step {failed.step}: a number was not finite, or a check failed; computed again, the step has neither, so its "
        "operations differ from time to time; train.determinism: strict repeats their bits"
    )


def train_step(
    job: TrainState,
    network: nn.Module,
    micro_batches: Sequence[Batch],
    world: World,
    clock: PhaseTimer,
    *,
    stop_requested: bool = False,
    meanwhile: Callable[[PhaseTimer], None] | None = None,
) -> StepTotals:
    """Run one optimiser step, as `queue_step` does, and read its numbers."""
    queued = queue_step(job, network, micro_batches, world, clock, stop_requested=stop_requested, meanwhile=meanwhile)
    return read_steps(job, [queued])[0]


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
    finished: list[Batch] = []
    host = {_SAMPLES: float(sum(len(batch["sample_index"]) for batch in micro_batches)), _STOP: float(stop_requested)}

    def work(batches: Sequence[Batch]) -> StepValues:
        _begin_step(job)
        is_free = is_free_to_read(torch.empty(0, device=job.device))
        with contextlib.nullcontext(()) if is_free else deferred_checks() as checks:
            finished[:] = batches if finish is None else map(finish, batches)
            numbers, known = _compute_numbers(job, network, finished, world, clock, host if world.size > 1 else {})
            names, values = pack_numbers(numbers, [check.holds for check in checks])
        if job.gate is not None:
            job.gate.close_unless_finite(values)
            _update(job, job.gate)
        return StepValues(names, values, known, tuple(checks))

    if graphs is None or graphs.reason or (job.watch is not None and job.watch.is_asked):
        result, is_replayed = work(micro_batches), False
    else:
        weights = tuple(job.loss_weights_at(job.step).values())
        is_frozen = tuple(job.epoch < entry.get("until_epoch", job.epoch + 1) for entry in job.frozen)
        with contextlib.nullcontext() if job.watch is None else job.watch.pass_over():
            result, is_replayed = graphs.run((weights, is_frozen), micro_batches, work, partial(_list_state, job))
        clock.end_phase("forward" if is_replayed else "optimise")
    queued = QueuedStep(
        step=job.step,
        epoch=job.epoch,
        lr=max(rates),
        names=result.names,
        values=result.values,
        known={**result.known, **(host if world.size == 1 else {})},
        micro_batches=micro_batches if is_replayed else [*finished],
        checks=result.checks,
        is_forgotten=is_replayed,
    )
    if meanwhile is not None:
        meanwhile(clock)
    if job.gate is None:
        queued.totals = _judge(job, queued, result.values.tolist())
        _update(job, None, is_averaged=math.isfinite(queued.totals.grad_norm))
    clock.end_phase("optimise")
    return queued


def _list_state(job: TrainState) -> list[Tensor]:
    """List the tensors that a step changes: weights, buffers, and those of the optimiser, the averages and the gate."""
    modules = [module for module in (job.model, job.losses, job.ema, job.losses_ema) if module is not None]
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    states = [value for state in job.optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return [*tensors, *states, *([] if job.gate is None else [job.gate.is_closed])]


def read_steps(job: TrainState, steps: Sequence[QueuedStep]) -> list[StepTotals]:
    """Read the numbers of queued steps, in one transfer.

    Raises the error of the first that failed, with `job.step` as it was before that step, like the weights.
    """
    if job.gate is None:
        return [queued.totals for queued in steps if queued.totals is not None]
    totals = []
    for place, (queued, values) in enumerate(zip(steps, read_values(steps), strict=True)):
        if not all(map(math.isfinite, values)):
            job.gate.open()
            job.step = queued.step
            if queued.is_forgotten:
                raise _ForgottenStepError(place)
        totals.append(_judge(job, queued, values))
    return totals


class _ForgottenStepError(Exception):
    """Error for a failed step, at a place among those that are read, whose checks were forgotten."""

    def __init__(self, place: int) -> None:
        super().__init__(place)
        self.place = place


def _compute_numbers(
    job: TrainState,
    network: nn.Module,
    micro_batches: Sequence[Batch],
    world: World,
    clock: PhaseTimer,
    host: Mapping[str, float],
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Compute gradients and the numbers of the step (0-d), with those of the host summed over processes.

    Numbers that the host knows beside a device are returned by themselves.
    """
    trained = job.trained_module
    step = prepare_step(job.task, job.model, micro_batches, world, job.precision)
    clock.end_phase("prepare")
    for name, count in step.counts.items():
        if not is_free_to_read(count):
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
            sums[name] = sums.get(name, 0.0) + term.detach().double()
    if world.size > 1:
        clock.end_phase("reduce")
    for parameter in apply_freezing(trained, job.frozen, job.epoch):
        parameter.grad = None
    job.scaler.unscale_(job.optimizer)
    gradients = module_gradient_norms(trained) if job.logs_gradients else {}
    norm = _clip_gradients(trained, job.clip_norm)
    step_counts = TaskMembers.step_counts.get(job.task)
    counts = {} if step_counts is None else step_counts(step.contexts)
    extra = {**host, **{_COUNT_PREFIX + name: count for name, count in counts.items()}}
    totals = world.all_reduce_sum(
        sums | {name: torch.as_tensor(number).double() for name, number in extra.items()}, operation="losses"
    )
    means = {name: divide_by_count(totals[name], step.counts[name]) for name in sums}
    numbers = {
        **{name: total for name, total in totals.items() if name not in sums},
        **{_MEAN_PREFIX + name: mean for name, mean in means.items()},
        **{_DIVISOR_PREFIX + name: step.counts[name] for name in means},
        **{_GRADIENT_PREFIX + path: gradient for path, gradient in gradients.items()},
        _NORM: norm,
    }
    is_known = {name for name, number in numbers.items() if is_free_to_read(number) and not is_free_to_read(norm)}
    on_device = {name: number.detach() for name, number in numbers.items() if name not in is_known}
    return on_device, {name: numbers[name].item() for name in is_known}


def _clip_gradients(trained: nn.Module, max_norm: float | None) -> Tensor:
    """Return the norm of the gradient (0-d), which is scaled to at most `max_norm`."""
    if max_norm is not None:
        return nn.utils.clip_grad_norm_(trained.parameters(), max_norm)
    return nn.utils.get_total_norm([p.grad for p in trained.parameters() if p.grad is not None])


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


def _judge(job: TrainState, queued: QueuedStep, values: Sequence[float]) -> StepTotals:
    """Return the totals of a step whose numbers were read. Raises the error of the first check that does not hold."""
    for check, value in zip(queued.checks, values[len(queued.names) :], strict=not queued.is_forgotten):
        if value:
            raise check.make_error()
    numbers = {**queued.known, **dict(zip(queued.names, values, strict=False))}

    def select(prefix: str) -> dict[str, float]:
        return {name.removeprefix(prefix): value for name, value in numbers.items() if name.startswith(prefix)}

    losses, divisors = select(_MEAN_PREFIX), select(_DIVISOR_PREFIX)
    for name, divisor in divisors.items():
        if not 0 <= divisor < math.inf:
            raise bad_count_error(name, divisor)
    is_finite = all(map(math.isfinite, (numbers[_NORM], *losses.values())))
    if not is_finite and not _may_be_skipped(job, losses.values()):
        raise NonFiniteGradientError(job, queued.micro_batches, losses, numbers[_NORM])
    return StepTotals(
        losses=losses,
        grad_norm=numbers[_NORM],
        lr=queued.lr,
        num_samples=int(numbers[_SAMPLES]),
        stop_requested=numbers[_STOP] > 0,
        counts=select(_COUNT_PREFIX),
        gradient_norms=select(_GRADIENT_PREFIX),
        uncounted=frozenset(name for name, divisor in divisors.items() if divisor == 0),
    )


def _begin_step(job: TrainState) -> None:
    """Set training mode and freezing of a step, and clear the gradients."""
    job.model.train()
    job.losses.train()
    apply_freezing(job.trained_module, job.frozen, job.epoch)
    job.optimizer.zero_grad(set_to_none=True)


def _set_rates(job: TrainState) -> list[float]:
    """Set the learning rates of a step, and return them."""
    factor = job.schedule(job.step)
    for group in job.optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    rates = [group["lr"] for group in job.optimizer.param_groups]
    if job.gate is not None:
        job.gate.set_rates(rates)
    return rates


def _warn_of_uncounted(queued: QueuedStep, losses: Sequence[str], num_processes: int) -> None:
    samples = [str(index) for each in queued.samples for index in each.tolist()]
    logger.warning(
        "nothing-counted: the count of %s is 0 at step %d (samples %s%s), so that its sum is divided by 1; a loss that "
        "labels alone make is 0 there: look for labels that are all ignored, images without boxes, hidden joints, a "
        "batch of a single pair; further steps are not reported",
        *(join_some(losses, most=_MAX_LISTED), queued.step + 1, join_some(samples, most=_MAX_LISTED)),
        f" on the first of {num_processes} processes" if num_processes > 1 else "",
        extra={"code": "nothing-counted"},
    )


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

    Parameters stay as they are while the gate is closed.
    """
    averaged: list[Tensor] = list(average.parameters())
    if averaged and gate is None:
        torch._foreach_lerp_(averaged, list(model.parameters()), 1.0 - decay)
    elif averaged:
        assert gate is not None
        moves = torch._foreach_sub(list(model.parameters()), averaged)
        torch._foreach_mul_(moves, (1.0 - decay) * (1.0 - gate.is_closed))
        torch._foreach_add_(averaged, moves)
    buffers, averages = dict(model.named_buffers(remove_duplicate=False)), {}
    for name, buffer in average.named_buffers(remove_duplicate=False):
        if name in buffers:  # a buffer that is made at a module's first call is not yet in both
            averages[name] = buffer.resize_(buffers[name].shape)  # a cache may have grown with its batch
    if averages:
        torch._foreach_copy_(list(averages.values()), [buffers[name] for name in averages])


def _record(job: TrainState, queued: QueuedStep, totals: StepTotals, num_processes: int) -> StepRecord:
    losses = {name: totals.losses[name] for name in job.loss_weights}
    step_metrics = TaskMembers.step_metrics.get(job.task)
    metrics = {} if step_metrics is None else step_metrics(losses, totals.num_samples, num_processes)
    weights = job.loss_weights_at(queued.step)
    losses["total"] = sum(weights[name] * value for name, value in losses.items())
    gradients = {f"gradient/{path}": norm for path, norm in totals.gradient_norms.items()}
    ramps = {
        f"weight/{name}": weights[name] for name, weight in job.loss_weights.items() if isinstance(weight, LinearRamp)
    }
    return StepRecord(
        step=queued.step + 1,
        num_steps=job.num_steps,
        epoch=queued.epoch,
        num_epochs=-(-job.num_steps // job.stream.plan.steps_per_epoch),
        num_samples=totals.num_samples,
        losses=losses,
        grad_norm=totals.grad_norm,
        lr=totals.lr,
        seconds=queued.seconds,
        wall_s=queued.wall_s,
        extra_scalars={**metrics, **totals.counts, **ramps, **gradients},
    )
