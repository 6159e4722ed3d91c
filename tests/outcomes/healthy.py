"""Healthy trainings whose numbers have heavy tails, or whose losses and figures are uneasy: no alarm is due in any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import sightline
from sightline.doctor.finding import Finding
from tests.outcomes.spoiling import make_network

_STEPS, _EVERY, _FEATURES, _CLASSES = 300, 50, 12, 6

Draw = Callable[[int, torch.Generator], Tensor]


def _normal(number: int, generator: torch.Generator) -> Tensor:
    return torch.randn(number, _FEATURES, generator=generator)


def _log_normal(number: int, generator: torch.Generator) -> Tensor:
    return (2 * _normal(number, generator)).exp()


def _student(number: int, generator: torch.Generator) -> Tensor:
    """Student's t of two degrees of freedom: without a variance."""
    squares = torch.randn(number, _FEATURES, 2, generator=generator).square().mean(-1)
    return _normal(number, generator) / squares.sqrt()


def _counts(number: int, generator: torch.Generator) -> Tensor:
    return torch.poisson((1.5 * _normal(number, generator)).exp(), generator=generator)


def _powers(number: int, generator: torch.Generator) -> Tensor:
    """Counts by a power law, as those of words."""
    return (1 / torch.rand(number, _FEATURES, generator=generator).clamp(1e-4) ** 0.8).floor()


def _one_hot(number: int, generator: torch.Generator) -> Tensor:
    places = torch.randint(0, 4, (number, _FEATURES // 4), generator=generator)
    return nn.functional.one_hot(places, 4).flatten(1).float()


def _padded(number: int, generator: torch.Generator) -> Tensor:
    lengths = torch.randint(1, _FEATURES + 1, (number, 1), generator=generator)
    return _normal(number, generator) * (torch.arange(_FEATURES) < lengths)


DRAWS: dict[str, Draw] = {
    "log-normal": _log_normal,
    "student": _student,
    "counts": _counts,
    "powers": _powers,
    "one-hot": _one_hot,
    "padded": _padded,
}
KINDS = (*DRAWS, "small batches", "unstable", "restarts", "mosaics")


def train(kind: str, seed: int, *, has_norms: bool) -> list[Finding]:
    """Train a network on data of a kind, or in a way of that name, and return the alarms."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(_FEATURES, _CLASSES, generator=generator)
    draw = DRAWS.get(kind, _normal)

    def read(number: int, step: int) -> tuple[Tensor, Tensor]:
        inputs = draw(number, generator)
        if kind == "mosaics" and step <= 0.8 * _STEPS:  # mixed and larger, until they are switched off
            share = torch.rand(number, 1, generator=generator)
            inputs = share * inputs + 3 * (1 - share) * inputs[torch.randperm(number, generator=generator)]
        sizes = inputs.log1p() if kind in ("log-normal", "counts", "powers") else inputs.clamp(-3, 3)
        return inputs, (sizes @ weights).argmax(1)

    model = make_network(has_norms=has_norms, features=_FEATURES)
    optimizer, schedule = _make_optimizer(kind, model, has_norms=has_norms)
    test_inputs, _ = read(256, _STEPS)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for step in range(1, _STEPS + 1):
            inputs, labels = read(4 if kind == "small batches" else 16, step)
            model.train()
            loss = nn.functional.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
            if step % _EVERY == 0:
                model.eval()
                with torch.no_grad():
                    model(test_inputs)
    return [finding for finding in watch.findings if finding.severity != "note"]


def _make_optimizer(kind: str, model: nn.Module, *, has_norms: bool) -> tuple[torch.optim.Optimizer, Any]:
    """Make an optimiser whose first steps leap where they are to be unstable, and a schedule for restarts."""
    if kind == "unstable":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), 0.15, momentum=0.9)
        return optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3) if has_norms else torch.optim.AdamW(model.parameters(), 1e-3)
    if kind == "restarts":
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 60, eta_min=1e-5)
    return optimizer, None
