"""Gradients against finite differences in float64, along Gaussian directions of each tensor.

A direction costs two evaluations whatever the size of a layer, where a whole Jacobian would need two for each element.
Unlike torch's `gradcheck` it gives a figure: by how much they differ. Along a Gaussian direction a wrong gradient looks
right to a share of t of its error with probability 0.8 t; along one of +1 and -1, errors of few elements cancel to 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["Function", "gradient_errors", "gradients_of", "uncompared", "worst_error"]

Function = Callable[[], Sequence[Tensor]]
"""Evaluates what is asked about from the present values of its tensors; the same values give the same bits."""
_STEP = 1e-6  # of values of size 1: what is left of a third derivative is 1e-12, of rounding 1e-10
_UNSEEN = 1e5 * torch.finfo(torch.float64).eps  # of all that is summed: what moves less is compared with this
_SURE = 1e-6
_TRIES = 3
_EDGES = 40.0  # times the bend of a step: many edges may nearly cancel in it, and not in the difference
_SMALL = 1e-4


def gradient_errors(
    function: Function, groups: Mapping[str, Sequence[Tensor]], *, seed: int = 0, step: float = _STEP
) -> dict[str, float]:
    """By how much the gradient of each group of tensors is off, relative to its size.

    The first draw that agrees to 1e-6 decides, or else the largest difference of three that no edge explains: a step
    may cross that of a ReLU, or turn a maximum round, and then it is bent as well. The tensors are float64 leaves that
    ask for gradients; those of a group are moved together, and put back. A gradient that autograd does not give counts
    as zeros. A small `step` crosses fewer edges, and drowns sooner in rounding: each draw takes ten times the one
    before. A group is missing where every draw crossed too many edges to compare.
    """
    errors: dict[str, float] = {}
    waiting = dict(groups)
    for attempt in range(_TRIES):
        if not waiting:
            break
        generator = torch.Generator().manual_seed(seed + attempt)
        for name, (error, explained) in _once(function, waiting, generator, step * 10**attempt).items():
            left = max(0.0, error - explained)
            if left > 0 or error <= _SMALL:
                errors[name] = max(errors.get(name, 0.0), left)
            if error <= _SURE:
                errors[name] = error
                del waiting[name]
    return errors


def gradients_of(function: Function, tensors: Sequence[Tensor], *, seed: int = 0) -> Function:
    """The gradients themselves as a function, for their own derivatives: of a fixed weighted sum of what it gives."""

    def evaluate() -> Sequence[Tensor]:
        outputs = function()
        total = _total(outputs, _weights(outputs, torch.Generator().manual_seed(seed)))
        found = torch.autograd.grad(total, list(tensors), create_graph=True, allow_unused=True)
        return [gradient for gradient in found if gradient is not None]

    return evaluate


def worst_error(errors: Mapping[str, float]) -> tuple[str, float | None]:
    """What is off most, and by how much; None where nothing was compared."""
    return max(errors.items(), key=lambda item: item[1], default=("", None))


def uncompared(groups: Mapping[str, object], errors: Mapping[str, float]) -> str:
    """A note on the groups that `gradient_errors` could not compare."""
    missing = ", ".join(name for name in groups if name not in errors)
    return f"too many edges to compare the gradient of {missing}" if missing else ""


def _once(
    function: Function, groups: Mapping[str, Sequence[Tensor]], generator: torch.Generator, step: float
) -> dict[str, tuple[float, float]]:
    """One direction for each group: the difference, and how much of it edges and rounding may explain."""
    outputs = function()
    middle = [output.detach().clone() for output in outputs]
    weights = _weights(outputs, generator)
    least = _UNSEEN * sum(float((weight * output).abs().sum()) for weight, output in zip(weights, middle, strict=True))
    total = _total(outputs, weights)
    leaves = [tensor for tensors in groups.values() for tensor in tensors]
    found = torch.autograd.grad(total, leaves, allow_unused=True) if total.requires_grad else [None] * len(leaves)
    gradients = dict(zip(map(id, leaves), found, strict=True))
    errors = {}
    for name, tensors in groups.items():
        moves = [_move(tensor, generator, step) for tensor in tensors]
        numeric, bend = _rise(function, weights, middle, tensors, moves)
        rises = [
            gradient * move
            for tensor, move in zip(tensors, moves, strict=True)
            if (gradient := gradients[id(tensor)]) is not None
        ]
        analytic = math.fsum(float(rise.sum()) for rise in rises)
        length = math.sqrt(math.fsum(float(rise.square().sum()) for rise in rises))
        size = max(length, abs(numeric), least)
        error = abs(numeric - analytic) / size if size > 0 else 0.0
        if error > _SURE:
            half, _ = _rise(function, weights, middle, tensors, [move / 2 for move in moves])
            bend += abs(numeric - 2 * half)
        errors[name] = error, _EDGES * bend / size if size > 0 else 0.0
    return errors


def _move(tensor: Tensor, generator: torch.Generator, step: float) -> Tensor:
    """A Gaussian step, in proportion to the largest element."""
    drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    return drawn * (step * tensor.detach().abs().max().clamp(1e-3, 1.0) if tensor.numel() else step)


def _rise(
    function: Function,
    weights: Sequence[Tensor],
    middle: Sequence[Tensor],
    tensors: Sequence[Tensor],
    moves: Sequence[Tensor],
) -> tuple[float, float]:
    """Half of what lies between the two ends of a step, and how far their middle is from what lies between them.

    Output by output, so that large outputs hide no small ones.
    """
    before = [tensor.detach().clone() for tensor in tensors]
    ends = []
    with torch.no_grad():
        for way in (1, -1):
            for tensor, old, move in zip(tensors, before, moves, strict=True):
                tensor.copy_(old + way * move)
            ended = _with_gradient(function)
            terms = [float((w * (end - mid)).sum()) for w, end, mid in zip(weights, ended, middle, strict=True)]
            ends.append(math.fsum(terms))
        for tensor, old in zip(tensors, before, strict=True):
            tensor.copy_(old)
    up, down = ends
    return (up - down) / 2, abs(up + down)


def _with_gradient(function: Function) -> Sequence[Tensor]:
    """Functions that take gradients themselves need them on."""
    with torch.enable_grad():
        return function()


def _weights(outputs: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """A Gaussian factor for each output."""
    return [torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output) for output in outputs]


def _total(outputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    terms = [(weight * output).sum() for weight, output in zip(weights, outputs, strict=True)]
    return torch.stack(terms).sum() if terms else torch.zeros(())
