"""Point Transformer on clouds of one size, for whole clouds and for points. Source: Zhao et al. 2021."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, NamedTuple, TypedDict, cast

import torch
from annotated_types import Len
from torch import Tensor, nn

from sightline.contract import registry
from sightline.contract.arguments import Count
from sightline.layers.dense_vector_attention import (
    DenseTransitionDown,
    DenseTransitionUp,
    DenseVectorAttention,
)
from sightline.layers.mlp import Width, dense_channels, one_hot_category
from sightline.ops import nearest_neighbours

_FIRST_CHANNELS = 32
_BOTTOM_WIDTH = 512


class DensePointTransformerOutput(TypedDict):
    """`logits` before any softmax: (B, N, num_classes) or (P, num_classes) per point, (B, num_classes) per cloud."""

    logits: Tensor


class DenseLevel(NamedTuple):
    """One level: points (B, N, 3), features (B, N, C), and the nearest neighbours of each point (B, N, K)."""

    points: Tensor
    features: Tensor
    nearest: Tensor


class _WithLevels(nn.Module):
    """Base with the encoder's levels, and the mean of the coarsest one's points."""

    def __init__(
        self,
        *,
        in_channels: int,
        num_categories: int | None,
        num_blocks: tuple[int, ...],
        num_neighbours: int,
        width: int,
        fused: bool,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.num_categories = num_categories
        self.channels = [_FIRST_CHANNELS * 2**level for level in range(len(num_blocks))]
        self.feature_width = self.channels[-1]
        self.encoder = _Encoder(
            in_channels=in_channels + (num_categories or 0),
            channels=self.channels,
            num_blocks=num_blocks,
            num_neighbours=num_neighbours,
            width=width,
            fused=fused,
        )

    def encode(
        self,
        *,
        points: Tensor,
        features: Tensor | None = None,
        offsets: Tensor | None = None,
        category: Tensor | None = None,
    ) -> Tensor:
        """Encode `points` (B, N, 3) in any unit, or (P, 3) with the `offsets` of clouds of one size.

        `features` likewise.
        `category` (B,) is needed by a network that was built to read it.
        """
        return self._levels(points, features, offsets, category)[-1].features.mean(dim=1)

    def _levels(
        self, points: Tensor, features: Tensor | None, offsets: Tensor | None, category: Tensor | None
    ) -> list[DenseLevel]:
        channels = dense_channels(points, features, offsets, in_channels=self.in_channels)
        levels: list[DenseLevel] = self.encoder(channels[..., :3], self._with_category(channels, category))
        return levels

    def _with_category(self, channels: Tensor, category: Tensor | None) -> Tensor:
        if self.num_categories is None:
            return channels
        if category is None:
            raise ValueError(
                f"category: not given, this model was built for {self.num_categories} categories; give one per cloud"
            )
        one_hot_BC = one_hot_category(category, like=channels, num_categories=self.num_categories)
        return torch.cat([channels, one_hot_BC[:, None].expand(-1, channels.shape[1], -1)], dim=-1)


@registry.point_encoders.add("point_transformer_dense")
class DensePointTransformerEncoder(_WithLevels):
    """Dense Point Transformer encoder: vector attention, a quarter of the points per level, the mean of the coarsest.

    `encode` returns (B, 32 * 2^(number of levels - 1)): 512 by default. Sampling starts at the first point, in training
    and in evaluation: shuffle the points in training. The arguments are those of the model `point_transformer_dense`.
    Source: Zhao et al. 2021 (Point Transformer), section 3; layout of qq456cvb/Point-Transformers (Hengshuang).
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_blocks: Annotated[tuple[Count, ...], Len(1)] = (1, 1, 1, 1, 1),
        num_neighbours: Count = 16,
        width: Width = 512,
        fused: bool = True,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            num_categories=None,
            num_blocks=num_blocks,
            num_neighbours=num_neighbours,
            width=width,
            fused=fused,
        )


@registry.models.add("point_transformer_dense")
class DensePointTransformer(_WithLevels):
    """Dense Point Transformer, on clouds of one size: vector attention, a quarter of the points per level.

    `per` is what gets a label: each point, through a decoder, or each cloud. `num_blocks` is the number of attention
    layers on each level of the encoder; the first level has all points and 32 channels, each further one a quarter and
    twice as many. Attention is `width` channels wide on every level, among `num_neighbours` points, or all there are.
    Per point the cloud's `category` joins the input if the data set has categories. Sampling starts at the first
    point, in training and in evaluation: shuffle the points in training. `fused: false` uses the plain forms of the
    layers: the same numbers, slower and with more memory, for comparison.
    Source: Zhao et al. 2021 (Point Transformer), section 3; layout of qq456cvb/Point-Transformers (Hengshuang).
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        num_categories: int | None = None,
        per: Literal["point", "cloud"] = "point",
        num_blocks: Annotated[tuple[Count, ...], Len(1)] = (1, 1, 1, 1, 1),
        num_neighbours: Count = 16,
        width: Width = 512,
        fused: bool = True,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            num_categories=num_categories if per == "point" else None,
            num_blocks=num_blocks,
            num_neighbours=num_neighbours,
            width=width,
            fused=fused,
        )
        first, last = self.channels[0], self.channels[-1]
        self.decoder = _Decoder(channels=self.channels, width=width) if per == "point" else None
        self.head = _mlp(first, 64, 64, num_classes) if per == "point" else _mlp(last, 256, 64, num_classes)

    def forward(
        self,
        *,
        points: Tensor,
        features: Tensor | None = None,
        offsets: Tensor | None = None,
        category: Tensor | None = None,
    ) -> DensePointTransformerOutput:
        """Predict from `points` (B, N, 3) in any unit, or (P, 3) with the `offsets` of clouds of one size.

        `features` likewise.
        `category` (B,) is needed where the labels are per point and the data set has categories.
        """
        if self.decoder is None:
            return {"logits": self.head(self.encode(points=points, features=features, offsets=offsets))}
        levels = self._levels(points, features, offsets, category)
        logits = self.head(self.decoder(levels))
        return {"logits": logits.view(*points.shape[:-1], logits.shape[-1])}


class _Encoder(nn.Module):
    """Encoder: attention, transition down, attention, ..."""

    def __init__(
        self,
        *,
        in_channels: int,
        channels: list[int],
        num_blocks: tuple[int, ...],
        num_neighbours: int,
        width: int,
        fused: bool,
    ) -> None:
        super().__init__()
        self.num_neighbours = num_neighbours
        self.embed = _mlp(in_channels, channels[0], channels[0])
        self.downs = nn.ModuleList(
            DenseTransitionDown(in_channels=width_in, out_channels=width_out, fused=fused)
            for width_in, width_out in pairwise(channels)
        )
        self.levels = nn.ModuleList(
            nn.ModuleList(DenseVectorAttention(channels=count, width=width) for _ in range(number))
            for count, number in zip(channels, num_blocks, strict=True)
        )

    def forward(self, points: Tensor, channels: Tensor) -> list[DenseLevel]:
        levels: list[DenseLevel] = []
        features = self.embed(channels)
        for level, layers in enumerate(self.levels):
            if level > 0:
                points, features = self.downs[level - 1](*levels[-1])
            nearest = nearest_neighbours(points, num_neighbours=min(self.num_neighbours, points.shape[1]))
            for layer in cast(nn.ModuleList, layers):
                features = layer(points, features, nearest)
            levels.append(DenseLevel(points, features, nearest))
        return levels


class _Decoder(nn.Module):
    """Decoder from the coarsest level to all points; every level reuses the neighbours of the encoder."""

    def __init__(self, *, channels: list[int], width: int) -> None:
        super().__init__()
        deepest = channels[-1]
        self.bottom = _mlp(deepest, _BOTTOM_WIDTH, _BOTTOM_WIDTH, deepest)
        self.bottom_attention = DenseVectorAttention(channels=deepest, width=width)
        upward = channels[::-1]
        self.ups = nn.ModuleList(
            DenseTransitionUp(in_channels=width_in, out_channels=width_out) for width_in, width_out in pairwise(upward)
        )
        self.layers = nn.ModuleList(DenseVectorAttention(channels=count, width=width) for count in upward[1:])

    def forward(self, levels: list[DenseLevel]) -> Tensor:
        coarse = levels[-1]
        features = self.bottom_attention(coarse.points, self.bottom(coarse.features), coarse.nearest)
        for up, layer, fine in zip(self.ups, self.layers, levels[-2::-1], strict=True):
            features = up(fine.points, fine.features, coarse.points, features)
            features = layer(fine.points, features, fine.nearest)
            coarse = fine
        return features


def _mlp(*widths: int) -> nn.Sequential:
    """Build linear maps with ReLUs in between."""
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
