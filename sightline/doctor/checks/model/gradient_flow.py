"""Gradients that vanish or explode on their way back, and units that are always zero, at the first step."""

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
_VANISHED = 1e-7  # of the median layer's ratio of gradient to weight
_EXPLODED = 1e6
_MOST_DEAD = 0.5
_FEWEST_UNITS = 8
_COLUMNS = ("layer", "weights", "weight rms", "gradient rms", "ratio", "dead units", "exact zeros")


@dataclass(frozen=True)
class LayerGradient:
    """The weight of one layer at the first step: its size, its gradient's, and what of that is exactly zero.

    A unit is what gives one channel; it is dead where the gradient of all its weights is zero.
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
    """The ratio of gradient to weight of each layer lies within seven orders of the others', and half its units live.

    Of linear maps and convolutions, on a copy without dropout, on the samples of the first step.
    """
    if not context.dry_run.is_sound:
        return []
    flows = _flows(context)
    return [_note(context, flows), *_of_sizes(context, flows), *_of_dead(context, flows)] if flows else []


def _flows(context: Context) -> list[LayerGradient]:
    job = context.built.job
    model = isolated_copy(job.model)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    model.zero_grad(set_to_none=True)
    forward_backward(job, model, [context.dry_run.batch], context.world.device)
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, _LAYERS)]
    return [_flow(name, layer) for name, layer in layers if layer.weight.grad is not None]


def _flow(name: str, layer: nn.Module) -> LayerGradient:
    weight, gradient = layer.weight.detach(), layer.weight.grad.detach()  # type: ignore[union-attr, operator]
    by_unit = gradient.transpose(0, 1) if isinstance(layer, nn.modules.conv._ConvTransposeNd) else gradient
    is_zero = by_unit.flatten(1) == 0
    size, slope = (float(tensor.double().square().mean().sqrt()) for tensor in (weight, gradient))
    dead, zeros = float(is_zero.all(dim=1).double().mean()), float(is_zero.double().mean())
    return LayerGradient(name, len(is_zero), weight.numel(), size, slope, dead, zeros)


def _note(context: Context, flows: Sequence[LayerGradient]) -> Finding:
    rows = [
        [
            f.name,
            f.size,
            *(f"{value:.2e}" for value in (f.weight, f.gradient, f.ratio)),
            f"{f.dead:.0%}",
            f"{f.zeros:.0%}",
        ]
        for f in flows
    ]
    moving = [flow for flow in flows if 0 < flow.ratio < float("inf")] or list(flows)
    least, most = (end(moving, key=lambda flow: flow.ratio) for end in (min, max))
    return gradient_flow.finding(
        context,
        f"gradients are {least.ratio:.1e} to {most.ratio:.1e} of their weights at the first step",
        severity="note",
        causes=("model.init",),
        measured=f"{len(flows)} layers; smallest ratio in {least.name}",
        expected=f"within a factor of {1 / _VANISHED:g} of the median",
        action="nothing",
        evidence={"table": {"title": "gradients at the first step", "columns": list(_COLUMNS), "rows": rows}},
    )


def _of_sizes(context: Context, flows: Sequence[LayerGradient]) -> Iterator[Finding]:
    """The layer that is farthest out, where one is: those before it are the same way."""
    ratios = {flow.name: flow.ratio for flow in flows if 0 < flow.ratio < float("inf")}
    if len(ratios) < 3:
        return
    median = statistics.median(ratios.values())
    least, most = min(ratios, key=lambda name: ratios[name]), max(ratios, key=lambda name: ratios[name])
    for name, is_far, effect in (
        (least, ratios[least] < _VANISHED * median, "vanish on their way back to"),
        (most, ratios[most] > _EXPLODED * median, "explode in"),
    ):
        if is_far:
            yield _warning(
                context,
                name,
                summary=f"gradients {effect} '{name}'",
                measured=f"gradient / weight {ratios[name]:.2e}, {ratios[name] / median:.1e} times the median layer's",
                expected=f"between {_VANISHED:g} and {_EXPLODED:g} times the median {median:.2e}",
                causes=("model.init", "model.activation", "model.numerics"),
                action="look at the initial weights around it, and at activations that saturate behind it",
            )


def _of_dead(context: Context, flows: Sequence[LayerGradient]) -> Iterator[Finding]:
    """The last layer with mostly dead units: those before it may be dead because of it.

    A branch that ends in a layer of zeros passes no gradient at first, and is meant to.
    """
    has_zero_layer = any(flow.weight == 0 for flow in flows)
    dead = [
        f for f in flows if f.dead > _MOST_DEAD and f.units >= _FEWEST_UNITS and not (f.dead == 1 and has_zero_layer)
    ]
    if dead:
        last = dead[-1]
        yield _warning(
            context,
            last.name,
            summary=f"{last.dead:.0%} of the units of '{last.name}' are dead: no sample moves them",
            measured=f"the gradient is exactly 0 for {round(last.dead * last.units)} of {last.units} units",
            expected=f"at most {_MOST_DEAD:.0%} on {context.dry_run.num_samples} samples",
            causes=("model.activation", "model.init", "data.normalisation"),
            action="look at the activation behind it and at its bias: a ReLU of negative values passes nothing on",
        )


def _warning(
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
