"""Known layers: their examination by references, by reduction and on shrinking inputs.

Comparison of layers of known types, at a reduced size, with NumPy, finite differences and float32.

Training batch with fewer points, for checks that do not need the full size.

Reduced copies of layers of known types: fewer channels, the same arguments, and matching inputs.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sightline.contract.types import Batch
from sightline.engine.device import seed_torch
from sightline.layers.surrogates import find_surrogates, note_surrogates
from sightline.workbench.check.oracles.derivatives import gradient_errors, worst_error
from sightline.workbench.check.oracles.references import (
    batch_norm,
    find_reference,
    relative_error,
    running_after,
    to_float64_array,
)
from sightline.workbench.check.oracles.results import EXACT_GRADIENT, FORWARD, OracleResult

_SIZES = (64, 128, 256)


def with_fewer_points(batch: Batch, run: Callable[[Batch], Any]) -> Batch:
    """Crop clouds (B, N, ...) to as few first points as `run` accepts; return the batch unchanged if none works."""
    points = batch.get("points")
    if not isinstance(points, Tensor) or points.ndim != 3:
        return batch
    for size in _SIZES:
        if size >= points.shape[1]:
            break
        small = {name: _crop_points(value, points.shape[:2], size) for name, value in batch.items()}
        try:
            with torch.no_grad():
                run(small)
        except Exception:  # noqa: BLE001 - a model may reject small clouds with any error
            continue
        return small
    return batch


def _crop_points(value: Any, rows: Any, size: int) -> Any:
    has_points = isinstance(value, Tensor) and value.ndim >= 2 and value.shape[:2] == rows
    return value[:, :size].contiguous() if has_points else value


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


def is_known(module: nn.Module) -> bool:
    """Return True if there is a reference for the layer's type, or for a base class of it."""
    return find_reference(module) is not None


def examine_known(module: nn.Module, row: OracleResult, *, seed: int = 0) -> OracleResult:
    """Return the row with its measurements; errors of the layer propagate."""
    generator = torch.Generator().manual_seed(seed)
    small = shrink_layer(module, generator)
    values = make_input(small, generator)
    errors = _compute_forward_errors(small, values)
    declared = _find_surrogates(small, values)
    tensor_errors = {
        f"{mode}{name}": error
        for mode, mode_errors in ({} if declared else _compute_gradient_errors(small, values, seed)).items()
        for name, error in mode_errors.items()
    }
    weakest, gradient_error = worst_error(tensor_errors)
    quantity, forward = worst_error(errors)
    note = f"its {quantity} differs" if forward is not None and forward > FORWARD and quantity != "output" else ""
    return dataclasses.replace(
        row,
        forward=forward,
        gradient_error=gradient_error,
        drift=_compute_drift(small, values),
        weakest=weakest,
        tolerance=EXACT_GRADIENT,
        declared=declared,
        note=note,
    )


def _compute_forward_errors(small: nn.Module, values: Tensor) -> dict[str, float]:
    """Compute the relative error of outputs, and of batch norm's running statistics, against the reference."""
    match = find_reference(small)
    assert match is not None, "only for known layers"
    _, reference = match
    array = to_float64_array(values)
    if not isinstance(small, nn.modules.batchnorm._BatchNorm):
        layer = copy.deepcopy(small).eval()
        return {"output": relative_error(_call_layer(layer, values), reference(layer, array))}
    layer: Any = copy.deepcopy(small).train()  # type: ignore[no-redef]
    errors = {"output": relative_error(_call_layer(layer, values), batch_norm(small.train(), array))}
    if small.running_mean is None or small.running_var is None:
        return errors
    initial = to_float64_array(small.running_mean), to_float64_array(small.running_var)
    mean, variance = running_after(small, array, mean=initial[0], variance=initial[1])
    errors["running mean"] = relative_error(layer.running_mean, mean)
    errors["running variance"] = relative_error(layer.running_var, variance)
    expected_layer: Any = copy.deepcopy(small).eval()
    with torch.no_grad():
        expected_layer.running_mean.copy_(torch.from_numpy(mean))
        expected_layer.running_var.copy_(torch.from_numpy(variance))
    evaluated = copy.deepcopy(expected_layer)
    errors["output in evaluation"] = relative_error(_call_layer(evaluated, values), batch_norm(expected_layer, array))
    return errors


def _find_surrogates(small: nn.Module, values: Tensor) -> tuple[str, ...]:
    """Return the surrogate gradients that a layer derived from a known type declares."""
    layer = copy.deepcopy(small).train()
    with note_surrogates() as declared:
        out = layer(values.clone().requires_grad_(True).clone())
    return tuple(sorted(declared | find_surrogates([out], layer.modules())))


def _compute_gradient_errors(small: nn.Module, values: Tensor, seed: int) -> Mapping[str, dict[str, float]]:
    """Compute gradient errors by mode and tensor: in training, and in evaluation for batch norm and dropout."""
    has_modes = isinstance(small, nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd)
    errors = {}
    for mode, label in ((True, ""), (False, "in evaluation: ")) if has_modes else ((True, ""),):
        layer = copy.deepcopy(small).train(mode)
        inputs = values.clone().requires_grad_(True)
        tensors: dict[str, list[Tensor]] = {"input": [inputs]}
        tensors |= {name: [parameter] for name, parameter in layer.named_parameters()}

        def evaluate(layer: nn.Module = layer, inputs: Tensor = inputs) -> list[Tensor]:
            seed_torch(seed)  # repeats the random dropout
            return [layer(inputs.clone())]  # a copy, for layers that modify their input

        errors[label] = gradient_errors(evaluate, tensors, seed=seed)
    return errors


def _compute_drift(small: nn.Module, values: Tensor) -> float:
    """Compute the median float32 error on inputs exact in both formats, relative to the largest output."""
    layer = copy.deepcopy(small).float().eval()
    double_layer = copy.deepcopy(layer).double()
    inputs = values.float()
    expected = _call_layer(double_layer, inputs.double())
    return float(
        (_call_layer(layer, inputs).double() - expected).abs().median() / expected.abs().max().clamp(min=1e-30)
    )


def _call_layer(layer: nn.Module, values: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = layer(values.clone())
    return out
