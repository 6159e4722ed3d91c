"""Vector attention of the dense Point Transformer: one weight per channel of every neighbour.

`PlainDenseVectorAttention` writes out the features of every edge: the tested reference. `DenseVectorAttention` has the
same numbers and gradients, processes chunks of queries and recomputes most edge features in backward.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.geometry import gather_points
from sightline.geometry.neighbours import assert_rows
from sightline.layers.dense_attention_function import DenseAttentionFunction
from sightline.layers.edge_products import map_points

__all__ = ["DenseVectorAttention", "PlainDenseVectorAttention"]


class PlainDenseVectorAttention(nn.Module):
    """Vector attention with a residual: each point adds its neighbours' values, weighted per channel. Plain form.

    `forward(points (B, N, 3), features (B, N, channels), index (B, N, K)) -> (B, N, channels)`, with `index` the
    neighbours j of each point i. With x = `enter`(features) of `width` channels, d_ij = `place`(p_i - p_j) and
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
        self.place = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, width))
        self.weigh = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.leave = nn.Linear(width, channels)

    def forward(self, points: Tensor, features: Tensor, index: Tensor) -> Tensor:
        """Map points (B, N, 3), features (B, N, channels), index (B, N, K) -> (B, N, channels)."""
        return features + self.leave(self._attend(points, self.enter(features), index))

    def _attend(self, points: Tensor, entered: Tensor, index: Tensor) -> Tensor:
        """Return the weighted sum over the neighbours, (B, N, width)."""
        position_code = self.place(points[:, :, None] - gather_points(points, index))
        values = gather_points(self.value(entered), index) + position_code
        return (self.attention(entered, position_code, index) * values).sum(dim=2)

    def attention(self, entered: Tensor, place: Tensor, index: Tensor) -> Tensor:
        """Return the attention weights (B, N, K, width) of each point over its neighbours; their sum over K is 1."""
        difference = self.query(entered)[:, :, None] - gather_points(self.key(entered), index)
        return (self.weigh(difference + place) / math.sqrt(self.width)).softmax(dim=2)


class DenseVectorAttention(PlainDenseVectorAttention):
    """Fused `PlainDenseVectorAttention`, with a fraction of its memory and time.

    Same state, same numbers, same gradients.
    Linear parts are applied to points: with h_ij the input of the last map of `place`, the first map of `weigh` is
    a map of point i, less one of point j, plus one map of h_ij that is the product of two. The last bias of `weigh`
    adds the same to all neighbours, which a softmax cancels: its gradient is exactly 0. Stores B*N*K*width times
    four bytes for backward, and nothing without gradients. Under torch.compile it is the plain form. It has no second
    derivative.
    Source: as the plain form.
    """

    def _attend(self, points: Tensor, entered: Tensor, index: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # it cannot look into a function with a backward of its own
            return super()._attend(points, entered, index)
        assert_rows(index, points, num_queries=points.shape[1])
        first, last = cast(nn.Linear, self.place[0]), cast(nn.Linear, self.place[2])
        score, weight = cast(nn.Linear, self.weigh[0]), cast(nn.Linear, self.weigh[2])
        offset = F.linear(last.bias, score.weight, score.bias)
        query_terms = map_points(map_points(entered, self.query.weight), score.weight) + offset
        key_terms = map_points(map_points(entered, self.key.weight), score.weight)
        value_terms = map_points(entered, self.value.weight) + last.bias
        received = DenseAttentionFunction.apply(
            torch.is_grad_enabled(),
            points.flatten(0, 1),
            _to_packed_rows(index),
            *(tensor.to(entered.dtype).flatten(0, 1) for tensor in (query_terms, key_terms, value_terms)),
            first.weight,
            first.bias,
            last.weight,
            map_points(score.weight, last.weight.mT),
            weight.weight / math.sqrt(self.width),
            weight.bias,
        )
        return received.view(entered.shape)


def _to_packed_rows(index: Tensor) -> Tensor:
    """Convert neighbours (B, N, K) to rows of the packed points of all clouds: (B*N, K)."""
    num_clouds, num_points, _ = index.shape
    starts = torch.arange(num_clouds, device=index.device) * num_points
    return (index + starts[:, None, None]).flatten(0, 1)
