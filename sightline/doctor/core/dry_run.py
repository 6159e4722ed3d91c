"""One training step on copies, taken once for all checks: what was read, what ran, which gradients came back."""

from __future__ import annotations

import contextlib
import copy
import math
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sightline.doctor.core.graph import hidden_outputs, last_operation
from sightline.engine.device import to_device
from sightline.engine.distributed import World
from sightline.engine.optimizers import apply_freezing
from sightline.engine.step import compute_batch_losses, prepare_step, weighted_sum
from sightline.engine.train import TrainState
from sightline.errors import UserError
from sightline.layers.batch_norm import SynchronisedBatchNorm
from sightline.numba_kernels import compute_seconds
from sightline.types import Batch, SampleKey

__all__ = [
    "NUM_SAMPLES",
    "DryRun",
    "ForwardWatcher",
    "OutOfTimeError",
    "Outputs",
    "ReadTrackingDict",
    "StepFailure",
    "detached",
    "dry_run",
    "error_location",
    "first_outputs",
    "forward_backward",
    "isolated_copy",
    "read_batch",
    "step_keys",
]

_PACKAGE = Path(__file__).resolve().parents[2]
_RUNNERS = (
    _PACKAGE / "doctor",
    _PACKAGE / "engine" / "step.py",
)  # they run a step, but are not the place of its faults
NUM_SAMPLES = 4  # batch norm over two rows gives +-1 for any input; three is the number of coordinates
_FEWEST_SAMPLES = 2
_MOST_TRIES = 8
_MOST_SECONDS = 3.0
_FIRST_SAMPLES = 16
_FORWARD_S = 0.6  # what a larger forward pass may be expected to take

Gradient = Literal["none", "zero", "some", "not finite"]
Outputs = Mapping[str, Any]


class ReadTrackingDict(dict[str, Any]):
    """A mapping that remembers which of its keys were read."""

    def __init__(self, items: Mapping[str, Any]) -> None:
        super().__init__(items)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)

    def __iter__(self) -> Iterator[str]:
        self.read.update(super().keys())
        return super().__iter__()

    def items(self) -> Any:
        self.read.update(super().keys())
        return super().items()

    def values(self) -> Any:
        self.read.update(super().keys())
        return super().values()


@dataclass(frozen=True)
class StepFailure:
    """An exception of the step, the stage and module that it came from, and the line of code outside libraries."""

    stage: str
    error: Exception
    layer: str | None
    file: str | None
    line: int | None


@dataclass
class DryRun:
    """What one training step on copies showed; the run's own model, optimiser and data are as before.

    `model` is the copy after the backward pass, before any update, its gradients in place. `ends` names the operation
    that made each output, `hidden` the outputs that others are computed from. `skipped` gives the reason for no step,
    where the time for one was short.
    """

    model: nn.Module
    batch: Batch
    stage: str = "reading"
    failure: StepFailure | None = None
    outputs: Outputs | None = None
    ends: Mapping[str, str] = field(default_factory=dict)
    hidden: frozenset[str] = frozenset()
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    counts: Mapping[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Gradient] = field(default_factory=dict)
    batch_reads: set[str] = field(default_factory=set)
    output_reads: set[str] = field(default_factory=set)
    executed: set[str] = field(default_factory=set)
    num_tries: int = 0
    seconds: float = 0.0
    skipped: str = ""

    @property
    def num_samples(self) -> int:
        return len(self.batch["sample_index"]) if self.batch else 0

    @property
    def seen_outputs(self) -> Outputs:
        """What the model gave; empty where it gave no mapping, or nothing at all."""
        return self.outputs or {}

    @property
    def is_sound(self) -> bool:
        """Whether forward and backward passes went through with finite gradients."""
        return self.failure is None and self.stage == "done" and "not finite" not in self.gradients.values()


def dry_run(job: TrainState, device: torch.device, *, forward_s: float = math.inf) -> DryRun:
    """Forward and backward on four samples of the first step; on more where a parameter got no gradient.

    Where a forward pass needs more than `forward_s` of this thread's own time, which other load and compiling leave as
    it is, two samples are tried, and then a forward pass alone of one in evaluation mode: `stage` and `skipped` record
    it.
    """
    for num_samples in (NUM_SAMPLES, _FEWEST_SAMPLES):
        try:
            return _rehearse(job, device, num_samples, compute_seconds() + forward_s)
        except OutOfTimeError:
            continue
    result = _look(job, device, compute_seconds() + forward_s)
    result.stage, result.skipped = (
        "out of time",
        f"a forward pass of {_FEWEST_SAMPLES} samples needs over {forward_s:g} s of processor time",
    )
    return result


def _rehearse(job: TrainState, device: torch.device, num_samples: int, deadline: float) -> DryRun:
    started = compute_seconds()
    result = DryRun(isolated_copy(job.model), {})
    keys = step_keys(job, step=0)
    watch = ForwardWatcher(result, deadline)
    try:
        result.batch = read_batch(job, keys[:num_samples], device)
        _first_pass(job, result, watch, device)
        _more_passes(job, result, keys[num_samples:], device, started)
        result.stage = "done"
    except OutOfTimeError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a model or loss dies of is what the check `first-step` reports
        file, line = error_location(error)
        result.failure = StepFailure(result.stage, error, watch.current, file, line)
    finally:
        result.outputs, result.output_reads, result.ends = watch.outputs, watch.output_reads, watch.ends
        result.hidden = watch.hidden
        watch.remove()
    result.seconds = compute_seconds() - started
    return result


def _look(job: TrainState, device: torch.device, deadline: float) -> DryRun:
    """Outputs and losses of one sample in evaluation mode; nothing of them where these fail or take too long.

    What fails here need not fail in training, where there are more samples, so it is not a `failure`.
    """
    result = DryRun(isolated_copy(job.model), {})
    watch = ForwardWatcher(result, deadline)
    with contextlib.suppress(Exception), torch.no_grad():
        result.batch = read_batch(job, step_keys(job, step=0)[:1], device)
        batch = ReadTrackingDict(result.batch)
        forward_backward(job, result.model, [batch], device, is_training=False)
        result.batch_reads |= batch.read
    result.outputs, result.output_reads = watch.outputs, watch.output_reads
    watch.remove()
    return result


def isolated_copy(model: nn.Module) -> nn.Module:
    """A deep copy that shares nothing with the model and issues no collectives."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, SynchronisedBatchNorm):
            module._all_reduce_sum = _alone  # its own of one process is the identity; there is no public way
    return copied


def step_keys(job: TrainState, *, step: int) -> list[SampleKey]:
    """The samples of the first part of a step, the same on every process."""
    return job.stream.plan.step_keys(step)[0][0]


def forward_backward(
    job: TrainState, model: nn.Module, micro_batches: Sequence[Batch], device: torch.device, *, is_training: bool = True
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """The loop's forward and backward passes on a copy, as a world of one: loss sums and counts. Gradients add up."""
    model.train(is_training)
    apply_freezing(model, job.frozen, job.epoch)
    weights = job.loss_weights_at(job.step)
    sums: dict[str, Tensor] = {}
    step = prepare_step(job.task, model, micro_batches, World(device=device), job.precision)
    for index in range(len(micro_batches)):
        terms = step.loss_sums(model, index)
        loss = weighted_sum(step.loss_means(terms), weights)
        if loss.requires_grad:
            loss.backward()
        sums = {name: term + sums[name] if name in sums else term for name, term in terms.items()}
    return sums, step.counts


def first_outputs(job: TrainState, rehearsal: DryRun, device: torch.device) -> tuple[Batch, Outputs]:
    """Outputs in training mode before any update: of the rehearsal, or of more samples where that is cheap."""
    keys = step_keys(job, step=0)[:_FIRST_SAMPLES]
    expected_s = rehearsal.seconds / 2 * len(keys) / max(1, rehearsal.num_samples)
    if len(keys) <= rehearsal.num_samples or expected_s > _FORWARD_S:
        return rehearsal.batch, rehearsal.seen_outputs
    model = isolated_copy(job.model).train()
    apply_freezing(model, job.frozen, job.epoch)
    seen: list[Any] = []
    handle = model.register_forward_hook(lambda module, inputs, given: seen.append(detached(given)))
    try:
        batch = read_batch(job, keys, device)
        with torch.no_grad():
            compute_batch_losses(job.task, model, batch, device, job.precision)
    except Exception:  # noqa: BLE001 - a sample further on that cannot be trained on is for the checks of data
        return rehearsal.batch, rehearsal.seen_outputs
    finally:
        handle.remove()
    return batch, seen[-1] if seen and isinstance(seen[-1], Mapping) else {}


def error_location(error: BaseException) -> tuple[str | None, int | None]:
    """The innermost line of an exception's way that is not of an installed library.

    Where an error of the user's was made of another, on the way of that one: what merely retells it is no place.
    """
    while isinstance(error, UserError) and error.__cause__ is not None:
        error = error.__cause__
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
    own = [frame for frame in frames if not any(map(Path(frame.filename).is_relative_to, _RUNNERS))]
    return (own[-1].filename, own[-1].lineno) if own else (None, None)


def read_batch(job: TrainState, keys: Sequence[SampleKey], device: torch.device) -> Batch:
    """A training batch on the run's device, as the loop would see it."""
    return to_device(job.stream.reader(keys), device, float_dtype=job.precision.parameter_dtype)


def detached(value: Any) -> Any:
    """The same nest of dicts, lists and tuples, its tensors without their history."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {name: detached(item) for name, item in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(detached(item) for item in value)
    return value


def _first_pass(job: TrainState, result: DryRun, watch: ForwardWatcher, device: torch.device) -> None:
    batch = ReadTrackingDict(result.batch)
    result.stage = "forward and losses"
    result.terms, result.counts = forward_backward(job, result.model, [batch], device)
    result.batch_reads |= batch.read
    result.gradients = _gradients(result.model)
    result.num_tries = 1
    watch.remove()


def _more_passes(job: TrainState, result: DryRun, keys: list[SampleKey], device: torch.device, started: float) -> None:
    """Further micro-batches while a parameter still has no gradient: a layer may be dropped at random, or rest."""
    result.stage = "further micro-batches"
    pieces = [keys[start : start + NUM_SAMPLES] for start in range(0, len(keys), NUM_SAMPLES)] or [[]]
    while _is_waiting(result) and result.num_tries < _MOST_TRIES:
        if compute_seconds() - started > _MOST_SECONDS:
            return
        piece = pieces[(result.num_tries - 1) % len(pieces)]
        batch = read_batch(job, piece, device) if len(piece) == NUM_SAMPLES else result.batch
        forward_backward(job, result.model, [batch], device)
        result.gradients = _gradients(result.model)
        result.num_tries += 1


def _is_waiting(result: DryRun) -> bool:
    trainable = {name for name, parameter in result.model.named_parameters() if parameter.requires_grad}
    return any(result.gradients.get(name) == "none" for name in trainable)


def _gradients(model: nn.Module) -> dict[str, Gradient]:
    found: dict[str, Gradient] = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if gradient is None:
            found[name] = "none"
        elif not bool(gradient.isfinite().all()):
            found[name] = "not finite"
        else:
            found[name] = "some" if bool(gradient.any()) else "zero"
    return found


def _alone(tensor: Tensor) -> Tensor:
    return tensor


class OutOfTimeError(Exception):
    """A forward pass is slower than there is time for."""


class _Readers(TorchFunctionMode):
    """Notes whose parameters an operation reads: a layer may use those of its parts without calling them."""

    def __init__(self, model: nn.Module, executed: set[str]) -> None:
        super().__init__()
        self._executed = executed
        self._owner = {id(value): name.rpartition(".")[0] for name, value in model.named_parameters()}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (*args, *(kwargs or {}).values())
        self._executed.update(owner for value in given if (owner := self._owner.get(id(value))) is not None)
        return function(*args, **(kwargs or {}))


class ForwardWatcher:
    """Hooks on a copy: which modules ran, which one is running, and what the whole model gave the first time.

    They end a forward pass that goes on after `deadline`.
    """

    def __init__(self, result: DryRun, deadline: float) -> None:
        self._deadline = deadline
        self.outputs: Outputs | None = None
        self.ends: dict[str, str] = {}
        self.hidden: frozenset[str] = frozenset()
        self.output_reads: set[str] = set()
        self._executed = result.executed
        self._stack: list[str] = []
        self._handles = []
        self._readers = _Readers(result.model, result.executed)
        for name, module in result.model.named_modules():
            self._handles.append(module.register_forward_pre_hook(self._enter(name)))
            self._handles.append(module.register_forward_hook(self._leave(is_whole=name == "")))

    @property
    def current(self) -> str | None:
        """The innermost module that was entered and not left."""
        named = [name for name in self._stack if name]
        return named[-1] if named else None

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._stack:  # the forward pass died
            self._readers.__exit__(None, None, None)

    def _enter(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any) -> None:
            if compute_seconds() > self._deadline:
                raise OutOfTimeError
            if not self._stack:
                self._readers.__enter__()
            self._stack.append(name)
            self._executed.add(name)

        return hook

    def _leave(self, *, is_whole: bool) -> Any:
        def hook(module: nn.Module, inputs: Any, outputs: Any) -> Any:
            self._stack.pop()
            if not self._stack:
                self._readers.__exit__(None, None, None)
            if not is_whole or not isinstance(outputs, dict):
                return None
            recorded = ReadTrackingDict(outputs)
            recorded.read = self.output_reads
            if self.outputs is None:
                self.outputs = {name: detached(value) for name, value in outputs.items()}
                self.hidden = hidden_outputs(outputs)
                self.ends = {name: last_operation(v) for name, v in outputs.items() if isinstance(v, Tensor)}
            return recorded

        return hook
