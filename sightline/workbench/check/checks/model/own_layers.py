"""Layers of a user's own: one that computes what its base does has its gradient, and no transposed weight.

Interpolation between points: the weights of neighbours, by which features are averaged, add up to 1.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from sightline.contract.pytree import tree_leaves, tree_map
from sightline.instrument import ModuleCall, record
from sightline.layers.surrogates import find_surrogates, note_surrogates
from sightline.workbench.check.context import Context, step_check
from sightline.workbench.check.core.dry_run import DryRun
from sightline.workbench.check.core.finding import Fault
from sightline.workbench.check.core.neighbour_sums import NeighbourSum
from sightline.workbench.check.oracles.examine import find_kind, is_derived

_TESTED = ("torch.", "sightline.")
"""Packages whose layers have tests."""
_TOLERANCE = 1e-9  # of float64 results that are computed in another order


@step_check("derived-layer", causes=("model.structure", "loss.detached", "model.numerics"))
def derived_layer(context: Context, step: DryRun) -> Fault | None:
    """A layer derived from torch's that computes the same has the same gradient; no weight is transposed.

    Finds: Linear layers and convolutions of a user's own whose gradient is cut or scaled, or with a transposed weight.

    Inputs are those of the first step, in float64. An intended gradient is declared by @sightline.surrogate_gradient.
    """
    modules = context.built.job.model.named_modules()
    own = {type(module): name for name, module in modules if not type(module).__module__.startswith(_TESTED)}
    derived = [name for name in own.values() if is_derived(context.built.job.model.get_submodule(name))]
    probe = context.probe(2, is_double=True) if derived else None
    if probe is None:
        return None
    try:
        with record({name: probe.model.get_submodule(name) for name in derived}, keep=("inputs",)) as tape:
            probe.outputs()
        faults = [_judge_call(probe.model.get_submodule(call.path), call) for call in tape.calls]
    except Exception:  # noqa: BLE001 - a network may support one number format only
        return None
    return next((fault for fault in faults if fault is not None), None)


def _judge_call(module: nn.Module, call: ModuleCall) -> Fault | None:
    """Compare a layer with the kind that it derives from, on the inputs of a call."""
    kind = find_kind(module)
    layer = copy.deepcopy(module).requires_grad_(True)
    inputs = tree_map(call.inputs, lambda _, tensor: tensor.detach().clone())
    leaves = {f"input {path}": tensor for path, tensor in tree_leaves(inputs) if tensor.is_floating_point()}
    for tensor in leaves.values():
        tensor.requires_grad_(True)
    leaves |= dict(layer.named_parameters())
    with torch.enable_grad(), note_surrogates() as declared:
        output, expected = layer(*inputs[0], **inputs[1]), kind.forward(layer, *inputs[0], **inputs[1])
    if (
        not isinstance(output, Tensor)
        or output.shape != expected.shape
        or declared | find_surrogates([output], [layer])
    ):
        return None
    if not _is_near(output, expected):
        return _judge_transposed(layer, call, inputs, output)
    ways = torch.randn(output.shape, generator=torch.Generator().manual_seed(0), dtype=output.dtype)
    own, other = (
        torch.autograd.grad((result * ways).sum(), [*leaves.values()], allow_unused=True)
        for result in (output, expected)
    )
    for name, gradient, wanted in zip(leaves, own, other, strict=True):
        if wanted is not None and (gradient is None or not _is_near(gradient, wanted)):
            share = 0.0 if gradient is None else float(gradient.norm() / wanted.norm())
            return Fault(
                f"'{call.path}' computes what {kind.__name__} does, and its gradient is not that of {kind.__name__}",
                layer=call.path,
                measured=f"the gradient of {name} has {share:.4g} times the size, in float64",
                expected="equal gradients of equal functions",
                action="look for detach(), .data, no_grad or a custom backward in its forward",
            )
    return None


def _judge_transposed(layer: nn.Module, call: ModuleCall, inputs: Any, output: Tensor) -> Fault | None:
    if not isinstance(layer, nn.Linear) or layer.in_features != layer.out_features or not inputs[0]:
        return None
    bias = 0 if layer.bias is None else layer.bias
    if not _is_near(output, inputs[0][0] @ layer.weight + bias):
        return None
    return Fault(
        f"'{call.path}' multiplies by its weight, of which nn.Linear stores the transpose",
        layer=call.path,
        measured="its output is x @ W + b, in float64",
        expected="x @ W.T + b: trained weights are stored so, and other sizes fail",
        action="call super().forward, F.linear(x, self.weight, self.bias), or derive from nn.Module",
        causes=("model.structure", "data.layout"),
    )


def _is_near(first: Tensor, second: Tensor) -> bool:
    first, second = first.detach(), second.detach()
    return float((first - second).abs().max()) <= _TOLERANCE * max(float(second.abs().max()), 1e-30)


_SUM_TOLERANCE = 1e-2
"""Rounding of a sum of weights that 16 bits explain."""
_SPREAD, _LARGE = 100.0, 10.0
"""Ratio of the sums, and the sum, from which weights are inverse distances that were not divided by their sum."""


@step_check(
    "neighbour-weights",
    severity="warning",
    causes=("model.geometry", "model.structure"),
    expected="weights that add up to 1, so that equal features stay what they are",
    action="divide the weights of the neighbours by their sum: weights / weights.sum(dim=-1, keepdim=True)",
)
def neighbour_weights(context: Context, step: DryRun) -> Fault | None:
    """Weights by which features of at most eight neighbours are summed do not add up to another number than 1.

    Finds: An interpolation between points whose weights are not divided by their sum, or that is scaled.

    Weights whose sums vary are judged only if they vary as inverse distances do: a layer may learn its weights.
    """
    for row in step.neighbour_sums:
        if _is_scaled(row) or _is_undivided(row):
            return Fault(
                f"features of {row.num_neighbours} neighbours are summed with weights that do not add up to 1",
                layer=row.layer or None,
                measured=f"sums {row.lowest:.6g} to {row.highest:.6g}, of weights {row.least:.3g} to {row.most:.3g}",
            )
    return None


def _is_scaled(row: NeighbourSum) -> bool:
    """Return True for one sum everywhere that is not 1, of weights that differ and are neither 0 alone nor 1."""
    is_constant = (
        row.highest - row.lowest <= _SUM_TOLERANCE * row.highest and row.most - row.least > _SUM_TOLERANCE * row.most
    )
    is_mask = row.least == 0 and row.most == 1
    return is_constant and row.least >= 0 and abs(row.highest - 1) > 2 * _SUM_TOLERANCE and not is_mask


def _is_undivided(row: NeighbourSum) -> bool:
    """Return True for sums that vary as inverse distances do, of which some are huge."""
    return row.least > 0 and row.highest > _LARGE and row.highest > _SPREAD * row.lowest
