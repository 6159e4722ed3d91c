"""Comparison of another program's recorded training step with a run's own network, stage by stage.

The network computes the step in float64 from the record's inputs and weights. Every recorded tensor is judged, and then
takes the place of the network's own: so an error is blamed on the layer that made it, and not on the layers after it.
What rounding explains is measured as for any variant (`instrument/judge.py`), by repeating the step with perturbations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sightline.contract.errors import UserError, summarise_error
from sightline.contract.pytree import ReadTrackingDict, tree_leaves, tree_map
from sightline.contract.types import Batch
from sightline.engine.build import TrainingSetup
from sightline.engine.optimizers import OptimizerSpec
from sightline.instrument import ModuleCall, copy_module, record, watch_gradient
from sightline.instrument.formats import FORMATS, Format
from sightline.instrument.judge import MAX_ROUNDING_UNITS, Deviation, judge, max_abs_difference
from sightline.instrument.replay import (
    LayerUnit,
    Perturbation,
    PerturbedOperations,
    ReferenceResult,
    perturb_with_gradient,
    replay,
)
from sightline.workbench.compare.layerwise import LOSS, LayerComparison, Pass
from sightline.workbench.compare.record_matching import Key, RecordedCall, load_weights, make_batch, pair_calls
from sightline.workbench.compare.records import StepRecord
from sightline.workbench.compare.steps import copy_job, step_settings, take_step
from sightline.workbench.compare.variants import ModelVariant, make_variant

_CPU = torch.device("cpu")
_MAX_BYTES_KEPT = 3 << 30
"""Size of results up to which perturbed steps are not repeated for the next tensor."""
_MAX_DRAWS, _MAX_STEPS = 24, 120
"""Different perturbations of a step, and steps in all, after which further draws show nothing: time is bounded."""
_NUM_UPDATE_DRAWS = 4
_OPTIONAL_INPUTS = frozenset(("sample_index",))
STAGES: dict[Pass, str] = {
    "inputs": "inputs",
    "forward": "forward",
    "loss": "loss",
    "backward": "gradients",
    "update": "weights after the step",
}
"""Stages of a step in order: as rows name them, and as they are printed."""


class _Substitution(torch.autograd.Function):
    """The record's tensor in place of the network's own, whose gradient goes on to the network."""

    @staticmethod
    def forward(ctx: Any, ours: Tensor, theirs: Tensor) -> Tensor:
        return theirs.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0], None


@dataclass(frozen=True)
class _Substitutes:
    """Finite tensors of the record, in our layouts: those of calls, and gradients of parameters by name.

    Tensors of all calls in `recorded` are compared.
    """

    calls: dict[Key, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    recorded: frozenset[Key] = frozenset()


@dataclass
class StepResult:
    """Results of one step: tensors of calls, losses, gradients of parameters, weights and buffers after it.

    All are as the network computes them from the substitutes before them. `calls` are those of all modules.
    """

    tensors: dict[Key, Tensor] = field(default_factory=dict)
    losses: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    after: dict[str, Tensor] = field(default_factory=dict)
    calls: list[ModuleCall] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        """The bytes of all tensors but those of the calls."""
        return sum(t.nbytes for _, t in tree_leaves([[*group.values()] for group in self._groups]))

    @property
    def _groups(self) -> tuple[Mapping[Any, Tensor], ...]:
        return self.tensors, self.losses, self.gradients, self.after


class _RecordedStep:
    """The step of a record, computed by our network; `substitutes` take the place of what it computes itself."""

    def __init__(self, setup: TrainingSetup, recipe: OptimizerSpec, variant: ModelVariant, batch: Batch) -> None:
        self.substitutes = _Substitutes()
        self.variant = variant
        self.batch = ReadTrackingDict(variant.batch(batch))
        self.format = FORMATS[torch.float32]
        self._job, self._recipe = setup.job, recipe
        self._results: dict[Perturbation, StepResult] = {}
        self._draws: dict[Perturbation, None] = {}
        self._num_bytes = self._num_steps = 0

    def run(self, nudge: Perturbation | None = None) -> StepResult:
        """Compute the step, perturbed by `nudge`; results that memory has room for are computed once.

        The result is empty for a perturbation beyond `_MAX_DRAWS`.
        """
        if nudge is not None and nudge in self._results:
            return self._results[nudge]
        if nudge is not None:
            self._draws.setdefault(nudge)
            if list(self._draws).index(nudge) >= _MAX_DRAWS or self._num_steps >= _MAX_STEPS:
                return StepResult()
        self._num_steps += 1
        result = self._compute(nudge)
        if nudge is not None and self._num_bytes + result.num_bytes <= _MAX_BYTES_KEPT:
            self._results[nudge], self._num_bytes = result, self._num_bytes + result.num_bytes
        return result

    def _compute(self, nudge: Perturbation | None) -> StepResult:
        model = copy_module(self.variant.model)
        job = copy_job(self._job, self._recipe, self.variant, model)
        observer = _StepObserver(self.substitutes, nudge, self.format)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                watch_gradient(parameter, partial(observer.receive_gradient, name))
        keep = ("inputs", "outputs") if nudge is None else ()
        with (
            step_settings(self.variant, self._job),
            observer.operations,
            record(model, keep=keep, enter=observer.enter, leave=observer.leave) as tape,
        ):
            losses = take_step(job, model, self.batch)
        result = observer.result
        result.losses = {name: torch.tensor(value, dtype=torch.float64) for name, value in losses.items()}
        result.after = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        result.calls = tape.calls
        return result


class _StepObserver:
    """Hooks of one step: they collect what the network computes, and hand on the substitutes, perturbed."""

    def __init__(self, substitutes: _Substitutes, nudge: Perturbation | None, format_: Format) -> None:
        self.result = StepResult()
        self._dtype = next(dtype for dtype, other in FORMATS.items() if other == format_)
        self._substitutes, self._nudge = substitutes, nudge
        self._generator = torch.Generator().manual_seed(0 if nudge is None else nudge.seed)
        self._is_inside = nudge is not None and nudge.inside
        self.operations: Any = (
            PerturbedOperations(nudge.format, self._generator)
            if nudge is not None and nudge.inside
            else torch.enable_grad()
        )

    def enter(self, call: ModuleCall, module: nn.Module, inputs: Any) -> Any:
        key = call.path, call.call_index, "in"
        replaced = self._replace(key, inputs) if key in self._substitutes.recorded else tree_map(inputs, self._round)
        call.inputs = tree_map(replaced, lambda _, tensor: tensor.detach())
        return replaced

    def leave(self, call: ModuleCall, module: nn.Module, inputs: Any, outputs: Any) -> Any:
        key = call.path, call.call_index, "out"
        is_recorded = not self._substitutes.recorded.isdisjoint((key, (*key[:2], "gradient")))
        if is_recorded or (self._nudge is None and isinstance(outputs, Tensor)):
            return self._replace(key, outputs)
        if self._nudge is None or list(module.children()):
            return None
        return tree_map(outputs, lambda _, tensor: perturb_with_gradient(tensor, self._perturb))

    def receive_gradient(self, name: str, gradient: Tensor) -> Tensor | None:
        self.result.gradients[name] = gradient.detach().clone()
        theirs = self._substitutes.gradients.get(name)
        return None if theirs is None else self._perturb(theirs)

    def _replace(self, key: Key, tree: Any) -> Any:
        """Replace the only floating tensor of a tree, and the gradient that it gets, by those of the record."""

        def replace(_: str, ours: Tensor) -> Tensor:
            if not ours.is_floating_point():
                return ours
            self.result.tensors[key] = ours.detach().clone()
            theirs = self._substitutes.calls.get(key)
            values = ours if theirs is None else _Substitution.apply(ours, self._perturb(theirs))
            if key[2] == "out" and values.requires_grad:
                values = values.view_as(values)
                watch_gradient(values, partial(self._receive, (*key[:2], "gradient")))
            return values

        return tree_map(tree, replace)

    def _round(self, path: str, values: Tensor) -> Tensor:
        """Round what a layer reads as the program's own code does: its ties between equal numbers are ours, too."""
        if values.dtype != torch.float64:
            return values
        rounded = values.detach().to(self._dtype).double()
        return values if torch.equal(rounded, values) else values + (rounded - values.detach())

    def _receive(self, key: Key, gradient: Tensor) -> Tensor:
        self.result.tensors[key] = gradient.detach().clone()
        return self._perturb(self._substitutes.calls.get(key, gradient))

    def _perturb(self, values: Tensor) -> Tensor:
        if self._nudge is None:
            return values
        was_suspended = getattr(self.operations, "is_suspended", True)
        self.operations.is_suspended = True
        try:
            return self._nudge.format.perturb(values, self._generator, units=self._nudge.units)
        finally:
            self.operations.is_suspended = was_suspended


def compare_step(
    setup: TrainingSetup,
    recipe: OptimizerSpec,
    step_record: StepRecord,
    read_batch: Callable[[Sequence[int] | None], Batch],
    key_map: Mapping[str, str | None] | None,
) -> tuple[list[LayerComparison], list[str]]:
    """Compare each tensor of a record with what our network computes in its place; return rows, and notes about names.

    `read_batch` reads the training samples of these numbers, or the first ones. Raises UserError if names of weights,
    inputs or losses do not correspond, and if our network cannot compute the step.
    """
    notes: list[str] = []
    model, names = load_weights(setup.job.model, step_record, key_map, notes)
    claimed = step_record.inputs.get("sample_index")
    ours = read_batch(None if claimed is None else claimed.flatten().tolist())
    batch = make_batch(step_record, ours, notes)
    step = _RecordedStep(setup, recipe, make_variant(model, "float64", _CPU), batch)
    step.format = step_record.format
    plain = _run_first(step, step_record)
    pairs = pair_calls(step_record, plain.calls, names, model, key_map or {}, notes)
    step.substitutes = _make_substitutes(pairs, step_record, names, model)
    comparison = _Comparison(step, step_record, names, pairs)
    rows: dict[Pass, list[LayerComparison]] = {
        "inputs": [] if claimed is None else _compare_inputs(step_record, batch, ours),
        "forward": comparison.judge_calls(),
        "loss": comparison.judge_losses(),
        "backward": comparison.judge_gradients(),
        "update": comparison.judge_update(),
    }
    if claimed is None:
        notes.append("inputs: the record's own; with inputs.sample_index they are compared with those samples here")
    return [row for stage in STAGES for row in rows[stage]], notes


def _run_first(step: _RecordedStep, step_record: StepRecord) -> StepResult:
    """Compute the step without substitutes. Raises UserError if our network cannot, or if it reads other inputs."""
    plain, failure = StepResult(), None
    try:
        plain = step.run()
    except Exception as error:  # noqa: BLE001 - of the network, the losses or the optimiser, on tensors of others
        failure = error
    missing = sorted(step.batch.read - step_record.inputs.keys() - _OPTIONAL_INPUTS)
    if missing:
        raise UserError(f"{step_record.path}: the record has no inputs.{missing[0]}, which the step reads; write it")
    if failure is not None:
        reason = summarise_error(failure, max_length=200)
        raise UserError(
            f"{step_record.path}: this network cannot compute the step on the record's inputs: {reason}; check their "
            "shapes, and that labels count from 0"
        ) from failure
    unknown = sorted(step_record.losses.keys() - plain.losses.keys())
    if unknown:
        known = ", ".join(sorted(plain.losses))
        raise UserError(f"{step_record.path}: loss.{unknown[0]}: the losses here are {known}; use one of these names")
    return plain


def _make_substitutes(
    pairs: Sequence[RecordedCall], step_record: StepRecord, names: Mapping[str, str], model: nn.Module
) -> _Substitutes:
    """Collect the record's finite tensors: those that are not would spoil all that follows."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    calls = {p.key: p.values.double() for p in pairs if p.values is not None and bool(p.values.isfinite().all())}
    gradients = {
        name: step_record.gradients[other].reshape(shapes[name]).double()
        for name, other in names.items()
        if other in step_record.gradients and bool(step_record.gradients[other].isfinite().all())
    }
    return _Substitutes(calls, gradients, frozenset(pair.key for pair in pairs))


def _compare_inputs(step_record: StepRecord, batch: Batch, ours: Batch) -> list[LayerComparison]:
    """Compare the record's inputs with our samples of these numbers, in float32."""
    rows = []
    for name in step_record.inputs:
        theirs, expected = batch[name], ours[name]
        note = "" if theirs.shape == expected.shape else f"shape {tuple(theirs.shape)}, here {tuple(expected.shape)}"
        unit = FORMATS[torch.float32 if expected.is_floating_point() else torch.float64].unit_of_largest(expected)
        scale = float(expected.double().abs().max()) if expected.numel() else 0.0
        deviation = Deviation(max_abs_difference(theirs, expected), unit, scale, expected.numel(), note=note)
        rows.append(LayerComparison(name, "", "inputs", "values", deviation, "float32"))
    return rows


def _get_loss(name: str, result: StepResult) -> Tensor:
    return result.losses[name]


def _get_gradient(name: str, result: StepResult) -> Tensor:
    return result.gradients[name]


def _get_after(name: str, result: StepResult) -> Tensor:
    return result.after[name]


def _get_tensor(key: Key, shape: torch.Size, result: StepResult) -> Tensor:
    return result.tensors[key].reshape(shape)


class _Comparison:
    """Judgement of the tensors of a record, stage by stage."""

    def __init__(
        self,
        step: _RecordedStep,
        step_record: StepRecord,
        names: Mapping[str, str],
        pairs: Sequence[RecordedCall],
    ) -> None:
        self._step, self._record, self._names, self._pairs = step, step_record, names, pairs
        self._clean = step.run()
        self._modules = dict(step.variant.model.named_modules())
        self._began = {path: index for index, path in reversed([*enumerate(call.path for call in self._clean.calls)])}

    def judge_calls(self) -> list[LayerComparison]:
        """Judge the recorded results and inputs of layers, in the order of our calls."""
        pairs = [pair for pair in self._pairs if pair.key[2] != "gradient"]
        pairs.sort(key=lambda pair: pair.call.began if pair.key[2] == "in" else pair.call.ended)
        rows = []
        for pair in pairs:
            what = "result" if pair.key[2] == "out" else "input"
            rows.append(self._judge_call(pair, "forward", what, f"{'out' if what == 'result' else 'given'}."))
        return rows

    def judge_losses(self) -> list[LayerComparison]:
        """Judge the recorded losses."""
        unit = self._make_unit(ModuleCall(LOSS, 0, "", None, ((), {}), {}))
        rows = []
        for name, theirs in self._record.losses.items():
            if theirs.numel() != 1:
                raise UserError(
                    f"{self._record.path}: loss.{name}: has the shape {tuple(theirs.shape)}; write a number"
                )
            rows.append(self._judge(unit, "loss", f"out.{name}", theirs.reshape(()), partial(_get_loss, name)))
        return rows

    def judge_gradients(self) -> list[LayerComparison]:
        """Judge gradients of results and of weights, from the last layer to the first."""
        rows = []
        for pair in self._pairs:
            if pair.key[2] == "gradient":
                row = self._judge_input_gradient(pair)
                row = row or self._judge_call(pair, "backward", "gradient of result", "to out.")
                rows.append((-pair.call.ended, 0, row))
        for name, other in self._names.items():
            if other in self._record.gradients and name in self._clean.gradients:
                unit = self._unit_of(name)
                theirs = self._record.gradients[other].reshape(self._clean.gradients[name].shape)
                row = self._judge(unit, "backward", f"to parameter.{name}", theirs, partial(_get_gradient, name))
                rows.append((-unit.call.ended, 1, row))
        return [row for *_, row in sorted(rows, key=lambda item: item[:2])]

    def _judge_input_gradient(self, pair: RecordedCall) -> LayerComparison | None:
        """Judge the gradient of a result as that of the input of the one layer that reads it; None if there is none."""
        made = self._step.substitutes.calls.get((*pair.key[:2], "out"))
        if made is None or pair.values is None or pair.key not in self._clean.tensors:
            return None
        for call in self._clean.calls:
            inputs = [(path, t) for path, t in tree_leaves(call.inputs) if t.is_floating_point()]
            is_innermost = not list(self._modules[call.path].children())
            if not is_innermost or call.began < pair.call.ended or len(inputs) != 1:
                continue
            if inputs[0][1].numel() == made.numel() and torch.equal(inputs[0][1].flatten(), made.flatten()):
                return self._judge_as_reader(pair, call, *inputs[0])
        return None

    def _judge_as_reader(self, pair: RecordedCall, call: ModuleCall, path: str, made: Tensor) -> LayerComparison | None:
        """Judge the gradient as one that a call passes back, if that is all of it: others may read the tensor, too."""
        unit = self._make_unit(call)
        unit.call.input_gradients = {path: made}
        alone = replay(unit).gradients.get(f"given.{path}")
        whole = self._clean.tensors[pair.key]
        if alone is None or max_abs_difference(alone.reshape(whole.shape), whole) > 1e-9 * float(whole.abs().max()):
            return None
        assert pair.values is not None
        theirs, select = pair.values.reshape(made.shape), partial(_get_tensor, pair.key, made.shape)
        return self._judge(unit, "backward", f"to given.{path}", theirs, select, what="gradient of input")

    def judge_update(self) -> list[LayerComparison]:
        """Judge weights and buffers after the step, weights by the step that they took."""
        state, buffers = self._step.variant.model.state_dict(), dict(self._step.variant.model.named_buffers())
        rows = []
        for name, other in self._names.items():
            if other in self._record.after:
                unit, after = self._unit_of(name), self._clean.after[name]
                before = state[name]
                theirs = self._record.after[other].reshape(after.shape).to(after.dtype)
                what = f"{name.rpartition('.')[2]} after the step"
                if name in buffers and after.is_floating_point():
                    unit.call.buffers = {name: (before, after)}
                    row = self._judge(unit, "update", f"buffer.{name}", theirs, partial(_get_after, name), what=what)
                else:
                    row = self._make_row(unit, "update", what, self._judge_change(name, theirs, before, after))
                rows.append((unit.call.began, row))
        return [row for _, row in sorted(rows, key=lambda item: item[0])]

    def _judge_change(self, name: str, theirs: Tensor, before: Tensor, after: Tensor) -> Deviation:
        """Judge a tensor that a step changed, entry by entry: it is rounded as a whole, and its change as the largest.

        If that does not explain the difference, the movement of each entry under perturbations counts as well.
        """
        if not after.is_floating_point():
            return Deviation(max_abs_difference(theirs, after), 1e-9, float(after.abs().max()), after.numel())
        format_, change = self._step.format, (after - before).abs()
        largest = torch.maximum(before.abs(), after.abs()).clamp_min(torch.finfo(torch.float32).tiny)
        units = torch.exp2(largest.log2().floor() + 1 - format_.digits) + format_.unit_of_largest(change)
        error = torch.where(theirs == after, 0.0, (theirs - after).abs()).nan_to_num(nan=torch.inf)
        if bool((error > MAX_ROUNDING_UNITS / 2 * units).any()):
            for seed in range(_NUM_UPDATE_DRAWS):
                moved = self._step.run(Perturbation(format_, seed, inside=seed % 2 == 1)).after.get(name, after)
                units = torch.maximum(units, (moved - after).abs())
        worst = int((error / units).flatten().argmax()) if error.numel() else 0
        picked = [float(t.flatten()[worst]) if t.numel() else 0.0 for t in (error, units)]
        return Deviation(picked[0], picked[1], float(change.max()) if change.numel() else 0.0, after.numel())

    def _judge_call(self, pair: RecordedCall, which: Pass, what: str, name: str) -> LayerComparison:
        unit = self._make_unit(pair.call)
        ours = self._clean.tensors.get(pair.key)
        if pair.values is None or ours is None:
            shape = "nothing" if ours is None else tuple(ours.shape)
            note = f"shape {tuple(pair.recorded.values.shape)}, here {shape}"
            deviation = Deviation(float("inf"), 1.0, 1.0, pair.recorded.values.numel(), note=note)
            return self._make_row(unit, which, what, deviation)
        return self._judge(unit, which, name, pair.values, partial(_get_tensor, pair.key, ours.shape), what=what)

    def _judge(
        self,
        unit: LayerUnit,
        which: Pass,
        name: str,
        theirs: Tensor,
        select: Callable[[StepResult], Tensor],
        *,
        what: str = "",
    ) -> LayerComparison:
        """Judge one tensor; `select` takes it from the result of a step."""

        def wrap(result: StepResult) -> ReferenceResult:
            gradient = name.startswith("to ")
            values = {name.removeprefix("to "): select(result)}
            return ReferenceResult({}, values) if gradient else ReferenceResult(values)

        def run(nudge: Perturbation | None) -> ReferenceResult:
            result = self._step.run(nudge)
            return wrap(result) if result.after else ReferenceResult()

        judgement = judge(unit, {name: theirs.double()}, wrap(self._clean), run, seed=0)
        short = name.removeprefix("to parameter.").rpartition(".")[2]
        what = what or (f"gradient of {short}" if which == "backward" else f"result {short}")
        return self._make_row(unit, which, what, judgement.deviations[name])

    def _unit_of(self, name: str) -> LayerUnit:
        """Return the unit of the first call that may use a weight: of its module, or else of one around it."""
        path = name.rpartition(".")[0]
        while path and path not in self._began:
            path = path.rpartition(".")[0]
        return self._make_unit(self._clean.calls[self._began[path]])

    def _make_unit(self, call: ModuleCall) -> LayerUnit:
        module = nn.Module() if call.path == LOSS else self._modules[call.path]
        copied = dataclasses.replace(call, format=self._step.format)
        gradient = self._clean.tensors.get((call.path, call.call_index, "gradient"))
        if gradient is not None:
            copied.output_gradients = {
                "": self._step.substitutes.calls.get((call.path, call.call_index, "gradient"), gradient)
            }
        is_whole = bool(list(module.children()))
        return LayerUnit(copied, (), module, (), module, call.path, _CPU, is_whole=is_whole)

    def _make_row(self, unit: LayerUnit, which: Pass, what: str, deviation: Deviation) -> LayerComparison:
        call = unit.call
        return LayerComparison(call.name, call.class_name, which, what, deviation, call.format.name)
