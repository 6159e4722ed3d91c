"""Transitions between resolutions of packed clouds: transition down, transition up, and global context."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.layers.mlp import LinearNorm
from sightline.layers.pyramid import PyramidLevel
from sightline.ops.waits import is_recording


class TransitionDown(nn.Module):
    """Transition down: each sampled point is the maximum per channel of a learned map of its neighbours.

    `forward(features (N, in_channels) of the finer level, level) -> (P, out_channels)`. A neighbour has its position
    relative to the point, then its features. A level with the points of the finer one has the map of each point alone.
    Source: Zhao et al. 2021 (Point Transformer), section 3.4, transition down.
    """

    def __init__(self, *, in_channels: int, out_channels: int, is_strided: bool) -> None:
        super().__init__()
        width = in_channels + 3 if is_strided else in_channels
        self.edge = LinearNorm(in_channels=width, out_channels=out_channels, activation=nn.ReLU())

    def forward(self, features: Tensor, level: PyramidLevel) -> Tensor:
        """Map features (N, in_channels) of the finer level -> (P, out_channels)."""
        if level.downsampling is None:
            return self.edge(features)
        edges = level.downsampling
        members_PKC = torch.cat([edges.relative.to(features.dtype), features[edges.index]], dim=-1)
        # A response is never below zero: places that are not real add nothing to a maximum.
        return edges.pad(self.edge(edges.list_valid(members_PKC)), 0.0).max(dim=1).values


class TransitionUp(nn.Module):
    """Transition up: skip features of the finer level plus coarse features interpolated from three points.

    `forward(features (N, out_channels) of the finer level, coarse (P, in_channels), level) -> (N, out_channels)`,
    `level` being the coarser one. Source: Zhao et al. 2021 (Point Transformer), section 3.4, transition up.
    """

    def __init__(self, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.skip = _relu_layer(out_channels, out_channels)
        self.coarse = _relu_layer(in_channels, out_channels)

    def forward(self, features: Tensor, coarse: Tensor, level: PyramidLevel) -> Tensor:
        """Map features (N, out_channels), coarse (P, in_channels) -> (N, out_channels)."""
        assert level.interpolation is not None, "the first level is the finest"
        mapped = self.coarse(coarse)
        weights = level.interpolation.weights.to(mapped.dtype)
        if is_recording():  # ONNX has no bags of embeddings
            rows = mapped[level.interpolation.index]
            return self.skip(features) + (rows * weights[..., None]).sum(dim=1)
        # A weighted sum of rows: what a bag of embeddings is. The rows are never written out three times.
        carried = F.embedding_bag(level.interpolation.index, mapped, per_sample_weights=weights, mode="sum")
        return self.skip(features) + carried


class GlobalContext(nn.Module):
    """Global context: each point's features joined with a map of its cloud's mean.

    `forward(features (P, C), offsets (S+1,)) -> (P, C)`.
    Source: the authors' code of Zhao et al. 2021 (Point Transformer), the first step of its decoder.
    """

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        self.mean = nn.Linear(channels, channels)
        self.mix = _relu_layer(2 * channels, channels)

    def forward(self, features: Tensor, offsets: Tensor) -> Tensor:
        """Map features (P, C), offsets (S+1,) -> (P, C)."""
        of_cloud = self.mean(segment_mean(features, offsets)).relu()
        if is_recording():  # the clouds of a graph are of one size
            repeated = of_cloud[:, None].expand(-1, features.shape[0] // of_cloud.shape[0], -1)
            return self.mix(torch.cat([features, repeated.flatten(0, 1)], dim=-1))
        of_point = of_cloud.repeat_interleave(offsets.diff(), dim=0, output_size=len(features))
        return self.mix(torch.cat([features, of_point], dim=-1))


def segment_mean(features: Tensor, offsets: Tensor) -> Tensor:
    """Compute the mean of each cloud's rows: (P, C), offsets (S+1,) -> (S, C); zero for a cloud without points."""
    if is_recording():
        return features.unflatten(0, (offsets.shape[0] - 1, -1)).mean(dim=1)
    sizes = offsets.diff()
    cloud = torch.arange(len(sizes), device=features.device).repeat_interleave(sizes, output_size=len(features))
    total = features.new_zeros((len(sizes), features.shape[1])).index_add(0, cloud, features)
    return total / sizes.clamp(min=1)[:, None]


def _relu_layer(in_channels: int, out_channels: int) -> LinearNorm:
    return LinearNorm(in_channels=in_channels, out_channels=out_channels, has_bias=True, activation=nn.ReLU())
