"""PointNet++ for the classification of clouds. Source: Qi et al. 2017, PointNet++."""

from __future__ import annotations

from typing import TypedDict, cast

import torch
from torch import Tensor, nn

from sightline import registry
from sightline.arguments import Count, PositiveFloat, Probability
from sightline.layers.cloud import concat_channels
from sightline.layers.mlp import LinearNorm
from sightline.layers.set_abstraction import BallScale, SetAbstraction

__all__ = ["PointNet2", "PointNet2Encoder", "PointNet2MultiScale", "PointNet2Output"]


class PointNet2Output(TypedDict):
    """`logits` (B, num_classes), before any softmax."""

    logits: Tensor


class _PointNet2Encoder(nn.Module):
    """PointNet++ encoder: two set abstractions, an MLP over the remaining points, and max pooling."""

    def __init__(self, *, in_channels: int, first: SetAbstraction, second: SetAbstraction) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.feature_width = 1024
        self.abstractions = nn.ModuleList([first, second])
        # Its name in files of weights is older than the method `encode`, which hides it as an attribute.
        self._modules["encode"] = nn.Sequential(
            _relu_layer(3 + second.out_channels, 256), _relu_layer(256, 512), _relu_layer(512, self.feature_width)
        )

    def encode(self, *, points: Tensor, features: Tensor | None = None) -> Tensor:
        """Encode `points` (B, N, 3), in the unit of the radii.

        `features` (B, N, in_channels - 3) if there are any.
        """
        concat_channels(points, features, in_channels=self.in_channels)  # for its check of the shapes
        for abstraction in self.abstractions:
            points, features = abstraction(points, features)
        assert features is not None
        encoded_BNC: Tensor = cast(nn.Module, self._modules["encode"])(torch.cat([points, features], dim=-1))
        return encoded_BNC.max(dim=1).values


@registry.point_encoders.add("pointnet2")
class PointNet2Encoder(_PointNet2Encoder):
    """PointNet++ encoder with single-scale grouping (SSG), and max pooling over the remaining points: (B, 1024).

    The radii are for clouds in the unit sphere; all arguments are those of the model `pointnet2`, and the order
    of the points matters as it does there. Source: Qi et al. 2017 (PointNet++), appendix B.1.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_centres: tuple[Count, Count] = (512, 128),
        radii: tuple[PositiveFloat, PositiveFloat] = (0.2, 0.4),
        num_neighbours: tuple[Count, Count] = (32, 64),
        fused: bool = True,
    ) -> None:
        first, second = (
            [BallScale(radius, count, widths)]
            for radius, count, widths in zip(radii, num_neighbours, ((64, 64, 128), (128, 128, 256)), strict=True)
        )
        super().__init__(
            in_channels=in_channels,
            first=SetAbstraction(in_channels=in_channels - 3, num_samples=num_centres[0], scales=first, fused=fused),
            second=SetAbstraction(in_channels=128, num_samples=num_centres[1], scales=second, fused=fused),
        )


@registry.models.add("pointnet2")
class PointNet2(PointNet2Encoder):
    """PointNet++ with single-scale grouping (SSG): neighbourhoods within a radius, so the unit of the points matters.

    The radii are for clouds in the unit sphere. Clouds need at least `num_centres[0]` points. The order of the
    points matters in that farthest-point sampling starts at the first of them, in training and in evaluation, and that
    a ball keeps its first `num_neighbours` points: shuffle them in training. `fused: false` uses the plain groups: the
    same numbers, slower, for comparison.
    Source: Qi et al. 2017 (PointNet++), appendix B.1; layout of yanx27/Pointnet_Pointnet2_pytorch.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        num_centres: tuple[Count, Count] = (512, 128),
        radii: tuple[PositiveFloat, PositiveFloat] = (0.2, 0.4),
        num_neighbours: tuple[Count, Count] = (32, 64),
        dropout: Probability = 0.4,
        fused: bool = True,
    ) -> None:
        super().__init__(
            in_channels=in_channels, num_centres=num_centres, radii=radii, num_neighbours=num_neighbours, fused=fused
        )
        self.head = _head(self.feature_width, num_classes, dropouts=(dropout, dropout))

    def forward(self, *, points: Tensor, features: Tensor | None = None) -> PointNet2Output:
        """Predict from `points` (B, N, 3), in the unit of the radii.

        `features` (B, N, in_channels - 3) if there are any.
        """
        return {"logits": self.head(self.encode(points=points, features=features))}


@registry.models.add("pointnet2_msg")
class PointNet2MultiScale(_PointNet2Encoder):
    """PointNet++ with multi-scale grouping (MSG).

    Three balls per centre, of half, once and twice the radii of `pointnet2`.
    For clouds in the unit sphere, of at least `num_centres[0]` points. The order of the points matters as it does
    to `pointnet2`; `fused` is as there.
    Source: Qi et al. 2017 (PointNet++), appendix B.1; layout of yanx27/Pointnet_Pointnet2_pytorch.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        num_centres: tuple[Count, Count] = (512, 128),
        dropout: Probability = 0.4,
        last_dropout: Probability = 0.5,
        fused: bool = True,
    ) -> None:
        first = SetAbstraction(
            in_channels=in_channels - 3,
            num_samples=num_centres[0],
            scales=[
                BallScale(0.1, 16, (32, 32, 64)),
                BallScale(0.2, 32, (64, 64, 128)),
                BallScale(0.4, 128, (64, 96, 128)),
            ],
            first="features",
            fused=fused,
        )
        second = SetAbstraction(
            in_channels=first.out_channels,
            num_samples=num_centres[1],
            scales=[
                BallScale(0.2, 32, (64, 64, 128)),
                BallScale(0.4, 64, (128, 128, 256)),
                BallScale(0.8, 128, (128, 128, 256)),
            ],
            first="features",
            fused=fused,
        )
        super().__init__(in_channels=in_channels, first=first, second=second)
        self.head = _head(self.feature_width, num_classes, dropouts=(dropout, last_dropout))

    def forward(self, *, points: Tensor, features: Tensor | None = None) -> PointNet2Output:
        """Predict from `points` (B, N, 3), in the unit of the radii.

        `features` (B, N, in_channels - 3) if there are any.
        """
        return {"logits": self.head(self.encode(points=points, features=features))}


def _head(in_width: int, num_classes: int, *, dropouts: tuple[float, float]) -> nn.Sequential:
    return nn.Sequential(
        _relu_layer(in_width, 512),
        nn.Dropout(dropouts[0]),
        _relu_layer(512, 256),
        nn.Dropout(dropouts[1]),
        nn.Linear(256, num_classes),
    )


def _relu_layer(in_channels: int, out_channels: int) -> LinearNorm:
    return LinearNorm(in_channels=in_channels, out_channels=out_channels, has_bias=True, activation=nn.ReLU())
