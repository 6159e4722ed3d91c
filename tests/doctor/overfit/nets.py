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


class FrozenHead(Net):
    """Its head is zero and asks for no gradient, so none reaches the rest either."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.head.requires_grad_(False)


class Constant(Net):
    """What reaches the head is multiplied by zero."""

    def forward(self, *, points: Tensor) -> Logits:
        return {"logits": self.head(0.0 * self.each(points).amax(1))}


class Divided(Net):
    """Divides by zero before its head."""

    def forward(self, *, points: Tensor) -> Logits:
        features = torch.relu(self.each(points)).amax(1)
        return {"logits": self.head(features / (features - features))}


class HalfDigits(Net):
    """Small features pass through float16, where they are lost; of float64 they are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, NUM_CLASSES, bias=False)
        self.narrow = Narrow()

    def forward(self, *, points: Tensor) -> Logits:
        features = torch.relu(self.each(points)).amax(1)
        return {"logits": self.head(1e9 * self.narrow(1e-9 * features))}


class Narrow(nn.Module):
    """Rounds to float16, unless numbers are of float64: as a kernel for single precision might."""

    def forward(self, numbers: Tensor) -> Tensor:
        return numbers.half().to(numbers.dtype) if numbers.dtype == torch.float32 else numbers


class SoftmaxEnd(Net):
    """Gives probabilities to a loss that wants logits."""

    def forward(self, *, points: Tensor) -> Logits:
        return {"logits": self.head(torch.relu(self.each(points)).amax(1)).softmax(dim=1)}


class Regressor(nn.Module):
    """A vector for each cloud, through a last layer that may be rectified."""

    def __init__(self, *, rectified: bool) -> None:
        super().__init__()
        self.each, self.head = nn.Linear(3, 24), nn.Linear(24, 6)
        self.end: nn.Module = nn.ReLU() if rectified else nn.Identity()

    def forward(self, *, points: Tensor) -> Map:
        heat = self.end(self.head(torch.tanh(self.each(points)).mean(1)))
        return {"heat": heat, "logits": heat.new_zeros(len(heat), NUM_CLASSES)}  # these for the metric of the run alone


class PerPoint(nn.Module):
    """A number for each point."""

    def __init__(self) -> None:
        super().__init__()
        self.each, self.head = nn.Linear(3, 48), nn.Linear(48, 1)

    def forward(self, *, points: Tensor) -> Map:
        heat = self.head(torch.tanh(self.each(points)))[..., 0]
        return {"heat": heat, "logits": heat.new_zeros(len(heat), NUM_CLASSES)}  # for the metric of the run alone


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


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:  # type: ignore[override]
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return -gradient


class TurnedGradient(Entropy):
    """The right value, and a backward pass of the wrong sign."""

    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        turned: Tensor = _Turned.apply(super().forward(logits=logits, label=label))
        return turned


class HardExamples(Entropy):
    """Wrong answers weigh more; the weight is a constant to the gradient, as is usual."""

    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        each = F.cross_entropy(logits, label, reduction="none")
        return ((1 - (-each).exp()).detach() * each).sum()


class ForgetsSamples(Entropy):
    """All samples but the first are cut off from the network by mistake."""

    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        first, rest = logits[:1], logits[1:].detach()
        return super().forward(logits=torch.cat([first, rest]), label=label)


class LogOfZero(Entropy):
    """Takes the logarithm of zero, whatever the outputs are."""

    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        return super().forward(logits=logits, label=label) - (logits.square().sum() * 0.0).log()


class Detached(Entropy):
    """Cut off from the network."""

    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        return super().forward(logits=logits.detach(), label=label) + 0.0 * logits.sum()


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


def fields(folder: Path, edit: Any) -> TrainingSetup:
    """A run that fits a number for each point: the `target` that `edit(batch, keys)` gives."""
    return _on_targets(folder, PerPoint(), Squared(), Field("N", "float32"), edit)


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
