"""From one resolution of ragged clouds to the next: down to fewer points, up to more; and a cloud as a whole."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sightline.geometry.levels import Level
from sightline.layers.mlp import LinearNorm

__all__ = ["CloudContext", "PlainTransitionDown", "TransitionUp", "mean_of_clouds"]


class PlainTransitionDown(nn.Module):
    """Every kept point takes the largest response, channel by channel, of a learned map of its neighbours.

    `forward(features (N, in_channels) of the finer level, level) -> (P, out_channels)`. A neighbour carries its place
    relative to the point, then its features. A level with the points of the finer one has the map of each point alone.
    Source: Zhao et al. 2021 (Point Transformer), section 3.4, transition down.
    """

    def __init__(self, *, in_channels: int, out_channels: int, is_strided: bool) -> None:
        super().__init__()
        width = in_channels + 3 if is_strided else in_channels
        self.edge = LinearNorm(in_channels=width, out_channels=out_channels, activation=nn.ReLU())

    def forward(self, features: Tensor, level: Level) -> Tensor:
        if level.down is None:
            return self.edge(features)
        edges = level.down
        members_PKC = torch.cat([edges.relative.to(features.dtype), features[edges.index]], dim=-1)
        if edges.is_whole:
            return self.edge(members_PKC).max(dim=1).values
        # A response is never below zero: places that are not real add nothing to a maximum.
        response_EC = self.edge(members_PKC[edges.is_valid])
        padded = response_EC.new_zeros((*edges.index.shape, response_EC.shape[-1]))
        padded[edges.is_valid] = response_EC
        return padded.max(dim=1).values


class TransitionUp(nn.Module):
    """Features of the finer level, its own and those of the coarser one interpolated among three points, added.

    `forward(features (N, out_channels) of the finer level, coarse (P, in_channels), level) -> (N, out_channels)`,
    `level` being the coarser one. Source: Zhao et al. 2021 (Point Transformer), section 3.4, transition up.
    """

    def __init__(self, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.skip = _relu_layer(out_channels, out_channels)
        self.coarse = _relu_layer(in_channels, out_channels)

    def forward(self, features: Tensor, coarse: Tensor, level: Level) -> Tensor:
        assert level.up is not None, "the first level is the finest"
        mapped, weights = self.coarse(coarse), level.up.weights.to(coarse.dtype)
        return self.skip(features) + (mapped[level.up.index] * weights[..., None]).sum(dim=1)


class CloudContext(nn.Module):
    """Every point of a cloud beside a map of the cloud's mean: `forward(features (P, C), offsets) -> (P, C)`.

    Source: the authors' code of Zhao et al. 2021 (Point Transformer), the first step of its decoder.
    """

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        self.mean = nn.Linear(channels, channels)
        self.mix = _relu_layer(2 * channels, channels)

    def forward(self, features: Tensor, offsets: Tensor) -> Tensor:
        of_cloud = self.mean(mean_of_clouds(features, offsets)).relu()
        of_point = of_cloud.repeat_interleave(offsets.diff(), dim=0, output_size=len(features))
        return self.mix(torch.cat([features, of_point], dim=-1))


def mean_of_clouds(features: Tensor, offsets: Tensor) -> Tensor:
    """The mean of each cloud's rows: (P, C) -> (S, C); zero for a cloud without points."""
    sizes = offsets.diff()
    cloud = torch.arange(len(sizes), device=features.device).repeat_interleave(sizes, output_size=len(features))
    total = features.new_zeros((len(sizes), features.shape[1])).index_add(0, cloud, features)
    return total / sizes.clamp(min=1)[:, None]


def _relu_layer(in_channels: int, out_channels: int) -> LinearNorm:
    return LinearNorm(in_channels=in_channels, out_channels=out_channels, has_bias=True, activation=nn.ReLU())
