"""Gradients that vanish or explode in the backward pass, and dead units, at the first step."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from sightline.doctor.context import Context, check
from sightline.doctor.core.dry_run import forward_backward, isolated_copy
from sightline.doctor.core.finding import Finding

__all__ = ["LayerGradient", "gradient_flow"]

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
_MIN_RELATIVE_RATIO = 1e-7  # relative to the median layer's gradient-to-weight ratio
_MAX_RELATIVE_RATIO = 1e6
_MAX_DEAD = 0.5
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


@check("G10", "gradient-flow", "deep", config_path="model")
def gradient_flow(context: Context) -> list[Finding]:
    """Each layer's gradient-to-weight ratio is within 1e-7 to 1e6 of the median, and at most half its units are dead.

    Finds: Gradients that vanish or explode in the backward pass, and dead units, at the first step.

    Linear layers and convolutions are measured, on a copy without dropout, on the samples of the first step.
    """
    if not context.dry_run.is_sound:
        return []
    flows = _measure_layers(context)
    return (
        [_finding_note(context, flows), *_size_findings(context, flows), *_dead_findings(context, flows)]
        if flows
        else []
    )


def _measure_layers(context: Context) -> list[LayerGradient]:
    job = context.built.job
    model = isolated_copy(job.model)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    model.zero_grad(set_to_none=True)
    forward_backward(job, model, [context.dry_run.batch], context.world.device)
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, _LAYERS)]
    return [_measure_layer(name, layer) for name, layer in layers if layer.weight.grad is not None]


def _measure_layer(name: str, layer: nn.Module) -> LayerGradient:
    weight, gradient = layer.weight.detach(), layer.weight.grad.detach()  # type: ignore[union-attr, operator]
    by_unit = gradient.transpose(0, 1) if isinstance(layer, nn.modules.conv._ConvTransposeNd) else gradient
    is_zero = by_unit.flatten(1) == 0
    size, gradient_size = (float(tensor.double().square().mean().sqrt()) for tensor in (weight, gradient))
    dead, zeros = float(is_zero.all(dim=1).double().mean()), float(is_zero.double().mean())
    return LayerGradient(name, len(is_zero), weight.numel(), size, gradient_size, dead, zeros)


def _finding_note(context: Context, flows: Sequence[LayerGradient]) -> Finding:
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
    return gradient_flow.finding(
        context,
        f"gradients are {smallest.ratio:.1e} to {largest.ratio:.1e} of their weights at the first step",
        severity="note",
        causes=("model.init",),
        measured=f"{len(flows)} layers; smallest ratio in {smallest.name}",
        expected=f"within a factor of {1 / _MIN_RELATIVE_RATIO:g} of the median",
        action="nothing",
        evidence={"table": {"title": "gradients at the first step", "columns": list(_COLUMNS), "rows": rows}},
    )


def _size_findings(context: Context, flows: Sequence[LayerGradient]) -> Iterator[Finding]:
    """Yield a finding for the layers with the smallest and the largest ratio, if they are out of bounds."""
    ratios = {flow.name: flow.ratio for flow in flows if 0 < flow.ratio < float("inf")}
    if len(ratios) < 3:
        return
    median = statistics.median(ratios.values())
    smallest, largest = min(ratios, key=lambda name: ratios[name]), max(ratios, key=lambda name: ratios[name])
    for name, is_far, effect in (
        (smallest, ratios[smallest] < _MIN_RELATIVE_RATIO * median, "vanish before they reach"),
        (largest, ratios[largest] > _MAX_RELATIVE_RATIO * median, "explode in"),
    ):
        if is_far:
            yield _finding_warning(
                context,
                name,
                summary=f"gradients {effect} '{name}'",
                measured=f"gradient / weight {ratios[name]:.2e}, {ratios[name] / median:.1e} times the median layer's",
                expected=f"between {_MIN_RELATIVE_RATIO:g} and {_MAX_RELATIVE_RATIO:g} times the median {median:.2e}",
                causes=("model.init", "model.activation", "model.numerics"),
                action="look at the initial weights around it, and at activations that saturate after it",
            )


def _dead_findings(context: Context, flows: Sequence[LayerGradient]) -> Iterator[Finding]:
    """Yield a finding for the last layer with mostly dead units; layers before it may be dead because of it.

    A branch that ends in a zero-initialised layer passes no gradient at first, by design.
    """
    has_zero_layer = any(flow.weight == 0 for flow in flows)
    dead = [f for f in flows if f.dead > _MAX_DEAD and f.units >= _MIN_UNITS and not (f.dead == 1 and has_zero_layer)]
    if dead:
        last = dead[-1]
        yield _finding_warning(
            context,
            last.name,
            summary=f"{last.dead:.0%} of the units of '{last.name}' are dead: no sample gives them a gradient",
            measured=f"the gradient is exactly 0 for {round(last.dead * last.units)} of {last.units} units",
            expected=f"at most {_MAX_DEAD:.0%} on {context.dry_run.num_samples} samples",
            causes=("model.activation", "model.init", "data.normalisation"),
            action="look at the activation after it and at its bias: a ReLU of negative inputs passes no gradient on",
        )


def _finding_warning(
    context: Context, name: str, *, summary: str, measured: str, expected: str, causes: tuple[str, ...], action: str
) -> Finding:
    return gradient_flow.finding(
        context,
        summary,
        severity="warning",
        causes=causes,
        layer=name,
        measured=measured,
        expected=expected,
        action=action,
    )
