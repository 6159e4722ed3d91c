"""Transition down and transition up of the dense Point Transformer."""

from __future__ import annotations

from torch import Tensor, nn

from sightline.geometry import farthest_point_sample, interpolate
from sightline.layers.mlp import LinearNorm
from sightline.layers.set_abstraction import PlainPlaceGroup, RelativeGroup, gather_rows

__all__ = ["DenseTransitionDown", "DenseTransitionUp"]

_STRIDE = 4


class DenseTransitionDown(nn.Module):
    """Transition down: farthest-point sampling to a quarter, and max pooling of an MLP over the neighbours.

    `forward(points (B, N, 3), features (B, N, in_channels), index (B, N, K)) -> (centres (B, M, 3), features
    (B, M, out_channels))` with M = max(1, N // 4) and `index` the nearest points of every point, a centre's among them.
    Sampling starts at the first point. Source: Zhao et al. 2021 (Point Transformer), section 3.4, transition down;
    qq456cvb/Point-Transformers, which adds the members' positions relative to the centre.
    """

    def __init__(self, *, in_channels: int, out_channels: int, fused: bool) -> None:
        super().__init__()
        group = RelativeGroup if fused else PlainPlaceGroup
        self.group = group(in_channels=in_channels, widths=(out_channels, out_channels), first="place")

    def forward(self, points: Tensor, features: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Map points (B, N, 3), features (B, N, C), index (B, N, K) -> centres (B, M, 3), features (B, M, D)."""
        chosen = farthest_point_sample(points, num_samples=max(1, points.shape[1] // _STRIDE))
        centres = gather_rows(points, chosen)
        return centres, self.group.forward_groups(points, features, centres, gather_rows(index, chosen))


class DenseTransitionUp(nn.Module):
    """Transition up: interpolate coarse features at the fine points and add the projected skip features.

    `forward(points (B, N, 3), features (B, N, out_channels), centres (B, M, 3), coarse (B, M, in_channels)) -> (B, N,
    out_channels)`; the three nearest centres, weighted by 1 / (d^2 + 1e-8).
    Source: Zhao et al. 2021 (Point Transformer), section 3.4, transition up.
    """

    def __init__(self, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.coarse = _relu_layer(in_channels, out_channels)
        self.skip = _relu_layer(out_channels, out_channels)

    def forward(self, points: Tensor, features: Tensor, centres: Tensor, coarse: Tensor) -> Tensor:
        """Map points (B, N, 3), features (B, N, C), centres (B, M, 3), coarse (B, M, D) -> (B, N, C)."""
        carried = interpolate(self.coarse(coarse), points=centres, queries=points)
        return carried + self.skip(features)


def _relu_layer(in_channels: int, out_channels: int) -> LinearNorm:
    return LinearNorm(in_channels=in_channels, out_channels=out_channels, has_bias=True, activation=nn.ReLU())
