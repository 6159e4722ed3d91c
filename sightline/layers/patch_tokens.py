"""Patch tokens of a cloud: sampled centres, a mini-PointNet over each patch, and position embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sightline.geometry import gather_points, nearest_neighbours
from sightline.layers.mlp import JoinedLinearNorm, LinearNorm
from sightline.layers.set_abstraction import gather_rows, sample_centres
from sightline.layers.transformer import init_trunc_normal

__all__ = ["MiniPointNet", "PatchEmbedding", "group_points"]

_FIRST, _EACH, _JOINED = 128, 256, 512
_POSITION_HIDDEN = 128


def group_points(
    points: Tensor, *, num_groups: int, group_size: int, min_squared_norm: float | None = None
) -> tuple[Tensor, Tensor]:
    """Sample centres (B, num_groups, 3) by FPS and return the rows (B, num_groups, group_size) of their nearest points.

    The members of a group are in the order of (distance, index), the centre itself among them. Sampling starts at the
    first point; `min_squared_norm` as in `farthest_point_sample`.
    Raises ValueError for clouds of fewer points than either number, and for values that are not finite.
    Source: Yu et al. 2022, Point-BERT, section 3.1 (point tokenization).
    """
    if group_size > points.shape[1]:
        raise ValueError(
            f"points: found clouds of {points.shape[1]} points, of which {group_size} are to form a group; give clouds "
            f"of at least {group_size} points or lower group_size"
        )
    chosen = sample_centres(points, num_groups, min_squared_norm=min_squared_norm, argument="num_groups")
    centres = gather_rows(points, chosen)
    return centres, nearest_neighbours(points, num_neighbours=group_size, queries=centres)


class MiniPointNet(nn.Module):
    """Mini-PointNet: one vector for each group of points, (M, K, in_channels) -> (M, out_channels).

    An MLP over each member, concatenation with the group's maximum, a second MLP, the maximum.
    `fused=False` repeats the maximum at every member, the tested reference; else it is mapped once per group: the same
    numbers. Source: Yu et al. 2022, Point-BERT, section 3.1, after Qi et al. 2017, PointNet.
    """

    def __init__(self, *, in_channels: int, out_channels: int, fused: bool = True) -> None:
        super().__init__()
        self.enter = LinearNorm(in_channels=in_channels, out_channels=_FIRST, has_bias=True, activation=nn.ReLU())
        self.widen = nn.Linear(_FIRST, _EACH)
        self.join = JoinedLinearNorm(
            in_channels=2 * _EACH, out_channels=_JOINED, has_bias=True, activation=nn.ReLU(), first="whole", fused=fused
        )
        self.leave = nn.Linear(_JOINED, out_channels)

    def forward(self, groups: Tensor) -> Tensor:
        """Map groups (M, K, in_channels) -> (M, out_channels)."""
        each_MKC = self.widen(self.enter(groups))
        joined_MKC = self.join(each_MKC.max(dim=1).values, each_MKC)
        return self.leave(joined_MKC).max(dim=1).values


class PatchEmbedding(nn.Module):
    """Patch embedding: a class token and a token for each group of a cloud, with position embeddings.

    `forward(points (B, N, 3), channels (B, N, in_channels)) -> (tokens, positions, centres)`, the first two of shape
    (B, 1 + num_groups, width), the centres (B, num_groups, 3). A member of a group has its position relative to the
    centre and its channels after the third. Raises ValueError as `group_points` does.
    Source: Yu et al. 2022, Point-BERT, section 3.1.
    """

    def __init__(
        self, *, in_channels: int, width: int, num_groups: int, group_size: int, min_squared_norm: float | None
    ) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.group_size = group_size
        self.min_squared_norm = min_squared_norm
        patch_width = max(1, 2 * width // 3)
        self.patches = MiniPointNet(in_channels=in_channels, out_channels=patch_width)
        self.reduce = nn.Linear(patch_width, width)
        hidden, out = nn.Linear(3, _POSITION_HIDDEN), nn.Linear(_POSITION_HIDDEN, width)
        self.position = nn.Sequential(hidden, nn.GELU(), out)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.class_position = nn.Parameter(torch.empty(1, 1, width))
        for linear in (self.reduce, hidden, out):
            init_trunc_normal(linear)
        for parameter in (self.class_token, self.class_position):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, points: Tensor, channels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map points (B, N, 3), channels (B, N, C) -> tokens and positions (B, 1 + G, width), centres (B, G, 3)."""
        centres, index = group_points(
            points,
            num_groups=self.num_groups,
            group_size=self.group_size,
            min_squared_norm=self.min_squared_norm,
        )
        members_BGKC = gather_points(channels, index)
        relative_BGK3 = members_BGKC[..., :3] - centres[:, :, None]
        groups_BGKC = torch.cat([relative_BGK3, members_BGKC[..., 3:]], dim=-1)
        patches_BGC = self.patches(groups_BGKC.flatten(0, 1)).unflatten(0, centres.shape[:2])
        tokens = torch.cat([self.class_token.expand(len(points), -1, -1), self.reduce(patches_BGC)], dim=1)
        positions = torch.cat([self.class_position.expand(len(points), -1, -1), self.position(centres)], dim=1)
        return tokens, positions, centres
