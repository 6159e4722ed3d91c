"""Tiny networks and losses with one fault each, put into a small run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
    """A vector for each cloud."""

    def __init__(self) -> None:
        super().__init__()
        self.each, self.head = nn.Linear(3, 24), nn.Linear(24, 6)

    def forward(self, *, points: Tensor) -> Map:
        heat = self.head(torch.tanh(self.each(points)).mean(1))
        return {"heat": heat, "logits": heat.new_zeros(len(heat), NUM_CLASSES)}  # these for the metric of the run alone


class Dead(Regressor):
    """All of its outputs are zeros, without a gradient."""

    def forward(self, *, points: Tensor) -> Map:
        outputs = super().forward(points=points)
        return {**outputs, "heat": torch.relu(outputs["heat"] - 2.0)}


class Bounded(Regressor):
    """Its outputs cannot reach the targets."""

    def forward(self, *, points: Tensor) -> Map:
        outputs = super().forward(points=points)
        return {**outputs, "heat": 0.3 * torch.tanh(outputs["heat"]) - 0.3}


class Probabilities(Net):
    """It returns probabilities in place of logits."""

    def forward(self, *, points: Tensor) -> Logits:
        return {"logits": super().forward(points=points)["logits"].softmax(1)}


class Squared(Loss):
    """The squared distance to a target."""

    def count(self, *, target: Tensor) -> Tensor:
        return torch.tensor(target.numel())

    def forward(self, *, heat: Tensor, target: Tensor) -> Tensor:
        return (heat - target).square().sum()


class MinusEntropy(Loss):
    """Cross entropy with the wrong sign."""

    def count(self, *, label: Tensor) -> Tensor:
        return (label >= 0).sum()

    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        return -F.cross_entropy(logits, label, ignore_index=-1, reduction="sum")


def run(folder: Path, *overrides: str, model: nn.Module | None = None) -> TrainingSetup:
    """A small run, with a network of one's own."""
    built = make(folder, *overrides)
    return built if model is None else with_model(built, model)


def regression(folder: Path, *overrides: str, model: nn.Module | None = None) -> TrainingSetup:
    """A run that fits vectors: the cloud's mean and spread."""

    def edit(batch: dict[str, Any], keys: Sequence[SampleKey]) -> dict[str, Any]:
        points = torch.as_tensor(batch["points"])
        return {**batch, "target": torch.cat([points.mean(1), points.std(1)], dim=1)}

    def wrap(inner: Any) -> Wrapped:
        return Wrapped(inner, edit, fields={**inner.info.fields, "target": Field("6", "float32")})

    built = with_model(with_data(make(folder, *overrides), wrap), model or Regressor())
    return with_losses(built, {"cross_entropy": Squared()})
