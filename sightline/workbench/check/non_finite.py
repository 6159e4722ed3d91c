"""The origin of a gradient that is not finite: data, weights, forward pass, a loss or the backward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sightline.contract.errors import join_some
from sightline.contract.pytree import ReadTrackingDict
from sightline.contract.types import Batch
from sightline.doctor.attempts import LeftOutError, MissingError, attempt
from sightline.doctor.autograd_graph import iter_nodes
from sightline.doctor.evidence import measure
from sightline.doctor.evidence.numerics import Origin
from sightline.doctor.finding import Finding, FindingLocation
from sightline.doctor.rules import find_by
from sightline.doctor.rules.non_finite import non_finite
from sightline.engine.distributed import World
from sightline.engine.finite_state import NonFiniteStateError
from sightline.engine.learnt_losses import combine_modules
from sightline.engine.optimizers import apply_freezing
from sightline.engine.step import single_batch_step, weighted_sum
from sightline.engine.train import NonFiniteGradientError, TrainState
from sightline.instrument import ModuleCall, record, watch_gradient
from sightline.store.loading.leaves import array_leaves
from sightline.workbench.check.context import Context
from sightline.workbench.check.dry_run import forward_backward, isolated_copy, take_samples
from sightline.workbench.check.sample_statistics import describe_sample
from sightline.workbench.check.suite import gather_findings

_MAX_WEIGHT = 1e3
"""Bound of trained weights, which are of the order of 1; a diverging learning rate multiplies them at every step."""
_NUM_TRIES = 3  # dropout draws differ each time


@measure()
def origin(run: Context) -> Origin | None:
    """Locate the origin of a gradient of the first step that is not finite."""
    rehearsal, job = run.dry_run, run.built.job
    if rehearsal.failure is not None:
        raise LeftOutError("the first step fails")
    is_bad = "not finite" in rehearsal.gradients.values()
    return _place(job, _locate(job, [rehearsal.batch], run.world.device)) if is_bad else None


def diagnose_non_finite(error: NonFiniteGradientError | NonFiniteStateError, world: World) -> Finding:
    """Locate the origin of a run's non-finite gradient or loss; one finding for all processes.

    The step is repeated on a copy: the run's model is unchanged. Every process with the error must call this function:
    the processes exchange findings.
    """
    if isinstance(error, NonFiniteStateError):
        steps = f"{error.sound_step + 1} to {error.job.step}"
        found = _diagnose("state", error.measured, name=error.name, sound_step=error.sound_step, steps=steps)
        return _blame_learning_rate(error.job, _build(error.job, found))
    with error.job.losses.preserve_state():
        asked = {"job": error.job, "micro_batches": error.micro_batches, "device": world.device}
        located = attempt("the step could not be run again on a copy", _locate, asked)
    found = _diagnose("unknown", str(located)) if isinstance(located, MissingError) else located
    if found.place == "unknown" and (spoiled := _list_spoiled(error)):
        found = found._replace(measured=f"{found.measured}; in the run {spoiled}")
    stages = ("data", "parameter", "forward", "loss", "backward", "norm", "unknown")
    findings = gather_findings([_build(error.job, found)], world)
    first = min(findings, key=lambda candidate: stages.index(candidate.evidence["stage"]))
    return _blame_learning_rate(error.job, first)


def explain_fault(error: Exception, job: TrainState) -> Finding | None:
    """Explain a fault of a run, such as NaN predictions, by data or by the learning rate; None if both are as usual.

    Not every overflow shows in a gradient: assigners, distances and metrics refuse numbers that are not finite. Where
    the step's own data have one, it is named.
    """
    data = attempt("reading", _find_in_step, {"job": job})
    if isinstance(data, Origin):
        return _build(job, data)
    reason = " ".join(str(error).split()).partition("; find where with")[0]
    finding = _build(job, _diagnose("fault", reason, reason=reason))
    explained = _blame_learning_rate(job, finding)
    return None if explained is finding else explained


def _blame_learning_rate(job: TrainState, finding: Finding) -> Finding:
    """Return the finding with the learning rate as its cause if training has made a weight larger than 1000.

    The location of the overflow is then only the symptom. Findings on data are returned unchanged.
    """
    if job.step == 0 or finding.evidence["stage"] == "data":
        return finding
    largest = {
        name: _largest_weight(p) for name, p in job.trained_module.named_parameters() if p.requires_grad and p.numel()
    }
    name = max(largest, key=lambda parameter_name: largest[parameter_name], default=None)
    if name is None or largest[name] < _MAX_WEIGHT:
        return finding
    rate = max(group["lr"] for group in job.optimizer.param_groups)
    causes = dict.fromkeys((finding.cause, *finding.alternatives))
    return replace(
        finding,
        summary=f"the training diverges at a learning rate of {rate:.3g}: after {job.step} steps weights reach "
        f"{largest[name]:.3g}; {finding.summary}",
        cause="optim.lr",
        alternatives=tuple(cause for cause in causes if cause != "optim.lr"),
        where=replace(finding.where, param=name),
        expected=f"weights below {_MAX_WEIGHT:,.0f}, as networks with normalised inputs have them",
        action="lower optimizer.lr by a factor of 10 or more, warm up (schedule.warmup_epochs), or bound the gradient "
        "(train.clip_norm)",
        evidence={**finding.evidence, "largest_weight": largest[name], "lr": rate},
    )


def _diagnose(place: str, measured: str, *, evidence: Mapping[str, Any] | None = None, **words: Any) -> Origin:
    """Make the origin of a row of the rule's table, with what it says of it."""
    where = FindingLocation(**{name: words[name] for name in ("layer", "param", "sample") if name in words})
    return Origin(place, measured, words, where, evidence or {}, words.get("causes", ()))


def _largest_weight(parameter: Tensor) -> float:
    """Return the largest absolute value of the finite weights of a parameter."""
    values = parameter.detach().abs()
    return float(torch.where(values.isfinite(), values, 0.0).max())


def _place(job: TrainState, origin: Origin) -> Origin:
    """Return the origin with the job's step and data set."""
    dataset = getattr(job.stream.reader, "dataset", None)
    name = type(dataset).__name__ if dataset is not None else None
    return origin._replace(where=replace(origin.where, step=job.step, dataset=name))


def _build(job: TrainState, origin: Origin) -> Finding:
    """Build the finding of an origin in the job's step."""
    (finding,) = find_by(non_finite, origin=_place(job, origin))
    return replace(finding, phase="runtime")


def _locate(job: TrainState, micro_batches: Sequence[Batch], device: torch.device) -> Origin:
    reads = _find_read_keys(job, micro_batches[0], device)
    for batch in micro_batches:
        found = _check_data(job, batch, reads)
        if found is not None:
            return found
    found = _check_parameters(job)
    for _ in range(_NUM_TRIES if found is None else 0):
        for batch in micro_batches:
            found = found or _check_step(job, batch, device)
    return found or _check_norm(job, micro_batches, device)


def _list_spoiled(error: NonFiniteGradientError) -> str:
    """List the losses that were not finite in the run's step."""
    return ", ".join(
        f"the loss '{name}' was {value}" for name, value in error.losses.items() if not math.isfinite(value)
    )


# --- the stages, in the order in which a fault would arise -----------------------------------------------------------


def _find_read_keys(job: TrainState, batch: Batch, device: torch.device) -> set[str]:
    """Return the batch keys that a step reads; all keys if it fails."""
    tracked = ReadTrackingDict(batch)
    run = {"job": job, "model": isolated_copy(job.model), "micro_batches": [tracked], "device": device}
    is_read = not isinstance(attempt("step", forward_backward, run), MissingError)
    return tracked.read if is_read else set(batch)  # if the step fails, every key is suspect


def _find_in_step(job: TrainState) -> Origin | None:
    """Read the batches of the step again, and return their first number that is not finite."""
    micro_batches = map(job.stream.reader, job.stream.step_keys(job.step))
    return next((found for batch in micro_batches if (found := _check_data(job, batch, {*batch})) is not None), None)


def _check_data(job: TrainState, batch: Batch, reads: set[str]) -> Origin | None:
    declared = getattr(job.stream.reader, "fields", {})
    for key in sorted(reads & batch.keys()):
        for leaf, tensor in array_leaves(batch[key], key):
            is_unknown = key in declared and declared[key].may_be_nan
            position = _find_non_finite(torch.where(tensor.isnan(), 0, tensor) if is_unknown else tensor)
            if position is not None:
                value, sample = float(tensor[position]), _find_sample(batch, tensor, position)
                measured = f"{value} at {leaf}{list(position)}{_describe_sample(job, sample)}"
                return _diagnose("data", measured, what=f"'{key}' of the batch", sample=sample)
    return None


def _check_parameters(job: TrainState) -> Origin | None:
    for name, parameter in job.trained_module.named_parameters():
        count = int((~parameter.detach().isfinite()).sum())
        if count:
            measured = f"{count} of {parameter.numel()} values, {_format_ranges([parameter])} the rest"
            return _diagnose("parameter", measured, param=name)
    return None


class _Event(NamedTuple):
    """First value, in order of execution, that is not finite: its layer, the preceding layer and its inputs' range."""

    layer: str
    is_between: bool
    after: str | None
    tensor: Tensor
    before: str


class ForwardTrace:
    """Record of the forward pass of a copy: the first value that is not finite, and the module of each node."""

    def __init__(self) -> None:
        self.event: _Event | None = None
        self.owners: dict[Any, str] = {}
        self._last_sound: tuple[str | None, list[Tensor]] = None, []
        self._running: list[tuple[str, list[Tensor]]] = []

    def enter(self, call: ModuleCall, module: nn.Module, inputs: Any) -> None:
        tensors = _find_floats(inputs)
        name, outputs = self._last_sound
        self._note(tensors, self._running[-1][0] if self._running else "", True, name, outputs)
        self._running.append((call.path, tensors))

    def leave(self, call: ModuleCall, module: nn.Module, inputs: Any, outputs: Any) -> None:
        tensors, (path, given) = _find_floats(outputs), self._running.pop()
        for node in iter_nodes([t.grad_fn for t in tensors], until=[t.grad_fn for t in given]):
            self.owners.setdefault(node, path)  # inner modules leave first
        if not self._note(tensors, path, False, self._last_sound[0], given):
            self._last_sound = path, tensors

    def _note(self, tensors: Sequence[Tensor], layer: str, is_between: bool, after: str | None, before: Any) -> bool:
        bad = next((tensor for tensor in tensors if not _is_finite(tensor)), None)
        if bad is not None and self.event is None:
            self.event = _Event(layer, is_between, after, bad.detach(), _format_ranges(before))
        return bad is not None


def _check_step(job: TrainState, batch: Batch, device: torch.device) -> Origin | None:
    """Repeat one micro-batch on a copy with hooks; return the first origin in forward pass, losses, backward pass."""
    model, trace = isolated_copy(job.model).train(), ForwardTrace()
    apply_freezing(model, job.frozen, job.epoch)
    with record(model, enter=trace.enter, leave=trace.leave):
        step = single_batch_step(job.task, model, batch, device, job.precision)
        terms = step.loss_sums(model)
    if trace.event is not None:
        return _make_forward_origin(job, batch, trace.event)
    for name, term in terms.items():
        total, count = float(term.detach()), float(step.counts[name])
        if not math.isfinite(total) or not math.isfinite(count):
            measured, named = f"sum {total}, count {count}", f" '{name}'"
            samples = _find_spoiling_samples(job, model, batch, device, name)
            if samples:
                listed = [_describe_sample(job, sample).removeprefix(" of ") for sample in samples]
                measured += f"; it is of {join_some(listed, most=3)} alone, too"
            sample = samples[0] if samples else None
            return _diagnose("loss", measured, name=named, total=total, sample=sample, evidence={"loss": name})
    graphs = {name: set(iter_nodes([term.grad_fn])) for name, term in terms.items()}
    first_bad: list[Any] = []
    for node in set().union(*graphs.values()):
        watch_gradient(node, _make_hook(node, first_bad))
    loss = weighted_sum(step.loss_means(terms), job.loss_weights_at(job.step))
    if loss.requires_grad:
        loss.backward()
    own_named = combine_modules(model, job.losses).named_parameters()
    affected = [name for name, p in own_named if not _is_finite(p.grad)]
    if not affected:
        return None
    node = first_bad[0] if first_bad else None
    layer = trace.owners.get(node)
    loss_name = next((name for name, graph in graphs.items() if node in graph), None) if layer is None else None
    operation = "an operation that hooks do not see" if node is None else node.name()
    return _diagnose(
        "backward",
        f"{operation} turns a finite gradient into another; it reaches {len(affected)} parameters, {affected[0]} first",
        operation=operation,
        location=f"the loss '{loss_name}'" if layer is None else layer or "the model's own forward",
        causes=("model.numerics", "loss.form") if loss_name is None else ("loss.form", "model.numerics"),
        layer=layer or None,
        param=affected[0],
        evidence={"operation": operation, "loss": loss_name},
    )


def _find_spoiling_samples(
    job: TrainState, model: nn.Module, batch: Batch, device: torch.device, name: str
) -> list[int]:
    """Return the samples whose loss is not finite where each is a batch of its own, in evaluation mode."""
    model = isolated_copy(model).eval()
    found = []
    for row, index in enumerate(batch.get("sample_index", ())):
        asked = {"job": job, "model": model, "batch": take_samples(batch, batch, [row]), "device": device}
        total = attempt("step", _compute_loss_sums, asked)
        if not isinstance(total, MissingError) and not math.isfinite(float(total[name])):
            found.append(int(index))
    return found


def _compute_loss_sums(job: TrainState, model: nn.Module, batch: Batch, device: torch.device) -> Mapping[str, Tensor]:
    with torch.no_grad():
        return single_batch_step(job.task, model, batch, device, job.precision).loss_sums(model)


def _make_forward_origin(job: TrainState, batch: Batch, event: _Event) -> Origin:
    """Make the origin of the first value of a forward pass that is not finite, with its sample."""
    position = _find_non_finite(event.tensor) or ()
    location = f"'{event.layer}'" if event.layer else "the model's own forward"
    if event.is_between:
        location += f", after '{event.after}'" if event.after else ", before its first layer"
    number, sample = float(event.tensor[position]), _find_sample(batch, event.tensor, position)
    place = f"{number} at {list(position)} of {tuple(event.tensor.shape)}{_describe_sample(job, sample)}"
    measured, layer = f"{place}; its inputs: {event.before}", event.layer or event.after
    return _diagnose("forward", measured, number=number, location=location, layer=layer, sample=sample)


def _make_hook(node: Any, found: list[Any]) -> Callable[..., None]:
    def hook(to_inputs: Any, from_outputs: Any) -> None:
        if not all(map(_is_finite, to_inputs)) and all(map(_is_finite, from_outputs)):
            found.append(node)

    return hook


def _check_norm(job: TrainState, micro_batches: Sequence[Batch], device: torch.device) -> Origin:
    """Return the origin of summed gradients, or their norm, that overflow although all parts are finite."""
    model = isolated_copy(job.model)
    forward_backward(job, model, micro_batches, device)
    named = combine_modules(model, job.losses).named_parameters()
    gradients = {name: p.grad for name, p in named if p.grad is not None and p.grad.numel()}
    largest = {name: float(gradient.abs().max()) for name, gradient in gradients.items()}
    norm = float(nn.utils.get_total_norm(list(gradients.values())))
    if not largest or math.isfinite(norm):
        return _diagnose("unknown", f"run again on a copy, the step is finite (gradient norm {norm:.4g})")
    name = max(largest, key=lambda name: largest[name])
    return _diagnose("norm", f"norm {norm}, largest {largest[name]:.4g} in {name}", param=name)


# --- small things ----------------------------------------------------------------------------------------------------


def _find_floats(values: Any) -> list[Tensor]:
    return [tensor for _, tensor in array_leaves(values) if tensor.is_floating_point()]


def _is_finite(tensor: Tensor | None) -> bool:
    return tensor is None or not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _find_non_finite(tensor: Tensor) -> tuple[int, ...] | None:
    """Return the position of the first number that is not finite; None without one."""
    places = (~tensor.isfinite()).nonzero()
    return tuple(places[0].tolist()) if len(places) else None


def _format_ranges(tensors: Sequence[Tensor]) -> str:
    finite = [values[values.isfinite()] for values in (tensor.detach() for tensor in tensors)]
    ranges = [f"{float(v.min()):.4g} .. {float(v.max()):.4g}" if v.numel() else "nothing finite" for v in finite]
    return ", ".join(ranges) or "nothing"


def _describe_sample(job: TrainState, index: int | None) -> str:
    dataset = getattr(job.stream.reader, "dataset", None)
    if index is None:
        return ""
    return f" of {describe_sample(dataset, index) if dataset is not None else f'sample {index}'}"


def _find_sample(batch: Mapping[str, Any], tensor: Tensor, position: tuple[int, ...]) -> int | None:
    """Return the sample index of an element of a batch tensor: by its row, or by the offsets of ragged fields."""
    indices = batch.get("sample_index")
    if indices is None or not position:
        return None
    if len(tensor) == len(indices):
        return int(indices[position[0]])
    for offsets in (value for name, value in batch.items() if name.endswith("offsets")):
        if isinstance(offsets, Tensor) and len(offsets) == len(indices) + 1 and len(tensor) == int(offsets[-1]):
            return int(indices[int((offsets <= position[0]).sum()) - 1])
    return None
