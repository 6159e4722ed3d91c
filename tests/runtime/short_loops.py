"""What loops of a few updates share: a batch that is drawn, its loss, a model with its optimiser."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sightline.doctor.watch.watch import Watch
from tests.runtime.odd_healthy_loops import mlp

Method = Callable[[], Watch]


def draw(size: int = 32, turn: int = 0) -> tuple[Tensor, Tensor]:
    """Draw a batch whose label is the largest of four numbers; `turn` shifts the labels, for another task."""
    points = torch.randn(size, 8)
    return points, (points[:, :4].argmax(dim=1) + turn) % 4


def lose(model: nn.Module, size: int = 32, turn: int = 0) -> Tensor:
    points, label = draw(size, turn)
    return F.cross_entropy(model(points), label)


def copy_gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def list_codes(watch: Watch) -> list[str]:
    return [finding.code for finding in watch.findings if finding.severity != "note"]


def make(*widths: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = mlp(*widths)
    return model, torch.optim.Adam(model.parameters(), lr=1e-3)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, updates: int, rate: float | None = None) -> None:
    """Train; with `rate`, the learning rate rises to it by equal factors from a millionth of it."""
    for step in range(updates):
        for group in optimizer.param_groups if rate else ():
            group["lr"] = rate * 1e-6 ** (1 - step / updates)
        optimizer.zero_grad()
        lose(model).backward()
        optimizer.step()
