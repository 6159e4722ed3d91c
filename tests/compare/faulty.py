"""A plugin of small classifiers: healthy ones, and two whose numbers are none."""

from __future__ import annotations

from typing import TypedDict

from torch import Tensor, nn

from sightline.contract import registry


class Logits(TypedDict):
    """What the classification task asks for."""

    logits: Tensor


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
