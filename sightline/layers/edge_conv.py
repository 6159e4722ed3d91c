"""Edge convolution in its plain form: every edge feature is written out. The tested reference of any fused form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sightline.geometry.neighbours import gather_points
from sightline.layers.mlp import LinearNorm

__all__ = ["EdgeConv", "graph_features"]


def graph_features(features: Tensor, index: Tensor) -> Tensor:
    """What each edge carries, (x_j - x_i, x_i), difference first.

    `features` (B, N, C), `index` (B, N, K) the neighbours j of each point i -> (B, N, K, 2C).
    Source: Wang et al. 2019, equation 7 (the order of the two halves is that of the authors' code).
    """
    neighbours_BNKC = gather_points(features, index)
    centres_BNKC = features[:, :, None, :].expand_as(neighbours_BNKC)
    return torch.cat([neighbours_BNKC - centres_BNKC, centres_BNKC], dim=-1)


class EdgeConv(nn.Module):
    """A learned map of every edge, and the largest response of each channel over the edges of a point.

    `forward(features (B, N, in_channels), index (B, N, K)) -> (B, N, out_channels)`. Holds B*N*K*2*in_channels numbers
    at once. Source: Wang et al. 2019, equations 5 to 8.
    """

    def __init__(self, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.edge = LinearNorm(
            in_channels=2 * in_channels, out_channels=out_channels, activation=nn.LeakyReLU(negative_slope=0.2)
        )

    def forward(self, features: Tensor, index: Tensor) -> Tensor:
        return self.edge(graph_features(features, index)).max(dim=2).values
