"""Layers of known types at a reduced size: fewer channels, the same arguments, and inputs that suit them."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["make_input", "shrink_layer"]

_WIDTH = 4
_ROWS = 3
_GAP = 0.1  # between any two values; no value lies nearer than half of it to zero
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def shrink_layer(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy in float64, of its own class, with at most four channels; drawn parameters, none of them 0 or 1.

    What a layer would not show with the ones and zeros that it begins with, it shows with these.
    """
    small: Any = copy.deepcopy(module).double()
    if isinstance(small, nn.Linear):
        small.in_features, small.out_features = min(_WIDTH, small.in_features), min(_ROWS, small.out_features)
        _cut(small, weight=(small.out_features, small.in_features), bias=(small.out_features,))
    elif isinstance(small, _CONVOLUTIONS + _TRANSPOSED):
        _shrink_convolution(small)
    elif isinstance(small, nn.modules.batchnorm._BatchNorm):
        small.num_features = min(_ROWS, small.num_features)
        each = (small.num_features,)
        _cut(small, weight=each, bias=each, running_mean=each, running_var=each)
    elif isinstance(small, nn.LayerNorm):
        small.normalized_shape = tuple(min(_WIDTH, size) for size in small.normalized_shape)
        _cut(small, weight=small.normalized_shape, bias=small.normalized_shape)
    elif isinstance(small, nn.GroupNorm):
        groups = min(2, small.num_groups)
        small.num_groups, small.num_channels = groups, groups * min(2, small.num_channels // small.num_groups)
        _cut(small, weight=(small.num_channels,), bias=(small.num_channels,))
    for parameter in small.parameters():
        _draw(parameter, generator)
    return small


def make_input(module: nn.Module, generator: torch.Generator) -> Tensor:
    """An input for a shrunk layer: unequal sizes of the axes, values pairwise apart and none near zero."""
    return _distinct(_shape_for(module), generator)


def _shrink_convolution(small: Any) -> None:
    groups = min(2, small.groups)
    ins = min(2, small.in_channels // small.groups)
    outs = min(2, small.out_channels // small.groups)
    small.groups, small.in_channels, small.out_channels = groups, groups * ins, groups * outs
    first = (groups * ins, outs) if isinstance(small, _TRANSPOSED) else (groups * outs, ins)
    _cut(small, weight=(*first, *small.kernel_size), bias=(groups * outs,))


def _cut(module: nn.Module, **shapes: Sequence[int]) -> None:
    """Keep a corner of parameters and buffers, those that there are."""
    for name, shape in shapes.items():
        held: Any = module._parameters if name in module._parameters else module._buffers
        tensor = held.get(name)
        if tensor is not None:
            corner = tensor.detach()[tuple(slice(size) for size in shape)].clone()
            held[name] = nn.Parameter(corner) if isinstance(tensor, nn.Parameter) else corner


def _draw(parameter: Tensor, generator: torch.Generator) -> None:
    with torch.no_grad():
        drawn = torch.rand(parameter.shape, generator=generator, dtype=torch.float64) + 0.5
        signs = torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1
        parameter.copy_(drawn * signs)
        parameter.requires_grad_(True)


def _shape_for(module: Any) -> tuple[int, ...]:
    if isinstance(module, nn.Linear):
        return (2, _ROWS, module.in_features)
    if isinstance(module, _CONVOLUTIONS):
        reach = [d * (k - 1) + 1 for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return (2, module.in_channels, *(size + place for place, size in enumerate(reach)))
    if isinstance(module, _TRANSPOSED):
        return (2, module.in_channels, *(2 + place for place in range(len(module.kernel_size))))
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return (5, module.num_features, *(2, 3, 4)[: _axes_of(module)])
    if isinstance(module, nn.LayerNorm):
        return (2, _ROWS, *module.normalized_shape)
    if isinstance(module, nn.GroupNorm):
        return (2, module.num_channels, 3, 2)
    axes = _axes_of(module)
    if axes and hasattr(module, "kernel_size"):
        sizes = module.kernel_size if isinstance(module.kernel_size, tuple) else (module.kernel_size,) * axes
        return (2, 2, *(2 * size + place + 1 for place, size in enumerate(sizes)))
    if axes and hasattr(module, "output_size"):
        return (2, 2, *(5 + 2 * place for place in range(axes)))
    if axes:  # whole channels are dropped, so there must be channels
        return (2, _WIDTH, *(2 + place for place in range(axes)))
    return (_ROWS, _WIDTH, 5)


def _axes_of(module: nn.Module) -> int:
    """How many spatial axes the known type takes, by the digit in its name; none where there is none."""
    for kind in type(module).__mro__:
        if kind.__module__.startswith("torch.nn") and kind.__name__.endswith(("1d", "2d", "3d")):
            axes = int(kind.__name__[-2])
            return 0 if kind is nn.BatchNorm1d else axes
    return 0


def _distinct(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    count = math.prod(shape)
    steps = torch.arange(count, dtype=torch.float64) - count // 2
    steps = steps[torch.randperm(count, generator=generator)] + 0.5
    values = steps * _GAP
    return (values / values.abs().max().clamp(min=2.0) * 2.0).reshape(tuple(shape))
