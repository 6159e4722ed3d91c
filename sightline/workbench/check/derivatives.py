"""Gradient check by finite differences in float64, along Gaussian directions of each tensor.

A direction costs two evaluations for any size of layer, whereas a full Jacobian needs two per element. Unlike torch's
`gradcheck`, the functions return the size of the difference. Along a Gaussian direction, the measured error is less
than a share t of the true one with probability 0.8 t; along a direction of +1 and -1, errors of few elements can cancel
to 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Function = Callable[[], Sequence[Tensor]]
"""Function of the current values of some tensors; equal values must give bit-identical outputs."""
_STEP = 1e-6  # for values of size 1: the error by third derivatives is 1e-12, by rounding 1e-10
_ROUNDING_FLOOR = (
    1e5 * torch.finfo(torch.float64).eps
)  # share of the sum of absolute terms; smaller changes are compared with it
_AGREEMENT = 1e-6
_NUM_DRAWS = 3
_EDGE_FACTOR = 40.0  # times the bend of a step: many edges may nearly cancel in the bend, but not in the difference
_SMALL_ERROR = 1e-4


def gradient_errors(
    function: Function, groups: Mapping[str, Sequence[Tensor]], *, seed: int = 0, step: float = _STEP
) -> dict[str, float]:
    """Compute the relative error of autograd's gradient, by group of tensors, against finite differences.

    The first draw that agrees to 1e-6 decides, otherwise the largest difference of three draws that no edge explains: a
    step may cross the edge of a ReLU, or change a maximum, and is then bent as well. The tensors are float64 leaves
    that require gradients; the tensors of a group are moved together, and restored. A missing gradient counts as
    zeros. A small `step` crosses fewer edges but has more rounding error: each draw uses ten times the previous step. A
    group is missing in the result if every draw crossed too many edges to compare.
    """
    errors: dict[str, float] = {}
    remaining = dict(groups)
    for attempt in range(_NUM_DRAWS):
        if not remaining:
            break
        generator = torch.Generator().manual_seed(seed + attempt)
        for name, (error, explained) in _compare_once(function, remaining, generator, step * 10**attempt).items():
            unexplained = max(0.0, error - explained)
            if unexplained > 0 or error <= _SMALL_ERROR:
                errors[name] = max(errors.get(name, 0.0), unexplained)
            if error <= _AGREEMENT:
                errors[name] = error
                del remaining[name]
    return errors


def worst_error(errors: Mapping[str, float]) -> tuple[str, float | None]:
    """Return the name and the value of the largest error; "" and None if nothing was compared."""
    return max(errors.items(), key=lambda item: item[1], default=("", None))


def describe_uncompared(groups: Mapping[str, object], errors: Mapping[str, float]) -> str:
    """Return a note on the groups that `gradient_errors` could not compare; "" if there are none."""
    missing = ", ".join(name for name in groups if name not in errors)
    return f"too many edges to compare the gradient of {missing}" if missing else ""


def _compare_once(
    function: Function, groups: Mapping[str, Sequence[Tensor]], generator: torch.Generator, step: float
) -> dict[str, tuple[float, float]]:
    """Compare each group along one direction: the relative error, and the part that edges and rounding may explain."""
    outputs = function()
    base_outputs = [output.detach().clone() for output in outputs]
    weights = _draw_weights(outputs, generator)
    floor = _ROUNDING_FLOOR * sum(
        float((weight * output).abs().sum()) for weight, output in zip(weights, base_outputs, strict=True)
    )
    total = _weighted_total(outputs, weights)
    leaves = [tensor for tensors in groups.values() for tensor in tensors]
    leaf_gradients = (
        torch.autograd.grad(total, leaves, allow_unused=True) if total.requires_grad else [None] * len(leaves)
    )
    gradients = dict(zip(map(id, leaves), leaf_gradients, strict=True))
    errors = {}
    for name, tensors in groups.items():
        steps = [_draw_step(tensor, generator, step) for tensor in tensors]
        numeric, bend = _measure_difference(function, weights, base_outputs, tensors, steps)
        contributions = [
            gradient * tensor_step
            for tensor, tensor_step in zip(tensors, steps, strict=True)
            if (gradient := gradients[id(tensor)]) is not None
        ]
        analytic = math.fsum(float(contribution.sum()) for contribution in contributions)
        length = math.sqrt(math.fsum(float(contribution.square().sum()) for contribution in contributions))
        size = max(length, abs(numeric), floor)
        error = abs(numeric - analytic) / size if size > 0 else 0.0
        if error > _AGREEMENT:
            half, _ = _measure_difference(
                function, weights, base_outputs, tensors, [tensor_step / 2 for tensor_step in steps]
            )
            bend += abs(numeric - 2 * half)
        errors[name] = error, _EDGE_FACTOR * bend / size if size > 0 else 0.0
    return errors


def _draw_step(tensor: Tensor, generator: torch.Generator, step: float) -> Tensor:
    """Draw a Gaussian step with the shape of a tensor, in proportion to its largest element."""
    drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    return drawn * (step * tensor.detach().abs().max().clamp(1e-3, 1.0) if tensor.numel() else step)


def _measure_difference(
    function: Function,
    weights: Sequence[Tensor],
    base_outputs: Sequence[Tensor],
    tensors: Sequence[Tensor],
    steps: Sequence[Tensor],
) -> tuple[float, float]:
    """Return half the difference between both ends of a step, and twice their mean's distance from the base (bend).

    Computed per output, so that large outputs do not hide small ones.
    """
    originals = [tensor.detach().clone() for tensor in tensors]
    ends = []
    with torch.no_grad():
        for sign in (1, -1):
            for tensor, original, step in zip(tensors, originals, steps, strict=True):
                tensor.copy_(original + sign * step)
            end_outputs = _evaluate_with_grad(function)
            terms = [
                float((w * (end - mid)).sum()) for w, end, mid in zip(weights, end_outputs, base_outputs, strict=True)
            ]
            ends.append(math.fsum(terms))
        for tensor, original in zip(tensors, originals, strict=True):
            tensor.copy_(original)
    up, down = ends
    return (up - down) / 2, abs(up + down)


def _evaluate_with_grad(function: Function) -> Sequence[Tensor]:
    """Evaluate with gradients enabled, for functions that compute gradients themselves."""
    with torch.enable_grad():
        return function()


def _draw_weights(outputs: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Draw a Gaussian weight for each element of each output."""
    return [torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output) for output in outputs]


def _weighted_total(outputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    terms = [(weight * output).sum() for weight, output in zip(weights, outputs, strict=True)]
    return torch.stack(terms).sum() if terms else torch.zeros(())
