"""Vector attention among neighbours: every channel of a neighbour has a weight of its own.

`PlainVectorAttention` writes out what every edge carries: the tested reference.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sightline.geometry.levels import Edges
from sightline.layers.mlp import LinearNorm

__all__ = ["NUM_SHARING", "PlainVectorAttention"]

NUM_SHARING = 8
"""Channels that share a weight: channel c takes weight c modulo the number of weights."""


class PlainVectorAttention(nn.Module):
    """Each point takes the values of its neighbours, weighted channel by channel by how they relate to it.

    `forward(features (P, C), edges of P among P points) -> (P, C)`; C is a multiple of 8. The weights of a channel add
    up to one over the neighbours. Places of `edges` that are not real have no part in anything, statistics included.
    Holds some twelve tensors of P*K*C numbers at once in training.
    Source: Zhao et al. 2021 (Point Transformer), equations 3 and 4; the sharing of weights and the batch norms are
    those of the authors' code.
    """

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        assert channels % NUM_SHARING == 0, f"{channels} channels are no multiple of {NUM_SHARING}"
        num_weights = channels // NUM_SHARING
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.position = LinearNorm(in_channels=3, out_channels=3, has_bias=True, activation=nn.ReLU())
        self.code = nn.Linear(3, channels)
        self.norm = nn.BatchNorm1d(channels)
        self.reduce = LinearNorm(in_channels=channels, out_channels=num_weights, has_bias=True, activation=nn.ReLU())
        self.score = nn.Linear(num_weights, num_weights)

    def forward(self, features: Tensor, edges: Edges) -> Tensor:
        query, key, value = self.query(features), self.key(features), self.value(features)
        is_valid = None if edges.is_whole else edges.is_valid
        near, own, place = _real(edges, is_valid)  # E edges, whatever cloud they are of
        code_EC = self.code(self.position(place))
        relation_EC = key[near] - query[own] + code_EC
        score_EG = self.score(self.reduce(self.norm(relation_EC).relu()))
        weight_PKG = _padded(score_EG, edges, is_valid, -torch.inf).softmax(dim=1)
        message_PKC = _padded(value[near] + code_EC, edges, is_valid, 0.0)
        shared = message_PKC.unflatten(-1, (NUM_SHARING, -1)) * weight_PKG[:, :, None]
        return shared.sum(dim=1).flatten(1)


def _real(edges: Edges, is_valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Of every real edge: the row of the neighbour, that of the point, and the place of the one from the other."""
    num_points, num_places = edges.index.shape
    own = torch.arange(num_points, device=edges.index.device)[:, None].expand(-1, num_places)
    if is_valid is None:
        return edges.index.flatten(), own.flatten(), edges.relative.flatten(0, 1)
    return edges.index[is_valid], own[is_valid], edges.relative[is_valid]


def _padded(of_edges: Tensor, edges: Edges, is_valid: Tensor | None, filling: float) -> Tensor:
    """(E, C) -> (P, K, C), with `filling` in the places that are not real."""
    if is_valid is None:
        return of_edges.unflatten(0, edges.index.shape)
    padded = of_edges.new_full((*edges.index.shape, of_edges.shape[-1]), filling)
    padded[is_valid] = of_edges
    return padded
