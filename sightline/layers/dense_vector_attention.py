"""Attention with a weight for every channel of every neighbour, as the dense Point Transformer has it.

`PlainVectorAttention` writes out what every edge carries: the tested reference.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from sightline.geometry import gather_points

__all__ = ["PlainVectorAttention"]


class PlainVectorAttention(nn.Module):
    """Every point receives its neighbours' values, each channel weighted by itself, on top of what it had.

    `forward(points (B, N, 3), features (B, N, channels), index (B, N, K)) -> (B, N, channels)`, `index` naming the
    neighbours j of each point i. With x = `enter`(features) of `width` channels, d_ij = `place`(p_i - p_j) and
    a_ij = softmax over j of `weigh`(query(x)_i - key(x)_j + d_ij) / sqrt(width), a point receives
    `leave`(sum over j of a_ij * (value(x)_j + d_ij)). Keeps about five times B*N*K*width numbers for backward.
    Source: Zhao et al. 2021 (Point Transformer), equations 3 and 4; the root and the width are those of
    qq456cvb/Point-Transformers.
    """

    def __init__(self, *, channels: int, width: int) -> None:
        super().__init__()
        self.enter = nn.Linear(channels, width)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.place = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, width))
        self.weigh = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.leave = nn.Linear(width, channels)

    def forward(self, points: Tensor, features: Tensor, index: Tensor) -> Tensor:
        return features + self.leave(self._received(points, self.enter(features), index))

    def _received(self, points: Tensor, entered: Tensor, index: Tensor) -> Tensor:
        """The weighted sum over the neighbours, (B, N, width)."""
        place = self.place(points[:, :, None] - gather_points(points, index))
        values = gather_points(self.value(entered), index) + place
        return (self.attention(entered, place, index) * values).sum(dim=2)

    def attention(self, entered: Tensor, place: Tensor, index: Tensor) -> Tensor:
        """How much each point receives of each neighbour, (B, N, K, width); over K it adds up to 1."""
        difference = self.query(entered)[:, :, None] - gather_points(self.key(entered), index)
        return (self.weigh(difference + place) / math.sqrt(self.key.out_features)).softmax(dim=2)
