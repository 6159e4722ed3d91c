"""Set abstraction (PointNet++): sampled points, for each an MLP with max pooling over its neighbours, and the way back.

Every group has two forms. The plain one writes out the values of each member, (B, M, K, channels), and is the
tested reference. The other splits the first linear map: W_p (p_j - p_m) + W_f f_j is a map of point j plus a map
of centre m, and so is W_1 (f_j - f_m) + W_2 f_m; both are computed before anything is gathered.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from sightline.layers.grouped_mlp import GroupedMLP, PlainGroupedMLP
from sightline.layers.mlp import LinearNorm
from sightline.ops import farthest_points, gather_points, nearest_neighbours, points_in_balls
from sightline.ops.points.grouping import scale_num_neighbours
from sightline.ops.points.interpolation import interpolate
from sightline.ops.products import linear_map


def gather_rows(values: Tensor, index: Tensor) -> Tensor:
    """Gather rows by index: `values` (B, N, C), `index` (B, M) -> (B, M, C)."""
    return gather_points(values, index[:, None])[:, 0]


def sample_centres(
    points: Tensor, num_samples: int, *, min_squared_norm: float | None = None, argument: str = "num_centres"
) -> Tensor:
    """Sample `num_samples` of points (B, N, 3) by FPS: (B, num_samples) int64.

    Errors name the model's own `argument`.
    """
    if points.shape[1] < num_samples:
        raise ValueError(
            f"points: found clouds of {points.shape[1]} points, of which {num_samples} are to be chosen as centres; "
            f"give clouds of at least {num_samples} points or lower {argument}"
        )
    return farthest_points(points, num_samples=num_samples, min_squared_norm=min_squared_norm)


class BallScale(NamedTuple):
    """One scale of ball query: at most `num_neighbours` points within `radius`, and the widths of the MLP over them."""

    radius: float
    num_neighbours: int
    widths: tuple[int, ...]


class PlainPositionGroup(nn.Module):
    """MLP with max pooling over the members of groups: their relative positions and their features. Plain form.

    `forward_groups(points (B, N, 3), features (B, N, in_channels) or None, centres (B, M, 3), index (B, M, K)) -> (B,
    M, widths[-1])`; the centres are points of the cloud, `index` the members of each. `first` names the part that comes
    first among the channels, for published weights. Source: Qi et al. 2017 (PointNet++), equation 1.
    """

    network_type: type[PlainGroupedMLP] = PlainGroupedMLP

    def __init__(self, *, in_channels: int, widths: tuple[int, ...], first: Literal["position", "features"]) -> None:
        super().__init__()
        self.first = first
        self.network = self.network_type(in_channels=3 + in_channels, widths=widths, has_bias=True)

    def forward_groups(self, points: Tensor, features: Tensor | None, centres: Tensor, index: Tensor) -> Tensor:
        """Return the maximum (B, M, widths[-1]) over each centre's members."""
        relative_BMK3 = gather_points(points, index) - centres[:, :, None]
        members_BMKC = self._side_by_side(relative_BMK3, None if features is None else gather_points(features, index))
        return self.network.after_first_linear(self.network.first_linear(members_BMKC))

    def _side_by_side(self, relative: Tensor, features: Tensor | None) -> Tensor:
        if features is None:
            return relative
        return torch.cat([relative, features] if self.first == "position" else [features, relative], dim=-1)


class RelativeGroup(PlainPositionGroup):
    """Fused `PlainPositionGroup` with its first linear map applied to points: same state, same numbers, same gradients.

    Under autocast it is the plain form: a position in the cloud, rounded to half precision, may be off by more than the
    group is wide, and so would be the difference of two. Source: as the plain form.
    """

    network_type = GroupedMLP

    def forward_groups(self, points: Tensor, features: Tensor | None, centres: Tensor, index: Tensor) -> Tensor:
        """Return the maximum (B, M, widths[-1]) over each centre's members."""
        if torch.is_autocast_enabled(points.device.type):
            return super().forward_groups(points, features, centres, index)
        linear = self.network.first_linear
        # Any origin gives the same differences. Near the middle of the cloud the two parts do not cancel.
        origin_B13 = points.detach().mean(dim=1, keepdim=True)
        point_terms = linear(self._side_by_side(points - origin_B13, features))
        position_weight = linear.weight[:, :3] if self.first == "position" else linear.weight[:, -3:]
        centre_terms = linear_map(origin_B13 - centres, position_weight)
        return self.network(point_terms, centre_terms, index)


class PlainBallGroup(PlainPositionGroup):
    """MLP with max pooling over the points in a ball about each centre: relative positions and features. Plain form.

    `forward(points (B, N, 3), features (B, N, in_channels) or None, centres (B, M, 3)) -> (B, M, widths[-1])`; the
    centres are points of the cloud. `first` names the part that comes first among the channels, for published weights.
    Source: Qi et al. 2017 (PointNet++), section 3.2.
    """

    def __init__(self, *, in_channels: int, scale: BallScale, first: Literal["position", "features"]) -> None:
        super().__init__(in_channels=in_channels, widths=scale.widths, first=first)
        self.radius, self.num_neighbours = scale.radius, scale.num_neighbours

    def forward(self, points: Tensor, features: Tensor | None, centres: Tensor) -> Tensor:
        """Map points (B, N, 3), features (B, N, C) or None, centres (B, M, 3) -> (B, M, widths[-1])."""
        index = points_in_balls(points, centres=centres, radius=self.radius, num_neighbours=self.num_neighbours)
        return self.forward_groups(points, features, centres, index)


class BallGroup(RelativeGroup, PlainBallGroup):
    """Fused `PlainBallGroup` with its first linear map applied to points, as in `RelativeGroup`.

    Source: as the plain form.
    """


class SetAbstraction(nn.Module):
    """Set abstraction: farthest-point samples of a cloud, and the concatenated results of ball groups about each.

    `forward(points (B, N, 3), features (B, N, in_channels) or None) -> (centres (B, num_samples, 3), features)`.
    Sampling starts at the first point, in training too: shuffle the points for a random start.
    Raises ValueError for clouds of fewer than `num_samples` points and for numbers that are not finite.
    Source: Qi et al. 2017 (PointNet++), sections 3.2 and 3.3.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_samples: int,
        scales: Sequence[BallScale],
        first: Literal["position", "features"] = "position",
        fused: bool = True,
    ) -> None:
        super().__init__()
        self.num_samples = num_samples
        group = BallGroup if fused else PlainBallGroup
        self.groups = nn.ModuleList(group(in_channels=in_channels, scale=scale, first=first) for scale in scales)
        self.out_channels = sum(scale.widths[-1] for scale in scales)

    def forward(self, points: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map points (B, N, 3), features (B, N, C) or None -> centres (B, M, 3), features (B, M, out_channels)."""
        centres = gather_rows(points, sample_centres(points, self.num_samples))
        return centres, torch.cat([group(points, features, centres) for group in self.groups], dim=-1)


class PlainNeighbourGroup(nn.Module):
    """Sample and group (PCT): farthest-point samples, and an MLP over the edges (f_j - f_m, f_m) of each.

    `forward(points (B, N, 3), features (B, N, channels)) -> (centres (B, M, 3), features (B, M, widths[-1]))`, M being
    `num_samples`. Sampling starts at the first point, in training too: shuffle the points for a random start.
    `num_neighbours` refers to clouds of `neighbours_at` points and grows in proportion to N; to any if None.
    `min_squared_norm` as in `farthest_points`.
    Raises ValueError for clouds of fewer than `num_samples` or `num_neighbours` points and for numbers that are not
    finite. Source: Guo et al. 2021 (PCT), section 3.4 (SG), equations 10 to 12.
    """

    network_type: type[PlainGroupedMLP] = PlainGroupedMLP

    def __init__(
        self,
        *,
        channels: int,
        num_samples: int,
        num_neighbours: int,
        widths: tuple[int, ...],
        min_squared_norm: float | None = None,
        neighbours_at: int | None = None,
    ) -> None:
        super().__init__()
        self.num_samples = num_samples
        self.num_neighbours = num_neighbours
        self.neighbours_at = neighbours_at
        self.min_squared_norm = min_squared_norm
        self.network = self.network_type(in_channels=2 * channels, widths=widths, has_bias=False)

    def forward(self, points: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map points (B, N, 3), features (B, N, channels) -> centres (B, M, 3), features (B, M, widths[-1])."""
        chosen = sample_centres(points, self.num_samples, min_squared_norm=self.min_squared_norm)
        centres, centre_features = gather_rows(points, chosen), gather_rows(features, chosen)
        count = scale_num_neighbours(
            self.num_neighbours, reference_num_points=self.neighbours_at, num_points=points.shape[1]
        )
        index = nearest_neighbours(points, num_neighbours=count, queries=centres)
        return centres, self.network.over_edges(features, centre_features, index)


class SampleAndGroup(PlainNeighbourGroup):
    """Fused `PlainNeighbourGroup` with its first linear map applied to points.

    Same state, same numbers, same gradients.
    Source: as the plain form.
    """

    network_type = GroupedMLP


class FeaturePropagation(nn.Module):
    """Feature propagation: an MLP over each fine point's features and the interpolated features of three coarse points.

    `forward` maps the `features` (B, N, S) of fine `points`, or None, and `coarse_features` (B, M, C) to
    (B, N, widths[-1]), with `in_channels` = S + C; weights 1/(d^2 + 1e-8). Of fewer than three coarse points all are
    used. The plain form (`fused=False`, the tested reference) interpolates first; here the first linear map comes
    before the interpolation, which it commutes with, and so runs over the coarse points alone. Same state, same
    numbers, same gradients.
    Raises ValueError for coordinates that are not finite. Source: Qi et al. 2017 (PointNet++), section 3.4.
    """

    def __init__(self, *, in_channels: int, widths: tuple[int, ...], fused: bool = True) -> None:
        super().__init__()
        self.fused = fused
        self.layers = nn.ModuleList(
            LinearNorm(in_channels=width_in, out_channels=width_out, has_bias=True, activation=nn.ReLU())
            for width_in, width_out in pairwise((in_channels, *widths))
        )

    def forward(
        self, points: Tensor, features: Tensor | None, coarse_points: Tensor, coarse_features: Tensor
    ) -> Tensor:
        """Map points (B, N, 3), features (B, N, S), coarse_points (B, M, 3), coarse_features (B, M, C) -> (B, N, D)."""
        first, *rest = (cast(LinearNorm, layer) for layer in self.layers)
        linear = first.linear
        if self.fused:
            skip_weight, coarse_weight = linear.weight.split(
                [linear.in_features - coarse_features.shape[-1], coarse_features.shape[-1]], dim=1
            )
            mapped = interpolate(linear_map(coarse_features, coarse_weight), points=coarse_points, queries=points)
            if features is not None:
                mapped = mapped + linear_map(features, skip_weight)
            values = first.normalise_and_activate(mapped + linear.bias)
        else:
            carried = interpolate(coarse_features, points=coarse_points, queries=points)
            values = first(carried if features is None else torch.cat([features, carried], dim=-1))
        for layer in rest:
            values = layer(values)
        return values
