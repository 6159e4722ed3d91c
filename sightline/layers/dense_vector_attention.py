"""Vector attention of the dense Point Transformer: one weight per channel of every neighbour; its transitions."""

from __future__ import annotations

import math

from torch import Tensor, nn

from sightline.layers.mlp import LinearNorm
from sightline.layers.set_abstraction import PlainPlaceGroup, RelativeGroup, gather_rows
from sightline.ops import farthest_points, gather_points, interpolate


class DenseVectorAttention(nn.Module):
    """Vector attention with a residual: each point adds its neighbours' values, weighted per channel.

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
        chosen = farthest_points(points, num_samples=max(1, points.shape[1] // _STRIDE))
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
