"""Functions and modules by the names and arguments of pointnet2_ops: points (B, N, 3), features (B, C, N).

`from sightline.ops.points import pointnet2 as pointnet2_utils` takes the place of `from pointnet2_ops import
pointnet2_utils`. What differs: they run on CPUs, too; indices are int64; a ball without points is refused, not filled
with point 0.
Source: https://github.com/erikwijmans/Pointnet2_PyTorch, pointnet2_ops_lib.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sightline.ops.points.ball_query import points_in_balls
from sightline.ops.points.farthest_points import farthest_points
from sightline.ops.points.grouping import gather_points, take_points
from sightline.ops.points.neighbours import nearest_neighbours

_BARRED = 1e-3
"""Squared norm up to which the library never chooses a point after the first."""


def furthest_point_sample(xyz: Tensor, npoint: int) -> Tensor:
    """Sample the farthest points of `xyz` (B, N, 3), beginning with the first: index (B, npoint) int64.

    As there, points whose squared norm is at most 1e-3 are never chosen after the first: `farthest_points` has no such
    rule unless asked. `centres = furthest_point_sample(points, 128)`. Raises ValueError as `farthest_points`.
    Source: pointnet2_utils.furthest_point_sample.
    """
    return farthest_points(xyz, npoint, min_squared_norm=_BARRED)


def gather_operation(features: Tensor, idx: Tensor) -> Tensor:
    """Gather columns of `features` (B, C, N) by `idx` (B, M): (B, C, M). Raises ValueError as `gather_points`.

    Source: pointnet2_utils.gather_operation.
    """
    return grouping_operation(features, idx[:, None])[:, :, 0]


def grouping_operation(features: Tensor, idx: Tensor) -> Tensor:
    """Gather groups of columns of `features` (B, C, N) by `idx` (B, M, K): (B, C, M, K).

    Raises ValueError as `gather_points`. Source: pointnet2_utils.grouping_operation.
    """
    return gather_points(features.mT, idx.long()).permute(0, 3, 1, 2)


@torch.no_grad()
def three_nn(unknown: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Find the three nearest of `known` (B, M, 3) to each of `unknown` (B, N, 3): distances and indices (B, N, 3).

    Distances are not squared, and without gradients. `dist, idx = three_nn(points, centres)`.
    Raises ValueError as `nearest_neighbours`. Source: pointnet2_utils.three_nn.
    """
    unknown, known = unknown.detach(), known.detach()  # tangents of forward mode, too
    idx = nearest_neighbours(known, 3, queries=unknown)
    near = take_points(known, idx)
    return torch.linalg.vector_norm(unknown[:, :, None] - near, dim=-1), idx


def three_interpolate(features: Tensor, idx: Tensor, weight: Tensor) -> Tensor:
    """Sum columns `idx` (B, N, 3) of `features` (B, C, M) times `weight` (B, N, 3): (B, C, N).

    With gradients of both; `interpolate` finds the neighbours and weights, too. Raises ValueError as `gather_points`.
    Source: pointnet2_utils.three_interpolate.
    """
    return (grouping_operation(features, idx) * weight[:, None]).sum(dim=-1)


def ball_query(radius: float, nsample: int, xyz: Tensor, new_xyz: Tensor) -> Tensor:
    """Find the first `nsample` of `xyz` (B, N, 3) nearer than `radius` to each of `new_xyz` (B, M, 3): (B, M, nsample).

    A ball with fewer repeats its first one. Raises ValueError as `points_in_balls`.
    Source: pointnet2_utils.ball_query.
    """
    return points_in_balls(xyz, centres=new_xyz, radius=radius, num_neighbours=nsample, has_rim=False)


class QueryAndGroup(nn.Module):
    """Groups of points and features in balls: `QueryAndGroup(0.2, 32)(xyz, new_xyz, features)`.

    `xyz` (B, N, 3), `new_xyz` (B, M, 3), `features` (B, C, N) -> (B, 3 + C, M, nsample), the points relative to their
    centre; without `use_xyz` features alone. Source: pointnet2_utils.QueryAndGroup.
    """

    def __init__(self, radius: float, nsample: int, use_xyz: bool = True) -> None:
        super().__init__()
        self.radius, self.nsample, self.use_xyz = radius, nsample, use_xyz

    def forward(self, xyz: Tensor, new_xyz: Tensor, features: Tensor | None = None) -> Tensor:
        """Group by the balls around `new_xyz`."""
        idx = ball_query(self.radius, self.nsample, xyz, new_xyz)
        relative = take_points(xyz, idx) - new_xyz[:, :, None]
        groups = None if features is None else take_points(features.mT, idx).permute(0, 3, 1, 2)
        return _join(relative.permute(0, 3, 1, 2), groups, self.use_xyz)


class GroupAll(nn.Module):
    """One group of all points and features: `xyz` (B, N, 3), `features` (B, C, N) -> (B, 3 + C, 1, N).

    Without `use_xyz` features alone. Source: pointnet2_utils.GroupAll.
    """

    def __init__(self, use_xyz: bool = True) -> None:
        super().__init__()
        self.use_xyz = use_xyz

    def forward(self, xyz: Tensor, new_xyz: Tensor | None, features: Tensor | None = None) -> Tensor:
        """Group all; `new_xyz` is not looked at."""
        return _join(xyz.mT[:, :, None], None if features is None else features[:, :, None], self.use_xyz)


def _join(points: Tensor, features: Tensor | None, use_xyz: bool) -> Tensor:
    if features is None:
        if not use_xyz:
            raise ValueError(
                "use_xyz: found False without features, which leaves nothing; give features or use_xyz=True"
            )
        return points
    return torch.cat([points, features], dim=1) if use_xyz else features
