"""Comparison of layers of known types, at a reduced size, with NumPy, finite differences and float32."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sightline.doctor.oracles.derivatives import gradient_errors, worst_error
from sightline.doctor.oracles.references import (
    batch_norm,
    find_reference,
    relative_error,
    running_after,
    to_float64_array,
)
from sightline.doctor.oracles.results import EXACT_GRADIENT, FORWARD, OracleResult
from sightline.doctor.oracles.shrinking import make_input, shrink_layer
from sightline.surrogates import find_surrogates, note_surrogates

__all__ = ["examine_known", "is_known"]


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
            torch.manual_seed(seed)  # repeats the random dropout
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
