"""A network whose outputs for a sample depend on other samples in the batch, or in earlier batches."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sightline.contract.errors import summarise_error
from sightline.contract.pytree import tree_cast, tree_leaves, tree_map
from sightline.contract.types import Batch, SampleKey
from sightline.engine.device import seed_torch, to_device
from sightline.engine.step import compute_batch_losses
from sightline.instrument import ModuleCall, record
from sightline.instrument.float64 import Float64Convolutions
from sightline.instrument.formats import get_format
from sightline.layers.batch_norm import uses_batch_statistics
from sightline.workbench.check.context import Context, check, evaluations, first_steps
from sightline.workbench.check.core.dry_evaluation import DryEvaluation, keys_to_evaluate
from sightline.workbench.check.core.dry_run import NUM_SAMPLES, DryRun, isolated_copy
from sightline.workbench.check.core.finding import Fault, diagnose
from sightline.workbench.check.core.sample_statistics import is_standardised

_diagnose = partial(diagnose, __file__)
_SUSPECT_SHARE = {torch.float32: 2.0**-18, torch.float64: 2.0**-40}
"""Deviation, as a share of an output's largest value, above which an output is compared again in float64."""
_ROUNDING_SHARE = 2.0**-36  # share of the largest value in float64: a hundred thousand rounding errors
_ROUNDING_SHARE_ONE_FORMAT = 2.0**-10  # the same for a network that cannot run in float64
_LEAK_FACTOR = 16.0
_MAX_DRAWS = 4
_PERTURBATION_UNITS = 16
_IN_INPUTS = "already in the inputs of the model: the collated batch differs"
_LARGE_GROUP = 5  # odd, and larger than the batch of the dry evaluation


@check(
    "cross-sample-leak",
    "preflight",
    each=first_steps,
    causes=("model.cross_sample_leak", "model.norm_mode", "model.structure"),
    config_path="model",
    expected="the same outputs for a sample alone and in a batch, except for rounding: metrics must not depend on how "
    "samples are divided into batches and over processes",
)
def cross_sample_leak(context: Context, step: DryRun) -> Fault | None:
    """In evaluation mode, the outputs of a sample alone equal those of the same sample in a batch, except for rounding.

    Finds: A network whose outputs for a sample depend on other samples in the batch, or in earlier batches.

    The batch is that of the dry evaluation, of four samples, or has two; under `sightline check` two and also five,
    unless that is slow or batches are smaller. If outputs differ in the run's own format, both passes are repeated in
    float64. A difference that inputs perturbed by a few units in the last place, or other random numbers, cause as well
    is a decision or a draw, not a leak. A state that an earlier pass has left is a leak, too.
    """
    evaluation = next((candidate for candidate in evaluations(context) if not candidate.skipped), None)
    if evaluation is None:
        return None
    built = context.built
    evaluator = built.selection_evaluator if evaluation.part is built.data.selection else built.test_evaluator
    if not context.is_thorough and (rehearsed := _take_rehearsed(context, evaluation)) is not None:
        return _compare_samples(*rehearsed)
    takes_more = context.is_thorough and len(evaluation.keys) >= NUM_SAMPLES and evaluator.batch_size >= _LARGE_GROUP
    for size in (2, _LARGE_GROUP) if takes_more else (2,):
        keys = keys_to_evaluate(evaluator, evaluation.part, size)
        if len(keys) < size:
            return None
        try:
            group = _Group(context, evaluation, keys)
            batched = group.outputs(group.model, group.batch)
        except Exception:  # noqa: BLE001 - `first-evaluation` reports any error
            return None
        if (fault := _compare_samples(group, batched)) is not None:
            return fault
    return None


def _take_rehearsed(context: Context, evaluation: DryEvaluation) -> tuple[_Group, dict[str, Tensor]] | None:
    """Return the dry evaluation as a group, with its outputs.

    None if it has one sample, or if the model computes other outputs than for its first sample alone: of another form,
    or in a lower format.
    """
    if evaluation.model is None or len(evaluation.keys) < 2 or evaluation.evaluator.precision.name in ("bf16", "fp16"):
        return None
    batched = {name: tensor.detach() for name, tensor in tree_leaves(dict(evaluation.outputs))}
    try:
        group = _Group(context, evaluation, evaluation.keys, model=evaluation.model.eval())
        alone = group.outputs(group.model, group.singles[0].batch)
    except Exception:  # noqa: BLE001 - the caller's own passes report it
        return None
    forms = [{name: tensor.shape[1:] for name, tensor in outputs.items()} for outputs in (alone, batched)]
    group.first_alone = alone
    return (group, batched) if forms[0] == forms[1] else None


def _compare_samples(group: _Group, batched: Mapping[str, Tensor]) -> Fault | None:
    """Return a fault if the outputs of a sample alone differ from its `batched` outputs, or after another sample."""
    for single in group.singles:
        try:
            alone = (single.leads and group.first_alone) or group.outputs(group.model, single.batch)
        except Exception as error:  # noqa: BLE001 - any error is reported
            return _make_failure(group, single, error)
        if single.leads and len(group.keys) < _LARGE_GROUP:
            repeated = group.outputs(group.model, single.batch)
            is_suspect = any(difference.share > group.suspect for difference in _find_changes(alone, repeated))
            if is_suspect and (fault := _judge_memory(group)) is not None:
                return fault
        is_suspect = any(difference.share > group.suspect for difference in group.differences(single, batched, alone))
        if is_suspect and (fault := _judge_suspect(group, single)) is not None:
            return fault
    return None


@dataclasses.dataclass(frozen=True)
class _Difference:
    """Largest difference between an output of a sample alone and in a batch, with the output's scale."""

    name: str
    largest: float
    scale: float

    @property
    def share(self) -> float:
        return self.largest / self.scale if self.scale > 0 else 0.0

    def evidence(self) -> dict[str, Any]:
        return {"output": self.name, "largest difference": self.largest, "largest value": self.scale}


@dataclasses.dataclass(frozen=True)
class _Single:
    """Batch of one sample; `leads` is True if it is the first of the group, and `read` reads it again."""

    batch: Batch
    read: Callable[[], Batch]
    name: str
    leads: bool

    def rows(self, batched: Tensor | None, alone: Tensor) -> Tensor | None:
        """Return the sample's rows of a batched tensor with rows in the order of samples; None for other tensors."""
        if batched is None or not alone.is_floating_point() or not batched.is_floating_point() or not alone.numel():
            return None
        if not alone.ndim or batched.ndim != alone.ndim or batched.shape[1:] != alone.shape[1:]:
            return None
        if len(batched) <= len(alone):
            return None
        rows = batched[: len(alone)] if self.leads else batched[-len(alone) :]
        return rows if bool(rows.isfinite().all()) and bool(alone.isfinite().all()) else None


class _ModelOutputs(Exception):  # noqa: N818 - not an error: it ends a pass early
    """Control flow: ends a forward pass and carries the outputs of the model."""

    def __init__(self, outputs: Any) -> None:
        super().__init__()
        self.outputs = outputs


class _Group:
    """Batch of samples of an evaluated split; the first and the last sample also alone. Reading errors propagate."""

    def __init__(
        self,
        context: Context,
        evaluation: DryEvaluation,
        keys: Sequence[SampleKey],
        *,
        model: nn.Module | None = None,
    ) -> None:
        self.device, self.keys = context.world.device, keys
        self.model = isolated_copy(context.built.job.evaluation_model).eval() if model is None else model
        self.first_alone: dict[str, Tensor] = {}
        self._task, part = evaluation.evaluator.task, evaluation.part
        dtype, reader = evaluation.evaluator.precision.parameter_dtype, evaluation.evaluator.reader
        self.suspect = _SUSPECT_SHARE[dtype]
        is_rehearsed = keys is evaluation.keys

        def read(keys: Sequence[SampleKey]) -> Batch:
            batch: Batch = to_device(reader(list(keys)), self.device, float_dtype=dtype)
            return batch

        self.singles = [
            _Single(
                evaluation.read([rank]) if is_rehearsed else read([keys[rank]]),
                partial(read, [keys[rank]]),
                f"{part.split} sample {keys[rank].index}",
                leads=rank == 0,
            )
            for rank in (0, len(keys) - 1)
        ]
        self.batch = evaluation.batch if is_rehearsed else read(keys)

    def outputs(self, model: nn.Module, batch: Batch, *, seed: int = 0) -> dict[str, Tensor]:
        """Return the tensors, by path, of the model's first call by its task; the losses are not computed."""

        def end(*called: Any) -> None:
            raise _ModelOutputs(called[-1])

        seed_torch(seed)
        try:
            with torch.no_grad(), Float64Convolutions(), record({"": model}, leave=end):
                compute_batch_losses(self._task, model, batch, self.device)
        except _ModelOutputs as stop:
            return {name: tensor.detach() for name, tensor in tree_leaves(stop.outputs)}
        return {}

    def differences(
        self, single: _Single, batched: Mapping[str, Tensor], alone: Mapping[str, Tensor]
    ) -> list[_Difference]:
        """Measure the difference of each output that has rows of the sample in both passes."""
        results = []
        for name, output in alone.items():
            has_rows = self._has_rows_of_samples(single, batched.get(name), output)
            rows = single.rows(batched.get(name), output) if has_rows else None
            if rows is not None:
                results.append(_measure_difference(name, output, rows))
        return results

    def _has_rows_of_samples(self, single: _Single, batched: Tensor | None, alone: Tensor) -> bool:
        """Return True if an output has one row per sample, or one per point of concatenated clouds."""
        if batched is None or not batched.ndim or not alone.ndim:
            return False
        sizes = [(len(self.keys), 1)]
        offsets = [batch.get("offsets") for batch in (self.batch, single.batch)]
        if all(isinstance(offset, Tensor) for offset in offsets):
            sizes.append(tuple(int(offset[-1]) for offset in offsets))  # type: ignore[arg-type, index]
        return (len(batched), len(alone)) in sizes


def _judge_suspect(group: _Group, single: _Single) -> Fault | None:
    """Return a fault if float64 shows the difference too and neither rounding nor random numbers explain it.

    A sample that changes when it is read again is not the model's fault: `data-mutation` reports it.
    """
    reread = dict(tree_leaves(single.read()))
    if not all(name in reread and torch.equal(tensor, reread[name]) for name, tensor in tree_leaves(single.batch)):
        return None
    model, group_batch, single_batch, min_share = (
        isolated_copy(group.model).double(),
        tree_cast(group.batch, torch.float64),
        tree_cast(single.batch, torch.float64),
        _ROUNDING_SHARE,
    )
    try:
        alone, batched = group.outputs(model, single_batch), group.outputs(model, group_batch)
    except Exception:  # noqa: BLE001 - the network may support one number format only
        model, group_batch, single_batch, min_share = group.model, group.batch, single.batch, _ROUNDING_SHARE_ONE_FORMAT
        alone, batched = group.outputs(model, single_batch), group.outputs(model, group_batch)
    suspects = {
        difference.name: difference
        for difference in group.differences(single, batched, alone)
        if difference.share > min_share
    }
    for draw in range(_MAX_DRAWS if suspects else 0):
        perturbed = group.outputs(model, _perturb_batch(single_batch, draw), seed=draw + 1)
        for name in [name for name in suspects if name in perturbed and perturbed[name].shape == alone[name].shape]:
            if suspects[name].largest <= _LEAK_FACTOR * float((perturbed[name] - alone[name]).abs().max()):
                del suspects[name]
    if not suspects:
        return None
    worst = max(suspects.values(), key=lambda difference: difference.share)
    layer, location = _find_leak(group, model, group_batch, dataclasses.replace(single, batch=single_batch))
    is_normed = all(map(is_standardised, (alone[worst.name], batched[worst.name])))
    return _make_leak(group, single, worst, layer, location, is_normed=is_normed)


def _find_changes(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[_Difference]:
    """Measure the difference of each output of one sample between two passes."""
    differences = []
    for name, output in before.items():
        later_output = after.get(name)
        if (
            later_output is None
            or not output.is_floating_point()
            or output.shape != later_output.shape
            or not output.numel()
        ):
            continue
        if bool(output.isfinite().all()) and bool(later_output.isfinite().all()):
            differences.append(_measure_difference(name, output, later_output))
    return differences


def _measure_difference(name: str, output: Tensor, other: Tensor) -> _Difference:
    return _Difference(name, float((other - output).abs().max()), float(output.abs().max().maximum(other.abs().max())))


def _judge_memory(group: _Group) -> Fault | None:
    """Return a fault if the outputs for a sample depend on the sample of the previous pass.

    Copies of the model get one or the other sample first, so that draws of a generator inside the model are the same.
    """
    sample, other = group.singles

    def run_after(first: Batch) -> tuple[dict[str, Tensor], list[str]]:
        model = isolated_copy(group.model)
        initial_buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        group.outputs(model, first)
        changed = [
            name
            for name, buffer in model.named_buffers()
            if name not in initial_buffers or not torch.equal(initial_buffers[name], buffer)
        ]
        return group.outputs(model, sample.batch), changed

    after_itself, _ = run_after(sample.batch)
    after_other, buffers = run_after(other.batch)
    repeated, _ = run_after(sample.batch)
    noise = {change.name: change.largest for change in _find_changes(after_itself, repeated)}
    changes = [
        change
        for change in _find_changes(after_itself, after_other)
        if change.share > group.suspect and change.largest > _LEAK_FACTOR * noise.get(change.name, 0.0)
    ]
    if not changes:
        return None
    worst = max(changes, key=lambda change: change.share)
    written = f"; the pass wrote to buffer {', '.join(map(repr, buffers[:3]))}" if buffers else ""
    layer = buffers[0].rpartition(".")[0] or None if buffers else None
    words = {"worst": worst, "single": sample, "other": other, "written": written}
    return _diagnose("memory", layer=layer, evidence=worst.evidence(), **words)


def _perturb_batch(batch: Batch, seed: int) -> Batch:
    """Return the batch with its floating-point numbers perturbed by some units in the last place."""
    generator = torch.Generator().manual_seed(seed)

    def perturb_tensor(path: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        perturbed = get_format(tensor.dtype).perturb(tensor.double(), generator, units=_PERTURBATION_UNITS)
        return perturbed.to(tensor.dtype)

    perturbed_batch: Batch = tree_map(batch, perturb_tensor)
    return perturbed_batch


def _find_leak(group: _Group, model: nn.Module, group_batch: Batch, single: _Single) -> tuple[str, str]:
    """Return the layer to report and a text on where the sample's rows differ first; "" if no layer shows it."""
    events: list[tuple[str, bool, list[Tensor]]] = []
    with _record_calls(model, lambda *event: events.append(event)):
        group.outputs(model, single.batch)
    expected = iter(events)
    differing: list[tuple[str, bool]] = []

    def compare(name: str, is_result: bool, tensors: list[Tensor]) -> None:
        recorded = next(expected, ("", False, []))
        if differing or recorded[:2] != (name, is_result):
            return
        for batched, alone in zip(tensors, recorded[2], strict=False):
            rows = single.rows(batched, alone)
            if rows is not None and float((rows - alone).abs().max()) > _ROUNDING_SHARE * 64 * float(alone.abs().max()):
                differing.append((name, is_result))
                return

    with _record_calls(model, compare):
        group.outputs(model, group_batch)
    if not differing:
        return "", ""
    name, is_result = differing[0]
    if is_result:
        return name, f"first in the outputs of '{name or 'the model'}'"
    if not name:
        return "", _IN_INPUTS
    owner = name.rpartition(".")[0]
    return owner, f"first in the inputs of '{name}', by the code of '{owner or 'the model'}'"


def _record_calls(
    model: nn.Module, note: Callable[[str, bool, list[Tensor]], None]
) -> contextlib.AbstractContextManager[Any]:
    """Context in which `note(name, is_result, tensors)` gets copies of all modules' inputs and outputs, in order."""

    def pass_on(call: ModuleCall, module: nn.Module, *values: Any) -> None:
        note(call.path, len(values) > 1, [tensor.clone() for _, tensor in tree_leaves(values[-1])])

    return record(model, enter=pass_on, leave=pass_on)


def _make_leak(
    group: _Group, single: _Single, worst: _Difference, layer: str, location: str, *, is_normed: bool = False
) -> Fault:
    others = [sample.name for sample in group.singles if sample is not single]
    others = others if len(group.keys) == 2 else [f"{len(group.keys) - 1} others"]
    words = {"worst": worst, "single": single, "others": others[0], "evidence": worst.evidence()}
    if location == _IN_INPUTS:
        return _diagnose("before the model", location=location, **words)
    is_norm = isinstance(group.model.get_submodule(layer), nn.modules.batchnorm._BatchNorm)
    diagnosis = "norm" if is_norm else "standardised" if is_normed else "leak"
    first = f"{', ' if location else ''}{location}"
    normed = f"; '{worst.name}' has mean 0 and deviation 1 in both" if is_normed else ""
    return _diagnose(diagnosis, location=first + normed, layer=layer or None, **words)


def _make_failure(group: _Group, single: _Single, error: Exception) -> Fault:
    norms = (name for name, module in group.model.named_modules() if _uses_batch_norm_statistics(module))
    norm = next(norms, None)
    words = {"kind": type(error).__name__, "single": single, "reason": summarise_error(error)}
    return _diagnose("fails alone" if norm is None else "fails alone by a norm", layer=norm, **words)


def _uses_batch_norm_statistics(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and uses_batch_statistics(module)
