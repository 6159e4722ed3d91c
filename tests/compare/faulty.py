"""A plugin of small classifiers: healthy ones, two whose numbers are none, and some that are wrong in float32 alone."""

from __future__ import annotations

from functools import cache
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.contract import registry
from sightline.contract.model import Model


class Logits(TypedDict):
    """What the classification task asks for."""

    logits: Tensor


@registry.models.add("healthy_small")
class Healthy(Model):
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


FACTOR = 1.001
"""What wrong kernels multiply by."""


def spoil(values: Tensor) -> Tensor:
    """Multiply in float32 alone, as a wrong kernel would."""
    return values * FACTOR if values.dtype == torch.float32 else values


class _Spoilt(torch.autograd.Function):
    """A product whose gradient is wrong in float32."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(values, weight)
        return values @ weight.T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        values, weight = ctx.saved_tensors
        flat = gradients[0].flatten(0, -2)
        return gradients[0] @ weight, spoil(flat.T @ values.flatten(0, -2))


class WrongGradientLayer(nn.Linear):
    """A linear layer by that product."""

    def __init__(self, width: int, table: dict[str, Any]) -> None:
        super().__init__(width, width)
        self.table, self.shift = table, 0.0

    def forward(self, input: Tensor) -> Tensor:
        made: Tensor = _Spoilt.apply(input, self.weight) + self.bias + self.shift
        return made


@registry.models.add("wrong_gradient_small")
class WrongGradient(Healthy):
    """Its second layer has a wrong gradient."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.second = WrongGradientLayer(8, {"of": object()})


class WrongResultLayer(nn.Linear):
    """A linear layer with a wrong result."""

    def forward(self, input: Tensor) -> Tensor:
        return spoil(F.linear(input, self.weight, self.bias))


@registry.models.add("wrong_result_small")
class WrongResult(Healthy):
    """Its second layer has a wrong result."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.second = WrongResultLayer(8, 8)


@registry.models.add("code_between_small")
class CodeBetween(Healthy):
    """The code between its layers is wrong."""

    def joined(self, features: Tensor) -> Tensor:
        return spoil(features.amax(1))


@cache
def numpy_factor() -> float:
    """A number of a library that a script does not have."""
    return float(np.float64(FACTOR))


class NumpyLayer(nn.Linear):
    """A wrong layer that calls NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        made = F.linear(input, self.weight, self.bias)
        return made * numpy_factor() if made.dtype == torch.float32 else made


@registry.models.add("numpy_small")
class Numpy(Healthy):
    """Its second layer calls NumPy."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.second = NumpyLayer(8, 8)


class HeldLayer(nn.Linear):
    """A wrong layer with an attribute that no file can hold."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.spoil = spoil

    def forward(self, input: Tensor) -> Tensor:
        return self.spoil(super().forward(input))


@registry.models.add("held_small")
class Held(Healthy):
    """Its second layer holds a function."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.second = HeldLayer()
