"""Training loop: read, prepare, forward, backward, clip, step, record. Only this module changes weights."""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sightline.contract.errors import RunError, join_some
from sightline.contract.loss import bad_count_error
from sightline.contract.members import TaskMembers
from sightline.contract.types import Batch, LinearRamp
from sightline.engine.batch_stream import BatchStream
from sightline.engine.device import BatchTransfer, CopyStream, PhaseTimer, Precision
from sightline.engine.distributed import World
from sightline.engine.learnt_losses import LearntLosses, combine_modules, module_gradient_norms
from sightline.engine.optimizers import FrozenModules, apply_freezing
from sightline.engine.records import StepRecord
from sightline.engine.step import StepTimer, Task, divide_by_count, prepare_step, weighted_sum
from sightline.ops.waits import DeviceCheck, RepeatStepError, deferred_checks, is_free_to_read, send

logger = logging.getLogger(__name__)

_SAMPLES, _STOP, _RARE, _COUNT_PREFIX = "(samples)", "(stop)", "(rare cases)", "(tally) "
"""Keys of further sums in the collective of the losses; no loss can have such a name."""
_NORM, _MEAN_PREFIX, _DIVISOR_PREFIX, _GRADIENT_PREFIX = "(norm)", "(mean) ", "(count) ", "(gradient) "
"""Keys of the numbers that a step reads besides these sums."""
_MAX_LISTED = 6


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
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    step: int = 0

    def __post_init__(self) -> None:
        self.scaler = self.precision.scaler(self.device)
        if self.ema_decay is not None and self.ema is None:
            self.ema = copy.deepcopy(self.model).requires_grad_(False)
            self.losses_ema = copy.deepcopy(self.losses).requires_grad_(False)

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


def train(job: TrainState, world: World, on_step_end: StepCallback, stop: Any = None) -> None:
    """Run optimiser steps from `job.step` to `job.num_steps`, or until `on_step_end` returns true.

    Raises RunError if a loss or a gradient is not finite; the weights are then still those of the step before.
    """
    replica = world.broadcast_weights(job.model)
    if job.losses:
        world.broadcast_weights(job.losses)
    if job.compile:
        replica = torch.compile(replica)  # type: ignore[assignment]
    started, all_counted = time.perf_counter(), set(job.loss_weights)
    with contextlib.closing(job.stream.iterate(job.step, job.num_steps)) as steps:
        copies = CopyStream(world.device) if world.device.type == "cuda" else None
        batches = BatchTransfer(steps, world.device, job.precision.parameter_dtype, copies)
        while job.step < job.num_steps:
            clock = StepTimer(job.task, remainder="loss")
            micro_batches = batches.receive(clock)
            epoch = job.epoch
            totals = train_step(
                job, replica, micro_batches, world, clock, stop_requested=bool(stop), meanwhile=batches.read_ahead
            )
            job.step += 1
            if uncounted := all_counted & totals.uncounted:
                all_counted -= uncounted
                world.rank_zero_only(_warn_of_uncounted)(job.step, sorted(uncounted), micro_batches, world.size)
            record = _record(job, totals, epoch, clock, time.perf_counter() - started, world.size)
            if on_step_end(record, totals.stop_requested):
                return


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
    """Run one optimiser step; results do not depend on the split into micro-batches and processes.

    `meanwhile` is called when the step is queued, before the host waits for its numbers.

    On a device that the host would have to wait for, the step is computed as if no rare case occurred (`waits.expect`),
    and again if one did, on all processes and from the same state. fp16 waits for those cases, since its scaler cannot
    repeat a step.
    """
    arguments = (job, network, micro_batches, world, clock, stop_requested, meanwhile)
    if is_free_to_read(torch.empty(0, device=job.device)):
        return _compute_step(*arguments, checks=None)
    if job.scaler.is_enabled():
        with deferred_checks(is_repeatable=False) as checks:
            return _compute_step(*arguments, checks=checks)
    buffers = list(job.trained_module.buffers())
    stored = _clone_all(buffers)
    cuda = [job.device] if job.device.type == "cuda" else []
    random_states = torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in cuda]
    try:
        with deferred_checks() as checks:
            return _compute_step(*arguments, checks=checks)
    except RepeatStepError:
        for buffer, values in zip(buffers, stored, strict=True):
            buffer.copy_(values)
        torch.set_rng_state(random_states[0])
        for device, state in zip(cuda, random_states[1], strict=True):
            torch.cuda.set_rng_state(state, device)
    return _compute_step(*arguments, checks=None)


def _clone_all(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Clone tensors of any shapes in a few operations of all of one format, not in one for each."""
    clones = [torch.empty_like(tensor) for tensor in tensors]
    for dtype in {tensor.dtype for tensor in tensors}:
        places = [place for place, tensor in enumerate(tensors) if tensor.dtype == dtype]
        torch._foreach_copy_([clones[place] for place in places], [tensors[place] for place in places])
    return clones


def _compute_step(
    job: TrainState,
    network: nn.Module,
    micro_batches: Sequence[Batch],
    world: World,
    clock: PhaseTimer,
    stop_requested: bool,
    meanwhile: Callable[[PhaseTimer], None] | None,
    *,
    checks: Sequence[DeviceCheck] | None,
) -> StepTotals:
    trained = job.trained_module
    _begin_step(job, trained)
    step = prepare_step(job.task, job.model, micro_batches, world, job.precision)
    clock.end_phase("prepare")
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
    grad_norm = nn.utils.clip_grad_norm_(trained.parameters(), job.clip_norm or float("inf"))
    if meanwhile is not None:
        meanwhile(clock)
    sizes = [len(batch["sample_index"]) for batch in micro_batches]
    step_counts = TaskMembers.step_counts.get(job.task)
    counts = {} if step_counts is None else step_counts(step.contexts)
    extra = {_SAMPLES: sum(sizes), _STOP: float(stop_requested)} | {_COUNT_PREFIX + n: c for n, c in counts.items()}
    if checks is not None:
        rare = (~check.holds for check in checks if check.make_error is RepeatStepError)
        extra[_RARE] = sum(rare, torch.zeros((), device=job.device))
    totals = world.all_reduce_sum(
        sums | {name: torch.as_tensor(number).double() for name, number in extra.items()}, operation="losses"
    )
    means = {name: divide_by_count(totals[name], step.counts[name]) for name in sums}
    numbers = _read_numbers(
        {
            **totals,
            **{_MEAN_PREFIX + n: m for n, m in means.items()},
            **{_DIVISOR_PREFIX + n: step.counts[n] for n in means},
            **{_GRADIENT_PREFIX + path: norm for path, norm in gradients.items()},
            _NORM: grad_norm,
        },
        [check for check in checks or () if check.make_error is not RepeatStepError],
    )
    if numbers.get(_RARE):
        raise RepeatStepError
    for name in sums:
        if not 0 <= numbers[_DIVISOR_PREFIX + name] < math.inf:
            raise bad_count_error(name, numbers[_DIVISOR_PREFIX + name])
    is_finite = math.isfinite(numbers[_NORM])
    losses = {name: numbers[_MEAN_PREFIX + name] for name in sums}
    if not (is_finite and all(map(math.isfinite, losses.values()))) and not _may_be_skipped(job, losses.values()):
        raise NonFiniteGradientError(job, micro_batches, losses, numbers[_NORM])
    job.scaler.step(job.optimizer)
    job.scaler.update()
    if is_finite and job.ema is not None and job.ema_decay is not None:
        decay = compute_ema_decay(job.ema_decay, job.step)
        update_ema(job.ema, job.model, decay)
        if job.losses_ema is not None:
            update_ema(job.losses_ema, job.losses, decay)
    clock.end_phase("optimise")
    return StepTotals(
        losses=losses,
        grad_norm=numbers[_NORM],
        lr=max(group["lr"] for group in job.optimizer.param_groups),
        num_samples=int(numbers[_SAMPLES]),
        stop_requested=numbers[_STOP] > 0,
        counts={name: numbers[_COUNT_PREFIX + name] for name in counts},
        gradient_norms={path: numbers[_GRADIENT_PREFIX + path] for path in gradients},
        uncounted=frozenset(name for name in sums if numbers[_DIVISOR_PREFIX + name] == 0),
    )


def _begin_step(job: TrainState, trained: nn.Module) -> None:
    """Set training mode, freezing and learning rates of a step, and clear the gradients."""
    job.model.train()
    job.losses.train()
    apply_freezing(trained, job.frozen, job.epoch)
    factor = job.schedule(job.step)
    for group in job.optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    job.optimizer.zero_grad(set_to_none=True)


def _warn_of_uncounted(step: int, losses: Sequence[str], micro_batches: Sequence[Batch], num_processes: int) -> None:
    samples = [str(index) for batch in micro_batches for index in batch["sample_index"].tolist()]
    logger.warning(
        "nothing-counted: the count of %s is 0 at step %d (samples %s%s), so that its sum is divided by 1; a loss that "
        "labels alone make is 0 there: look for labels that are all ignored, images without boxes, hidden joints, a "
        "batch of a single pair; further steps are not reported",
        *(join_some(losses, most=_MAX_LISTED), step, join_some(samples, most=_MAX_LISTED)),
        f" on the first of {num_processes} processes" if num_processes > 1 else "",
        extra={"code": "nothing-counted"},
    )


def _read_numbers(scalars: Mapping[str, Tensor], checks: Sequence[DeviceCheck]) -> dict[str, float]:
    """Read scalars (0-d) and checks in one transfer: for most networks the only wait for a GPU.

    Raises the error of the first check that does not hold.
    """
    device = scalars[_NORM].device
    tensors = [send(tensor.detach(), device) for tensor in (*scalars.values(), *(check.holds for check in checks))]
    places: dict[torch.dtype, list[int]] = {}
    for place, tensor in enumerate(tensors):
        places.setdefault(tensor.dtype, []).append(place)
    flat = torch.cat([torch.stack([tensors[place] for place in each]).double() for each in places.values()]).tolist()
    numbers = dict(zip(itertools.chain(*places.values()), flat, strict=True))
    for place, check in enumerate(checks, start=len(scalars)):
        if not numbers[place]:
            raise check.make_error()
    return {name: numbers[place] for place, name in enumerate(scalars)}


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
def update_ema(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Update the EMA: average <- decay * average + (1 - decay) * model for parameters; buffers are copied."""
    averaged: list[Tensor] = list(average.parameters())
    if averaged:
        torch._foreach_lerp_(averaged, list(model.parameters()), 1.0 - decay)
    buffers = dict(model.named_buffers(remove_duplicate=False))
    for name, ema_buffer in average.named_buffers(remove_duplicate=False):
        if name in buffers:  # a buffer that is made at a module's first call is not yet in both
            ema_buffer.resize_(buffers[name].shape).copy_(buffers[name])  # a cache may have grown with its batch


def _record(
    job: TrainState, totals: StepTotals, epoch: int, clock: StepTimer, wall_s: float, num_processes: int
) -> StepRecord:
    losses = {name: totals.losses[name] for name in job.loss_weights}
    step_metrics = TaskMembers.step_metrics.get(job.task)
    metrics = {} if step_metrics is None else step_metrics(losses, totals.num_samples, num_processes)
    weights = job.loss_weights_at(job.step - 1)
    losses["total"] = sum(weights[name] * value for name, value in losses.items())
    gradients = {f"gradient/{path}": norm for path, norm in totals.gradient_norms.items()}
    ramps = {
        f"weight/{name}": weights[name] for name, weight in job.loss_weights.items() if isinstance(weight, LinearRamp)
    }
    return StepRecord(
        step=job.step,
        num_steps=job.num_steps,
        epoch=epoch,
        num_epochs=-(-job.num_steps // job.stream.plan.steps_per_epoch),
        num_samples=totals.num_samples,
        losses=losses,
        grad_norm=totals.grad_norm,
        lr=totals.lr,
        seconds=clock.seconds,
        wall_s=wall_s,
        extra_scalars={**metrics, **totals.counts, **ramps, **gradients},
    )
