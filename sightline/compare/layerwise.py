"""Every call of a recorded step judged against the reference, in the order of execution: forward, loss, backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sightline.compare.float64_reference import (
    LayerUnit,
    MisalignedError,
    Perturbation,
    ReferenceResult,
    actual,
    run_reference,
)
from sightline.compare.formats import FORMATS, Format
from sightline.compare.measure import MAX_ROUNDING_UNITS, Deviation, judge, sum_deviation
from sightline.compare.recording import ModuleCall, StepRecording
from sightline.compare.variants import (
    ModelVariant,
    backend_settings,
    decided_in,
    mean_losses,
    prepared_values,
    variant_step,
)
from sightline.engine.train import TrainState
from sightline.errors import RunError
from sightline.pytree import tree_leaves
from sightline.types import Batch

__all__ = ["LOSS", "TARGETS", "LayerComparison", "compare_layerwise"]

Pass = Literal["data", "forward", "loss", "backward", "step"]
LOSS = "(loss)"
TARGETS = "(targets)"


@dataclass(frozen=True)
class LayerComparison:
    """One thing that was compared: the tensor of a layer that deviates most in one pass.

    `what` names the tensor. `inside` is the module whose own code made it, where that is one around the layer: the
    layer is then the last one that it had called.
    """

    layer: str
    class_name: str
    which: Pass
    what: str
    deviation: Deviation
    format: str
    inside: str = ""
    unit: LayerUnit | None = field(default=None, repr=False, compare=False)

    @property
    def is_guilty(self) -> bool:
        """Whether rounding does not explain the deviation."""
        return self.deviation.is_guilty


def compare_layerwise(
    recording: StepRecording, reference: ModelVariant, job: TrainState, batch: Batch, *, seed: int = 0
) -> list[LayerComparison]:
    """The rows of a recorded step, first what ran first; `batch` is what the step read.

    `reference` is in float64. Its module of a call is the one with the call's path. What the task works out of the
    batch, such as which prior belongs to which box, is judged by itself, and its losses read what the variant had; of a
    record, which does not hold it, the losses read what the reference decides in the record's format.
    """
    with backend_settings(reference):
        narrow = decided_in(job, recording.format)
        step = variant_step(narrow if recording.prepared is None else job, reference, batch)

        def targets(moved: Batch, *, is_narrow: bool = False) -> Any:
            return prepared_values(variant_step(narrow if is_narrow else job, reference, moved))

        def losses(*had: Any) -> dict[str, Tensor]:
            given = replace(step, counts=had[0], contexts=had[1]) if had else step
            return mean_losses(job, reference, batch, step=given)

        run = _Walk(recording, reference, seed)
        for unit in run.units(losses, targets, batch):
            run.look_at(unit)
        run.look_at_parameters()
    rows = [row for _, row in sorted(run.rows, key=lambda item: item[0])]
    return [row if row.is_guilty else replace(row, unit=None) for row in rows]  # a unit holds all its tensors


@dataclass
class _Gradient:
    """The reference's gradient of a parameter, added up over the units that use it."""

    total: Tensor
    moved: float
    users: list[tuple[LayerUnit, str]]

    def again(self, key: str) -> Callable[[Perturbation | None], ReferenceResult]:
        """Answers with this gradient alone."""

        def run(nudge: Perturbation | None) -> ReferenceResult:
            parts = [_again(unit, nudge).gradients.get(own) for unit, own in self.users]
            return ReferenceResult(
                gradients={key: sum((p for p in parts if p is not None), torch.zeros_like(self.total))}
            )

        return run


class _Walk:
    """The reference beside a recorded step; `rows` are found with their places in the order of execution."""

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
        """What is judged: targets and losses, and every call, those of plain containers left out."""
        inner: dict[int | None, list[ModuleCall]] = {}
        for call in self._recording.calls:
            inner.setdefault(call.parent, []).append(call)
        yield self._loss_unit(losses, inner.get(None, []))
        if self._recording.prepared is not None:
            yield from self._target_units(targets, batch)
        for index, call in enumerate(self._recording.calls):
            module, calls = self._modules.get(call.path), inner.get(index, [])
            if module is not None and not (type(module) is nn.Sequential and calls):
                yield self._unit(call, module, calls)

    def look_at(self, unit: LayerUnit) -> None:
        """Judge a unit, and note its rows; parameters are judged when all of them have been seen."""
        unit, clean = self._answered(unit)
        had = actual(unit)
        had |= self._unchanged_buffers(unit, clean, had)
        found, moves = judge(unit, had, clean, partial(_again, unit), seed=self._seed)
        _set_coarse(found, clean, unit.call.format)
        for name, moved in moves.items():
            self._add_gradient(unit, name, clean.gradients.get(name.removeprefix("to ")), moved)
        for place, name, deviation in _worst(unit, found, self._last):
            self.rows.append((place, _row(unit, name, deviation)))

    def look_at_parameters(self) -> None:
        """Judge the gradient of every parameter that the variant has one of."""
        for name, gradient in self._recording.gradients.items():
            known = self._gradients.pop(name, None)
            if known is None:
                continue
            (unit, _), key = known.users[0], f"parameter.{name}"
            num_added = sum(each.num_added(f"to {own}") for each, own in known.users)
            deviation = sum_deviation(gradient, known.total, unit.call.format, moved=known.moved, num_added=num_added)
            if deviation.ratio > MAX_ROUNDING_UNITS / 2:
                whole = ReferenceResult(gradients={key: known.total})
                again = judge(unit, {f"to {key}": gradient}, whole, known.again(key), seed=self._seed)
                deviation = again.deviations[f"to {key}"]
            self.rows.append(((1, -unit.call.began), _row(unit, f"to {key}", deviation)))

    def _unit(self, call: ModuleCall, module: nn.Module, calls: Sequence[ModuleCall]) -> LayerUnit:
        forced = tuple(calls) if all(each.path in self._modules for each in calls) else ()
        modules = tuple(self._modules[each.path] for each in forced)
        is_partial = self._recording.is_partial
        unit = LayerUnit(
            call, forced, module, modules, module, call.path, self._reference.device, is_partial=is_partial
        )
        return unit if len(forced) == len(calls) else self._opaque(unit)

    def _target_units(self, targets: Callable[..., Any], batch: Batch) -> Iterator[LayerUnit]:
        """Contexts, and counts; these are of what it decides in the variant's format, where rounding turns a decision.

        Where that is something else again, the counts are not judged: they follow from the decisions.
        """
        counts, contexts = self._recording.prepared
        if not any(tree_leaves(contexts)):
            return
        is_same = _are_alike(contexts, targets(batch)[1])
        narrow = targets(batch, is_narrow=True)
        is_known = is_same or _are_alike(contexts, narrow[1])

        def run(batch: Batch) -> Any:
            own = targets(batch)
            return own if is_same else (narrow[0] if is_known else {}, own[1])

        made = (counts if is_known else {}, contexts)
        call = ModuleCall(TARGETS, 1, "", None, ((batch,), {}), self._recording.format, made=made)
        yield LayerUnit(call, (), run, (), self._reference.model, "", self._reference.device)

    def _loss_unit(self, losses: Callable[..., Any], calls: Sequence[ModuleCall]) -> LayerUnit:
        recording = self._recording
        given: Any = (() if recording.prepared is None else recording.prepared, {})
        whole = ModuleCall(LOSS, 1, "", None, given, recording.format, made=recording.losses, began=self._last)
        whole.ended = self._last
        if recording.losses["total"].numel() and any(call.to_made for call in calls):
            whole.to_made = {"total": torch.ones_like(recording.losses["total"])}
        modules = tuple(self._modules[call.path] for call in calls)
        return LayerUnit(whole, tuple(calls), losses, modules, nn.Module(), "", self._reference.device)

    def _opaque(self, unit: LayerUnit) -> LayerUnit:
        """The unit as a whole: what is inside runs in the reference as well, and is judged by rows of its own."""
        return replace(unit, inner=(), modules=(), is_whole=True)

    def _answered(self, unit: LayerUnit) -> tuple[LayerUnit, ReferenceResult]:
        """The reference's answer; as a whole where the calls inside are not those of the variant.

        Raises RunError, naming the layer, where the reference cannot compute it at all.
        """
        try:
            return unit, run_reference(unit)
        except Exception as error:
            if isinstance(error, MisalignedError) or unit.inner:
                whole = self._opaque(unit)
                with suppress(Exception):
                    return whole, run_reference(whole)
            reason = " ".join(str(error).split())
            raise RunError(
                f"{unit.call.name}: the reference fails on what the variant was given: {type(error).__name__}: {reason}"
            ) from error

    def _unchanged_buffers(self, unit: LayerUnit, clean: ReferenceResult, had: dict[str, Tensor]) -> dict[str, Tensor]:
        """Buffers that the reference changed and the variant left as they were."""
        held = dict(unit.owner.named_buffers(prefix=unit.prefix))
        names = [name for name in clean.values if name.startswith("buffer.") and name not in had]
        return {name: held[name.removeprefix("buffer.")] for name in names if not unit.is_whole}

    def _add_gradient(self, unit: LayerUnit, name: str, gradient: Tensor | None, moved: float) -> None:
        parameter = name.removeprefix("to parameter.")
        if gradient is None or parameter == name:
            return
        hidden = {call.path for call in self._recording.calls} if unit.is_whole else set()
        owner = parameter.rpartition(".")[0]
        if owner != unit.prefix and owner in hidden:
            return  # the row of that module reports it
        user = unit, f"parameter.{parameter}"
        parameter = self._first_names.get(parameter, parameter)
        known = self._gradients.get(parameter)
        if known is None:
            self._gradients[parameter] = _Gradient(gradient, moved, [user])
        else:
            known.total, known.moved = known.total + gradient, known.moved + moved
            known.users.append(user)


def _are_alike(contexts: Any, others: Any) -> bool:
    """Whether all that is no floating number is the same in two nests."""
    had, other = ([t.cpu() for _, t in tree_leaves(nest) if not t.is_floating_point()] for nest in (contexts, others))
    return len(had) == len(other) and all(map(torch.equal, had, other))


def _again(unit: LayerUnit, nudge: Perturbation | None) -> ReferenceResult:
    """An answer to inputs that were moved; nothing where the reference refuses them."""
    try:
        return run_reference(unit, nudge)
    except Exception:  # noqa: BLE001 - a check of its own inputs, for one: then this draw shows nothing
        return ReferenceResult()


def _set_coarse(found: dict[str, Deviation], clean: ReferenceResult, base: Format) -> None:
    """Where the reference itself computes in a half format and the variant does not, its answer is no better either."""
    if clean.coarsest.digits >= min(base.digits, FORMATS[torch.float32].digits):
        return  # a count in float32 beside float64 is exact
    for name, deviation in found.items():
        if name.startswith("out.") and clean.values[name].is_floating_point():
            deviation.error = max(deviation.error, clean.coarsest.unit_of_largest(clean.values[name]))
            deviation.note = f"rounds to {clean.coarsest.name} inside, in every variant"


def _worst(unit: LayerUnit, found: dict[str, Deviation], last: int) -> Iterator[tuple[tuple[int, int], str, Deviation]]:
    """Of the tensors at one place of a unit the one that deviates most; what goes through unchanged is left out."""
    best: dict[tuple[int, int], tuple[str, Deviation]] = {}
    for name, deviation in found.items():
        place = _place(unit, name)
        if place not in best or (deviation.ratio, deviation.undefined) > (
            best[place][1].ratio,
            best[place][1].undefined,
        ):
            best[place] = (name, deviation)
    for place, (name, deviation) in best.items():
        if deviation.error or deviation.undefined or not unit.inner:
            yield place, name, deviation


def _place(unit: LayerUnit, name: str) -> tuple[int, int]:
    """When a tensor came about: the forward pass first, by the ticks of its clock; the backward pass in reverse."""
    is_backward = name.startswith("to ")
    short = name.removeprefix("to ")
    number, _, rest = short.partition(".")
    if number.isdigit():
        call = unit.inner[int(number)]
        tick = call.began if rest.startswith("given") else call.ended
    else:
        tick = unit.call.began if is_backward else unit.call.ended
    return (1, -tick) if is_backward else (0, tick)


def _row(unit: LayerUnit, name: str, deviation: Deviation) -> LayerComparison:
    is_backward = name.startswith("to ")
    which: Pass = "backward" if is_backward else "loss" if unit.call.path in (LOSS, TARGETS) else "forward"
    layer, class_name, inside = _layer(unit, name.removeprefix("to "))
    return LayerComparison(
        layer, class_name, which, _describe(unit, name), deviation, unit.call.format.name, inside, unit
    )


def _layer(unit: LayerUnit, name: str) -> tuple[str, str, str]:
    """The layer to name, its class, and the module around it whose own code made the tensor."""
    number, _, rest = name.partition(".")
    own = unit.call.name, unit.call.class_name, ""
    if not unit.inner or unit.call.path == LOSS or name.startswith(("parameter.", "buffer.")):
        return own
    if not number.isdigit():
        before = len(unit.inner) if name.startswith("out.") else 0
    else:
        before = int(number) + (0 if rest.startswith("given") else 1)
    if before == 0:
        return own
    call = unit.inner[before - 1]
    return call.name, call.class_name, unit.call.name


def _describe(unit: LayerUnit, name: str) -> str:
    """The tensor in words."""
    short = name.removeprefix("to ")
    kind, _, place = short.partition(".")
    of = "gradient of " if name != short else ""
    if kind.isdigit():
        call, side = unit.inner[int(kind)], place.partition(".")
        return f"{of}what {call.name} {'is given' if side[0] == 'given' else 'makes'}{_at(side[2])}"
    words = {"out": "result", "given": "input", "parameter": "", "buffer": "buffer "}
    if kind in ("parameter", "buffer"):
        return f"{of}{words[kind]}{place.removeprefix(f'{unit.prefix}.').removeprefix('network.')}"
    return f"{of}{words[kind]}{_at(place)}"


def _at(place: str) -> str:
    """A place in arguments or results, in words; nothing for the only one."""
    return "" if place in ("", "0.0") else f" {place.removeprefix('0.').removeprefix('1.')}"
