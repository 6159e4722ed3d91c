"""Reduced copies of layers of known types: fewer channels, the same arguments, and matching inputs."""

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
_GAP = 0.1  # distance between any two values; none is nearer to zero than half of it
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def shrink_layer(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """Return a float64 copy of a layer with at most four channels and random parameters, none of them 0 or 1.

    Random parameters reveal errors that the initial ones and zeros would hide.
    """
    small: Any = copy.deepcopy(module).double()
    if isinstance(small, nn.Linear):
        small.in_features, small.out_features = min(_WIDTH, small.in_features), min(_ROWS, small.out_features)
        _crop_tensors(small, weight=(small.out_features, small.in_features), bias=(small.out_features,))
    elif isinstance(small, _CONVOLUTIONS + _TRANSPOSED):
        _shrink_convolution(small)
    elif isinstance(small, nn.modules.batchnorm._BatchNorm):
        small.num_features = min(_ROWS, small.num_features)
        shape = (small.num_features,)
        _crop_tensors(small, weight=shape, bias=shape, running_mean=shape, running_var=shape)
    elif isinstance(small, nn.LayerNorm):
        small.normalized_shape = tuple(min(_WIDTH, size) for size in small.normalized_shape)
        _crop_tensors(small, weight=small.normalized_shape, bias=small.normalized_shape)
    elif isinstance(small, nn.GroupNorm):
        groups = min(2, small.num_groups)
        small.num_groups, small.num_channels = groups, groups * min(2, small.num_channels // small.num_groups)
        _crop_tensors(small, weight=(small.num_channels,), bias=(small.num_channels,))
    for parameter in small.parameters():
        _draw_values(parameter, generator)
    return small


def make_input(module: nn.Module, generator: torch.Generator) -> Tensor:
    """Draw an input for a reduced layer: unequal sizes of the axes, distinct values, none near zero."""
    return _make_distinct_values(_make_input_shape(module), generator)


def _shrink_convolution(small: Any) -> None:
    groups = min(2, small.groups)
    inputs_per_group = min(2, small.in_channels // small.groups)
    outputs_per_group = min(2, small.out_channels // small.groups)
    small.groups, small.in_channels, small.out_channels = groups, groups * inputs_per_group, groups * outputs_per_group
    leading_shape = (
        (groups * inputs_per_group, outputs_per_group)
        if isinstance(small, _TRANSPOSED)
        else (groups * outputs_per_group, inputs_per_group)
    )
    _crop_tensors(small, weight=(*leading_shape, *small.kernel_size), bias=(groups * outputs_per_group,))


def _crop_tensors(module: nn.Module, **shapes: Sequence[int]) -> None:
    """Crop the parameters and buffers that exist to their first elements."""
    for name, shape in shapes.items():
        tensors: Any = module._parameters if name in module._parameters else module._buffers
        tensor = tensors.get(name)
        if tensor is not None:
            corner = tensor.detach()[tuple(slice(size) for size in shape)].clone()
            tensors[name] = nn.Parameter(corner) if isinstance(tensor, nn.Parameter) else corner


def _draw_values(parameter: Tensor, generator: torch.Generator) -> None:
    with torch.no_grad():
        drawn = torch.rand(parameter.shape, generator=generator, dtype=torch.float64) + 0.5
        signs = torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1
        parameter.copy_(drawn * signs)
        parameter.requires_grad_(True)


def _make_input_shape(module: Any) -> tuple[int, ...]:
    if isinstance(module, nn.Linear):
        return (2, _ROWS, module.in_features)
    if isinstance(module, _CONVOLUTIONS):
        reach = [d * (k - 1) + 1 for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return (2, module.in_channels, *(size + axis for axis, size in enumerate(reach)))
    if isinstance(module, _TRANSPOSED):
        return (2, module.in_channels, *(2 + axis for axis in range(len(module.kernel_size))))
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return (5, module.num_features, *(2, 3, 4)[: _count_spatial_axes(module)])
    if isinstance(module, nn.LayerNorm):
        return (2, _ROWS, *module.normalized_shape)
    if isinstance(module, nn.GroupNorm):
        return (2, module.num_channels, 3, 2)
    axes = _count_spatial_axes(module)
    if axes and hasattr(module, "kernel_size"):
        sizes = module.kernel_size if isinstance(module.kernel_size, tuple) else (module.kernel_size,) * axes
        return (2, 2, *(2 * size + axis + 1 for axis, size in enumerate(sizes)))
    if axes and hasattr(module, "output_size"):
        return (2, 2, *(5 + 2 * axis for axis in range(axes)))
    if axes:  # whole channels are dropped, so there must be channels
        return (2, _WIDTH, *(2 + axis for axis in range(axes)))
    return (_ROWS, _WIDTH, 5)


def _count_spatial_axes(module: nn.Module) -> int:
    """Count the spatial axes of a known type by the digit in its name; 0 without one."""
    for kind in type(module).__mro__:
        if kind.__module__.startswith("torch.nn") and kind.__name__.endswith(("1d", "2d", "3d")):
            axes = int(kind.__name__[-2])
            return 0 if kind is nn.BatchNorm1d else axes
    return 0


def _make_distinct_values(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    count = math.prod(shape)
    steps = torch.arange(count, dtype=torch.float64) - count // 2
    steps = steps[torch.randperm(count, generator=generator)] + 0.5
    values = steps * _GAP
    return (values / values.abs().max().clamp(min=2.0) * 2.0).reshape(tuple(shape))
