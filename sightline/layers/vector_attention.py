"""Vector attention among neighbours (Point Transformer): one attention weight per channel group of a neighbour.

`PlainVectorAttention` writes out the features of every edge: the tested reference. `VectorAttention` has the same
numbers and gradients and stores an eighth of the channels of each edge. An edge is k_j - q_i, maps of
points, plus a map of three numbers: kernels recompute it wherever it is needed, in chunks of edges before a matrix
product. In backward the gradient of the batch statistics is a constant and a slope per channel, so its sum over the
edges of a point is enough.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from sightline.geometry.neighbours import assert_rows
from sightline.geometry.point_pyramid import Edges
from sightline.layers.fused_vector_attention import SHARE_PLANES, AttentionWeights, FusedVectorAttention
from sightline.layers.mlp import LinearNorm
from sightline.numba_kernels import can_use_numba, cpu_autocast_dtype

__all__ = ["SHARE_PLANES", "PlainVectorAttention", "VectorAttention"]


class PlainVectorAttention(nn.Module):
    """Vector attention: each point attends to its neighbours' values with a weight per channel group. Plain form.

    `forward(features (P, C), edges of P among P points) -> (P, C)`; C is a multiple of 8. The weights of a channel sum
    to one over the neighbours. Invalid slots of `edges` have no influence, statistics included.
    Stores some twelve tensors of P*K*C numbers at once in training.
    Source: Zhao et al. 2021 (Point Transformer), equations 3 and 4; the sharing of weights and the batch norms are
    those of the authors' code.
    """

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        assert channels % SHARE_PLANES == 0, f"{channels} channels are not a multiple of {SHARE_PLANES}"
        num_weights = channels // SHARE_PLANES
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.position = LinearNorm(in_channels=3, out_channels=3, has_bias=True, activation=nn.ReLU())
        self.code = nn.Linear(3, channels)
        self.norm = nn.BatchNorm1d(channels)
        self.reduce = LinearNorm(in_channels=channels, out_channels=num_weights, has_bias=True, activation=nn.ReLU())
        self.score = nn.Linear(num_weights, num_weights)

    def forward(self, features: Tensor, edges: Edges) -> Tensor:
        """Map features (P, C) -> (P, C) over the edges (P, K)."""
        query, key, value = self.query(features), self.key(features), self.value(features)
        is_valid = None if edges.is_whole else edges.is_valid
        neighbour, query_index, relative = _list_edges(edges, is_valid)  # E edges, whatever cloud they are of
        code_EC = self.code(self.position(relative))
        relation_EC = key[neighbour] - query[query_index] + code_EC
        score_EG = self.score(self.reduce(self.norm(relation_EC).relu()))
        weight_PKG = _pad_edges(score_EG, edges, is_valid, -torch.inf).softmax(dim=1)
        message_PKC = _pad_edges(value[neighbour] + code_EC, edges, is_valid, 0.0)
        shared = message_PKC.unflatten(-1, (SHARE_PLANES, -1)) * weight_PKG[:, :, None]
        return shared.sum(dim=1).flatten(1)


def _list_edges(edges: Edges, is_valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return neighbour index, query index and relative position of every valid edge: (E,), (E,), (E, 3)."""
    num_points, num_slots = edges.index.shape
    query_index = torch.arange(num_points, device=edges.index.device)[:, None].expand(-1, num_slots)
    if is_valid is None:
        return edges.index.flatten(), query_index.flatten(), edges.relative.flatten(0, 1)
    return edges.index[is_valid], query_index[is_valid], edges.relative[is_valid]


def _pad_edges(of_edges: Tensor, edges: Edges, is_valid: Tensor | None, filling: float) -> Tensor:
    """Pad edges (E, C) to (P, K, C), with `filling` in invalid slots."""
    if is_valid is None:
        return of_edges.unflatten(0, edges.index.shape)
    padded = of_edges.new_full((*edges.index.shape, of_edges.shape[-1]), filling)
    padded[is_valid] = of_edges
    return padded


class VectorAttention(PlainVectorAttention):
    """Fused `PlainVectorAttention` without its edges: same state, numbers, gradients and running statistics.

    Stores P*K*C/4 numbers for backward, and 2**18 edges times channels at a time. Under bf16 autocast the maps of
    points alone are rounded, edges are float32. On a GPU, with weights in half precision, under torch.compile, without
    numba and if gradients of the points are needed it is the plain form. It has no second derivative: use
    `PlainVectorAttention` for one.
    Source: as the plain form; Ioffe and Szegedy 2015, algorithm 1, for the statistics over all edges.
    """

    def forward(self, features: Tensor, edges: Edges) -> Tensor:
        """Map features (P, C) -> (P, C) over the edges (P, K)."""
        weights, lowered = self._weights(), cpu_autocast_dtype()
        wants_places = edges.relative.requires_grad and torch.is_grad_enabled()
        is_kernels = lowered != torch.float16 and can_use_numba(features, edges.relative, *weights, extra_dtype=lowered)
        if wants_places or not is_kernels:
            return super().forward(features, edges)
        assert_rows(edges.index[None], features[None], num_queries=len(features))
        maps = [linear(features) for linear in (self.query, self.key, self.value)]
        norms, wide = (self.position.norm, self.norm, self.reduce.norm), self.code.weight.dtype
        with torch.autocast("cpu", enabled=False):
            attended = FusedVectorAttention.apply(edges, norms, *(values.to(wide) for values in maps), *weights)
        return cast(Tensor, attended.to(maps[0].dtype))

    def _weights(self) -> AttentionWeights:
        return AttentionWeights(
            *(self.position.linear.weight, self.position.linear.bias),
            *(self.position.norm.weight, self.position.norm.bias),
            *(self.code.weight, self.code.bias, self.norm.weight, self.norm.bias),
            *(self.reduce.linear.weight, self.reduce.linear.bias),
            *(self.reduce.norm.weight, self.reduce.norm.bias, self.score.weight, self.score.bias),
        )
