"""Edge-based upsampling of features from a coarse cloud to a finer one. Source: Yu et al. 2022, Point-BERT."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.geometry import gather_points, nearest_neighbours

__all__ = ["EdgePropagation"]

_NUM_CHANNEL_GROUPS = 4
_SLOPE = 0.2


class EdgePropagation(nn.Module):
    """Two EdgeConv steps for upsampling: coarse to fine points, then among fine points.

    (B, M, C) -> (B, N, out_channels). `forward(points (B, N, 3), own (B, N, channels), coarse_points (B, M, 3), coarse
    (B, M, channels)) -> (B, N, out_channels)`. An edge carries (f_j - f_i, f_i) through a linear map, a group norm over
    all edges of a cloud and a leaky ReLU, followed by the maximum over each point's edges. The plain form
    (`fused=False`, the tested reference) writes every edge out; here the linear map is applied to points: W_1 (f_j -
    f_i) + W_2 f_i = W_1 f_j + (W_2 - W_1) f_i.
    Raises ValueError for fewer points than `num_neighbours` and for values that are not finite.
    Source: Yu et al. 2022, Point-BERT, its code for part segmentation; the edges, Wang et al. 2019, equation 8.
    """

    def __init__(
        self, *, channels: int, hidden: int, out_channels: int, num_neighbours: int = 4, fused: bool = True
    ) -> None:
        super().__init__()
        self.num_neighbours = num_neighbours
        self.fused = fused
        self.linears = nn.ModuleList(
            nn.Linear(2 * width_in, width_out, bias=False)
            for width_in, width_out in ((channels, hidden), (hidden, out_channels))
        )
        self.norms = nn.ModuleList(nn.GroupNorm(_NUM_CHANNEL_GROUPS, width_out) for width_out in (hidden, out_channels))

    def forward(self, points: Tensor, own: Tensor, coarse_points: Tensor, coarse: Tensor) -> Tensor:
        """Map points (B, N, 3), own (B, N, C), coarse_points (B, M, 3), coarse (B, M, C) -> (B, N, out_channels)."""
        received = self._over_edges(0, points, own, coarse_points, coarse)
        return self._over_edges(1, points, received, points, received)

    def _over_edges(
        self, step: int, points: Tensor, features: Tensor, neighbour_points: Tensor, neighbour_features: Tensor
    ) -> Tensor:
        index = nearest_neighbours(neighbour_points, num_neighbours=self.num_neighbours, queries=points)
        linear = cast(nn.Linear, self.linears[step])
        mapped_BNKC = self._map_edges(linear, features, neighbour_features, index)
        normed_BCNK = self.norms[step](mapped_BNKC.permute(0, 3, 1, 2))
        return F.leaky_relu(normed_BCNK, _SLOPE).max(dim=-1).values.mT

    def _map_edges(self, linear: nn.Linear, features: Tensor, neighbour_features: Tensor, index: Tensor) -> Tensor:
        if not self.fused:
            centres_BNKC = features[:, :, None].expand(-1, -1, index.shape[-1], -1)
            return linear(torch.cat([gather_points(neighbour_features, index) - centres_BNKC, centres_BNKC], dim=-1))
        difference_weight, centre_weight = linear.weight.chunk(2, dim=1)
        neighbour_terms = F.linear(neighbour_features, difference_weight)
        return gather_points(neighbour_terms, index) + F.linear(features, centre_weight - difference_weight)[:, :, None]
