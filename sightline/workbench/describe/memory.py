"""Peak memory of a training step, estimated from real steps on two small batches by counting live tensors."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sightline.contract import registry
from sightline.contract.errors import RunError, UserError
from sightline.contract.pytree import tree_leaves
from sightline.contract.types import Batch, SampleKey
from sightline.engine.build import TrainingSetup
from sightline.engine.device import to_device
from sightline.engine.distributed import World
from sightline.engine.train import TrainState, train_step
from sightline.instrument import copy_module, record
from sightline.workbench.describe.trace import preserve_all_rng_states

_BATCH_SIZES = (3, 6)
"""Batch sizes of the two steps: batch norm needs more than one, and the difference shows the growth per sample."""

_NEXT_PHASE = {"prepare": "forward", "forward": "backward", "backward": "optimise", "optimise": "done"}
"""Phase after each part of a step; the forward phase of a further micro-batch starts with its first module."""


@dataclass(frozen=True)
class Memory:
    """Peak memory in tensors during a training step of `batch_size` samples, by part.

    `peak_bytes` is the sum of all parts except `gradients_bytes`: `saved_bytes` are alive at the end of the forward
    pass (saved by autograd, and the outputs), `working_bytes` are needed beyond that at the peak: gradients so far (at
    the end `gradients_bytes`) and temporaries. `where` is the moment of the peak: a module in the forward pass, a node
    of autograd in the backward pass, or the optimiser.
    """

    batch_size: int
    parameters_bytes: int
    buffers_bytes: int
    optimizer_bytes: int
    average_bytes: int
    teacher_bytes: int
    batch_bytes: int
    saved_bytes: int
    working_bytes: int
    gradients_bytes: int
    peak_bytes: int
    where: str


class MemoryTracker:
    """Counter of the live bytes of tensors that operators made, and of the peak of each stretch (section) of the work.

    A stretch ends when a module is entered, at `end_phase(name)`, and when the backward pass reaches another node.
    Storages count once, regardless of their views; those of `known` do not count. A NumPy array counts from its first
    operator on; internal buffers of kernels (BLAS workspaces, buffers of numba) are invisible.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        self.live = 0
        self.stretches: list[StepPhase] = []
        self.at_lap: dict[str, int] = {}
        self._phase = "forward"
        self._node: Any = None
        self._sizes: dict[int, int] = {get_storage_id(tensor): 0 for tensor in known}
        self._begin("")

    def enter(self, name: str) -> None:
        """Begin the next stretch, when a module of the forward pass is entered."""
        self._phase = "forward"
        self._begin(name)

    def end_phase(self, name: str) -> None:
        """End a part of the step, called by the loop; `at_lap` keeps the live bytes of the first micro-batch."""
        self.at_lap.setdefault(name, self.live)
        self._phase = _NEXT_PHASE[name]
        self._begin("")

    def note_operator(self, call: Any, operator: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Count the tensors that an operator reads and returns."""
        node = torch._C._current_autograd_node()
        if node is not self._node:
            self._node = node
            if node is not None:
                self._begin(node.name())
        for _, tensor in tree_leaves((result, args, kwargs)):
            self._add_tensor(tensor)
        last = self.stretches[-1]
        if self.live > last.peak:
            self.stretches[-1] = last._replace(peak=self.live)

    def _begin(self, name: str) -> None:
        self.stretches.append(StepPhase(self._phase, name, self.live))

    def _add_tensor(self, tensor: Tensor) -> None:
        storage_key = get_storage_id(tensor)
        if storage_key in self._sizes:
            return
        storage = tensor.untyped_storage()
        self._sizes[storage_key] = storage.nbytes()
        self.live += storage.nbytes()
        weakref.finalize(storage, self._release, storage_key).atexit = False

    def _release(self, storage_key: int) -> None:
        self.live -= self._sizes.pop(storage_key, 0)


class StepPhase(NamedTuple):
    """Stretch of a step and its peak of live bytes, without those from before the step."""

    phase: str
    name: str
    peak: int


def estimate_memory(built: TrainingSetup) -> Memory:
    """Estimate the peak memory of one step of the run's own loop at its batch size, with the optimiser's state.

    Steps of 3 and of 6 samples are run on copies, and every stretch is extrapolated linearly; with at most 6 samples
    per micro-batch the step itself is run. So memory that grows faster than the batch is underestimated, and the whole
    batch counts as on one process. Memory of libraries and fragmentation are not included. Raises RunError if the step
    fails.
    """
    job = _copy_job(built)
    train = built.config.train
    size = -(-train.batch_size // train.micro_batches)
    sizes = _BATCH_SIZES if size > _BATCH_SIZES[1] else (size, size)
    num_parts = min(
        2, train.micro_batches
    )  # a second one adds to the gradients of the first; further ones change nothing
    with preserve_all_rng_states(), job.losses.preserve_state():
        _measure_step(job, sizes[0], num_parts)  # makes the optimiser's state and everything else that is made once
        first, second = (_measure_step(job, size_of_step, num_parts) for size_of_step in sizes)
    share = (size - sizes[0]) / (sizes[1] - sizes[0]) if sizes[1] > sizes[0] else 1.0
    saved = _extrapolate(first.saved, second.saved, share)
    peak, where = max((*_extrapolate_peaks(first, second, share), (saved, "the end of the forward pass")))
    constant = {
        **{f"{part}_bytes": storage_bytes(tensors) for part, tensors in persistent_bytes(job).items()},
        "batch_bytes": round(second.batch_bytes / sizes[1] * train.batch_size),
    }
    return Memory(
        batch_size=train.batch_size,
        **constant,
        saved_bytes=saved,
        working_bytes=peak - saved,
        gradients_bytes=storage_bytes(p for p in job.trained_module.parameters() if p.requires_grad),
        peak_bytes=sum(constant.values()) + peak,
        where=where,
    )


def first_samples(job: TrainState, count: int) -> list[SampleKey]:
    """Return the keys of the first `count` training samples, repeated if there are fewer."""
    keys = [key for parts in job.stream.plan.step_keys(0) for part in parts for key in part]
    return [keys[index % len(keys)] for index in range(count)]


def persistent_bytes(job: TrainState) -> dict[str, list[Tensor]]:
    """Return the tensors that persist between steps: weights, optimiser state, EMA of the weights, teacher."""
    average, loss_average, teacher = (
        [] if network is None else [*network.parameters(), *network.buffers()]
        for network in (job.ema, job.losses_ema, getattr(job.task, "teacher", None))
    )
    return {
        "parameters": list(job.trained_module.parameters()),
        "buffers": [*job.model.buffers(), *job.losses.buffers()],
        "optimizer": [tensor for _, tensor in tree_leaves(list(job.optimizer.state.values()))],
        "average": [*average, *loss_average],
        "teacher": teacher,
    }


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Count the bytes of these tensors' storages, each once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def get_storage_id(tensor: Tensor) -> int:
    """Return the address of a tensor's storage, which its views share."""
    return int(tensor.untyped_storage()._cdata)


class _StepMemory(NamedTuple):
    """Measurements of a step of a few samples."""

    stretches: list[StepPhase]
    saved: int
    batch_bytes: int


def _copy_job(built: TrainingSetup) -> TrainState:
    """Copy the run's job, with a copy of its model and a new optimiser."""
    model = copy_module(built.job.model)
    recipe = registry.optimizers.build(built.config.optimizer, facts=built.data.facts)
    losses = built.job.losses
    return dataclasses.replace(built.job, model=model, optimizer=recipe.build(model, losses), ema=None)


def _measure_step(job: TrainState, num_samples: int, num_micro_batches: int) -> _StepMemory:
    floats = job.precision.parameter_dtype
    batches = [
        to_device(job.stream.reader(first_samples(job, num_samples)), job.device, float_dtype=floats)
        for _ in range(num_micro_batches)
    ]
    batch_tensors = [tensor for _, tensor in tree_leaves(batches)]
    job.optimizer.zero_grad(set_to_none=True)
    gc.collect()  # else reference cycles of earlier work would be freed during this step
    tracker = MemoryTracker([*chain(*persistent_bytes(job).values()), *batch_tensors])
    with record(job.model, enter=lambda call, *_: tracker.enter(call.path), operators=tracker.note_operator):
        _run_step(job, batches, tracker)
    return _StepMemory(tracker.stretches, tracker.at_lap["forward"], storage_bytes(batch_tensors) // num_micro_batches)


def _run_step(job: TrainState, batches: list[Batch], counter: MemoryTracker) -> None:
    try:
        train_step(job, job.model, batches, World(device=job.device), counter)
    except UserError:
        raise
    except Exception as error:
        size = len(batches[0]["sample_index"])
        reason = " ".join(str(error).split())
        raise RunError(f"a training step of {size} samples failed: {type(error).__name__}: {reason}") from error


def _extrapolate_peaks(first: _StepMemory, second: _StepMemory, share: float) -> list[tuple[int, str]]:
    """Extrapolate the peak of each stretch to the batch size, or of each phase if the stretches differ."""
    first_peaks, second_peaks = (_by_stretch(step) for step in (first, second))
    if [key for key, _ in first_peaks] != [key for key, _ in second_peaks]:
        first_peaks, second_peaks = (_by_phase(step) for step in (first, second))
    peaks = [
        (_extrapolate(low, high, share), _describe_moment(*key))
        for (key, low), (_, high) in zip(first_peaks, second_peaks, strict=True)
    ]
    # The optimiser's part does not depend on the batch.
    return [*peaks, *((s.peak, "the optimiser's step") for s in second.stretches if s.phase == "optimise")]


def _by_stretch(step: _StepMemory) -> list[tuple[tuple[str, str], int]]:
    return [((s.phase, s.name), s.peak) for s in step.stretches if s.phase in ("forward", "backward")]


def _by_phase(step: _StepMemory) -> list[tuple[tuple[str, str], int]]:
    return [((phase, ""), max(s.peak for s in step.stretches if s.phase == phase)) for phase in ("forward", "backward")]


def _extrapolate(low: int, high: int, share: float) -> int:
    """Extrapolate linearly from `low` (share 0) and `high` (share 1) to `share`; never below the larger."""
    return max(low, high, round(low + (high - low) * share))


def _describe_moment(phase: str, name: str) -> str:
    return f"the {phase} pass{f', at {name}' if name else ''}"
