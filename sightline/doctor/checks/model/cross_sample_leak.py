"""A network whose outputs for a sample depend on the samples beside or before it, by a mean over the batch, say."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sightline.compare.convolution import Float64Convolutions
from sightline.compare.formats import get_format
from sightline.doctor.context import Context, check
from sightline.doctor.core.dry_evaluation import DryEvaluation, keys_to_evaluate
from sightline.doctor.core.dry_run import NUM_SAMPLES, isolated_copy
from sightline.doctor.core.finding import Finding
from sightline.engine.device import to_device
from sightline.engine.step import compute_batch_losses
from sightline.errors import summarise_error
from sightline.layers.batch_norm import uses_batch_statistics
from sightline.module_hooks import module_hooks
from sightline.pytree import tree_leaves, tree_map
from sightline.types import Batch, SampleKey

__all__ = ["cross_sample_leak"]

_SUSPECT = {torch.float32: 2.0**-18, torch.float64: 2.0**-40}
"""Shares of an output's largest value; what float32 deviates by more than this is looked at in float64."""
_ROUNDED = 2.0**-36  # a share of the largest value in float64, a hundred thousand roundings
_ROUNDED_ALONE = 2.0**-10  # the same of a network that cannot run in float64
_GUILTY = 16.0
_MOST_DRAWS = 4
_NUDGED_UNITS = 16
_MANY = 5  # an odd number, and more than the rehearsal evaluates at once
_NORM_ACTION = "let the norm keep running statistics (track_running_stats=True) and take them in evaluation mode"


@check(
    "G24",
    "cross-sample-leak",
    "preflight",
    causes=("model.cross_sample_leak", "model.norm_mode"),
    config_path="model",
    expected="a sample gets the same outputs alone and in a batch, but for rounding: figures must not depend on how "
    "samples are divided into batches and over processes",
)
def cross_sample_leak(context: Context) -> list[Finding]:
    """Samples in evaluation mode, and two of them alone: the outputs are the same, but for rounding.

    Two samples, and under `sightline check` five, unless that is slow or batches are smaller. Where outputs differ in
    the run's own format, both passes are made again in float64. What inputs moved by a few units in the last place, or
    other random numbers, change as much is a decision or a draw, and no leak. What an earlier pass left is a leak, too.
    """
    evaluation = next((each for each in context.dry_evaluations if each.failure is None and not each.skipped), None)
    if evaluation is None or not context.dry_run.is_sound:
        return []
    built = context.built
    whole = built.selection_evaluator if evaluation.part is built.data.selection else built.test_evaluator
    takes_more = context.is_thorough and len(evaluation.keys) >= NUM_SAMPLES and whole.batch_size >= _MANY
    for size in (2, _MANY) if takes_more else (2,):
        keys = keys_to_evaluate(whole, evaluation.part, size)
        if len(keys) < size:
            return []
        try:
            group = _Group(context, evaluation, keys)
            beside = group.outputs(group.model, group.batch)
        except Exception:  # noqa: BLE001 - what an evaluation dies of is what `first-evaluation` reports
            return []
        if (finding := _compare(context, group, beside)) is not None:
            return [finding]
    return []


def _compare(context: Context, group: _Group, beside: Mapping[str, Tensor]) -> Finding | None:
    """The finding, where a sample alone gets something else than `beside` the others, or than before them."""
    for single in group.singles:
        try:
            alone = group.outputs(group.model, single.batch)
        except Exception as error:  # noqa: BLE001 - whatever it dies of
            return _of_failure(context, group, single, error)
        if single.leads and len(group.keys) == 2:
            again = group.outputs(group.model, single.batch)
            is_suspect = any(each.share > group.suspect for each in _changes(alone, again))
            if is_suspect and (finding := _of_memory(context, group)) is not None:
                return finding
        is_suspect = any(each.share > group.suspect for each in group.differences(single, beside, alone))
        if is_suspect and (finding := _of_suspect(context, group, single)) is not None:
            return finding
    return None


@dataclasses.dataclass(frozen=True)
class _Difference:
    """How far an output of a sample alone is from that beside another one."""

    name: str
    largest: float
    scale: float

    @property
    def share(self) -> float:
        return self.largest / self.scale if self.scale > 0 else 0.0


@dataclasses.dataclass(frozen=True)
class _Single:
    """One sample alone; `leads` where it comes first in the batch of both. `read` reads it again."""

    batch: Batch
    read: Callable[[], Batch]
    name: str
    leads: bool

    def rows(self, beside: Tensor | None, alone: Tensor) -> Tensor | None:
        """The sample's rows of a tensor that has one or more for each, in the order of samples; None of another."""
        if beside is None or not alone.is_floating_point() or not beside.is_floating_point() or not alone.numel():
            return None
        if not alone.ndim or beside.ndim != alone.ndim or beside.shape[1:] != alone.shape[1:]:
            return None
        if len(beside) <= len(alone):
            return None
        rows = beside[: len(alone)] if self.leads else beside[-len(alone) :]
        return rows if bool(rows.isfinite().all()) and bool(alone.isfinite().all()) else None


class _Seen(Exception):  # noqa: N818 - no error: it ends a pass that has shown what it is run for
    """Carries what the model returned."""

    def __init__(self, outputs: Any) -> None:
        super().__init__()
        self.outputs = outputs


class _Group:
    """Samples of an evaluated part together, the first and the last also alone. Raises whatever reading them does."""

    def __init__(self, context: Context, evaluation: DryEvaluation, keys: Sequence[SampleKey]) -> None:
        self.device, self.keys = context.world.device, keys
        self.model = isolated_copy(context.built.job.evaluation_model).eval()
        self._task, part = evaluation.evaluator.task, evaluation.part
        dtype, reader = evaluation.evaluator.precision.parameter_dtype, evaluation.evaluator.reader
        self.suspect = _SUSPECT[dtype]

        def read(keys: Sequence[SampleKey]) -> Batch:
            batch: Batch = to_device(reader(list(keys)), self.device, float_dtype=dtype)
            return batch

        self.singles = [
            _Single(read([key]), partial(read, [key]), f"{part.split} sample {key.index}", leads=key is keys[0])
            for key in (keys[0], keys[-1])
        ]
        self.batch = read(keys)

    def outputs(self, model: nn.Module, batch: Batch, *, seed: int = 0) -> dict[str, Tensor]:
        """The tensors that the model returns when its task first calls it with a batch; the losses are not computed."""

        def end(module: nn.Module, given: Any, outputs: Any) -> None:
            raise _Seen(outputs)

        handle = model.register_forward_hook(end)
        torch.manual_seed(seed)
        try:
            with torch.no_grad(), Float64Convolutions():
                compute_batch_losses(self._task, model, batch, self.device)
        except _Seen as seen:
            return {name: tensor.detach() for name, tensor in tree_leaves(seen.outputs)}
        finally:
            handle.remove()
        return {}

    def differences(
        self, single: _Single, beside: Mapping[str, Tensor], alone: Mapping[str, Tensor]
    ) -> list[_Difference]:
        """Each output that has rows of the sample in both passes."""
        found = []
        for name, one in alone.items():
            has_rows = self._has_rows_of_samples(single, beside.get(name), one)
            rows = single.rows(beside.get(name), one) if has_rows else None
            if rows is not None:
                found.append(_difference(name, one, rows))
        return found

    def _has_rows_of_samples(self, single: _Single, beside: Tensor | None, alone: Tensor) -> bool:
        """Whether an output has a row for each sample, or for each point of clouds one after another."""
        if beside is None or not beside.ndim or not alone.ndim:
            return False
        sizes = [(len(self.keys), 1)]
        offsets = [batch.get("offsets") for batch in (self.batch, single.batch)]
        if all(isinstance(each, Tensor) for each in offsets):
            sizes.append(tuple(int(each[-1]) for each in offsets))  # type: ignore[arg-type, index]
        return (len(beside), len(alone)) in sizes


def _of_suspect(context: Context, group: _Group, single: _Single) -> Finding | None:
    """The finding, where float64 shows the same and neither rounding nor random numbers explain it.

    A sample that is another one when it is read again is no matter of the model: `data-mutation` reports it.
    """
    again = dict(tree_leaves(single.read()))
    if not all(name in again and torch.equal(tensor, again[name]) for name, tensor in tree_leaves(single.batch)):
        return None
    model, both, given, least = (
        isolated_copy(group.model).double(),
        _double(group.batch),
        _double(single.batch),
        _ROUNDED,
    )
    try:
        alone, beside = group.outputs(model, given), group.outputs(model, both)
    except Exception:  # noqa: BLE001 - a network that is written for one format alone
        model, both, given, least = group.model, group.batch, single.batch, _ROUNDED_ALONE
        alone, beside = group.outputs(model, given), group.outputs(model, both)
    suspects = {each.name: each for each in group.differences(single, beside, alone) if each.share > least}
    for draw in range(_MOST_DRAWS if suspects else 0):
        moved = group.outputs(model, _nudged(given, draw), seed=draw + 1)
        for name in [name for name in suspects if name in moved and moved[name].shape == alone[name].shape]:
            if suspects[name].largest <= _GUILTY * float((moved[name] - alone[name]).abs().max()):
                del suspects[name]
    if not suspects:
        return None
    worst = max(suspects.values(), key=lambda each: each.share)
    layer, place = _find_leak(group, model, both, dataclasses.replace(single, batch=given))
    return _of_leak(context, group, single, worst, layer, place)


def _changes(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[_Difference]:
    """How far outputs of one sample are apart in two passes."""
    found = []
    for name, one in before.items():
        other = after.get(name)
        if other is None or not one.is_floating_point() or one.shape != other.shape or not one.numel():
            continue
        if bool(one.isfinite().all()) and bool(other.isfinite().all()):
            found.append(_difference(name, one, other))
    return found


def _difference(name: str, one: Tensor, other: Tensor) -> _Difference:
    return _Difference(name, float((other - one).abs().max()), float(one.abs().max().maximum(other.abs().max())))


def _of_memory(context: Context, group: _Group) -> Finding | None:
    """The finding, where what the model returns for a sample depends on the sample that it was given before.

    Copies of the model get one or the other sample first. Draws of a generator that the model keeps are the same then.
    """
    sample, other = group.singles

    def second(first: Batch) -> tuple[dict[str, Tensor], list[str]]:
        model = isolated_copy(group.model)
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        group.outputs(model, first)
        changed = [name for name, buffer in model.named_buffers() if not torch.equal(before[name], buffer)]
        return group.outputs(model, sample.batch), changed

    after_itself, _ = second(sample.batch)
    after_other, buffers = second(other.batch)
    repeated, _ = second(sample.batch)
    unsteady = {each.name: each.largest for each in _changes(after_itself, repeated)}
    found = [
        each
        for each in _changes(after_itself, after_other)
        if each.share > group.suspect and each.largest > _GUILTY * unsteady.get(each.name, 0.0)
    ]
    if not found:
        return None
    worst = max(found, key=lambda each: each.share)
    written = f"; the pass wrote to buffer {', '.join(map(repr, buffers[:3]))}" if buffers else ""
    return cross_sample_leak.finding(
        context,
        f"what the model returns for a sample depends on the samples before it: '{worst.name}' differs",
        measured=f"{sample.name} after a pass of {other.name} and after a pass of its own, in evaluation mode: "
        f"'{worst.name}' differs by {worst.share:.2g} of its largest value{written}",
        action="let the forward pass write to buffers and attributes only where self.training is True",
        layer=buffers[0].rpartition(".")[0] or None if buffers else None,
        evidence={"output": worst.name, "largest difference": worst.largest, "largest value": worst.scale},
    )


def _double(batch: Batch) -> Batch:
    wide: Batch = tree_map(batch, lambda _, tensor: tensor.double() if tensor.is_floating_point() else tensor)
    return wide


def _nudged(batch: Batch, seed: int) -> Batch:
    """The batch with its numbers moved by some units in the last place."""
    generator = torch.Generator().manual_seed(seed)

    def nudge(place: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        moved = get_format(tensor.dtype).perturb(tensor.double(), generator, units=_NUDGED_UNITS)
        return moved.to(tensor.dtype)

    nudged: Batch = tree_map(batch, nudge)
    return nudged


def _find_leak(group: _Group, model: nn.Module, both: Batch, single: _Single) -> tuple[str, str]:
    """The layer to name, and in words where the sample's rows differ first; nothing where no layer shows it."""
    events: list[tuple[str, bool, list[Tensor]]] = []
    with _noted(model, lambda *event: events.append(event)):
        group.outputs(model, single.batch)
    expected = iter(events)
    found: list[tuple[str, bool]] = []

    def compare(name: str, is_result: bool, tensors: list[Tensor]) -> None:
        before = next(expected, ("", False, []))
        if found or before[:2] != (name, is_result):
            return
        for beside, alone in zip(tensors, before[2], strict=False):
            rows = single.rows(beside, alone)
            if rows is not None and float((rows - alone).abs().max()) > _ROUNDED * 64 * float(alone.abs().max()):
                found.append((name, is_result))
                return

    with _noted(model, compare):
        group.outputs(model, both)
    if not found:
        return "", ""
    name, is_result = found[0]
    if is_result:
        return name, f"first in what '{name or 'the model'}' returns"
    if not name:
        return "", "already in what the model is given: the collated batch differs"
    owner = name.rpartition(".")[0]
    return owner, f"first in what '{name}' is given, by the code of '{owner or 'the model'}'"


@contextlib.contextmanager
def _noted(model: nn.Module, note: Callable[[str, bool, list[Tensor]], None]) -> Iterator[None]:
    """Inside, `note(name, is_result, tensors)` gets copies of what every module is given and returns, in order."""
    names = {module: name for name, module in model.named_modules()}

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        note(names[module], False, [tensor.clone() for _, tensor in tree_leaves((args, kwargs))])

    def leave(module: nn.Module, args: Any, kwargs: Any, outputs: Any) -> None:
        note(names[module], True, [tensor.clone() for _, tensor in tree_leaves(outputs)])

    with module_hooks(names, enter, leave):
        yield


def _of_leak(context: Context, group: _Group, single: _Single, worst: _Difference, layer: str, place: str) -> Finding:
    module = group.model.get_submodule(layer)
    is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
    others = [each.name for each in group.singles if each is not single]
    others = others if len(group.keys) == 2 else [f"{len(group.keys) - 1} others"]
    return cross_sample_leak.finding(
        context,
        f"what the model returns for a sample depends on the samples beside it: '{worst.name}' differs",
        causes=("model.norm_mode", "model.cross_sample_leak") if is_norm else (),
        measured=f"{single.name} alone and beside {others[0]}, in evaluation mode: "
        f"'{worst.name}' differs by {worst.share:.2g} of its largest value{', ' if place else ''}{place}",
        action=_NORM_ACTION
        if is_norm
        else "look there for a mean, a graph or a reshape over axis 0, or over all rows of clouds one after another",
        layer=layer or None,
        evidence={"output": worst.name, "largest difference": worst.largest, "largest value": worst.scale},
    )


def _of_failure(context: Context, group: _Group, single: _Single, error: Exception) -> Finding:
    norms = (name for name, module in group.model.named_modules() if _takes_batch(module))
    norm = next(norms, None)
    return cross_sample_leak.finding(
        context,
        f"the model fails for a sample alone, not for two: {type(error).__name__}",
        causes=("model.norm_mode", "model.cross_sample_leak") if norm is not None else (),
        measured=f"{single.name} alone, in evaluation mode: {summarise_error(error)}",
        action=_NORM_ACTION
        if norm is not None
        else "look for an axis of length 1 that is dropped (squeeze), or a number that one sample does not have",
        layer=norm,
    )


def _takes_batch(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and uses_batch_statistics(module)
