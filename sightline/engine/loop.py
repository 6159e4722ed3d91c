"""Training loop: reads batches, queues steps, reads their numbers, and records them."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from sightline.contract.errors import RunError, join_some
from sightline.contract.types import LinearRamp
from sightline.engine.device.resident_data import DeviceData, find_device_data
from sightline.engine.device.transfer import BatchTransfer, CopyStream
from sightline.engine.distributed import World
from sightline.engine.queued_step import QueuedStep, RandomStates
from sightline.engine.records import StepRecord
from sightline.engine.schedules import Schedule
from sightline.engine.step import StepTimer
from sightline.engine.step_graph import StepGraphs
from sightline.engine.train import TrainState, queue_step, read_steps

logger = logging.getLogger(__name__)

_MAX_LISTED = 6


class StepCallback(Protocol):
    """Callback after every step, on every process alike: evaluates, saves, or ends the run (returns True)."""

    def __call__(self, record: StepRecord, stop_requested: bool) -> bool: ...


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
    loop = _Loop(job, replica, world)
    copies = CopyStream(world.device) if world.device.type == "cuda" else None
    if job.gate is not None:
        job.gate.open()
    try:
        with contextlib.closing(loop.data.stream.iterate(job.step, job.num_steps)) as steps:
            batches = BatchTransfer(steps, world.device, job.precision.parameter_dtype, copies)
            while job.step < job.num_steps:
                loop.queue(batches, stop_requested=bool(stop))
                if loop.can_wait and not stop and job.step < job.num_steps and not is_read_after(job.step):
                    loop.open_steps[-1].release()
                elif any(on_step_end(record, stop_requested) for record, stop_requested in loop.read()):
                    return
    except Exception:
        for record, stop_requested in loop.read():  # a failure of an earlier step comes before this one
            on_step_end(record, stop_requested)
        raise


_RESIDENT_SHARE = 0.1
"""Of a GPU's memory, for samples that stay there; at most half of what is free."""
_MAX_AHEAD = 8
"""Steps by which the host may be ahead of a GPU: their batches lie in its memory."""


class _Loop:
    """Steps of a training that are queued, and those of them that are not read yet."""

    def __init__(self, job: TrainState, network: nn.Module, world: World) -> None:
        self.job, self.network, self.world = job, network, world
        self.open_steps: list[QueuedStep] = []
        self._clock = StepTimer(job.task, remainder="loss")  # of the last open step
        self.can_wait = job.gate is not None and world.size == 1
        self.data = _find_device_data(job)
        job.graphs = _make_graphs(job, world)
        self._started, self._all_counted = time.perf_counter(), set(job.loss_weights)
        self._ends: deque[torch.cuda.Event] = deque()

    def queue(self, batches: BatchTransfer, *, stop_requested: bool) -> None:
        """Receive the batches of the next step, and queue it."""
        job, clock = self.job, StepTimer(self.job.task, remainder="loss")
        micro_batches = [self.data.keep(batch) for batch in batches.receive(clock)]
        states = RandomStates.read(job.device) if self.can_wait else None
        queued = queue_step(
            job,
            self.network,
            micro_batches,
            self.world,
            clock,
            stop_requested=stop_requested,
            meanwhile=batches.read_ahead,
            graphs=job.graphs,
            finish=self.data.finish,
        )
        job.step += 1
        self._stay_near()
        clock.end_phase("optimise")
        queued.states, queued.seconds, queued.wall_s = states, clock.seconds, time.perf_counter() - self._started
        self.open_steps.append(queued)
        self._clock = clock

    def _stay_near(self) -> None:
        """Wait until a GPU has done all but the last few steps."""
        if self.can_wait and self.job.device.type == "cuda":
            self._ends.append(torch.cuda.Event())
            self._ends[-1].record()
            if len(self._ends) > _MAX_AHEAD:
                self._ends.popleft().synchronize()

    def read(self) -> Iterator[tuple[StepRecord, bool]]:
        """Read the open steps, and yield their records. One that failed is computed again, and raises its error."""
        steps, self.open_steps = self.open_steps, []
        if not steps:
            return
        finished = read_steps(self.job, steps)
        self._clock.end_phase("optimise")  # the wait
        steps[-1].wall_s = time.perf_counter() - self._started
        for queued in finished:
            if uncounted := self._all_counted & {name for name, divisor in queued.divisors.items() if divisor == 0}:
                self._all_counted -= uncounted
                self.world.rank_zero_only(_warn_of_uncounted)(queued, sorted(uncounted), self.world.size)
            yield _record(self.job, queued, self.world.size), queued.stop_requested
        if len(finished) < len(steps):
            self._repeat(steps[len(finished)])

    def _repeat(self, failed: QueuedStep) -> None:
        """Compute a failed step again, from the same weights, draws and batch: its checks have the words for it."""
        job = self.job
        assert failed.states is not None
        job.step = failed.step
        failed.states.restore(job.device)
        if job.watch is not None:
            job.watch.ask(failed.step)
        assert job.gate is not None
        job.gate.is_closed.fill_(1.0)  # whatever the numbers are now
        try:
            with contextlib.closing(self.data.stream.iterate(failed.step, failed.step + 1)) as again:
                batches = BatchTransfer(again, self.world.device, job.precision.parameter_dtype, None)
                clock = StepTimer(job.task, remainder="loss")
                micro_batches = [self.data.keep(batch) for batch in batches.receive(clock)]
                repeated = queue_step(job, self.network, micro_batches, self.world, clock, finish=self.data.finish)
                read_steps(job, [repeated])
        finally:
            job.gate.open()
        raise RunError(
            f"step {failed.step}: a number was not finite, or a check failed; computed again, the step has neither: "
            "its operations differ from time to time (train.determinism: strict repeats their bits), or it reads "
            "buffers that later steps have changed (log.every=1 reads each step)"
        )


def _make_graphs(job: TrainState, world: World) -> StepGraphs | None:
    """Return the graphs of a run on a GPU, with the reason if its steps cannot be replayed."""
    if job.device.type != "cuda" or job.graph == "off":
        return None
    hooked = (path for path, module in job.model.named_modules() if _has_own_hooks(module))
    reasons = {
        "several processes": world.size > 1,
        "train.compile": job.compile,
        f"train.precision={job.precision.name}": job.precision.name in ("fp16", "float64"),
        "schedule.momentum": isinstance(job.schedule, Schedule) and job.schedule.momentum(job.step) is not None,
        f"a hook of the module '{(hook := next(hooked, None))}'": hook is not None,
    }
    reason = next((reason for reason, holds in reasons.items() if holds), "")
    return StepGraphs(job.device, reason=reason, is_strict=torch.get_deterministic_debug_mode() == 2)


def _has_own_hooks(module: nn.Module) -> bool:
    """Return True for a module with hooks that are not those of a `StepWatch`."""
    kinds = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    hooks = [hook for kind in kinds for hook in kind.values()]
    return any(not getattr(hook, "can_be_suspended", False) for hook in hooks)


def _find_device_data(job: TrainState) -> DeviceData:
    """Return the stream to train on, and what finishes its batches: nothing, if they are finished on the host."""
    is_supported = (
        job.device.type == "cuda" and job.finishes_on_device and job.precision.parameter_dtype == torch.float32
    )
    if not is_supported or job.step >= job.num_steps:
        return DeviceData(job.stream)
    free, total = torch.cuda.mem_get_info(job.device)
    room = min(_RESIDENT_SHARE * total, free / 2)
    return find_device_data(job.stream, job.device, job.step, max_bytes=room) or DeviceData(job.stream)


def _warn_of_uncounted(queued: QueuedStep, losses: Sequence[str], num_processes: int) -> None:
    samples = [str(index) for indices in queued.samples for index in indices.tolist()]
    logger.warning(
        "nothing-counted: the count of %s is 0 at step %d (samples %s%s), so that its sum is divided by 1; a loss that "
        "labels alone make is 0 there: look for labels that are all ignored, images without boxes, hidden joints, a "
        "batch of a single pair; further steps are not reported",
        *(join_some(losses, most=_MAX_LISTED), queued.step + 1, join_some(samples, most=_MAX_LISTED)),
        f" on the first of {num_processes} processes" if num_processes > 1 else "",
        extra={"code": "nothing-counted"},
    )


def _record(job: TrainState, queued: QueuedStep, num_processes: int) -> StepRecord:
    losses = queued.losses
    losses = {name: losses[name] for name in job.loss_weights}
    metrics = job.task.step_metrics(losses, queued.num_samples, num_processes)
    weights = job.loss_weights_at(queued.step)
    losses["total"] = sum(weights[name] * value for name, value in losses.items())
    gradients = {f"gradient/{path}": norm for path, norm in queued.gradient_norms.items()}
    ramps = {
        f"weight/{name}": weights[name] for name, weight in job.loss_weights.items() if isinstance(weight, LinearRamp)
    }
    return StepRecord(
        step=queued.step + 1,
        num_steps=job.num_steps,
        epoch=queued.epoch,
        num_epochs=-(-job.num_steps // job.stream.plan.steps_per_epoch),
        num_samples=queued.num_samples,
        losses=losses,
        grad_norm=queued.grad_norm,
        lr=queued.lr,
        seconds=queued.seconds,
        wall_s=queued.wall_s,
        extra_scalars={**metrics, **queued.counts, **ramps, **gradients},
    )
