"""Layer-by-layer judgement of a recorded step against the reference: forward, loss, backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sightline.contract.errors import RunError
from sightline.contract.pytree import tree_leaves
from sightline.contract.types import Batch
from sightline.engine.train import TrainState
from sightline.instrument import ModuleCall
from sightline.instrument.formats import FORMATS, Format
from sightline.instrument.judge import MAX_ROUNDING_UNITS, Deviation, judge, sum_deviation
from sightline.instrument.replay import (
    LayerUnit,
    MisalignedError,
    Perturbation,
    ReferenceResult,
    collect_recorded,
    replay,
)
from sightline.workbench.compare.recording import StepRecording
from sightline.workbench.compare.variants import (
    ModelVariant,
    backend_settings,
    mean_losses,
    prepare_in_format,
    prepared_values,
    variant_step,
)

Pass = Literal["inputs", "forward", "loss", "backward", "update"]
"""Passes of a step; data and weights after it are compared with records alone."""
LOSS = "(loss)"
TARGETS = "(targets)"


@dataclass(frozen=True)
class LayerComparison:
    """Comparison of one layer in one pass: its tensor that deviates most.

    `what` names the tensor. `inside` is the enclosing module if that module's own code computed the tensor: the layer
    is then the last one that it had called.
    """

    layer: str
    class_name: str
    which: Pass
    what: str
    deviation: Deviation
    format: str
    inside: str = ""
    paths: tuple[str, ...] = field(default=(), repr=False, compare=False)
    """Paths under which either network may have the module that was called."""
    unit: LayerUnit | None = field(default=None, repr=False, compare=False)
    name: str = field(default="", repr=False, compare=False)
    """What was judged, and the tensor's name in `ReferenceResult.items`; None for tensors of a record."""

    @property
    def is_guilty(self) -> bool:
        """True if rounding does not explain the deviation."""
        return self.deviation.is_guilty

    def describe(self) -> str:
        """Describe layer, pass, tensor and deviation."""
        deviation = self.deviation
        inside = f", in the code of {self.inside} after it" if self.inside else ""
        kind = f" ({self.class_name})" if self.class_name else ""
        text = deviation.note or (
            f"off by {deviation.relative_error:.2g} of its largest value, "
            f"rounding explains {deviation.relative_bound:.2g}"
        )
        which = f"{self.which} pass" if self.which in ("forward", "loss", "backward") else self.which
        return f"{self.layer}{kind}{inside}, {which}, {self.what}: {text}"

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        deviation = self.deviation
        return {
            "layer": self.layer,
            "class": self.class_name,
            "pass": self.which,
            "what": self.what,
            "inside": self.inside,
            "ratio": deviation.ratio,
            "measured": deviation.relative_error,
            "tolerated": deviation.relative_bound,
            "format": self.format,
            "entries": deviation.entries,
            "undefined": deviation.undefined,
            "note": deviation.note,
        }


def compare_layerwise(
    recording: StepRecording, reference: ModelVariant, job: TrainState, batch: Batch, *, seed: int = 0
) -> list[LayerComparison]:
    """Compare every call of a recorded step with the reference; rows in the order of execution.

    `batch` is the step's input. `reference` is in float64; the module of a call is the one with the call's path. The
    targets that the task computes from the batch (which prior belongs to which box) are judged separately, and the
    losses read the variant's targets.
    """
    with backend_settings(reference, job):
        narrow = prepare_in_format(job, recording.format)
        step = variant_step(job, reference, batch)

        def targets(perturbed_batch: Batch, *, is_narrow: bool = False) -> Any:
            return prepared_values(variant_step(narrow if is_narrow else job, reference, perturbed_batch))

        def losses(counts: Any, contexts: Any) -> dict[str, Tensor]:
            return mean_losses(job, reference, batch, step=replace(step, counts=counts, contexts=contexts))

        comparison = _StepComparison(recording, reference, seed)
        for unit in comparison.units(losses, targets, batch):
            comparison.judge_unit(unit)
        comparison.judge_parameters()
    return [row for _, row in sorted(comparison.rows, key=lambda item: item[0])]


@dataclass
class _Gradient:
    """Reference gradient of a parameter, summed over the units that use it."""

    total: Tensor
    shift: float
    users: list[tuple[LayerUnit, str]]

    def make_runner(self, key: str) -> Callable[[Perturbation | None], ReferenceResult]:
        """Return a function that recomputes this gradient with perturbed inputs."""

        def run(nudge: Perturbation | None) -> ReferenceResult:
            parts = [_run_perturbed(unit, nudge).gradients.get(name) for unit, name in self.users]
            return ReferenceResult(
                gradients={key: sum((p for p in parts if p is not None), torch.zeros_like(self.total))}
            )

        return run


class _StepComparison:
    """Comparison of a recorded step, unit by unit; `rows` are pairs (order of execution, row)."""

    def __init__(self, recording: StepRecording, reference: ModelVariant, seed: int) -> None:
        self.rows: list[tuple[tuple[int, int], LayerComparison]] = []
        self._recording, self._reference, self._seed = recording, reference, seed
        self._modules = dict(reference.model.named_modules())
        self._gradients: dict[str, _Gradient] = {}
        first: dict[int, str] = {}
        named = reference.model.named_parameters(remove_duplicate=False)
        self._first_names = {name: first.setdefault(id(p), name) for name, p in named}
        self._last = 1 + max((call.ended for call in recording.calls), default=0)

    def units(self, losses: Callable[..., Any], targets: Callable[..., Any], batch: Batch) -> Iterator[LayerUnit]:
        """Iterate over the units to judge: loss, targets and every call except those of plain containers."""
        inner: dict[int | None, list[ModuleCall]] = {}
        for call in self._recording.calls:
            inner.setdefault(call.parent, []).append(call)
        yield self._make_loss_unit(losses, inner.get(None, []))
        yield from self._make_target_units(targets, batch)
        for index, call in enumerate(self._recording.calls):
            module, calls = self._modules.get(call.path), inner.get(index, [])
            if module is not None and not (type(module) is nn.Sequential and calls):
                yield self._make_unit(call, module, calls)

    def judge_unit(self, unit: LayerUnit) -> None:
        """Judge a unit and append its rows; parameter gradients are collected for `judge_parameters`."""
        unit, exact = self._run_unit(unit)
        tensors = collect_recorded(unit)
        tensors |= self._unchanged_buffers(unit, exact, tensors)
        deviations, moves = judge(unit, tensors, exact, partial(_run_perturbed, unit), seed=self._seed)
        _set_coarse(deviations, exact, unit.call.format)
        for name, shift in moves.items():
            self._add_gradient(unit, name, exact.gradients.get(name.removeprefix("to ")), shift)
        for order, name, deviation in _select_worst(unit, deviations, self._last):
            self.rows.append((order, _make_row(unit, name, deviation)))

    def judge_parameters(self) -> None:
        """Judge every recorded parameter gradient."""
        for name, gradient in self._recording.gradients.items():
            expected = self._gradients.pop(name, None)
            if expected is None:
                continue
            (unit, _), key = expected.users[0], f"parameter.{name}"
            num_added = sum(user.num_added(f"to {user_name}") for user, user_name in expected.users)
            deviation = sum_deviation(
                gradient, expected.total, unit.call.format, moved=expected.shift, num_added=num_added
            )
            if deviation.ratio > MAX_ROUNDING_UNITS / 2:
                result = ReferenceResult(gradients={key: expected.total})
                judgement = judge(unit, {f"to {key}": gradient}, result, expected.make_runner(key), seed=self._seed)
                deviation = judgement.deviations[f"to {key}"]
            self.rows.append(((1, -unit.call.began), _make_row(unit, f"to {key}", deviation)))

    def _make_unit(self, call: ModuleCall, module: nn.Module, calls: Sequence[ModuleCall]) -> LayerUnit:
        replaced = tuple(calls) if all(nested.path in self._modules for nested in calls) else ()
        modules = tuple(self._modules[nested.path] for nested in replaced)
        is_partial = self._recording.is_partial
        unit = LayerUnit(
            call, replaced, module, modules, module, call.path, self._reference.device, is_partial=is_partial
        )
        return unit if len(replaced) == len(calls) else self._make_opaque(unit)

    def _make_target_units(self, targets: Callable[..., Any], batch: Batch) -> Iterator[LayerUnit]:
        """Yield the unit of the task's contexts and counts.

        If rounding changes a decision, the counts are those of the decisions in the variant's format. If these differ
        as well, the counts are not judged: they follow from the decisions.
        """
        counts, contexts = self._recording.prepared
        if not any(tree_leaves(contexts)):
            return
        is_same = _are_alike(contexts, targets(batch)[1])
        narrow_targets = targets(batch, is_narrow=True)
        is_known = is_same or _are_alike(contexts, narrow_targets[1])

        def run(batch: Batch) -> Any:
            exact = targets(batch)
            return exact if is_same else (narrow_targets[0] if is_known else {}, exact[1])

        outputs = (counts if is_known else {}, contexts)
        call = ModuleCall(TARGETS, 0, "", None, ((batch,), {}), outputs, format=self._recording.format)
        yield LayerUnit(call, (), run, (), self._reference.model, "", self._reference.device)

    def _make_loss_unit(self, losses: Callable[..., Any], calls: Sequence[ModuleCall]) -> LayerUnit:
        recording = self._recording
        call = ModuleCall(LOSS, 0, "", None, (recording.prepared, {}), recording.losses, format=recording.format)
        call.began = call.ended = self._last
        if recording.losses["total"].numel() and any(nested.output_gradients for nested in calls):
            call.output_gradients = {"total": torch.ones_like(recording.losses["total"])}
        modules = tuple(self._modules[nested.path] for nested in calls)
        return LayerUnit(call, tuple(calls), losses, modules, nn.Module(), "", self._reference.device)

    def _make_opaque(self, unit: LayerUnit) -> LayerUnit:
        """Return the unit without replaced calls: submodules run in the reference too, and have rows of their own."""
        return replace(unit, inner=(), modules=(), is_whole=True)

    def _run_unit(self, unit: LayerUnit) -> tuple[LayerUnit, ReferenceResult]:
        """Run the reference on a unit; without replaced calls if the nested calls differ from the variant's.

        Returns the unit that was run, and its result. Raises RunError, which names the layer, if the reference fails.
        """
        try:
            return unit, replay(unit)
        except Exception as error:
            if isinstance(error, MisalignedError) or unit.inner:
                opaque = self._make_opaque(unit)
                with suppress(Exception):
                    return opaque, replay(opaque)
            reason = " ".join(str(error).split())
            raise RunError(
                f"{unit.call.name}: the reference fails on the variant's input: {type(error).__name__}: {reason}"
            ) from error

    def _unchanged_buffers(
        self, unit: LayerUnit, exact: ReferenceResult, tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the buffers that the reference changed and the variant did not."""
        buffers = dict(unit.owner.named_buffers(prefix=unit.prefix))
        names = [name for name in exact.values if name.startswith("buffer.") and name not in tensors]
        return {name: buffers[name.removeprefix("buffer.")] for name in names if not unit.is_whole}

    def _add_gradient(self, unit: LayerUnit, name: str, gradient: Tensor | None, shift: float) -> None:
        parameter = name.removeprefix("to parameter.")
        if gradient is None or parameter == name:
            return
        separate_paths = {call.path for call in self._recording.calls} if unit.is_whole else set()
        owner = parameter.rpartition(".")[0]
        if owner != unit.prefix and owner in separate_paths:
            return  # the row of that module reports it
        user = unit, f"parameter.{parameter}"
        parameter = self._first_names.get(parameter, parameter)
        sum_so_far = self._gradients.get(parameter)
        if sum_so_far is None:
            self._gradients[parameter] = _Gradient(gradient, shift, [user])
        else:
            sum_so_far.total, sum_so_far.shift = sum_so_far.total + gradient, sum_so_far.shift + shift
            sum_so_far.users.append(user)


def _are_alike(contexts: Any, other_contexts: Any) -> bool:
    """Return True if all tensors of two trees that are not floating-point are equal."""
    tensors, other_tensors = (
        [t.cpu() for _, t in tree_leaves(nest) if not t.is_floating_point()] for nest in (contexts, other_contexts)
    )
    return len(tensors) == len(other_tensors) and all(map(torch.equal, tensors, other_tensors))


def _run_perturbed(unit: LayerUnit, nudge: Perturbation | None) -> ReferenceResult:
    """Run the reference with perturbed inputs; an empty result if it refuses them."""
    try:
        return replay(unit, nudge)
    except Exception:  # noqa: BLE001 - for example a module that checks its inputs: such a draw shows nothing
        return ReferenceResult()


def _set_coarse(deviations: dict[str, Deviation], exact: ReferenceResult, base: Format) -> None:
    """Raise the errors to the reference's own rounding, if it computes in a coarser format than the variant."""
    if exact.coarsest.digits >= min(base.digits, FORMATS[torch.float32].digits):
        return  # a count in float32 beside float64 is exact
    for name, deviation in deviations.items():
        if name.startswith("out.") and exact.values[name].is_floating_point():
            deviation.error = max(deviation.error, exact.coarsest.unit_of_largest(exact.values[name]))
            deviation.note = f"rounds to {exact.coarsest.name} inside, in every variant"


def _select_worst(
    unit: LayerUnit, deviations: dict[str, Deviation], last: int
) -> Iterator[tuple[tuple[int, int], str, Deviation]]:
    """Yield, for each point of a unit's execution, the tensor that deviates most.

    In units with nested calls, tensors without any error are skipped: they pass through unchanged.
    """
    best: dict[tuple[int, int], tuple[str, Deviation]] = {}
    for name, deviation in deviations.items():
        order = _sort_key(unit, name)
        if order not in best or (deviation.ratio, deviation.undefined) > (
            best[order][1].ratio,
            best[order][1].undefined,
        ):
            best[order] = (name, deviation)
    for order, (name, deviation) in best.items():
        if deviation.error or deviation.undefined or not unit.inner:
            yield order, name, deviation


def _sort_key(unit: LayerUnit, name: str) -> tuple[int, int]:
    """Return the sort key of a tensor: forward pass first, by its ticks, then the backward pass in reverse."""
    is_backward = name.startswith("to ")
    path = name.removeprefix("to ")
    number, _, inner_path = path.partition(".")
    if number.isdigit():
        call = unit.inner[int(number)]
        tick = call.began if inner_path.startswith("given") else call.ended
    else:
        tick = unit.call.began if is_backward else unit.call.ended
    return (1, -tick) if is_backward else (0, tick)


def _make_row(unit: LayerUnit, name: str, deviation: Deviation) -> LayerComparison:
    is_backward = name.startswith("to ")
    which: Pass = "backward" if is_backward else "loss" if unit.call.path in (LOSS, TARGETS) else "forward"
    layer, class_name, inside = _locate_layer(unit, name.removeprefix("to "))
    what, path = _describe_tensor(unit, name), unit.call.path
    paths = path, path.removeprefix("network."), unit.call.name.partition(" (call")[0]
    format_name = unit.call.format.name
    return LayerComparison(layer, class_name, which, what, deviation, format_name, inside, paths, unit, name)


def _locate_layer(unit: LayerUnit, name: str) -> tuple[str, str, str]:
    """Return the layer to name, its class, and the enclosing module whose own code computed the tensor."""
    number, _, inner_path = name.partition(".")
    this_layer = unit.call.name, unit.call.class_name, ""
    if not unit.inner or unit.call.path == LOSS or name.startswith(("parameter.", "buffer.")):
        return this_layer
    if not number.isdigit():
        num_done = len(unit.inner) if name.startswith("out.") else 0
    else:
        num_done = int(number) + (0 if inner_path.startswith("given") else 1)
    if num_done == 0:
        return this_layer
    call = unit.inner[num_done - 1]
    return call.name, call.class_name, unit.call.name


def _describe_tensor(unit: LayerUnit, name: str) -> str:
    """Describe a tensor of a unit."""
    short = name.removeprefix("to ")
    kind, _, path = short.partition(".")
    prefix = "gradient of " if name != short else ""
    if kind.isdigit():
        call, side = unit.inner[int(kind)], path.partition(".")
        return f"{prefix}what {call.name} {'is given' if side[0] == 'given' else 'makes'}{_format_path(side[2])}"
    kind_texts = {"out": "result", "given": "input", "parameter": "", "buffer": "buffer "}
    if kind in ("parameter", "buffer"):
        return f"{prefix}{kind_texts[kind]}{path.removeprefix(f'{unit.prefix}.').removeprefix('network.')}"
    return f"{prefix}{kind_texts[kind]}{_format_path(path)}"


def _format_path(path: str) -> str:
    """Format the path of a tensor in arguments or results; empty for a single tensor."""
    return "" if path in ("", "0.0") else f" {path.removeprefix('0.').removeprefix('1.')}"


_SIMPLE = (bool, int, float, str, tuple, type(None))


def find_module(model: nn.Module, row: LayerComparison) -> nn.Module | None:
    """Find the module of a row in a model; None if there is none."""
    modules = dict(model.named_modules())
    return next((modules[path] for path in row.paths if path in modules), None)


def differing_settings(first: nn.Module, second: nn.Module) -> list[str]:
    """Describe the plain attributes that differ, in the modules and in the submodules that both have."""
    other_modules = dict(second.named_modules())
    lines = []
    for path, module in first.named_modules():
        if path in other_modules:
            settings, other_settings = _plain_attributes(module), _plain_attributes(other_modules[path])
            prefix = f"{path}." if path else ""
            lines += [
                f"{prefix}{name} is {settings[name]} and in the reference {other_settings[name]}"
                for name in settings
                if name in other_settings and settings[name] != other_settings[name]
            ]
    return lines


def _plain_attributes(module: nn.Module) -> dict[str, object]:
    attributes = vars(module).items()
    return {name: value for name, value in attributes if not name.startswith("_") and isinstance(value, _SIMPLE)}
