"""The peak memory of a training step, from real steps on two small batches: every tensor counted while it lives."""

from __future__ import annotations

import copy
import dataclasses
import gc
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sightline import registry
from sightline.describe.trace import preserve_all_rng_states
from sightline.engine.build import TrainingSetup
from sightline.engine.device import to_device
from sightline.engine.distributed import World
from sightline.engine.train import TrainState, train_step
from sightline.errors import RunError, UserError
from sightline.module_hooks import module_hooks
from sightline.pytree import tree_leaves
from sightline.types import Batch, SampleKey

__all__ = ["Memory", "MemoryTracker", "estimate_memory", "first_samples", "persistent_bytes", "storage_bytes"]

_SIZES = (3, 6)
"""Samples in the two batches: batch norm needs more than one, and what grows with the batch shows in the difference."""

_NEXT = {"prepare": "forward", "forward": "backward", "backward": "optimise", "optimise": "done"}
"""The phase after each part of a step; where there are more micro-batches, a module that begins reports it."""


@dataclass(frozen=True)
class Memory:
    """The largest number of bytes in tensors at one moment of a training step of `batch_size` samples.

    `peak_bytes` is the sum of all parts but `gradients_bytes`: `saved_bytes` live at the end of the forward pass (what
    autograd saved, and the outputs), `working_bytes` is what the worst moment needs beyond: gradients so far (in the
    end `gradients_bytes`) and temporaries. `where` is that moment: a module in the forward pass, a node of autograd in
    the backward pass, or the optimiser.
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


class MemoryTracker(TorchDispatchMode):
    """Counts the bytes of tensors made inside for as long as each lives, and the peak of each stretch of the work.

    A stretch ends where a module is entered, at `lap(name)`, and where the backward pass comes to another node.
    Storages count once, however many views they have; those of `known` do not count. An array of NumPy counts from the
    first operator that it goes through; what a kernel holds within itself (a workspace of BLAS, a buffer of numba) is
    invisible.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.live = 0
        self.stretches: list[StepPhase] = []
        self.at_lap: dict[str, int] = {}
        self._phase = "forward"
        self._node: Any = None
        self._sizes: dict[int, int] = {storage_of(tensor): 0 for tensor in known}
        self._begin("")

    def enter(self, name: str) -> None:
        """A module begins: the next stretch, of a forward pass."""
        self._phase = "forward"
        self._begin(name)

    def end_phase(self, name: str) -> None:
        """Called by the loop after a part of the step. `at_lap` keeps what lives then, of the first micro-batch."""
        self.at_lap.setdefault(name, self.live)
        self._phase = _NEXT[name]
        self._begin("")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        node = torch._C._current_autograd_node()
        if node is not self._node:
            self._node = node
            if node is not None:
                self._begin(node.name())
        for _, tensor in tree_leaves((result, args, kwargs or {})):
            self._see(tensor)
        last = self.stretches[-1]
        if self.live > last.peak:
            self.stretches[-1] = last._replace(peak=self.live)
        return result

    def _begin(self, name: str) -> None:
        self.stretches.append(StepPhase(self._phase, name, self.live))

    def _see(self, tensor: Tensor) -> None:
        place = storage_of(tensor)
        if place in self._sizes:
            return
        storage = tensor.untyped_storage()
        self._sizes[place] = storage.nbytes()
        self.live += storage.nbytes()
        weakref.finalize(storage, self._gone, place).atexit = False

    def _gone(self, place: int) -> None:
        self.live -= self._sizes.pop(place, 0)


class StepPhase(NamedTuple):
    """A stretch of a step and the most bytes that lived in it, beyond what was there before the step."""

    phase: str
    name: str
    peak: int


def estimate_memory(built: TrainingSetup) -> Memory:
    """The peak of one step of the run's own loop at its batch size, once the optimiser has its state.

    Steps of 3 and of 6 samples are run on copies, and every stretch is continued along a straight line; at 6 samples
    or fewer a micro-batch the step itself is run. So what grows faster than the batch is underestimated, and the whole
    batch counts as if on one process. The libraries' own memory and the allocator's waste are not in it. Raises
    RunError where the step fails.
    """
    job = _copy_of(built)
    train = built.config.train
    size = -(-train.batch_size // train.micro_batches)
    sizes = _SIZES if size > _SIZES[1] else (size, size)
    num_parts = min(2, train.micro_batches)  # a second one finds the gradients of the first, a third nothing new
    with preserve_all_rng_states(), job.losses.preserve_state():
        _step(job, sizes[0], num_parts)  # makes the optimiser's state, and whatever else is made once
        first, second = (_step(job, size_of_step, num_parts) for size_of_step in sizes)
    share = (size - sizes[0]) / (sizes[1] - sizes[0]) if sizes[1] > sizes[0] else 1.0
    saved = _continued(first.saved, second.saved, share)
    peak, where = max((*_peaks(first, second, share), (saved, "the end of the forward pass")))
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
    """The keys of the first samples that the run trains on, over again where it has fewer."""
    keys = [key for parts in job.stream.plan.step_keys(0) for part in parts for key in part]
    return [keys[place % len(keys)] for place in range(count)]


def persistent_bytes(job: TrainState) -> dict[str, list[Tensor]]:
    """What a run holds from step to step: weights, the optimiser's state, the average of the weights, a teacher."""
    average, of_losses, teacher = (
        [] if network is None else [*network.parameters(), *network.buffers()]
        for network in (job.ema, job.losses_ema, getattr(job.task, "teacher", None))
    )
    return {
        "parameters": list(job.trained_module.parameters()),
        "buffers": [*job.model.buffers(), *job.losses.buffers()],
        "optimizer": [tensor for _, tensor in tree_leaves(list(job.optimizer.state.values()))],
        "average": [*average, *of_losses],
        "teacher": teacher,
    }


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """The bytes of these tensors' storages, each counted once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def storage_of(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class _Step(NamedTuple):
    """What a step of a few samples showed."""

    stretches: list[StepPhase]
    saved: int
    batch_bytes: int


def _copy_of(built: TrainingSetup) -> TrainState:
    """The run's job on a copy of its model, with an optimiser of its own."""
    model = copy.deepcopy(built.job.model)
    recipe = registry.optimizers.build(built.config.optimizer, facts=built.data.facts)
    losses = built.job.losses
    return dataclasses.replace(built.job, model=model, optimizer=recipe.build(model, losses), ema=None)


def _step(job: TrainState, num_samples: int, num_micro_batches: int) -> _Step:
    floats = job.precision.parameter_dtype
    batches = [
        to_device(job.stream.reader(first_samples(job, num_samples)), job.device, float_dtype=floats)
        for _ in range(num_micro_batches)
    ]
    held = [tensor for _, tensor in tree_leaves(batches)]
    job.optimizer.zero_grad(set_to_none=True)
    gc.collect()  # what earlier work left in cycles would else be freed in the middle of this step
    counter = MemoryTracker([*chain(*persistent_bytes(job).values()), *held])
    paths = {module: path for path, module in job.model.named_modules()}
    with module_hooks(paths, lambda module, *_: counter.enter(paths[module])), counter:
        _optimise(job, batches, counter)
    return _Step(counter.stretches, counter.at_lap["forward"], storage_bytes(held) // num_micro_batches)


def _optimise(job: TrainState, batches: list[Batch], counter: MemoryTracker) -> None:
    try:
        train_step(job, job.model, batches, World(device=job.device), counter)
    except UserError:
        raise
    except Exception as error:
        size = len(batches[0]["sample_index"])
        reason = " ".join(str(error).split())
        raise RunError(f"a training step of {size} samples failed: {type(error).__name__}: {reason}") from error


def _peaks(first: _Step, second: _Step, share: float) -> list[tuple[int, str]]:
    """The peak of each stretch at the batch size; of each phase where the two steps had other stretches."""
    before, after = (_by_stretch(step) for step in (first, second))
    if [key for key, _ in before] != [key for key, _ in after]:
        before, after = (_by_phase(step) for step in (first, second))
    peaks = [(_continued(low, high, share), _moment(*key)) for (key, low), (_, high) in zip(before, after, strict=True)]
    # The optimiser's part does not depend on the batch.
    return [*peaks, *((s.peak, "the optimiser's step") for s in second.stretches if s.phase == "optimise")]


def _by_stretch(step: _Step) -> list[tuple[tuple[str, str], int]]:
    return [((s.phase, s.name), s.peak) for s in step.stretches if s.phase in ("forward", "backward")]


def _by_phase(step: _Step) -> list[tuple[tuple[str, str], int]]:
    return [((phase, ""), max(s.peak for s in step.stretches if s.phase == phase)) for phase in ("forward", "backward")]


def _continued(low: int, high: int, share: float) -> int:
    """The straight line through both, at `share` of the way from the first to the second; never below the larger."""
    return max(low, high, round(low + (high - low) * share))


def _moment(phase: str, name: str) -> str:
    return f"the {phase} pass{f', at {name}' if name else ''}"
