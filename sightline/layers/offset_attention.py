"""Self-attention and offset attention of the Point Cloud Transformer (PCT)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sightline.layers.mlp import LinearNorm

__all__ = ["AttentionStack", "OffsetAttention", "SelfAttention"]


class SelfAttention(nn.Module):
    """Self-attention (PCT): a layer applied to the attended values of all points, plus a residual.

    `forward((B, N, channels)) -> (B, N, channels)`. Queries and keys are one map, as in the authors' code, so that the
    similarity of two points is symmetric. Source: Guo et al. 2021 (PCT), equations 2 to 5.
    """

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        self.query = nn.Linear(channels, channels // 4, bias=False)
        self.value = nn.Linear(channels, channels)
        self.change = LinearNorm(in_channels=channels, out_channels=channels, has_bias=True, activation=nn.ReLU())

    def forward(self, values: Tensor) -> Tensor:
        """Map values (B, N, channels) -> (B, N, channels)."""
        return values + self.change(self.attention(values) @ self.value(values))

    def attention(self, values: Tensor) -> Tensor:
        """Return the attention weights (B, M, N) of each point m over the points n; their sum over n is 1."""
        return torch.softmax(self._likeness(values) / math.sqrt(self.query.out_features), dim=-1)

    def _likeness(self, values: Tensor) -> Tensor:
        query = self.query(values)
        return query @ query.mT


class OffsetAttention(SelfAttention):
    """Offset attention (PCT): the layer is applied to x - attention(x) instead of attention(x).

    The attention is a softmax over the receiving points, then divided by its sum over the source points, without the
    square root. Source: Guo et al. 2021 (PCT), equations 6 to 9.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Map values (B, N, channels) -> (B, N, channels)."""
        return values + self.change(values - self.attention(values) @ self.value(values))

    def attention(self, values: Tensor) -> Tensor:
        """Return the attention weights (B, M, N) of each point m over the points n; their sum over n is 1."""
        likeness = self._likeness(values)
        if likeness.dtype == torch.float16:  # whose smallest number is above the guard: 0 / 0 for an idle point
            likeness = likeness.float()
        given_BNM = torch.softmax(likeness, dim=-1)
        return (given_BNM / (1e-9 + given_BNM.sum(dim=1, keepdim=True))).mT


class AttentionStack(nn.Module):
    """Stacked attention layers with concatenated outputs: (B, N, channels) -> (B, N, layers * channels).

    With `codes_positions` a linear map of the coordinates, `points` (B, N, 3), is added before every layer.
    Source: Guo et al. 2021 (PCT), figure 2; the codes, model_new of Strawberry-Eat-Mango/PCT_Pytorch.
    """

    def __init__(self, *, layer: type[SelfAttention], channels: int, num_layers: int, codes_positions: bool) -> None:
        super().__init__()
        self.position = nn.Linear(3, channels) if codes_positions else None
        self.layers = nn.ModuleList(layer(channels=channels) for _ in range(num_layers))

    def forward(self, values: Tensor, points: Tensor) -> Tensor:
        """Map values (B, N, channels), points (B, N, 3) -> (B, N, layers * channels)."""
        code: Tensor | float = 0.0 if self.position is None else self.position(points)
        results = []
        for layer in self.layers:
            values = layer(values + code if self.position is not None else values)
            results.append(values)
        return torch.cat(results, dim=-1)
