"""Wrong backward passes of several kinds, and in how many of 60 draws the check of gradients finds each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sightline.workbench.check.derivatives import gradient_errors
from sightline.workbench.check.layer_rules import GRADIENT

__all__ = ["HEALTHY", "NUM_SEEDS", "PLANTED", "Planted", "alarms", "found"]

NUM_SEEDS = 60
SIZES = (1, 16, 1000)


class Planted(NamedTuple):
    """A function and the gradient of its single input that its backward pass gives, from values and what comes back."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]
    shapes: Sequence[tuple[int, ...]]


class _Given(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, planted: Planted) -> Tensor:
        ctx.save_for_backward(values)
        ctx.planted = planted
        return planted.forward(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return ctx.planted.backward(ctx.saved_tensors[0], gradient), None


def alarms(function: Callable[[Tensor], Tensor], shape: tuple[int, ...], seed: int, *, step: float) -> bool:
    """Whether the gradient is reported, for values and directions of this seed."""
    generator = torch.Generator().manual_seed(1000 + seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_(True)
    errors = gradient_errors(lambda: [function(values)], {"x": [values]}, seed=seed, step=step)
    return not errors.get("x", 0.0) <= GRADIENT


def found(planted: Planted, shape: tuple[int, ...], seed: int, *, step: float) -> bool:
    """Whether the planted gradient is reported."""
    return alarms(lambda values: _Given.apply(values, planted), shape, seed, step=step)


def _element_off(values: Tensor, gradient: Tensor) -> Tensor:
    slope = gradient * values.exp()
    slope.view(-1)[0] *= 1.5
    return slope


def _softmax_alone(values: Tensor, gradient: Tensor) -> Tensor:
    """Without the sum over the row."""
    return gradient * values.softmax(-1)


def _norm_alone(values: Tensor, gradient: Tensor) -> Tensor:
    """Mean and deviation taken for constants."""
    return gradient / values.std(0, unbiased=False)


def _first(values: Tensor, gradient: Tensor) -> Tensor:
    """The whole gradient of a row's maximum to its first element."""
    slope = torch.zeros_like(values)
    slope[:, 0] = gradient
    return slope


def _gather_twice(values: Tensor) -> Tensor:
    return values[_twice(values)]


def _twice(values: Tensor) -> Tensor:
    return torch.arange(2 * len(values)) % len(values)


def _assigned(values: Tensor, gradient: Tensor) -> Tensor:
    """Each element read twice; of its two gradients the last alone is kept."""
    slope = torch.zeros_like(values)
    slope[_twice(values)] = gradient
    return slope


_FLAT = [(size,) for size in SIZES]
_ROWS = [(4, 4), (50, 20)]
PLANTED: dict[str, Planted] = {
    "gradient times 1.5": Planted(torch.sin, lambda x, g: 1.5 * g * x.cos(), _FLAT),
    "gradient times 0.9": Planted(torch.sin, lambda x, g: 0.9 * g * x.cos(), _FLAT),
    "sign of the gradient": Planted(torch.exp, lambda x, g: -g * x.exp(), _FLAT),
    "no gradient": Planted(torch.exp, lambda x, g: torch.zeros_like(x), _FLAT),
    "one element times 1.5": Planted(torch.exp, _element_off, [(16,), (64,)]),
    "elements shifted by one": Planted(torch.exp, lambda x, g: (g * x.exp()).roll(1), [(16,), (1000,)]),
    "one factor of a product alone": Planted(lambda x: x @ x.T, lambda x, g: g @ x, _ROWS),
    "bias: mean over rows, not sum": Planted(
        lambda b: b.expand(8, *b.shape).clone(), lambda b, g: g.mean(0), [(2,), (16,), (1000,)]
    ),
    "softmax without its sum": Planted(lambda x: x.softmax(-1), _softmax_alone, _ROWS),
    "norm with constant statistics": Planted(lambda x: (x - x.mean(0)) / x.std(0, unbiased=False), _norm_alone, _ROWS),
    "ReLU without its mask": Planted(torch.relu, lambda x, g: g, [(16,), (1000,)]),
    "maximum to the first element": Planted(lambda x: x.amax(1), _first, _ROWS),
    "repeated index, last one kept": Planted(_gather_twice, _assigned, [(2,), (16,), (1000,)]),
}


HEALTHY: dict[str, Callable[[Tensor], Tensor]] = {
    "smooth": lambda x: x.sin() * x.exp(),
    "ReLU": torch.relu,
    "ReLU, of values on its edge": lambda x: torch.relu(x - x.detach().round()),
    "absolute value at 0": lambda x: (x - x.detach()).abs(),
    "maximum of rows": lambda x: x.view(-1, 4).amax(1),
    "maximum among equals": lambda x: torch.stack([x, x.detach().clone(), 2 * x - x.detach()]).amax(0),
    "sorted": lambda x: x.sort().values,
    "clamped": lambda x: x.clamp(-0.5, 0.5),
    "nearest neighbour": lambda x: x[(x.detach()[:, None] - x.detach()).abs().topk(2, largest=False).indices[:, 1]],
    "layers of ReLU": lambda x: torch.relu(torch.relu(x[:, None] * torch.linspace(-1, 1, 32) + 0.1) - 0.2).sum(1),
    "batch norm": lambda x: torch.relu((x - x.mean()) / x.std()),
    "a cube root at 0": lambda x: (x - x.detach()).abs().add(1e-3).pow(1 / 3),
    "a large constant beside it": lambda x: 1e6 + x.sin(),
}
"""Right gradients, as far as there are any, in many places where a function bends."""
