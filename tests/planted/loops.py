"""Faults of plain PyTorch loops, which our own loop cannot have: order of calls, modes, loaders, checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import sightline
from sightline.doctor.finding import Finding
from tests.planted.compress import report_bits_alone

Loop = Callable[[int], Sequence[Finding]]
"""Plain loop of a seed, which runs inside `sightline.watch`; returns what it found."""
PLAIN = "PLAIN"
"""Name of the bench of plain loops."""
_NUM_STEPS = 24


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(10, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 4))

    def forward(self, features: Tensor) -> Tensor:
        output: Tensor = self.body(features)
        return output


def _make_data(size: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    features, direction = torch.randn(size, 10, generator=generator), torch.randn(10, 4, generator=generator)
    return TensorDataset(features, (features @ direction).argmax(1))


def _load(data: Dataset[Any], seed: int) -> DataLoader[Any]:
    return DataLoader(data, batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(seed))


_make_sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.9)


def train_plainly(
    seed: int,
    *,
    make_optimizer: Callable[..., Any] = _make_sgd,
    batches: Iterable[Any] | None = None,
    clear: Callable[[Any], object] = lambda optimizer: optimizer.zero_grad(),
    after_backward: Callable[[Any], object] = lambda optimizer: None,
    after_step: Callable[[int, nn.Module, Any], object] = lambda step, model, optimizer: None,
    after_training: Callable[[nn.Module, Any], object] = lambda model, optimizer: None,
) -> Sequence[Finding]:
    """Train a small network in a loop as one writes it, and watch it; return the findings."""
    torch.manual_seed(seed)
    model = _Network()
    optimizer = make_optimizer(model.parameters())
    loader = _load(_make_data(16 * _NUM_STEPS, seed), seed) if batches is None else batches
    with sightline.watch(model, optimizer=optimizer) as watched:
        for step, (features, label) in enumerate(loader):
            clear(optimizer)
            F.cross_entropy(model(features), label).backward()
            after_backward(optimizer)
            optimizer.step()
            after_step(step, model, optimizer)
        after_training(model, optimizer)
    return watched.findings


@torch.no_grad()
def _evaluate_in_training_mode(model: nn.Module, optimizer: Any) -> None:
    for features, _ in _load(_make_data(64, 99), 0):
        model(features)


def _repeat_order(seed: int) -> Sequence[Finding]:
    """Train two epochs whose sampler is never told the epoch: both have one order."""
    data = _make_data(128, seed)
    return train_plainly(seed, batches=[*_load(data, seed), *_load(data, seed)])


def _resume_without_state(seed: int) -> Sequence[Finding]:
    """Train on from a checkpoint without the optimiser's state: its momenta begin at zero again."""

    def resume(step: int, model: nn.Module, optimizer: Any) -> None:
        if step == _NUM_STEPS // 2 - 1:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer.state.clear()
            optimizer.load_state_dict({**saved, "state": {}})

    return train_plainly(seed, make_optimizer=partial(torch.optim.Adam, lr=1e-3), after_step=resume)


def _keep_best_without_copy(seed: int) -> Sequence[Finding]:
    """Keep the weights of a step as the model's own tensors, which go on learning, and load them at the end."""
    best: dict[str, Tensor] = {}

    def keep(step: int, model: nn.Module, optimizer: Any) -> None:
        if step == _NUM_STEPS // 2:
            best.update(model.state_dict())

    return train_plainly(
        seed,
        make_optimizer=partial(torch.optim.SGD, lr=0.05),
        after_step=keep,
        after_training=lambda model, optimizer: model.load_state_dict(best),
    )


LOOPS: dict[str, Loop] = {
    "O1": lambda seed: train_plainly(seed, clear=lambda optimizer: None),
    "O2": lambda seed: train_plainly(
        seed, clear=lambda optimizer: None, after_backward=lambda optimizer: optimizer.zero_grad()
    ),
    "O11": lambda seed: train_plainly(seed, after_training=_evaluate_in_training_mode),
    "O65": report_bits_alone,
    "O70": _repeat_order,
    "O75": _resume_without_state,
    "O76": _keep_best_without_copy,
}
"""Plain loops by the ids of cases."""
