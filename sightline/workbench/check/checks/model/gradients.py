"""First signals of a network: gradients that vanish or explode, dead units, inputs of norms that vary too little."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sightline.contract.pytree import tree_leaves
from sightline.engine.step import compute_batch_losses
from sightline.workbench.check.context import Context, check, first_steps
from sightline.workbench.check.core.dry_run import DryRun, forward_backward, isolated_copy
from sightline.workbench.check.core.finding import Fault, diagnose
from sightline.workbench.check.oracles.results import float64, tree_map

_diagnose = functools.partial(diagnose, __file__)
LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
"""Layers with a unit for each output channel."""
_MIN_RELATIVE_RATIO = 1e-7  # relative to the median layer's gradient-to-weight ratio
_MAX_RELATIVE_RATIO = 1e6
_MAX_DEAD = 0.5
_MAX_DEVIATIONS = 4.0
"""Standard deviations above that share; of the some forty layers of a network, one in a thousand networks is there."""
_MIN_UNITS = 8
_COLUMNS = ("layer", "weights", "weight rms", "gradient rms", "ratio", "dead units", "exact zeros")


@dataclass(frozen=True)
class LayerGradient:
    """RMS of one layer's weight and of its gradient at the first step, and shares of dead units and zero gradients.

    A unit computes one channel; it is dead if the gradient of all its weights is zero.
    """

    name: str
    units: int
    size: int
    weight: float
    gradient: float
    dead: float
    zeros: float

    @property
    def ratio(self) -> float:
        return self.gradient / self.weight if self.weight > 0 else float("inf")


@check("gradient-flow", "deep", each=first_steps, config_path="model")
def gradient_flow(context: Context, step: DryRun) -> Iterator[Fault]:
    """Each layer's gradient-to-weight ratio is within 1e-7 to 1e6 of the median, and at most half its units are dead.

    Finds: Gradients that vanish or explode in the backward pass, and dead units, at the first step.

    Linear layers and convolutions are measured, on a copy without dropout, on the samples of the first step.
    """
    flows = _measure_layers(context)
    if flows:
        yield _make_note(flows)
        faults = list(_size_faults(flows))
        yield from _leave_out_idle_branches(context, faults) if faults else []
        yield from _dead_faults(flows, step.num_samples)


def _measure_layers(context: Context, *, of_outputs: bool = False) -> list[LayerGradient]:
    """Measure the gradients of the losses, or `of_outputs` those of a random sum of all outputs alike."""
    job = context.built.job
    model = isolated_copy(job.model)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    model.zero_grad(set_to_none=True)
    if of_outputs:
        _sum_outputs(model.train()(**context.dry_run.inputs)).backward()
    else:
        forward_backward(job, model, [context.dry_run.batch], context.world.device)
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, LAYERS)]
    weights = {name: _get_weight(layer) for name, layer in layers}
    measured = {name for name, weight in weights.items() if weight.ndim > 1 and weight.grad is not None}
    return [measure_layer(name, layer) for name, layer in layers if name in measured]


def _sum_outputs(outputs: Any) -> Tensor:
    """Compute the sum of all numbers of the outputs, with random signs."""
    generator, total = torch.Generator().manual_seed(0), torch.zeros(())
    for _, value in tree_leaves(outputs):
        if value.is_floating_point() and value.requires_grad:
            signs = torch.randint(0, 2, value.shape, generator=generator).to(value) * 2 - 1
            total = total.to(value) + (signs * value).sum()
    return total


def _get_weight(layer: nn.Module) -> Tensor:
    """Return the parameter behind a layer's weight: of a quantised layer, its weight before it is quantised."""
    chain = getattr(layer, "parametrizations", {})
    return chain["weight"].original if "weight" in chain else layer.weight  # type: ignore[return-value]


def measure_layer(name: str, layer: nn.Module) -> LayerGradient:
    """Measure the weight and the gradient of a layer."""
    weight, gradient = _get_weight(layer).detach(), _get_weight(layer).grad.detach()  # type: ignore[union-attr]
    by_unit = gradient.transpose(0, 1) if isinstance(layer, nn.modules.conv._ConvTransposeNd) else gradient
    is_zero = by_unit.flatten(1) == 0
    size, gradient_size = (float(tensor.double().square().mean().sqrt()) for tensor in (weight, gradient))
    dead, zeros = float(is_zero.all(dim=1).double().mean()), float(is_zero.double().mean())
    return LayerGradient(name, len(is_zero), weight.numel(), size, gradient_size, dead, zeros)


def _make_note(flows: Sequence[LayerGradient]) -> Fault:
    rows = [
        [
            layer.name,
            layer.size,
            *(f"{value:.2e}" for value in (layer.weight, layer.gradient, layer.ratio)),
            f"{layer.dead:.0%}",
            f"{layer.zeros:.0%}",
        ]
        for layer in flows
    ]
    moving = [flow for flow in flows if 0 < flow.ratio < float("inf")] or list(flows)
    smallest, largest = (end(moving, key=lambda flow: flow.ratio) for end in (min, max))
    table = {"title": "gradients at the first step", "columns": list(_COLUMNS), "rows": rows}
    measured, factor = f"{len(flows)} layers; smallest ratio in {smallest.name}", 1 / _MIN_RELATIVE_RATIO
    return _diagnose("sizes", measured, smallest=smallest, largest=largest, factor=factor, evidence={"table": table})


def _size_faults(flows: Sequence[LayerGradient]) -> Iterator[Fault]:
    """Yield a fault for the layers with the smallest and the largest ratio, if they are out of bounds."""
    ratios = {flow.name: flow.ratio for flow in flows if 0 < flow.ratio < float("inf")}
    if len(ratios) < 3:
        return
    median = statistics.median(ratios.values())
    smallest, largest = min(ratios, key=lambda name: ratios[name]), max(ratios, key=lambda name: ratios[name])
    for name, is_far, diagnosis in (
        (smallest, ratios[smallest] < _MIN_RELATIVE_RATIO * median, "vanishing"),
        (largest, ratios[largest] > _MAX_RELATIVE_RATIO * median, "exploding"),
    ):
        if is_far:
            measured = f"gradient / weight {ratios[name]:.2e}, {ratios[name] / median:.1e} times the median layer's"
            bounds = {"low": _MIN_RELATIVE_RATIO, "high": _MAX_RELATIVE_RATIO, "median": median}
            yield _diagnose(diagnosis, measured, layer=name, **bounds)


def _leave_out_idle_branches(context: Context, faults: Sequence[Fault]) -> list[Fault]:
    """Keep the faults that a random sum of all outputs has as well.

    A branch that the loss weighs little, such as a level of a pyramid without a box, gets a small gradient by the loss
    alone: through the network, gradients do reach it.
    """
    try:
        flows = _measure_layers(context, of_outputs=True)
    except Exception:  # noqa: BLE001 - a network may return what cannot be summed
        return list(faults)
    others = {fault.layer for fault in _size_faults(flows)}
    return [fault for fault in faults if fault.layer in others or "explode" in fault.summary]


def _is_dead(flow: LayerGradient) -> bool:
    """Return True for dead units beyond chance: a ReLU of inputs that hardly vary is off for half of all units."""
    deviation = math.sqrt(_MAX_DEAD * (1 - _MAX_DEAD) / max(1, flow.units))
    return flow.dead == 1 or flow.dead > _MAX_DEAD + _MAX_DEVIATIONS * deviation


def _dead_faults(flows: Sequence[LayerGradient], num_samples: int) -> Iterator[Fault]:
    """Yield a fault for the last layer with mostly dead units; layers before it may be dead because of it.

    A branch that ends in a zero-initialised layer passes no gradient at first, by design.
    """
    has_zero_layer = any(flow.weight == 0 for flow in flows)
    dead = [f for f in flows if _is_dead(f) and f.units >= _MIN_UNITS and not (f.dead == 1 and has_zero_layer)]
    for last in dead[-1:]:
        yield dataclasses.replace(
            make_dead_fault(last.name, last.dead, last.units),
            severity="warning",
            expected=f"at most {_MAX_DEAD:.0%} on {num_samples} samples, and what chance adds to that",
            causes=("model.activation", "model.init", "data.normalisation"),
            action="look at the activation after it and at its bias: a ReLU of negative inputs passes no gradient on",
        )


def make_dead_fault(layer: str, share: float, num_units: int) -> Fault:
    """Make the fault of a layer in which a share of the units is dead; the caller adds what it expects."""
    return Fault(
        f"{share:.0%} of the units of '{layer}' are dead: no sample gives them a gradient",
        layer=layer,
        measured=f"the gradient is exactly 0 for {round(share * num_units)} of {num_units} units",
    )


_MIN_RATIO = 10.0
_NORM_COLUMNS = ("batch norm", "input variance", "epsilon", "comes out with std")


@check(
    "norm-variance",
    "deep",
    each=first_steps,
    severity="note",
    causes=("model.init", "data.normalisation", "model.norm_mode"),
    config_path="model",
)
def norm_variance(context: Context, step: DryRun) -> Fault | None:
    """The input variance v of each batch norm is at least ten times epsilon; the output variance is v / (v + eps).

    Finds: Batch norms whose inputs vary so little that epsilon keeps the outputs below a variance of 1.
    """
    modules: dict[str, Any] = dict(context.built.job.model.named_modules())
    variances = {name: float(v.median()) for name, v in input_variances(context).items()}
    small = {name: v for name, v in variances.items() if v < _MIN_RATIO * modules[name].eps}
    if not small:
        return None
    rows = [
        [n, f"{v:.2e}", f"{modules[n].eps:g}", f"{(v / (v + modules[n].eps)) ** 0.5:.2f}"] for n, v in small.items()
    ]
    smallest = min(small, key=lambda name: small[name])
    return Fault(
        f"{len(small)} of {len(variances)} batch norms have inputs that vary less than ten times epsilon",
        layer=smallest,
        measured=f"variance {small[smallest]:.2e} in {smallest}, the median channel's",
        expected=f"over {_MIN_RATIO:g} epsilon = {_MIN_RATIO * modules[smallest].eps:g}",
        action="larger initial weights before it, or a smaller epsilon, unless the recipe intends it",
        evidence={"table": {"title": "batch norms of small inputs", "columns": list(_NORM_COLUMNS), "rows": rows}},
    )


def input_variances(context: Context) -> dict[str, Tensor]:
    """Measure the unbiased input variance (C,) of each batch norm in the first step, by module name.

    It is read from the running averages after one float64 pass, so that norms inside fused kernels are included.
    """
    job = context.built.job
    model = isolated_copy(job.model).double().train()
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None
    }
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None  # the average over one batch equals its statistics
    batch = tree_map(context.dry_run.batch, float64)
    compute_batch_losses(job.task, model, batch, context.world.device)
    return {name: norm.running_var.clone() for name, norm in norms.items() if int(norm.num_batches_tracked) > 0}  # type: ignore[union-attr, arg-type]
