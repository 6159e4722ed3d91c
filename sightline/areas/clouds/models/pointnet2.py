"""PointNet++ for the classification of clouds, and the segmentation of objects and scenes.

Source: Qi et al. 2017, PointNet++.
"""

from __future__ import annotations

from typing import TypedDict, cast

import torch
from torch import Tensor, nn

from sightline.contract import registry
from sightline.contract.arguments import Count, PositiveFloat, Probability
from sightline.contract.model import Encoder, Model
from sightline.layers.cloud_layouts import concat_channels, dense_channels, one_hot_category
from sightline.layers.mlp import LinearNorm
from sightline.layers.set_abstraction import BallScale, FeaturePropagation, SetAbstraction


class PointNet2Output(TypedDict):
    """`logits` (B, num_classes), before any softmax."""

    logits: Tensor


class _PointNet2Encoder(Encoder):
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
class PointNet2(PointNet2Encoder, Model):
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
class PointNet2MultiScale(_PointNet2Encoder, Model):
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


_SCENE_WIDTHS = ((32, 32, 64), (64, 64, 128), (128, 128, 256), (256, 256, 512))


class PointNet2PointsOutput(TypedDict):
    """`logits` of every point before the softmax: (B, N, num_classes) or (P, num_classes), as the input."""

    logits: Tensor


@registry.models.add("pointnet2_parts")
class PointNet2Parts(Model):
    """PointNet++ part segmentation: two set abstractions, global pooling, and three feature propagations.

    The object's category is an input. The radii are for clouds in the unit sphere. Clouds need at least
    `num_centres[0]` points, and are of one size in a batch. Coordinates count among the features of the first
    abstraction, as in the published code. The order of the points matters in that farthest-point sampling starts at the
    first of them, in training and in evaluation, and that a ball keeps its first `num_neighbours` points: shuffle them
    in training. `fused: false` uses the plain forms of all layers: the same numbers, slower, for comparison.
    Source: Qi et al. 2017 (PointNet++), section 4.2 and appendix B; layout of yanx27/Pointnet_Pointnet2_pytorch.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        num_categories: int,
        num_centres: tuple[Count, Count] = (512, 128),
        radii: tuple[PositiveFloat, PositiveFloat] = (0.2, 0.4),
        num_neighbours: tuple[Count, Count] = (32, 64),
        dropout: Probability = 0.5,
        fused: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.num_categories = num_categories
        self.abstractions = _abstractions(
            in_channels, num_centres, radii, num_neighbours, ((64, 64, 128), (128, 128, 256)), fused
        )
        self.encode = nn.Sequential(_relu_layer(3 + 256, 256), _relu_layer(256, 512), _relu_layer(512, 1024))
        self.propagations = nn.ModuleList(
            FeaturePropagation(in_channels=width, widths=widths, fused=fused)
            for width, widths in (
                (256 + 1024, (256, 256)),
                (128 + 256, (256, 128)),
                (num_categories + 3 + in_channels + 128, (128, 128, 128)),
            )
        )
        self.head = _segmentation_head(num_classes, dropout)

    def forward(
        self, *, points: Tensor, category: Tensor, features: Tensor | None = None, offsets: Tensor | None = None
    ) -> PointNet2PointsOutput:
        """Predict from `points` (B, N, 3) or, with `offsets` (B+1,), (B*N, 3), in the unit of the radii.

        `features` beside them.
        `category` (B,) int64. Raises ValueError for clouds of several sizes and for values that are not finite.
        """
        channels_BNC = dense_channels(points, features, offsets, in_channels=self.in_channels)
        chosen = one_hot_category(category, like=channels_BNC, num_categories=self.num_categories)
        level_points, levels = _apply_abstractions(self.abstractions, channels_BNC)
        pooled_B1C = self.encode(torch.cat([level_points[-1], levels[-1]], dim=-1)).max(dim=1, keepdim=True).values
        # The global feature has no position: it is the only coarse point, and every point receives it.
        level_points.append(level_points[-1][:, :1])
        levels.append(pooled_B1C)
        repeated_BNK = chosen[:, None].expand(-1, channels_BNC.shape[1], -1)
        levels[0] = torch.cat([repeated_BNK, level_points[0], channels_BNC], dim=-1)
        logits = self.head(_apply_propagations(self.propagations, level_points, levels))
        return {"logits": logits.view(*points.shape[:-1], logits.shape[-1])}


@registry.models.add("pointnet2_scenes")
class PointNet2Scenes(Model):
    """PointNet++ scene segmentation: the class of every point of a block, by four set abstractions and propagations.

    The radii are in metres. Clouds need at least `num_centres[0]` points, and are of one size in a batch. All channels,
    coordinates included, are features of the first abstraction, as in the published code. The order of the points
    matters as it does to `pointnet2_parts`; `fused` is as there.
    Source: Qi et al. 2017 (PointNet++), section 3.4; layout of yanx27/Pointnet_Pointnet2_pytorch.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        num_centres: tuple[Count, Count, Count, Count] = (1024, 256, 64, 16),
        radii: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat] = (0.1, 0.2, 0.4, 0.8),
        num_neighbours: Count = 32,
        dropout: Probability = 0.5,
        fused: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.abstractions = _abstractions(
            in_channels, num_centres, radii, (num_neighbours,) * len(radii), _SCENE_WIDTHS, fused
        )
        self.propagations = nn.ModuleList(
            FeaturePropagation(in_channels=width, widths=widths, fused=fused)
            for width, widths in (
                (256 + 512, (256, 256)),
                (128 + 256, (256, 256)),
                (64 + 256, (256, 128)),
                (128, (128, 128, 128)),
            )
        )
        self.head = _segmentation_head(num_classes, dropout)

    def forward(
        self, *, points: Tensor, features: Tensor | None = None, offsets: Tensor | None = None
    ) -> PointNet2PointsOutput:
        """Predict from `points` (B, N, 3) or, with `offsets` (B+1,), (B*N, 3), in the unit of the radii.

        `features` beside them.
        Raises ValueError for clouds of several sizes and for values that are not finite.
        """
        channels_BNC = dense_channels(points, features, offsets, in_channels=self.in_channels)
        level_points, levels = _apply_abstractions(self.abstractions, channels_BNC)
        logits = self.head(_apply_propagations(self.propagations, level_points, [None, *levels[1:]]))
        return {"logits": logits.view(*points.shape[:-1], logits.shape[-1])}


def _abstractions(
    in_channels: int,
    num_centres: tuple[int, ...],
    radii: tuple[float, ...],
    num_neighbours: tuple[int, ...],
    widths: tuple[tuple[int, ...], ...],
    fused: bool,
) -> nn.ModuleList:
    incoming = (in_channels, *(level[-1] for level in widths[:-1]))
    arguments = zip(incoming, num_centres, radii, num_neighbours, widths, strict=True)
    return nn.ModuleList(
        SetAbstraction(in_channels=width_in, num_samples=samples, scales=[BallScale(radius, count, level)], fused=fused)
        for width_in, samples, radius, count, level in arguments
    )


def _apply_abstractions(abstractions: nn.ModuleList, channels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Apply the set abstractions: coordinates and features of every level, the finest first."""
    level_points, levels = [channels[..., :3]], [channels]
    for abstraction in abstractions:
        centres, values = abstraction(level_points[-1], levels[-1])
        level_points.append(centres)
        levels.append(values)
    return level_points, levels


def _apply_propagations(
    propagations: nn.ModuleList, level_points: list[Tensor], levels: list[Tensor] | list[Tensor | None]
) -> Tensor:
    """Propagate features from the coarsest to the finest points; `levels` are the skip features of each, or None."""
    values = levels[-1]
    for step, propagation in enumerate(propagations):
        fine = len(level_points) - 2 - step
        values = propagation(level_points[fine], levels[fine], level_points[fine + 1], values)
    return cast(Tensor, values)


def _segmentation_head(num_classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(_relu_layer(128, 128), nn.Dropout(dropout), nn.Linear(128, num_classes))
