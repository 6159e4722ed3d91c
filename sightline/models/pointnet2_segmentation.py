"""PointNet++ for the segmentation of objects and scenes. Source: Qi et al. 2017, PointNet++."""

from __future__ import annotations

from typing import TypedDict, cast

import torch
from torch import Tensor, nn

from sightline import registry
from sightline.arguments import Count, PositiveFloat, Probability
from sightline.layers.cloud import dense_channels, one_hot_category
from sightline.layers.feature_propagation import FeaturePropagation
from sightline.layers.mlp import LinearNorm
from sightline.layers.set_abstraction import BallScale, SetAbstraction

__all__ = ["PointNet2Parts", "PointNet2PointsOutput", "PointNet2Scenes"]

_SCENE_WIDTHS = ((32, 32, 64), (64, 64, 128), (128, 128, 256), (256, 256, 512))


class PointNet2PointsOutput(TypedDict):
    """`logits` of every point before the softmax: (B, N, num_classes) or (P, num_classes), as the input."""

    logits: Tensor


@registry.models.add("pointnet2_parts")
class PointNet2Parts(nn.Module):
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
        self.head = _head(num_classes, dropout)

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
        return {"logits": logits.view(*points.shape[:-1], -1)}


@registry.models.add("pointnet2_scenes")
class PointNet2Scenes(nn.Module):
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
        self.head = _head(num_classes, dropout)

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
        return {"logits": logits.view(*points.shape[:-1], -1)}


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


def _head(num_classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(_relu_layer(128, 128), nn.Dropout(dropout), nn.Linear(128, num_classes))


def _relu_layer(in_channels: int, out_channels: int) -> LinearNorm:
    return LinearNorm(in_channels=in_channels, out_channels=out_channels, has_bias=True, activation=nn.ReLU())
