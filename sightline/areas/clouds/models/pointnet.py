"""PointNet for the classification of clouds, and the segmentation of objects and scenes.

Source: Qi et al. 2017, PointNet: Deep Learning on Point Sets.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TypedDict, cast

import torch
from torch import Tensor, nn

from sightline.contract import registry
from sightline.contract.arguments import Probability, Width
from sightline.contract.model import Encoder, Model
from sightline.layers.cloud_layouts import concat_channels, dense_channels, one_hot_category
from sightline.layers.mlp import JoinedLinearNorm, LinearNorm
from sightline.layers.pooling import LinearNormMax


class PointNetOutput(TypedDict):
    """`logits` (B, num_classes), before any softmax; `feature_transform` (B, 64, 64), multiplied from the right."""

    logits: Tensor
    feature_transform: Tensor


class PointNetPlainOutput(TypedDict):
    """`logits` (B, num_classes), before any softmax."""

    logits: Tensor


@registry.point_encoders.add("pointnet")
class PointNetEncoder(Encoder):
    """PointNet encoder with input and feature T-Nets.

    The global feature (B, 1024), independent of the order of the points. The last layer before the maximum has no ReLU,
    as in the widely used code. Nothing keeps the feature transform near a rotation here: the penalty of the model
    `pointnet` is not a contrastive loss. `fused: false` uses the plain forms of its layers: the same numbers, slower,
    for comparison.
    Source: Qi et al. 2017, figure 2; layout of yanx27/Pointnet_Pointnet2_pytorch.
    """

    def __init__(self, *, in_channels: int, fused: bool = True) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.feature_width = 1024
        self.input_alignment = TNet(in_channels=in_channels, size=3, fused=fused)
        self.embed = _relu_layer(in_channels, 64)
        self.feature_alignment = TNet(in_channels=64, size=64, fused=fused)
        # Its name in files of weights is older than the method `encode`, which hides it as an attribute.
        self._modules["encode"] = nn.Sequential(
            _relu_layer(64, 128),
            LinearNormMax(in_channels=128, out_channels=self.feature_width, has_bias=True, fused=fused),
        )

    def encode(self, *, points: Tensor, features: Tensor | None = None) -> Tensor:
        """Encode `points` (B, N, 3) in any unit.

        `features` (B, N, in_channels - 3) are required if the model has more channels.
        """
        return self._read(points, features)[0]

    def _read(self, points: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the global feature (B, 1024) and the feature transform (B, 64, 64)."""
        channels_BNC = concat_channels(points, features, in_channels=self.in_channels)
        aligned_BN3 = points @ self.input_alignment(channels_BNC)
        embedded_BNC = self.embed(torch.cat([aligned_BN3, channels_BNC[..., 3:]], dim=-1))
        feature_transform = self.feature_alignment(embedded_BNC)
        network = cast(nn.Module, self._modules["encode"])
        return network(embedded_BNC @ feature_transform), feature_transform


@registry.models.add("pointnet")
class PointNet(PointNetEncoder, Model):
    """PointNet with input and feature T-Nets; its output does not depend on the order of the points.

    Two slips of the widely used code are kept, for its published weights: dropout comes before the second batch norm
    of the head, and the last layer before the maximum has no ReLU. Train it with `feature_transform_penalty`, weight
    0.001. `fused: false` uses the plain forms of its layers: the same numbers, slower, for comparison.
    Source: Qi et al. 2017, figure 2; layout of yanx27/Pointnet_Pointnet2_pytorch.
    """

    def __init__(self, *, num_classes: int, in_channels: int, dropout: Probability = 0.4, fused: bool = True) -> None:
        super().__init__(in_channels=in_channels, fused=fused)
        self.head = nn.Sequential(
            _relu_layer(self.feature_width, 512),
            nn.Linear(512, 256),
            nn.Dropout(dropout),
            nn.BatchNorm1d(256),
            nn.ReLU(),
            nn.Linear(256, num_classes),
        )

    def forward(self, *, points: Tensor, features: Tensor | None = None) -> PointNetOutput:
        """Predict from `points` (B, N, 3) in any unit.

        `features` (B, N, in_channels - 3) are required if the model has more channels.
        """
        pooled_BC, feature_transform = self._read(points, features)
        return {"logits": self.head(pooled_BC), "feature_transform": feature_transform}


class TNet(nn.Module):
    """T-Net: a square matrix predicted from a cloud, added to the identity: (B, N, in_channels) -> (B, size, size).

    Source: Qi et al. 2017, section 4.2 (T-Net).
    """

    def __init__(self, *, in_channels: int, size: int, fused: bool = True) -> None:
        super().__init__()
        self.size = size
        self.encode = nn.Sequential(
            _relu_layer(in_channels, 64),
            _relu_layer(64, 128),
            LinearNormMax(in_channels=128, out_channels=1024, has_bias=True, activation=nn.ReLU(), fused=fused),
        )
        self.head = nn.Sequential(_relu_layer(1024, 512), _relu_layer(512, 256), nn.Linear(256, size * size))

    def forward(self, channels_BNC: Tensor) -> Tensor:
        learned = self.head(self.encode(channels_BNC)).view(-1, self.size, self.size)
        return learned + torch.eye(self.size, dtype=learned.dtype, device=learned.device)


@registry.models.add("pointnet_plain")
class PointNetPlain(Model):
    """PointNet without T-Nets: one shared MLP per point, max pooling, a short head.

    `fused: false` uses the plain forms of its layers: the same numbers, slower, for comparison.
    Source: Qi et al. 2017, the vanilla network of table 5; layout of WangYueFt/dgcnn.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        embedding: Width = 1024,
        dropout: Probability = 0.5,
        fused: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        widths = pairwise((in_channels, 64, 64, 64, 128))
        self.encode = nn.Sequential(
            *(_relu_layer(width_in, width_out, has_bias=False) for width_in, width_out in widths),
            LinearNormMax(in_channels=128, out_channels=embedding, activation=nn.ReLU(), fused=fused),
        )
        self.head = nn.Sequential(
            _relu_layer(embedding, 512, has_bias=False), nn.Dropout(dropout), nn.Linear(512, num_classes)
        )

    def forward(self, *, points: Tensor, features: Tensor | None = None) -> PointNetPlainOutput:
        """Predict from `points` (B, N, 3) in any unit.

        `features` (B, N, in_channels - 3) are required if the model has more channels.
        """
        channels_BNC = concat_channels(points, features, in_channels=self.in_channels)
        return {"logits": self.head(self.encode(channels_BNC))}


def _relu_layer(in_channels: int, out_channels: int, has_bias: bool = True) -> LinearNorm:
    return LinearNorm(in_channels=in_channels, out_channels=out_channels, has_bias=has_bias, activation=nn.ReLU())


class PointNetPointsOutput(TypedDict):
    """`logits` of every point before the softmax: (B, N, num_classes) or (P, num_classes), as the input.

    `feature_transform` (B, K, K), multiplied from the right.
    """

    logits: Tensor
    feature_transform: Tensor


@registry.models.add("pointnet_parts")
class PointNetParts(Model):
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
        self.embed = nn.ModuleList(
            [
                _relu_segmentation_layer(in_channels, 64),
                _relu_segmentation_layer(64, 128),
                _relu_segmentation_layer(128, 128),
            ]
        )
        self.feature_alignment = TNet(in_channels=128, size=128, fused=fused)
        self.encode = nn.ModuleList(
            [_relu_segmentation_layer(128, 512), LinearNorm(in_channels=512, out_channels=2048, has_bias=True)]
        )
        self.join = JoinedLinearNorm(
            in_channels=2048 + num_categories + 64 + 128 + 128 + 512 + 2048,
            out_channels=256,
            has_bias=True,
            activation=nn.ReLU(),
            fused=fused,
        )
        self.head = nn.Sequential(
            _relu_segmentation_layer(256, 256), _relu_segmentation_layer(256, 128), nn.Linear(128, num_classes)
        )

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
        return {"logits": logits.view(*points.shape[:-1], logits.shape[-1]), "feature_transform": feature_transform}


@registry.models.add("pointnet_scenes")
class PointNetScenes(Model):
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
        self.embed = _relu_segmentation_layer(in_channels, 64)
        self.feature_alignment = TNet(in_channels=64, size=64, fused=fused)
        self.encode = nn.Sequential(
            _relu_segmentation_layer(64, 128),
            LinearNormMax(in_channels=128, out_channels=1024, has_bias=True, fused=fused),
        )
        self.join = JoinedLinearNorm(
            in_channels=1024 + 64, out_channels=512, has_bias=True, activation=nn.ReLU(), fused=fused
        )
        self.head = nn.Sequential(
            _relu_segmentation_layer(512, 256), _relu_segmentation_layer(256, 128), nn.Linear(128, num_classes)
        )

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
        return {"logits": logits.view(*points.shape[:-1], logits.shape[-1]), "feature_transform": feature_transform}


def _align(channels: Tensor, alignment: TNet) -> Tensor:
    """Transform the coordinates by the T-Net's matrix; the other channels are unchanged."""
    return torch.cat([channels[..., :3] @ alignment(channels), channels[..., 3:]], dim=-1)


def _relu_segmentation_layer(in_channels: int, out_channels: int) -> LinearNorm:
    return LinearNorm(in_channels=in_channels, out_channels=out_channels, has_bias=True, activation=nn.ReLU())
