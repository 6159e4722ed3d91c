"""Parts of loops for methods of training: their batches, losses and updates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import Tensor, nn

import sightline
from tests.runtime.odd_healthy_loops import mlp

Optimizer = torch.optim.Optimizer
Body = Callable[[Any, Any, int], object]
"""What a loop does at each step, with its model and optimiser."""


def draw(size: int = 32, turn: int = 0) -> tuple[Tensor, Tensor]:
    """Draw a batch whose label is the largest of four numbers; `turn` shifts the labels, for another task."""
    points = torch.randn(size, 8)
    return points, (points[:, :4].argmax(dim=1) + turn) % 4


def lose(model: nn.Module, size: int = 32, turn: int = 0) -> Tensor:
    points, label = draw(size, turn)
    return F.cross_entropy(model(points), label)


def read(model: nn.Module, optimizer: Optimizer, size: int = 32, turn: int = 0) -> list[Tensor]:
    """Compute the gradients of a batch anew, and return a copy."""
    optimizer.zero_grad()
    lose(model, size, turn).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def update(optimizer: Any, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def train(model: nn.Module, optimizer: Optimizer, updates: int, rate: float | None = None) -> None:
    """Train; with `rate`, the learning rate rises to it by equal factors from a millionth of it."""
    for step in range(updates):
        for group in optimizer.param_groups if rate else ():
            group["lr"] = rate * 1e-6 ** (1 - step / updates)
        update(optimizer, lose(model))


def run(body: Body, steps: int = 8, *, model: Any = (8, 16, 4), make: Any = None, **options: Any) -> None:
    """Run a loop with a small network, an optimiser that `make` makes (Adam), and what is said to `watch`."""
    model = mlp(*model) if isinstance(model, tuple) else model
    optimizer = make(model) if make else torch.optim.Adam(model.parameters(), lr=1e-3)
    with sightline.watch(model, optimizer=optimizer, **options):
        for step in range(steps):
            body(model, optimizer, step)


def sgd(rate: float = 0.05) -> Callable[[nn.Module], Optimizer]:
    return lambda model: torch.optim.SGD(model.parameters(), rate)
