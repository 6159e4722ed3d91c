"""Costs of the layers of a traced model: shapes, multiply-accumulates (MACs), and bit operations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from sightline.compression.policy import Policy
from sightline.workbench.describe.trace import Node, Trace


class LayerCost(NamedTuple):
    """Quantisable tensor: its shape, and its cost per sample.

    `positions` is the number of input points or pixels; `stride` is 0 and `kernel` 1 except for convolutions.
    """

    name: str
    num_weights: int
    in_channels: int
    out_channels: int
    kernel: int = 1
    stride: int = 0
    positions: float = 1.0
    is_depthwise: bool = False
    macs: float = 0.0


def layer_costs(model: nn.Module, traced: Trace, names: Sequence[str]) -> tuple[LayerCost, ...]:
    """List the costs of the parameters `names`, in this order, per sample of the trace of `model`.

    A tensor whose module is never called, as in fused layers, gets its share, by the number of weights, of the nearest
    enclosing call: exact if all such tensors multiply the same number of rows. Kernels outside torch count 0, as in the
    trace: `fused: false` shows them.
    """
    calls: dict[str, list[Node]] = {}
    for node in traced.calls:
        calls.setdefault(node.path, []).append(node)
    parameters, modules = dict(model.named_parameters()), dict(model.named_modules())
    owners = {name: _find_owner(name, parameters[name], calls) for name in names}
    sharing: dict[str, int] = {}
    for name, owner in owners.items():
        sharing[owner] = sharing.get(owner, 0) + parameters[name].numel()
    layers = []
    for name, owner in owners.items():
        num_weights, module = parameters[name].numel(), modules[name.rpartition(".")[0]]
        macs = sum(node.macs for node in calls.get(owner, ())) * num_weights / sharing[owner] / traced.num_samples
        layer = _make_layer_cost(name, parameters[name], module)._replace(macs=macs)
        shapes = [node.inputs[0][1] for node in calls.get(owner, ())[:1] if node.inputs]
        if owner == name.rpartition(".")[0] and shapes and isinstance(module, _ConvNd | nn.Linear):
            positions = math.prod(shapes[0]) / layer.in_channels / traced.num_samples
        else:
            positions = macs / num_weights
        layers.append(layer._replace(positions=positions))
    return tuple(layers)


def _find_owner(name: str, parameter: Tensor, calls: Mapping[str, object]) -> str:
    """Find the nearest enclosing module of a parameter that is called; return its path."""
    path = name.rpartition(".")[0]
    while path and path not in calls:
        path = path.rpartition(".")[0]
    return path


def _make_layer_cost(name: str, weight: Tensor, module: nn.Module) -> LayerCost:
    if isinstance(module, _ConvNd):
        is_depthwise = module.groups == module.in_channels > 1
        kernel, stride = module.kernel_size[0], module.stride[0]
        return LayerCost(
            name, weight.numel(), module.in_channels, module.out_channels, kernel, stride, is_depthwise=is_depthwise
        )
    return LayerCost(name, weight.numel(), weight.shape[-1], weight.shape[0])


def bit_operations(layers: Sequence[LayerCost], policy: Policy, *, activation_bits: int = 32) -> float:
    """Sum MACs times weight bits times activation bits over the layers, per sample.

    `activation_bits` is used for inputs that the policy does not quantise. Codebook entries are multiplied in floating
    point: for them the number describes storage, not speed.
    """
    choices = [policy[layer.name] for layer in layers]
    inputs = [activation_bits if item.activation is None else item.activation.bits for item in choices]
    return sum(item.macs * choice.bits * bits for item, choice, bits in zip(layers, choices, inputs, strict=True))
