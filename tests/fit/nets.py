"""Tiny networks and losses with one fault each, put into a small run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.contract import registry
from sightline.contract.loss import Loss
from sightline.contract.types import Field, SampleKey
from sightline.engine.build import TrainingSetup
from tests.doctor.planting import Wrapped, make, with_data, with_losses, with_model
from tests.doctor.segmenting import Logits

NUM_CLASSES = 12


class Map(TypedDict):
    heat: Tensor
    logits: Tensor


class Net(nn.Module):
    """A network per point, the maximum over points, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.each, self.head = nn.Linear(3, 64), nn.Linear(64, NUM_CLASSES)

    def forward(self, *, points: Tensor) -> Logits:
        return {"logits": self.head(torch.relu(self.each(points)).amax(1))}


class Constant(Net):
    """What reaches the head is multiplied by zero."""

    def forward(self, *, points: Tensor) -> Logits:
        return {"logits": self.head(0.0 * self.each(points).amax(1))}


class Narrow(Net):
    """Its head takes fewer features than there are."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(23, NUM_CLASSES)


class Regressor(nn.Module):
    """A vector for each cloud, through a last layer that may be rectified."""

    def __init__(self, *, rectified: bool) -> None:
        super().__init__()
        self.each, self.head = nn.Linear(3, 24), nn.Linear(24, 6)
        self.end: nn.Module = nn.ReLU() if rectified else nn.Identity()

    def forward(self, *, points: Tensor) -> Map:
        heat = self.end(self.head(torch.tanh(self.each(points)).mean(1)))
        return {"heat": heat, "logits": heat.new_zeros(len(heat), NUM_CLASSES)}  # these for the metric of the run alone


class Squared(Loss):
    """The squared distance to a target."""

    def count(self, *, target: Tensor) -> Tensor:
        return torch.tensor(target.numel())

    def forward(self, *, heat: Tensor, target: Tensor) -> Tensor:
        return (heat - target).square().sum()


class Entropy(Loss):
    """Cross entropy times a factor; -1 turns its sign."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def count(self, *, label: Tensor) -> Tensor:
        return (label >= 0).sum()

    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        return self.factor * F.cross_entropy(logits, label, ignore_index=-1, reduction="sum")


def run(folder: Path, *overrides: str, model: nn.Module | None = None) -> TrainingSetup:
    """A small run, with a network of one's own."""
    built = make(folder, *overrides)
    return built if model is None else with_model(built, model)


def with_loss(built: TrainingSetup, loss: Loss) -> TrainingSetup:
    return with_losses(built, {"cross_entropy": loss})


def regression(folder: Path, model: nn.Module, *, shift: float = 0.0) -> TrainingSetup:
    """A run that fits vectors: the cloud's mean and spread, moved by `shift`."""

    def edit(batch: dict[str, Any], keys: Sequence[SampleKey]) -> dict[str, Any]:
        points = torch.as_tensor(batch["points"])
        return {**batch, "target": torch.cat([points.mean(1), points.std(1)], dim=1) + shift}

    return _on_targets(folder, model, Squared(), Field("6", "float32"), edit)


def _on_targets(folder: Path, model: nn.Module, loss: Loss, target: Field, edit: Any) -> TrainingSetup:
    def wrap(inner: Any) -> Wrapped:
        return Wrapped(inner, edit, fields={**inner.info.fields, "target": target})

    built = with_data(make(folder, "optimizer={name: adam, lr: 1e-2}"), wrap)
    recipe = registry.optimizers.build(built.config.optimizer, facts={})
    job = dataclasses.replace(built.job, model=model, optimizer=recipe.build(model))
    return with_losses(dataclasses.replace(built, job=job), {"cross_entropy": loss})


def edited(built: TrainingSetup, edit: Any) -> TrainingSetup:
    """The run on samples that pass through `edit(batch, keys)`."""
    return with_data(built, lambda inner: Wrapped(inner, edit))
