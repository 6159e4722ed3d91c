"""Gradients against finite differences in float64, along a random direction of each tensor.

One direction of +1 and -1 sees every element, and costs two evaluations whatever the size of a layer, where a whole
Jacobian would need two for each element. Unlike torch's `gradcheck` it gives a figure: by how much they differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["Function", "gradient_errors", "gradients_of", "worst"]

Function = Callable[[], Sequence[Tensor]]
"""Evaluates what is asked about from the present values of its tensors; the same values give the same bits."""
_STEP = 1e-6  # of values of size 1: what is left of a third derivative is 1e-12, of rounding 1e-10
_UNSEEN = 1e5 * torch.finfo(torch.float64).eps  # of all that is summed: what moves less is compared with this
_SURE = 1e-6
_TRIES = 3  # a step may cross the edge of a ReLU, or turn a maximum round; three in a row do not


def gradient_errors(
    function: Function, groups: Mapping[str, Sequence[Tensor]], *, seed: int = 0, step: float = _STEP
) -> dict[str, float]:
    """By how much the gradient of each group of tensors is off, relative to its size; the least of up to three draws.

    The tensors are float64 leaves that ask for gradients; those of a group are moved together, and put back. A gradient
    that autograd does not give counts as zeros. A small `step` crosses fewer edges of piecewise functions, and drowns
    sooner in rounding: each draw takes ten times the one before.
    """
    errors = dict.fromkeys(groups, float("inf"))
    for attempt in range(_TRIES):
        generator = torch.Generator().manual_seed(seed + attempt)
        waiting = {name: tensors for name, tensors in groups.items() if not errors[name] <= _SURE}
        if not waiting:
            break
        found = _once(function, waiting, generator, step * 10**attempt)
        errors |= {name: min(errors[name], error) for name, error in found.items()}
    return errors


def gradients_of(function: Function, tensors: Sequence[Tensor], *, seed: int = 0) -> Function:
    """The gradients themselves as a function, for their own derivatives: of a fixed weighted sum of what it gives."""

    def evaluate() -> Sequence[Tensor]:
        outputs = function()
        total = _total(outputs, _weights(outputs, torch.Generator().manual_seed(seed)))
        found = torch.autograd.grad(total, list(tensors), create_graph=True, allow_unused=True)
        return [gradient for gradient in found if gradient is not None]

    return evaluate


def worst(errors: Mapping[str, float]) -> tuple[str, float]:
    """What is off most; nothing is off where there is none."""
    return max(errors.items(), key=lambda item: item[1], default=("", 0.0))


def _once(
    function: Function, groups: Mapping[str, Sequence[Tensor]], generator: torch.Generator, step: float
) -> dict[str, float]:
    outputs = function()
    weights = _weights(outputs, generator)
    pairs = list(zip(weights, outputs, strict=True))
    least = _UNSEEN * sum(float((weight * output.detach()).abs().sum()) for weight, output in pairs)
    total = _total(outputs, weights)
    leaves = [tensor for tensors in groups.values() for tensor in tensors]
    found = torch.autograd.grad(total, leaves, allow_unused=True) if total.requires_grad else [None] * len(leaves)
    gradients = dict(zip(map(id, leaves), found, strict=True))
    errors = {}
    for name, tensors in groups.items():
        moves = [_move(tensor, generator, step) for tensor in tensors]
        numeric = _rise(function, weights, tensors, moves)
        rises = [
            gradient * move
            for tensor, move in zip(tensors, moves, strict=True)
            if (gradient := gradients[id(tensor)]) is not None
        ]
        analytic = math.fsum(float(rise.sum()) for rise in rises)
        length = math.sqrt(math.fsum(float(rise.square().sum()) for rise in rises))
        size = max(length, abs(numeric), least)
        errors[name] = abs(numeric - analytic) / size if size > 0 else 0.0
    return errors


def _move(tensor: Tensor, generator: torch.Generator, step: float) -> Tensor:
    """A step up or down for every element, in proportion to the largest of them."""
    signs = torch.randint(0, 2, tensor.shape, generator=generator).to(tensor) * 2 - 1
    return signs * (step * tensor.detach().abs().max().clamp(1e-3, 1.0) if tensor.numel() else step)


def _rise(function: Function, weights: Sequence[Tensor], tensors: Sequence[Tensor], moves: Sequence[Tensor]) -> float:
    """Half of what lies between the two ends of a step, output by output, so that large outputs hide no small ones."""
    before = [tensor.detach().clone() for tensor in tensors]
    ends = []
    with torch.no_grad():
        for way in (1, -1):
            for tensor, old, move in zip(tensors, before, moves, strict=True):
                tensor.copy_(old + way * move)
            ends.append([output.detach().clone() for output in _with_gradient(function)])
        for tensor, old in zip(tensors, before, strict=True):
            tensor.copy_(old)
        terms = [float((weight * (up - down)).sum()) for weight, up, down in zip(weights, *ends, strict=True)]
    return sum(terms) / 2


def _with_gradient(function: Function) -> Sequence[Tensor]:
    """Functions that take gradients themselves need them on."""
    with torch.enable_grad():
        return function()


def _weights(outputs: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """+1 or -1 for each output: none counts for less than another."""
    return [torch.randint(0, 2, output.shape, generator=generator).to(output) * 2 - 1 for output in outputs]


def _total(outputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    terms = [(weight * output).sum() for weight, output in zip(weights, outputs, strict=True)]
    return torch.stack(terms).sum() if terms else torch.zeros(())
