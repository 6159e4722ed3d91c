"""Loops that evaluate by a figure of each batch, or of all: one that is a mean over samples, or none."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import sightline

Figure = Callable[[Tensor, Tensor], Any]


def make_volumes(num: int) -> tuple[Tensor, Tensor]:
    """Draw volumes of 4³ voxels of which few, differently many, belong to a lesion."""
    values = torch.randn(num, 1, 4, 4, 4) + 0.8 * torch.rand(num, 1, 1, 1, 1)
    return values, (F.avg_pool3d(values, 3, 1, 1) > 0.5).float()


def make_rows(num: int) -> tuple[Tensor, Tensor]:
    labels = torch.multinomial(torch.tensor([0.7, 0.2, 0.1]), num, replacement=True)
    return torch.randn(num, 6) + 1.5 * torch.eye(3, 6)[labels], labels


def make_numbers(num: int) -> tuple[Tensor, Tensor]:
    rows = torch.randn(num, 6)
    return rows, rows[:, :1] - rows[:, 1:2] + 0.3 * torch.randn(num, 1)


KINDS: dict[str, tuple[Callable[[int], tuple[Tensor, Tensor]], Callable[[], nn.Module], Callable[..., Tensor]]] = {
    "volumes": (make_volumes, lambda: nn.Conv3d(1, 1, 3, padding=1), F.binary_cross_entropy_with_logits),
    "rows": (make_rows, lambda: nn.Linear(6, 3), F.cross_entropy),
    "numbers": (make_numbers, lambda: nn.Linear(6, 1), F.mse_loss),
}


def f1(scores: Tensor, labels: Tensor) -> float:
    """Mean F1 of the three classes; of one that nobody names it is 0."""
    answers, found = scores.argmax(1), []
    for number in range(3):
        right = int(((answers == number) & (labels == number)).sum())
        found.append(2 * right / max(1, int((answers == number).sum() + (labels == number).sum())))
    return float(np.mean(found))


def overlap(scores: Tensor, mask: Tensor) -> Tensor:
    """Voxels that both have, by those that either has."""
    answers, wanted = scores.sigmoid() > 0.5, mask > 0.5
    return (answers & wanted).sum() / (answers | wanted).sum().clamp(min=1)


def overlap_of_each(scores: Tensor, mask: Tensor) -> Tensor:
    return torch.stack([overlap(*each) for each in zip(scores, mask, strict=True)]).mean()


def explained(numbers: Tensor, wanted: Tensor) -> float:
    return 1 - float((numbers - wanted).square().sum() / (wanted - wanted.mean()).square().sum())


def accuracy(scores: Tensor, labels: Tensor) -> float:
    return float((scores.argmax(1) == labels).float().mean())


def of_pairs(numbers: Tensor, wanted: Tensor) -> Tensor:
    """Loss of each number among those of its batch (van den Oord et al. 2018)."""
    return F.cross_entropy(-(numbers - wanted.T).square(), torch.arange(len(numbers)))


def average(model: nn.Module, loader: DataLoader[Any], figure: Figure, how: str) -> float:
    """Evaluate: the mean of a figure of each batch, or the figure of all."""
    model.eval()
    if how == "listed":
        found = []
        for values, wanted in loader:
            found.append(float(figure(model(values), wanted)))
        return sum(found) / len(found)
    if how == "added":
        total, number = 0.0, 0
        for values, wanted in loader:
            total += float(figure(model(values), wanted)) * len(values)
            number += len(values)
        return total / number
    outputs, targets = zip(*((model(values), wanted) for values, wanted in loader), strict=True)
    return float(figure(torch.cat(outputs), torch.cat(targets)))


def evaluate(bug: bool, *, kind: str, figure: Figure, how: str) -> None:
    make_data, make_model, loss = KINDS[kind]
    training, held = (TensorDataset(*make_data(num)) for num in (128, 96))
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with sightline.watch(model, optimizer=optimizer):
        for _ in range(3):
            model.train()
            for values, wanted in DataLoader(training, 16, shuffle=True):
                optimizer.zero_grad()
                loss(model(values), wanted).backward()
                optimizer.step()
            with torch.no_grad():
                average(model, DataLoader(held, 16), figure, how if bug else "whole")


LOOPS: dict[str, tuple[str, Callable[[bool], None]]] = {
    f"{name} of batches, {how}": ("eval.aggregation", partial(evaluate, kind=kind, figure=figure, how=how))
    for name, kind, figure in (("F1", "rows", f1), ("overlaps", "volumes", overlap), ("R2", "numbers", explained))
    for how in ("listed", "added")
}
HEALTHY: dict[str, Callable[[], None]] = {
    "accuracies of batches": partial(evaluate, True, kind="rows", figure=accuracy, how="listed"),
    "errors of batches": partial(evaluate, True, kind="numbers", figure=F.mse_loss, how="added"),
    "losses of pairs in batches": partial(evaluate, True, kind="numbers", figure=of_pairs, how="added"),
    "overlaps of each volume": partial(evaluate, True, kind="volumes", figure=overlap_of_each, how="listed"),
}
