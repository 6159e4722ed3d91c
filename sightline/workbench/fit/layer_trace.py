"""Layer statistics while the network learns the samples, and the config's expectations of them.

Layers of one training step: statistics of every output and of its gradient.

Observer of a training that checks the config's expectations on the samples of `fit-one`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from sightline.config.run_config import Expectation, Quantity, parse_quantity
from sightline.contract.errors import ConfigError
from sightline.contract.pytree import tree_leaves
from sightline.contract.schema import suggest
from sightline.engine.build import TrainingSetup
from sightline.engine.records import EvaluationRecord, StepRecord, StopRun
from sightline.engine.step import divide_by_count
from sightline.engine.train import TrainState
from sightline.instrument import ModuleCall, record, watch_gradient
from sightline.workbench.check.core.dry_run import forward_backward, isolated_copy
from sightline.workbench.describe.trace import preserve_all_rng_states
from sightline.workbench.fit.attempt import OWN, FitCurve, FitSetup, fit, own_rate
from sightline.workbench.fit.fit_one import FitOptions, make_setup, with_bounds
from sightline.workbench.fit.loss_bounds import LossBounds, measure_bounds


@dataclass
class Statistics:
    """Statistics of a tensor: range, mean, standard deviation, share of zeros, and the norm of its gradient.

    `grad_norm` is None if the tensor received no gradient.
    """

    min: float
    max: float
    mean: float
    std: float
    zeros: float
    grad_norm: float | None = None


@dataclass(frozen=True)
class LayerSnapshot:
    """One call of a module: its output, and the gradient of its own trainable parameters (None without any)."""

    path: str
    class_name: str
    call: int
    depth: int
    shape: tuple[int, ...]
    output: Statistics
    weights_grad_norm: float | None
    is_leaf: bool


@dataclass(frozen=True)
class ModelSnapshot:
    """Model after `step` updates: its losses on the samples, its layers in order, and its outputs."""

    step: int
    loss: float
    terms: Mapping[str, float]
    grad_norm: float
    layers: tuple[LayerSnapshot, ...]
    outputs: Mapping[str, Statistics] = field(default_factory=dict)


def snapshot(setup: FitSetup, job: TrainState, step: int) -> ModelSnapshot:
    """Run forward and backward passes of a copy, and collect statistics of every module's floating-point output.

    If a module returns several tensors, the first counts. The model, its buffers and the random states do not change.
    """
    model, batch = isolated_copy(job.model), setup.batch_in(job.precision.name)
    measured: dict[tuple[str, int], tuple[tuple[int, ...], Statistics]] = {}
    outputs: dict[str, Statistics] = {}

    def measure(call: ModuleCall, module: nn.Module, inputs: Any, output: Any) -> None:
        """Measure a module's output before later code can change it in place."""
        tensors = list(tree_leaves(output))
        floats = [(name, tensor) for name, tensor in tensors if tensor.is_floating_point() and tensor.numel()]
        for name, tensor in floats[: 1 if call.path else None]:
            statistics = _compute_statistics(tensor)
            if tensor.requires_grad:
                watch_gradient(tensor, _make_gradient_hook(statistics))
            measured.setdefault((call.path, call.call_index), (tuple(tensors[0][1].shape), statistics))
            if not call.path:
                outputs[name] = statistics

    with preserve_all_rng_states(), record(model, leave=measure) as tape:
        sums, counts = forward_backward(job, model, [batch], setup.device)
    modules = dict(model.named_modules())
    parents = {call.parent for call in tape.calls}
    depths: list[int] = []
    for call in tape.calls:
        depths.append(0 if call.parent is None else depths[call.parent] + 1)
    layers = tuple(
        LayerSnapshot(
            path=call.path,
            class_name=call.class_name,
            call=call.call_index + 1,
            depth=depths[index],
            shape=measured[call.path, call.call_index][0],
            output=measured[call.path, call.call_index][1],
            weights_grad_norm=_parameter_grad_norm(modules[call.path]),
            is_leaf=index not in parents,
        )
        for index, call in enumerate(tape.calls)
        if (call.path, call.call_index) in measured
    )
    terms = {name: float(divide_by_count(sums[name].detach(), counts[name])) for name in sums}
    weights = job.loss_weights_at(step)
    loss = math.fsum(weights[name] * value for name, value in terms.items())
    norms = [p.grad.norm().item() for p in model.parameters() if p.grad is not None]
    return ModelSnapshot(step, loss, terms, math.hypot(*norms) if norms else 0.0, layers, outputs)


def _compute_statistics(tensor: Tensor) -> Statistics:
    values = tensor.detach().double()
    return Statistics(
        min=float(values.min()),
        max=float(values.max()),
        mean=float(values.mean()),
        std=float(values.std(correction=0)),
        zeros=float((values == 0).double().mean()),
    )


def _make_gradient_hook(statistics: Statistics) -> Callable[[Tensor], None]:
    def hook(gradient: Tensor) -> None:
        previous = statistics.grad_norm or 0.0
        statistics.grad_norm = math.hypot(previous, float(gradient.double().norm()))

    return hook


def _parameter_grad_norm(module: nn.Module) -> float | None:
    """Return the gradient norm of a module's own parameters; None if none of them is trainable."""
    parameters = [parameter for parameter in module.parameters(recurse=False) if parameter.requires_grad]
    if not parameters:
        return None
    return math.hypot(*(0.0 if p.grad is None else float(p.grad.double().norm()) for p in parameters))


@dataclass(frozen=True)
class ExpectationResult:
    """Result of an `expect` entry: the measured quantity, None if there was nothing to measure."""

    place: int
    expectation: Expectation
    measured: float | None

    @property
    def is_met(self) -> bool:
        if self.measured is None or math.isnan(self.measured):
            return False
        low, high = self.expectation.get("at_least", -math.inf), self.expectation.get("at_most", math.inf)
        return low <= self.measured <= high

    @property
    def line(self) -> str:
        """The entry, its bound and the measured value, in one line."""
        bounds = [f"{w.replace('_', ' ')} {self.expectation[w]:g}" for w in _BOUNDS if w in self.expectation]  # type: ignore[literal-required]
        value = "nothing" if self.measured is None else f"{self.measured:.6g}"
        return (
            f"expect.{self.place}: {self.expectation['quantity']} after {self.expectation['step']} steps is {value}, "
            f"expected {' and '.join(bounds)}"
        )


_BOUNDS = ("at_least", "at_most")


@dataclass(frozen=True)
class LayerTrace:
    """Fit by the recipe's own optimiser and rate: snapshots of the first and last step, and the expectations."""

    first: ModelSnapshot
    last: ModelSnapshot | None
    curve: FitCurve
    met: tuple[ExpectationResult, ...]


def trace_fit(built: TrainingSetup, asked: FitOptions) -> LayerTrace:
    """Fit the samples again with the unchanged recipe, and measure layers and expectations on the way.

    Raises ConfigError for an expectation of an unknown output, layer or loss.
    """
    with preserve_all_rng_states():
        setup, _ = make_setup(built, asked)
        bounds = measure_bounds(setup)
        indices = [
            index
            for index, expectation in enumerate(built.config.expect)
            if expectation.get("only", "fit_one") == "fit_one"
        ]
        entries = [built.config.expect[index] for index in indices]
        steps = max([asked.steps, *(entry["step"] for entry in entries)])
        setup = dataclasses.replace(with_bounds(setup, bounds), steps=steps)
        snapshot_steps = {0, steps, *(entry["step"] for entry in entries)}
        snapshots: dict[int, ModelSnapshot] = {}

        def watch(step: int, job: TrainState) -> None:
            if step in snapshot_steps:
                snapshots[step] = snapshot(setup, job, step)
                if step == 0:
                    assert_known_quantity(built, snapshots[0], bounds)

        curve = fit(setup, OWN, own_rate(built), watch=watch)
        results = [
            ExpectationResult(index, entry, _measure(entry, snapshots, curve, bounds))
            for index, entry in zip(indices, entries, strict=True)
        ]
    return LayerTrace(snapshots[0], snapshots.get(steps), curve, tuple(results))


def _measure(
    entry: Expectation, snapshots: Mapping[int, ModelSnapshot], curve: FitCurve, bounds: LossBounds
) -> float | None:
    """Return the quantity of an entry; None if the fit did not reach its step, or there was nothing to measure."""
    step_snapshot, quantity = snapshots.get(entry["step"]), parse_quantity(entry["quantity"])
    if step_snapshot is None or quantity is None:
        return None
    if quantity.kind == "share":
        shares = curve.shares
        return shares[entry["step"]] if entry["step"] < len(shares) else None
    return measure_quantity(entry, step_snapshot, bounds)


def measure_quantity(entry: Expectation, look: ModelSnapshot, bounds: LossBounds) -> float | None:
    """Return the quantity of an entry, other than `share`, in a snapshot; None if there was nothing to measure."""
    quantity = parse_quantity(entry["quantity"])
    assert quantity is not None, "the config was checked"
    if quantity.kind == "loss":
        return look.terms[quantity.name] if quantity.name else look.loss
    if quantity.kind == "grad_norm":
        return look.grad_norm
    return _combine_statistic(_select_statistics(quantity, look, bounds), quantity.statistic)


def _select_statistics(
    quantity: Quantity, step_snapshot: ModelSnapshot, bounds: LossBounds
) -> list[tuple[Statistics, int]]:
    """Return the statistics that a quantity refers to, each with its number of elements."""
    if quantity.kind == "layer":
        calls = [layer for layer in step_snapshot.layers if layer.path == quantity.name]
        return [(layer.output, math.prod(layer.shape)) for layer in calls[:1]]
    names = [quantity.name] if quantity.name else list(bounds.read)
    return [
        (step_snapshot.outputs[name], bounds.outputs[name].numel() if name in bounds.outputs else 1) for name in names
    ]


def _combine_statistic(tensors: Sequence[tuple[Statistics, int]], name: str) -> float | None:
    """Combine a statistic of several tensors, as of their concatenation."""
    if name in ("min", "max"):
        return (min if name == "min" else max)(getattr(statistics, name) for statistics, _ in tensors)
    if name == "grad_norm":
        norms = [statistics.grad_norm for statistics, _ in tensors if statistics.grad_norm is not None]
        return math.hypot(*norms) if norms else None
    total = sum(size for _, size in tensors)
    if name in ("mean", "zeros"):
        return math.fsum(getattr(statistics, name) * size for statistics, size in tensors) / total
    mean = math.fsum(statistics.mean * size for statistics, size in tensors) / total
    squares = math.fsum((statistics.std**2 + (statistics.mean - mean) ** 2) * size for statistics, size in tensors)
    return math.sqrt(squares / total)


def assert_known_quantity(built: TrainingSetup, look: ModelSnapshot, bounds: LossBounds) -> None:
    """Raise ConfigError for an expectation of an unknown output, layer or loss."""
    valid_names = {
        "loss": tuple(look.terms),
        "output": tuple(look.outputs),
        "layer": tuple(dict.fromkeys(layer.path for layer in look.layers if layer.path)),
    }
    faults = []
    for index, entry in enumerate(built.config.expect):
        quantity = parse_quantity(entry["quantity"])
        if quantity is not None and quantity.name and quantity.name not in valid_names[quantity.kind]:
            where = built.config.origins.get("expect", "expect")
            hint = suggest(quantity.name, valid_names[quantity.kind])
            faults.append(f"{where}: entry {index}: the run has no {quantity.kind} '{quantity.name}'{hint}")
    if faults:
        raise ConfigError(*faults)


def followed_document(followed: LayerTrace) -> dict[str, Any]:
    """Convert a trace and its expectations to JSON."""
    snapshots = [model_snapshot for model_snapshot in (followed.first, followed.last) if model_snapshot is not None]
    return {
        "trace": [dataclasses.asdict(model_snapshot) for model_snapshot in snapshots],
        "expect": [
            {**result.expectation, "measured": result.measured, "met": result.is_met, "entry": result.place}
            for result in followed.met
        ],
    }


def expectation_observers(built: TrainingSetup, *, note: Callable[[str], object]) -> list[ExpectationObserver]:
    """Build the observer of a run whose config has expectations of its training; else an empty list.

    Before the first step every process may check: all have the same weights. Later the first process suffices. `note`
    gets a line about entries that training ignores: those of `share`, which belongs to a complete fit, and those of
    steps after the last. Raises ConfigError for an entry of an unknown output, layer or loss.
    """
    entries = [pair for pair in enumerate(built.config.expect) if pair[1].get("only", "train") == "train"]
    checked = [(index, entry) for index, entry in entries if entry["quantity"] != "share"]
    if ignored := [f"expect.{index}" for index, entry in entries if (index, entry) not in checked]:
        note(f"{', '.join(ignored)}: ignored, share exists only in fit-one")
    last = built.job.num_steps
    for index, entry in checked:
        if entry["step"] > last:
            note(f"expect.{index}: ignored, its step is {entry['step']} and training ends after step {last}")
    return [ExpectationObserver(built, checked)] if checked else []


class ExpectationObserver:
    """Observer that ends a run at the first unmet entry; a resumed run ignores entries of finished steps."""

    may_stop = True

    def __init__(self, built: TrainingSetup, entries: Sequence[tuple[int, Expectation]]) -> None:
        self._built = built
        self._entries = entries
        with preserve_all_rng_states():
            self._setup, _ = make_setup(built, FitOptions())
            self._bounds = measure_bounds(self._setup)
            assert_known_quantity(built, snapshot(self._setup, built.job, built.job.step), self._bounds)

    def assert_begun_well(self) -> None:
        """Raise StopRun for an entry of step 0 that the initial weights of a new run do not meet."""
        self._check_expectations(self._built.job.step)

    def on_step(self, record: StepRecord) -> None:
        self._check_expectations(record.step)

    def on_evaluation(self, record: EvaluationRecord) -> None:
        pass

    def on_end(self, reason: str) -> None:
        pass

    def _check_expectations(self, step: int) -> None:
        due = [(index, entry) for index, entry in self._entries if entry["step"] == step]
        if not due:
            return
        with preserve_all_rng_states():
            model_snapshot = snapshot(self._setup, self._built.job, step)
        results = [
            ExpectationResult(index, entry, measure_quantity(entry, model_snapshot, self._bounds))
            for index, entry in due
        ]
        if unmet := [result.line for result in results if not result.is_met]:
            raise StopRun(f"{'; '.join(unmet)}; the run ends; change expect, or set only: fit_one for the entry")
