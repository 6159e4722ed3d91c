"""Attention of every point to every other, in the two forms of the Point Cloud Transformer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sightline.layers.mlp import LinearNorm

__all__ = ["AttentionStack", "OffsetAttention", "SelfAttention"]


class SelfAttention(nn.Module):
    """Every point receives the values of all points, weighted by likeness, through a layer and beside its own.

    `forward((B, N, channels)) -> (B, N, channels)`. Queries and keys are one map, as in the authors' code, so that the
    likeness of two points does not depend on their order. Source: Guo et al. 2021 (PCT), equations 2 to 5.
    """

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        self.query = nn.Linear(channels, channels // 4, bias=False)
        self.value = nn.Linear(channels, channels)
        self.change = LinearNorm(in_channels=channels, out_channels=channels, has_bias=True, activation=nn.ReLU())

    def forward(self, values: Tensor) -> Tensor:
        return values + self.change(self.attention(values) @ self.value(values))

    def attention(self, values: Tensor) -> Tensor:
        """How much of point n each point m receives: (B, M, N); over n it adds up to 1."""
        return torch.softmax(self._likeness(values) / math.sqrt(self.query.out_features), dim=-1)

    def _likeness(self, values: Tensor) -> Tensor:
        query = self.query(values)
        return query @ query.mT


class OffsetAttention(SelfAttention):
    """As `SelfAttention`, but what goes through the layer is a point's difference from what it receives.

    The attention is a softmax over the receiving points, then divided by its sum over the giving ones, without the
    square root. Source: Guo et al. 2021 (PCT), equations 6 to 9.
    """

    def forward(self, values: Tensor) -> Tensor:
        return values + self.change(values - self.attention(values) @ self.value(values))

    def attention(self, values: Tensor) -> Tensor:
        """How much of point n each point m receives: (B, M, N); over n it adds up to 1."""
        likeness = self._likeness(values)
        if likeness.dtype == torch.float16:  # whose smallest number is above the guard: 0 / 0 for an idle point
            likeness = likeness.float()
        given_BNM = torch.softmax(likeness, dim=-1)
        return (given_BNM / (1e-9 + given_BNM.sum(dim=1, keepdim=True))).mT


class AttentionStack(nn.Module):
    """Layers in a row, and the results of all of them side by side: (B, N, channels) -> (B, N, layers * channels).

    With `codes_positions` a linear map of the coordinates, `points` (B, N, 3), is added before every layer.
    Source: Guo et al. 2021 (PCT), figure 2; the codes, model_new of Strawberry-Eat-Mango/PCT_Pytorch.
    """

    def __init__(self, *, layer: type[SelfAttention], channels: int, num_layers: int, codes_positions: bool) -> None:
        super().__init__()
        self.position = nn.Linear(3, channels) if codes_positions else None
        self.layers = nn.ModuleList(layer(channels=channels) for _ in range(num_layers))

    def forward(self, values: Tensor, points: Tensor) -> Tensor:
        code: Tensor | float = 0.0 if self.position is None else self.position(points)
        results = []
        for layer in self.layers:
            values = layer(values + code if self.position is not None else values)
            results.append(values)
        return torch.cat(results, dim=-1)
