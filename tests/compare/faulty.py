"""A plugin of small classifiers: healthy, and each with one fault that only its own layer or step shows."""

from __future__ import annotations

from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from sightline.contract import registry


class Logits(TypedDict):
    """What the classification task asks for."""

    logits: Tensor


class _HalfLearnt(nn.Linear):
    """Right forward; the gradient of its weight is half of what it should be, in any format but float64."""

    def forward(self, input: Tensor) -> Tensor:
        half = 0.5 * self.weight + 0.5 * self.weight.detach()
        return nn.functional.linear(input, self.weight if input.dtype == torch.float64 else half, self.bias)


class _Rounded(torch.autograd.Function):
    """A constant times the input in float64, and 1 % more in any other format."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone() if value.dtype == torch.float64 else 1.01 * value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


@registry.models.add("healthy_small")
class Healthy(nn.Module):
    """Two layers over points, their maximum, and a head."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(in_channels, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, num_classes)

    def forward(self, *, points: Tensor) -> Logits:
        return {"logits": self.head(self.joined(self.second(self.first(points).relu()).relu()))}

    def joined(self, features: Tensor) -> Tensor:
        """What the head is given."""
        return features.amax(1)


@registry.models.add("code_between_small")
class CodeBetween(Healthy):
    """The code between its layers is wrong."""

    def joined(self, features: Tensor) -> Tensor:
        joined: Tensor = _Rounded.apply(features.amax(1))
        return joined


@registry.models.add("wrong_gradient_small")
class WrongGradient(Healthy):
    """Its second layer stands for one whose kernel is wrong in float32 alone."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.second = _HalfLearnt(8, 8)


@registry.models.add("overflowing_small")
class Overflowing(Healthy):
    """Its exponentials are beyond float32, not beyond float64."""

    def joined(self, features: Tensor) -> Tensor:
        grown = (100 + features.amax(1)).exp()
        return grown / grown.sum(-1, keepdim=True)


@registry.models.add("dividing_small")
class Dividing(Healthy):
    """It divides by nothing, in any format."""

    def joined(self, features: Tensor) -> Tensor:
        joined = features.amax(1)
        return joined / (joined - joined)


@registry.models.add("same_padding_small")
class SamePadding(Healthy):
    """A convolution whose arguments are words, with a batch norm that is given by name."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.along = nn.Conv1d(8, 8, 3, padding="same", padding_mode="circular")

    def joined(self, features: Tensor) -> Tensor:
        return self.along(input=features.transpose(1, 2)).amax(2)
