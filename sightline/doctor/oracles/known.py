"""Layers of known types at a reduced size: against NumPy, finite differences and float32."""

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
    reference_of,
    relative_error,
    running_after,
    to_float64_array,
)
from sightline.doctor.oracles.results import EXACT_GRADIENT, FORWARD, OracleResult
from sightline.doctor.oracles.shrinking import make_input, shrink_layer
from sightline.surrogates import find_surrogates, note_surrogates

__all__ = ["examine_known", "is_known"]


def is_known(module: nn.Module) -> bool:
    """Whether there is a reference for a layer: its type, or one that it derives from."""
    return reference_of(module) is not None


def examine_known(module: nn.Module, row: OracleResult, *, seed: int = 0) -> OracleResult:
    """The row with its figures. Raises whatever the layer raises."""
    generator = torch.Generator().manual_seed(seed)
    small = shrink_layer(module, generator)
    values = make_input(small, generator)
    errors = _forward_errors(small, values)
    declared = _surrogates(small, values)
    slopes = {
        f"{mode}{name}": error
        for mode, each in ({} if declared else _slopes(small, values, seed)).items()
        for name, error in each.items()
    }
    weakest, slope = worst_error(slopes)
    part, forward = worst_error(errors)
    label = f"its {part} differs" if forward is not None and forward > FORWARD and part != "output" else ""
    return dataclasses.replace(
        row,
        forward=forward,
        gradient_error=slope,
        drift=_drift(small, values),
        weakest=weakest,
        tolerance=EXACT_GRADIENT,
        declared=declared,
        note=label,
    )


def _forward_errors(small: nn.Module, values: Tensor) -> dict[str, float]:
    """Of everything in the definition: outputs, and what batch norm remembers."""
    found = reference_of(small)
    assert found is not None, "asked of known layers alone"
    _, reference = found
    given = to_float64_array(values)
    if not isinstance(small, nn.modules.batchnorm._BatchNorm):
        layer = copy.deepcopy(small).eval()
        return {"output": relative_error(_call(layer, values), reference(layer, given))}
    layer: Any = copy.deepcopy(small).train()  # type: ignore[no-redef]
    errors = {"output": relative_error(_call(layer, values), batch_norm(small.train(), given))}
    if small.running_mean is None or small.running_var is None:
        return errors
    before = to_float64_array(small.running_mean), to_float64_array(small.running_var)
    mean, variance = running_after(small, given, mean=before[0], variance=before[1])
    errors["running mean"] = relative_error(layer.running_mean, mean)
    errors["running variance"] = relative_error(layer.running_var, variance)
    known: Any = copy.deepcopy(small).eval()
    with torch.no_grad():
        known.running_mean.copy_(torch.from_numpy(mean))
        known.running_var.copy_(torch.from_numpy(variance))
    tried = copy.deepcopy(known)
    errors["output in evaluation"] = relative_error(_call(tried, values), batch_norm(known, given))
    return errors


def _surrogates(small: nn.Module, values: Tensor) -> tuple[str, ...]:
    """The surrogate gradients that a layer which derives from a known one declares."""
    layer = copy.deepcopy(small).train()
    with note_surrogates() as declared:
        out = layer(values.clone().requires_grad_(True).clone())
    return tuple(sorted(declared | find_surrogates([out], layer.modules())))


def _slopes(small: nn.Module, values: Tensor, seed: int) -> Mapping[str, dict[str, float]]:
    """In training mode, and in evaluation where that is something else."""
    differs = isinstance(small, nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd)
    found = {}
    for mode, label in ((True, ""), (False, "in evaluation: ")) if differs else ((True, ""),):
        layer = copy.deepcopy(small).train(mode)
        given = values.clone().requires_grad_(True)
        tensors: dict[str, list[Tensor]] = {"input": [given]}
        tensors |= {name: [parameter] for name, parameter in layer.named_parameters()}

        def evaluate(layer: nn.Module = layer, given: Tensor = given) -> list[Tensor]:
            torch.manual_seed(seed)  # what is dropped at random is dropped again
            return [layer(given.clone())]  # a copy, for layers that write into what they are given

        found[label] = gradient_errors(evaluate, tensors, seed=seed)
    return found


def _drift(small: nn.Module, values: Tensor) -> float:
    """Of float32 against float64 on numbers that both hold, relative to the largest output."""
    layer = copy.deepcopy(small).float().eval()
    wide = copy.deepcopy(layer).double()
    given = values.float()
    expected = _call(wide, given.double())
    return float((_call(layer, given).double() - expected).abs().median() / expected.abs().max().clamp(min=1e-30))


def _call(layer: nn.Module, values: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = layer(values.clone())
    return out
