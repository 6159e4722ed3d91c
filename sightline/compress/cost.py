"""Layers of a traced model as searches see them: shapes, multiply-accumulates, and operations by bits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from sightline.compress.policy import Policy
from sightline.describe.trace import Node, Trace

__all__ = ["LayerCost", "bit_operations", "layer_costs", "state_vectors"]


class LayerCost(NamedTuple):
    """A quantisable tensor: its shape, and what one sample costs in it.

    `positions` are the points or pixels that enter; `stride` is 0 and `kernel` 1 for anything but a convolution.
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
    """The layers of the parameters `names`, in this order, with the cost per sample that a trace of `model` shows.

    A tensor whose module is never called, as in fused layers, gets its share, by the number of weights, of what ran in
    the nearest call around it: exact where all such tensors there multiply equally many rows. Kernels outside of torch
    count 0, as in the trace: `fused: false` shows them.
    """
    calls: dict[str, list[Node]] = {}
    for node in traced.calls:
        calls.setdefault(node.path, []).append(node)
    parameters, modules = dict(model.named_parameters()), dict(model.named_modules())
    owners = {name: _owner(name, parameters[name], calls) for name in names}
    sharing: dict[str, int] = {}
    for name, owner in owners.items():
        sharing[owner] = sharing.get(owner, 0) + parameters[name].numel()
    layers = []
    for name, owner in owners.items():
        num_weights, module = parameters[name].numel(), modules[name.rpartition(".")[0]]
        macs = sum(node.macs for node in calls.get(owner, ())) * num_weights / sharing[owner] / traced.num_samples
        layer = _layer(name, parameters[name], module)._replace(macs=macs)
        shapes = [node.inputs[0][1] for node in calls.get(owner, ())[:1] if node.inputs]
        if owner == name.rpartition(".")[0] and shapes and isinstance(module, _ConvNd | nn.Linear):
            positions = math.prod(shapes[0]) / layer.in_channels / traced.num_samples
        else:
            positions = macs / num_weights
        layers.append(layer._replace(positions=positions))
    return tuple(layers)


def _owner(name: str, parameter: Tensor, calls: Mapping[str, object]) -> str:
    """The path of the nearest module around a parameter that is called."""
    path = name.rpartition(".")[0]
    while path and path not in calls:
        path = path.rpartition(".")[0]
    return path


def _layer(name: str, weight: Tensor, module: nn.Module) -> LayerCost:
    if isinstance(module, _ConvNd):
        is_depthwise = module.groups == module.in_channels > 1
        kernel, stride = module.kernel_size[0], module.stride[0]
        return LayerCost(
            name, weight.numel(), module.in_channels, module.out_channels, kernel, stride, is_depthwise=is_depthwise
        )
    return LayerCost(name, weight.numel(), weight.shape[-1], weight.shape[0])


def bit_operations(layers: Sequence[LayerCost], policy: Policy, *, activation_bits: int = 32) -> float:
    """Multiply-accumulates times the bits of weight and activation, summed over the layers, per sample.

    `activation_bits` are those of inputs that the policy does not quantise. Codebooks are looked up and multiplied in
    floating point: their count states storage, and no gain in speed.
    """
    choices = [policy[layer.name] for layer in layers]
    inputs = [activation_bits if each.activation is None else each.activation.bits for each in choices]
    return sum(each.macs * choice.bits * bits for each, choice, bits in zip(layers, choices, inputs, strict=True))


def state_vectors(layers: Sequence[LayerCost]) -> np.ndarray:
    """The state (L, 8) of each layer: depth-wise, channels in and out, stride, kernel, weights, positions, place.

    Each column runs from 0 to 1 over the layers; one that never changes is 0 (the authors leave its raw value).
    Source: Wang et al. 2019 (HAQ), section 3, in the order of the authors' code.
    """
    rows = [
        (one.is_depthwise, one.in_channels, one.out_channels, one.stride, one.kernel, one.num_weights, one.positions)
        for one in layers
    ]
    table = np.column_stack([np.asarray(rows, dtype=np.float64), np.arange(len(layers))])
    low, high = table.min(axis=0), table.max(axis=0)
    return (table - low) / np.where(high > low, high - low, 1.0)
