"""Trace of the samples through the layers, before the first step of a fit and after its last, and what must hold."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sightline.config import RunConfig
from sightline.config.expectations import Expectation
from sightline.contract.errors import ConfigError
from sightline.contract.pytree import tree_leaves
from sightline.contract.schema import suggest
from sightline.contract.types import Batch, SourceLocation
from sightline.doctor.finding import Fault, Finding, FindingLocation
from sightline.doctor.rules import Rule
from sightline.engine.build import TrainingSetup
from sightline.engine.train import TrainState
from sightline.instrument import ModuleCall, record, watch_gradient
from sightline.workbench.check.dry_run import forward_backward, isolated_copy
from sightline.workbench.describe.trace import preserve_all_rng_states
from sightline.workbench.fit.samples import choose_samples, copy_without_dropout, move_batch

MODEL = "(model)"
"""Name of the model itself among its layers."""
STATISTICS = ("mean", "std", "min", "max", "zeros", "gradient", "weight_gradient")


@dataclass
class LayerStatistics:
    """Statistics of what one call of a module returned, of its first tensor of floating-point numbers.

    `std` divides by the count, `zeros` is the share of exact zeros, `gradient` the norm of the loss's gradient by this
    tensor, 0 if none reaches it, and `weight_gradient` that by the module's own parameters, None if none is trainable.
    """

    layer: str
    kind: str
    call: int
    is_leaf: bool
    shape: tuple[int, ...]
    mean: float
    std: float
    min: float
    max: float
    zeros: float
    gradient: float = 0.0
    weight_gradient: float | None = None


@dataclass(frozen=True)
class Snapshot:
    """The layers in the order of their calls, after `step` updates of the weights."""

    step: int
    layers: tuple[LayerStatistics, ...]

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON; numbers that are not finite become null."""
        rows = [dataclasses.asdict(layer) for layer in self.layers]
        for row in rows:
            row |= {name: None for name in STATISTICS if row[name] is not None and not math.isfinite(row[name])}
        return {"step": self.step, "layers": rows}


def take_snapshot(job: TrainState, batch: Batch, step: int) -> Snapshot:
    """Run a forward and a backward pass of a copy in training mode, and measure every module's output.

    The model, its buffers and the global random states do not change.
    """
    model = isolated_copy(job.model)
    modules, layers, indices = dict(model.named_modules()), [], []

    def measure(call: ModuleCall, module: nn.Module, inputs: Any, outputs: Any) -> None:
        """Measure an output at once: later code may change it in place."""
        floats = [tensor for _, tensor in tree_leaves(outputs) if tensor.is_floating_point() and tensor.numel()]
        if not floats:
            return
        layer = _measure_output(call, floats[0])
        if floats[0].requires_grad:
            watch_gradient(floats[0], _add_norm_to(layer))
        layers.append(layer)
        indices.append(call)

    with preserve_all_rng_states(), job.losses.preserve_state(), record(model, leave=measure) as tape:
        forward_backward(dataclasses.replace(job, model=model), model, [batch], job.device)
    parents = {call.parent for call in tape.calls}
    order = {id(call): index for index, call in enumerate(tape.calls)}
    rows = sorted(zip(indices, layers, strict=True), key=lambda pair: order[id(pair[0])])
    for call, layer in rows:
        layer.is_leaf = order[id(call)] not in parents
        layer.weight_gradient = _weight_gradient(modules[call.path])
    return Snapshot(step, tuple(layer for _, layer in rows))


def _measure_output(call: ModuleCall, output: Tensor) -> LayerStatistics:
    values = output.detach().double()
    return LayerStatistics(
        layer=call.path or MODEL,
        kind=call.class_name,
        call=call.call_index + 1,
        is_leaf=True,
        shape=tuple(output.shape),
        mean=float(values.mean()),
        std=float(values.std(correction=0)),
        min=float(values.min()),
        max=float(values.max()),
        zeros=float((values == 0).double().mean()),
    )


def _add_norm_to(layer: LayerStatistics) -> Callable[[Tensor], None]:
    def add(gradient: Tensor) -> None:
        layer.gradient = math.hypot(layer.gradient, float(gradient.double().norm()))

    return add


def _weight_gradient(module: nn.Module) -> float | None:
    """Return the gradient's norm over a module's own parameters; None if none of them is trainable."""
    parameters = [parameter for parameter in module.parameters(recurse=False) if parameter.requires_grad]
    norms = [0.0 if weight.grad is None else float(weight.grad.double().norm()) for weight in parameters]
    return math.hypot(*norms) if norms else None


def look_at_layers(job: TrainState, batch: Batch, attempt: Any) -> Snapshot:
    """Take the snapshots of a fit: before its first step, and after the last of an attempt."""
    return take_snapshot(job, batch, 0 if attempt is None else len(attempt.losses))


def look_once(built: TrainingSetup) -> Snapshot:
    """Take the snapshot of a run's initial weights on a few samples, as a fit takes its first."""
    job = built.job
    with preserve_all_rng_states():
        batch = move_batch(choose_samples(built, None).batch, job, job.precision)
    weights = job.loss_weights_at(job.num_steps)
    return take_snapshot(dataclasses.replace(job, model=copy_without_dropout(job), loss_weights=weights), batch, 0)


# --- expectations ----------------------------------------------------------------------------------------------------


def judge_expectations(config: RunConfig, snapshots: Mapping[str, Snapshot]) -> list[Finding]:
    """Compare what the config expects of its layers with the snapshots `first` and `last`, of which one may be absent.

    Raises ConfigError for a layer that the model does not have, or that no step calls.
    """
    _assert_layers_exist(config, next(iter(snapshots.values())))
    findings: list[Finding] = []
    for index, entry in enumerate(config.expect):
        for name in ("first", "last") if entry.get("at", "both") == "both" else (entry["at"],):
            if name in snapshots:
                findings += _judge_entry(config, index, entry, snapshots[name])
    return findings


def _judge_entry(config: RunConfig, index: int, entry: Expectation, snapshot: Snapshot) -> Iterator[Finding]:
    layer = _find_layer(entry["layer"], snapshot)
    after = "before the first step" if snapshot.step == 0 else f"after {snapshot.step} steps"
    for name, expected in dict[str, Any](entry).items():
        if name in ("layer", "at"):
            continue
        measured = getattr(layer, name)
        if _holds(name, expected, measured):
            continue
        origin = config.origins.get("expect")
        where = FindingLocation(
            file=None if origin is None else origin.source,
            line=None if origin is None else origin.line,
            layer=entry["layer"],
            config_path=f"expect.{index}.{name}",
        )
        shown = "none" if measured is None else list(measured) if name == "shape" else f"{measured:.6g}"
        fault = Fault(f"{entry['layer']}: {name} is not as expected {after}", measured=f"{name} {shown}", where=where)
        holds = f"{name} {_format_expected(name, expected)}"
        do = "look at this layer and those before it with --trace; change expect, if it is what is wrong"
        causes = ("model.structure",) if name == "shape" else ("model.init", "model.structure", "model.activation")
        yield from Rule("expect", "error", causes, holds, do, lambda fault=fault: fault, ()).find()


def _holds(name: str, expected: Sequence[Any], measured: Any) -> bool:
    if name == "shape":
        pairs = zip(expected, measured, strict=False)
        return len(expected) == len(measured) and all(size is None or size == other for size, other in pairs)
    low, high = (
        bound if bound is not None else limit for bound, limit in zip(expected, (-math.inf, math.inf), strict=True)
    )
    return measured is not None and low <= measured <= high


def _format_expected(name: str, expected: Sequence[Any]) -> str:
    if name == "shape":
        return str(["any" if size is None else size for size in expected]).replace("'", "")
    low, high = expected
    bounds = [f"at least {low:g}"] if low is not None else []
    return " and ".join([*bounds, *([f"at most {high:g}"] if high is not None else [])])


def _find_layer(name: str, snapshot: Snapshot) -> LayerStatistics:
    """Return the first call of a layer."""
    return next(layer for layer in snapshot.layers if layer.layer == name)


def _assert_layers_exist(config: RunConfig, snapshot: Snapshot) -> None:
    called = dict.fromkeys(layer.layer for layer in snapshot.layers)
    faults = []
    for index, entry in enumerate(config.expect):
        if entry["layer"] not in called:
            origin = config.origins.get("expect", SourceLocation("code"))
            where = dataclasses.replace(origin, path=f"expect.{index}.layer")
            hint = suggest(entry["layer"], called, otherwise="; `fit --trace` lists the layers")
            faults.append(f"{where}: no layer '{entry['layer']}' is called in a training step{hint}")
    if faults:
        raise ConfigError(*faults)
