"""Point Transformer on clouds of one size, for whole clouds and for points. Source: Zhao et al. 2021."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple, TypedDict, cast

import torch
from annotated_types import Len
from torch import Tensor, nn

from sightline.contract import registry
from sightline.contract.arguments import Count, Width
from sightline.contract.model import Encoder, Model
from sightline.layers.cloud_layouts import dense_channels, one_hot_category
from sightline.layers.mlp import LinearNorm
from sightline.layers.set_abstraction import PlainPositionGroup, RelativeGroup, gather_rows
from sightline.ops import farthest_points, gather_points, interpolate, nearest_neighbours


class DenseVectorAttention(nn.Module):
    """Vector attention with a residual: each point adds its neighbours' values, weighted per channel.

    `forward(points (B, N, 3), features (B, N, channels), index (B, N, K)) -> (B, N, channels)`, with `index` the
    neighbours j of each point i. With x = `enter`(features) of `width` channels, d_ij = `position`(p_i - p_j) and
    a_ij = softmax over j of `weigh`(query(x)_i - key(x)_j + d_ij) / sqrt(width), the output is features +
    `leave`(sum over j of a_ij * (value(x)_j + d_ij)). Stores about five times B*N*K*width numbers for backward.
    Source: Zhao et al. 2021 (Point Transformer), equations 3 and 4; the root and the width are those of
    qq456cvb/Point-Transformers.
    """

    def __init__(self, *, channels: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.enter = nn.Linear(channels, width)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.position = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, width))
        self.weigh = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.leave = nn.Linear(width, channels)

    def forward(self, points: Tensor, features: Tensor, index: Tensor) -> Tensor:
        """Map points (B, N, 3), features (B, N, channels), index (B, N, K) -> (B, N, channels)."""
        return features + self.leave(self._attend(points, self.enter(features), index))

    def _attend(self, points: Tensor, entered: Tensor, index: Tensor) -> Tensor:
        """Return the weighted sum over the neighbours, (B, N, width)."""
        position_code = self.position(points[:, :, None] - gather_points(points, index))
        values = gather_points(self.value(entered), index) + position_code
        return (self.attention(entered, position_code, index) * values).sum(dim=2)

    def attention(self, entered: Tensor, position_code: Tensor, index: Tensor) -> Tensor:
        """Return the attention weights (B, N, K, width) of each point over its neighbours; their sum over K is 1."""
        difference = self.query(entered)[:, :, None] - gather_points(self.key(entered), index)
        return (self.weigh(difference + position_code) / math.sqrt(self.width)).softmax(dim=2)


_STRIDE = 4


class DenseTransitionDown(nn.Module):
    """Transition down: farthest-point sampling to a quarter, and max pooling of an MLP over the neighbours.

    `forward(points (B, N, 3), features (B, N, in_channels), index (B, N, K)) -> (centres (B, M, 3), features
    (B, M, out_channels))` with M = max(1, N // 4) and `index` the nearest points of every point, a centre's among them.
    Sampling starts at the first point. Source: Zhao et al. 2021 (Point Transformer), section 3.4, transition down;
    qq456cvb/Point-Transformers, which adds the members' positions relative to the centre.
    """

    def __init__(self, *, in_channels: int, out_channels: int, fused: bool) -> None:
        super().__init__()
        group = RelativeGroup if fused else PlainPositionGroup
        self.group = group(in_channels=in_channels, widths=(out_channels, out_channels), first="position")

    def forward(self, points: Tensor, features: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Map points (B, N, 3), features (B, N, C), index (B, N, K) -> centres (B, M, 3), features (B, M, D)."""
        chosen = farthest_points(points, num_samples=max(1, points.shape[1] // _STRIDE))
        centres = gather_rows(points, chosen)
        return centres, self.group.forward_groups(points, features, centres, gather_rows(index, chosen))


class DenseTransitionUp(nn.Module):
    """Transition up: interpolate coarse features at the fine points and add the projected skip features.

    `forward(points (B, N, 3), features (B, N, out_channels), centres (B, M, 3), coarse (B, M, in_channels)) -> (B, N,
    out_channels)`; the three nearest centres, weighted by 1 / (d^2 + 1e-8).
    Source: Zhao et al. 2021 (Point Transformer), section 3.4, transition up.
    """

    def __init__(self, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.coarse = _relu_layer(in_channels, out_channels)
        self.skip = _relu_layer(out_channels, out_channels)

    def forward(self, points: Tensor, features: Tensor, centres: Tensor, coarse: Tensor) -> Tensor:
        """Map points (B, N, 3), features (B, N, C), centres (B, M, 3), coarse (B, M, D) -> (B, N, C)."""
        carried = interpolate(self.coarse(coarse), points=centres, queries=points)
        return carried + self.skip(features)


def _relu_layer(in_channels: int, out_channels: int) -> LinearNorm:
    return LinearNorm(in_channels=in_channels, out_channels=out_channels, has_bias=True, activation=nn.ReLU())


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


class _WithLevels(Encoder):
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
class DensePointTransformer(_WithLevels, Model):
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
