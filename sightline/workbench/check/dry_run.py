"""Dry run: one training step on copies, with the keys read, the modules run and the gradients."""

from __future__ import annotations

import contextlib
import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sightline.contract.errors import OutputError, UserError
from sightline.contract.pytree import ReadTrackingDict, tree_map
from sightline.contract.types import Batch, SampleKey
from sightline.doctor.attempts import MissingError, attempt
from sightline.engine.device.transfer import to_device
from sightline.engine.distributed import World
from sightline.engine.optimizers import apply_freezing
from sightline.engine.step import compute_batch_losses, prepare_step, weighted_sum
from sightline.engine.train import TrainState
from sightline.instrument import Inputs, ModuleCall, copy_module, record
from sightline.instrument.work import WorkCounter
from sightline.layers.batch_norm import SynchronisedBatchNorm

_PACKAGE = Path(__file__).resolve().parents[2]
_RUNNERS = (
    _PACKAGE / "workbench" / "check",
    _PACKAGE / "workbench" / "fit",
    _PACKAGE / "doctor",
    _PACKAGE / "contract" / "pytree.py",
    _PACKAGE / "engine" / "step.py",
    _PACKAGE / "instrument",
)  # they run a step, but do not cause its faults
NUM_SAMPLES = 4  # batch norm over two rows gives +-1 for any input; three is the number of coordinates
_MAX_TRIES = 8
_MAX_SECONDS = 3.0
_FIRST_SAMPLES = 16
_MANY_TARGETS = 256  # of one sample; images have fewer boxes, of which the checks of assignments need all that they get
_FORWARD_S = 0.6  # maximum expected time of a larger forward pass

Gradient = Literal["none", "zero", "some", "not finite"]
Outputs = Mapping[str, Any]


@dataclass(frozen=True)
class StepFailure:
    """Exception of a step, with its stage, its module, and the line of code outside libraries."""

    stage: str
    error: BaseException
    layer: str | None
    file: str | None
    line: int | None


def find_failure(answer: object, stage: str, layer: str | None) -> StepFailure | None:
    """Return the failure of an attempt at a stage, in a layer; None if it has an answer."""
    if not isinstance(answer, MissingError) or answer.__cause__ is None:
        return None
    return StepFailure(stage, answer.__cause__, layer, *error_location(answer.__cause__))


@dataclass
class DryRun:
    """Result of one training step on copies; the run's own model, optimiser and data are unchanged.

    `model` is the copy after the backward pass, with gradients, before any update; `inputs` are those of its first
    call, by parameter. `nominal_s` is the counted work of the first pass forward and backward: no clock decides.
    """

    model: nn.Module
    batch: Batch
    stage: str = "reading"
    failure: StepFailure | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    outputs: Outputs | None = None
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    counts: Mapping[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Gradient] = field(default_factory=dict)
    batch_reads: set[str] = field(default_factory=set)
    executed: set[str] = field(default_factory=set)
    num_tries: int = 0
    nominal_s: float = 0.0

    @property
    def num_samples(self) -> int:
        return len(self.batch["sample_index"]) if self.batch else 0

    @property
    def seen_outputs(self) -> Outputs:
        """Outputs of the model; empty if it returned no mapping, or did not return."""
        return self.outputs or {}

    @property
    def is_sound(self) -> bool:
        """True if forward and backward passes succeeded with finite gradients."""
        return self.failure is None and self.stage == "done" and "not finite" not in self.gradients.values()


def dry_run(
    job: TrainState, device: torch.device, *, note: Callable[[Callable[[], str]], None] = lambda describe: None
) -> DryRun:
    """Run forward and backward passes on four samples of the first step; on more if a parameter gets no gradient.

    `note` receives a function that says how far the first pass has come.
    """
    result = DryRun(isolated_copy(job.model), {})
    keys = step_keys(job, step=0)
    watcher = ForwardWatcher(result)
    note(lambda: f"the first step of {result.num_samples} samples: {watcher.doing}")

    def run() -> None:
        result.batch = read_batch(job, keys[:NUM_SAMPLES], device)
        _run_first_pass(job, result, watcher, device)
        _run_further_passes(job, result, keys[NUM_SAMPLES:], device)
        result.stage = "done"

    try:
        result.failure = find_failure(attempt("step", run, {}), result.stage, watcher.current)
    finally:
        result.outputs, result.inputs = watcher.outputs, watcher.inputs
        watcher.remove()
    return result


def isolated_copy(model: nn.Module) -> nn.Module:
    """Deep-copy a model; the copy issues no collectives."""
    copied = copy_module(model)
    for module in copied.modules():
        if isinstance(module, SynchronisedBatchNorm):
            module._all_reduce_sum = _return_unchanged  # as in a world of one process; there is no public way
    return copied


def step_keys(job: TrainState, *, step: int) -> list[SampleKey]:
    """Return the keys of the first part of a step, the same on every process."""
    return job.stream.plan.step_keys(step)[0][0]


def forward_backward(
    job: TrainState, model: nn.Module, micro_batches: Sequence[Batch], device: torch.device
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """Run the training loop's forward and backward passes as a single process; return loss sums and counts.

    Gradients are accumulated in `model`.
    """
    model.train()
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


def first_outputs(
    job: TrainState, rehearsal: DryRun, device: torch.device, *, is_quick: bool = False
) -> tuple[Batch, Outputs]:
    """Return batch and outputs in training mode before any update: of the dry run, or of more samples if cheap.

    With `is_quick`, no more are read of runs with a label at every pixel or point: few samples have many targets.
    """
    keys = step_keys(job, step=0)[:_FIRST_SAMPLES]
    expected_s = rehearsal.nominal_s / 2 * len(keys) / max(1, rehearsal.num_samples)
    label = rehearsal.batch.get("label")
    has_many = isinstance(label, Tensor) and label.numel() > _MANY_TARGETS * rehearsal.num_samples
    if len(keys) <= rehearsal.num_samples or expected_s > _FORWARD_S or (is_quick and has_many):
        return rehearsal.batch, rehearsal.seen_outputs
    model = isolated_copy(job.model).train()
    apply_freezing(model, job.frozen, job.epoch)

    def run() -> tuple[Batch, Outputs]:
        batch = read_batch(job, keys, device)
        with torch.no_grad(), record({"": model}, keep=("outputs",)) as tape:
            compute_batch_losses(job.task, model, batch, device, job.precision)
        return batch, tape.outputs[-1] if tape.outputs and isinstance(tape.outputs[-1], Mapping) else {}

    found = attempt("step", run, {})
    return (rehearsal.batch, rehearsal.seen_outputs) if isinstance(found, MissingError) else found


def take_samples(values: Mapping[str, Any], batch: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """Return the rows of some samples of a `batch` in its values, or in outputs for it; other values as they are."""
    division = {name: value for name, value in batch.items() if name == "sample_index" or name.endswith("offsets")}
    return {name: take_rows_of(value, division, rows, name) for name, value in values.items()}


def take_rows_of(value: Any, division: Mapping[str, Tensor], rows: Sequence[int], name: str) -> Any:
    """Take the rows of some samples; a value whose rows are not those of samples is returned as it is."""
    num_samples = len(division["sample_index"])
    if isinstance(value, list | tuple) and len(value) == num_samples:
        return type(value)(value[row] for row in rows)
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    if name in division and name != "sample_index":
        return torch.cat([value[:1] * 0, value.diff()[list(rows)].cumsum(0)])
    if len(value) == num_samples:
        return value[list(rows)]
    for offsets in division.values():
        if len(offsets) == num_samples + 1 and int(offsets[-1]) == len(value):
            return torch.cat([value[int(offsets[row]) : int(offsets[row + 1])] for row in rows])
    return value


def error_location(error: BaseException) -> tuple[str | None, int | None]:
    """Return the file and line of an exception's innermost frame outside installed libraries.

    For an OutputError, that is the model's `forward`; for another UserError with a cause, the frame of the cause.
    """
    if isinstance(error, OutputError):
        return error.file, error.line
    while isinstance(error, UserError) and error.__cause__ is not None:
        error = error.__cause__
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
    user_frames = [frame for frame in frames if not any(map(Path(frame.filename).is_relative_to, _RUNNERS))]
    return (user_frames[-1].filename, user_frames[-1].lineno) if user_frames else (None, None)


def read_batch(job: TrainState, keys: Sequence[SampleKey], device: torch.device) -> Batch:
    """Read a training batch to the run's device, as the training loop does."""
    return to_device(job.stream.reader(keys), device, float_dtype=job.precision.parameter_dtype)


def detach(value: Any) -> Any:
    """Return a tree with detached tensors."""
    return tree_map(value, lambda _, tensor: tensor.detach())


def _run_first_pass(job: TrainState, result: DryRun, watcher: ForwardWatcher, device: torch.device) -> None:
    batch = ReadTrackingDict(result.batch)
    result.stage = "forward and losses"
    with WorkCounter() as work:
        result.terms, result.counts = forward_backward(job, result.model, [batch], device)
    result.nominal_s = work.nominal_s
    result.batch_reads |= batch.read
    result.gradients = _classify_gradients(result.model)
    result.num_tries = 1
    watcher.remove()


def _run_further_passes(job: TrainState, result: DryRun, keys: list[SampleKey], device: torch.device) -> None:
    """Run further micro-batches while a parameter has no gradient: a layer may be dropped at random, or be frozen."""
    result.stage = "further micro-batches"
    pieces = [keys[start : start + NUM_SAMPLES] for start in range(0, len(keys), NUM_SAMPLES)] or [[]]
    while _has_missing_gradient(result) and result.num_tries < _MAX_TRIES:
        if result.num_tries * result.nominal_s > _MAX_SECONDS:
            return
        piece = pieces[(result.num_tries - 1) % len(pieces)]
        batch = read_batch(job, piece, device) if len(piece) == NUM_SAMPLES else result.batch
        forward_backward(job, result.model, [batch], device)
        result.gradients = _classify_gradients(result.model)
        result.num_tries += 1


def _has_missing_gradient(result: DryRun) -> bool:
    trainable = {name for name, parameter in result.model.named_parameters() if parameter.requires_grad}
    return any(result.gradients.get(name) == "none" for name in trainable)


def _classify_gradients(model: nn.Module) -> dict[str, Gradient]:
    gradients: dict[str, Gradient] = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if gradient is None:
            gradients[name] = "none"
        elif not bool(gradient.isfinite().all()):
            gradients[name] = "not finite"
        else:
            gradients[name] = "some" if bool(gradient.any()) else "zero"
    return gradients


def _return_unchanged(tensor: Tensor) -> Tensor:
    return tensor


class ForwardWatcher:
    """Recorder of the modules run, the current module, and the first outputs of the whole model.

    A layer also counts as run if an operation reads its parameters, without a call.
    """

    def __init__(self, result: DryRun) -> None:
        self.inputs: dict[str, Any] = {}
        self.outputs: Outputs | None = None
        self.doing = "reads them"
        self._executed = result.executed
        self._owner = {id(value): name.rpartition(".")[0] for name, value in result.model.named_parameters()}
        self._recording = contextlib.ExitStack()
        self._tape = self._recording.enter_context(
            record(result.model, enter=self._enter, leave=self._leave, functions=self._note_reads)
        )

    @property
    def current(self) -> str | None:
        """Name of the innermost module that is running."""
        named = [path for index in self._tape.running if (path := self._tape.calls[index].path)]
        return named[-1] if named else None

    def remove(self) -> None:
        self._recording.close()

    def _enter(self, call: ModuleCall, module: nn.Module, inputs: Inputs) -> None:
        self._executed.add(call.path)
        self.doing = f"forward, {call.path or 'model'}"
        if not call.path and not self.inputs:
            bound = inspect.signature(module.forward).bind(*inputs[0], **inputs[1]).arguments
            self.inputs = {name: detach(value) for name, value in bound.items()}

    def _note_reads(self, call: ModuleCall | None, function: Any, args: Any, kwargs: Any, result: Any) -> None:
        if call is not None:
            inputs = (*args, *kwargs.values())
            self._executed.update(owner for value in inputs if (owner := self._owner.get(id(value))) is not None)

    def _leave(self, call: ModuleCall, module: nn.Module, inputs: Any, outputs: Any) -> None:
        self.doing = self.doing if call.path else "losses and backward"
        if not call.path and isinstance(outputs, Mapping) and self.outputs is None:
            self.outputs = {name: detach(value) for name, value in outputs.items()}
