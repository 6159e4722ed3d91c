"""PointNet for the segmentation of objects and scenes. Source: Qi et al. 2017, PointNet."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor, nn

from sightline import registry
from sightline.layers.cloud import dense_channels, one_hot_category
from sightline.layers.mlp import JoinedLinearNorm, LinearNorm
from sightline.layers.pooling import LinearNormMax
from sightline.models.pointnet import TNet

__all__ = ["PointNetParts", "PointNetPointsOutput", "PointNetScenes"]


class PointNetPointsOutput(TypedDict):
    """`logits` of every point before the softmax: (B, N, num_classes) or (P, num_classes), as the input.

    `feature_transform` (B, K, K), multiplied from the right.
    """

    logits: Tensor
    feature_transform: Tensor


@registry.models.add("pointnet_parts")
class PointNetParts(nn.Module):
    """PointNet part segmentation, from the values of every layer at a point and their maxima; the category is an input.

    The order of the points does not matter; clouds are of one size in a batch. Train it with
    `feature_transform_penalty`, weight 0.001. As in the widely used code the last layer before the maximum has no ReLU,
    and there is no dropout. `fused: false` uses the plain forms of its layers: the same numbers, slower.
    Source: Qi et al. 2017, appendix C and figure 9; layout of yanx27/Pointnet_Pointnet2_pytorch.
    """

    def __init__(self, *, num_classes: int, in_channels: int, num_categories: int, fused: bool = True) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.num_categories = num_categories
        self.input_alignment = TNet(in_channels=in_channels, size=3, fused=fused)
        self.embed = nn.ModuleList([_relu_layer(in_channels, 64), _relu_layer(64, 128), _relu_layer(128, 128)])
        self.feature_alignment = TNet(in_channels=128, size=128, fused=fused)
        self.encode = nn.ModuleList(
            [_relu_layer(128, 512), LinearNorm(in_channels=512, out_channels=2048, has_bias=True)]
        )
        self.join = JoinedLinearNorm(
            in_channels=2048 + num_categories + 64 + 128 + 128 + 512 + 2048,
            out_channels=256,
            has_bias=True,
            activation=nn.ReLU(),
            fused=fused,
        )
        self.head = nn.Sequential(_relu_layer(256, 256), _relu_layer(256, 128), nn.Linear(128, num_classes))

    def forward(
        self, *, points: Tensor, category: Tensor, features: Tensor | None = None, offsets: Tensor | None = None
    ) -> PointNetPointsOutput:
        """Predict from `points` (B, N, 3) or, with `offsets` (B+1,), (B*N, 3), in any unit.

        `features` are as wide as the data set states.
        `category` (B,) int64. Raises ValueError for clouds of several sizes and for values that are not finite.
        """
        channels_BNC = dense_channels(points, features, offsets, in_channels=self.in_channels)
        chosen = one_hot_category(category, like=channels_BNC, num_categories=self.num_categories)
        values = _align(channels_BNC, self.input_alignment)
        levels = []
        for layer in self.embed:
            values = layer(values)
            levels.append(values)
        feature_transform = self.feature_alignment(values)
        values = values @ feature_transform
        for layer in self.encode:
            values = layer(values)
            levels.append(values)
        global_features = torch.cat([values.max(dim=1).values, chosen], dim=-1)
        logits = self.head(self.join(global_features, torch.cat(levels, dim=-1)))
        return {"logits": logits.view(*points.shape[:-1], -1), "feature_transform": feature_transform}


@registry.models.add("pointnet_scenes")
class PointNetScenes(nn.Module):
    """PointNet scene segmentation.

    The class of every point of a block, from its features and the maxima over the block.
    The order of the points does not matter; clouds are of one size in a batch. Train it with
    `feature_transform_penalty`, weight 0.001. As in the widely used code the last layer before the maximum has no ReLU,
    and there is no dropout. `fused: false` uses the plain forms of its layers: the same numbers, slower.
    Source: Qi et al. 2017, figure 2 (segmentation network); layout of yanx27/Pointnet_Pointnet2_pytorch.
    """

    def __init__(self, *, num_classes: int, in_channels: int, fused: bool = True) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.input_alignment = TNet(in_channels=in_channels, size=3, fused=fused)
        self.embed = _relu_layer(in_channels, 64)
        self.feature_alignment = TNet(in_channels=64, size=64, fused=fused)
        self.encode = nn.Sequential(
            _relu_layer(64, 128), LinearNormMax(in_channels=128, out_channels=1024, has_bias=True, fused=fused)
        )
        self.join = JoinedLinearNorm(
            in_channels=1024 + 64, out_channels=512, has_bias=True, activation=nn.ReLU(), fused=fused
        )
        self.head = nn.Sequential(_relu_layer(512, 256), _relu_layer(256, 128), nn.Linear(128, num_classes))

    def forward(
        self, *, points: Tensor, features: Tensor | None = None, offsets: Tensor | None = None
    ) -> PointNetPointsOutput:
        """Predict from `points` (B, N, 3) or, with `offsets` (B+1,), (B*N, 3), in any unit.

        `features` are as wide as the data set states.
        Raises ValueError for clouds of several sizes and for values that are not finite.
        """
        channels_BNC = dense_channels(points, features, offsets, in_channels=self.in_channels)
        embedded_BNC = self.embed(_align(channels_BNC, self.input_alignment))
        feature_transform = self.feature_alignment(embedded_BNC)
        each_BNC = embedded_BNC @ feature_transform
        logits = self.head(self.join(self.encode(each_BNC), each_BNC))
        return {"logits": logits.view(*points.shape[:-1], -1), "feature_transform": feature_transform}


def _align(channels: Tensor, alignment: TNet) -> Tensor:
    """Transform the coordinates by the T-Net's matrix; the other channels are unchanged."""
    return torch.cat([channels[..., :3] @ alignment(channels), channels[..., 3:]], dim=-1)


def _relu_layer(in_channels: int, out_channels: int) -> LinearNorm:
    return LinearNorm(in_channels=in_channels, out_channels=out_channels, has_bias=True, activation=nn.ReLU())
