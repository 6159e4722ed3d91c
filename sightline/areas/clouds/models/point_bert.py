"""Point-BERT's point transformer, as feature extractor, for classification and for part segmentation.

Source: Yu et al. 2022, Point-BERT.
"""

from __future__ import annotations

from typing import TypedDict, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.contract import registry
from sightline.contract.arguments import Count, NonNegativeFloat, Probability, Width
from sightline.contract.model import Encoder, Model
from sightline.layers.cloud_layouts import concat_channels, dense_channels, one_hot_category
from sightline.layers.mlp import JoinedLinearNorm, LinearNorm
from sightline.layers.set_abstraction import FeaturePropagation, gather_rows, sample_centres
from sightline.layers.transformer import TransformerEncoder, init_trunc_normal
from sightline.ops import gather_points, nearest_neighbours

_HEAD_WIDTH = 256
_FIRST_WIDTH, _MEMBER_WIDTH, _JOINED_WIDTH = 128, 256, 512
_POSITION_HIDDEN = 128


def group_points(
    points: Tensor, *, num_groups: int, group_size: int, min_squared_norm: float | None = None
) -> tuple[Tensor, Tensor]:
    """Sample centres (B, num_groups, 3) by FPS and return the rows (B, num_groups, group_size) of their nearest points.

    The members of a group are in the order of (distance, index), the centre itself among them. Sampling starts at the
    first point; `min_squared_norm` as in `farthest_points`.
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
        self.enter = LinearNorm(in_channels=in_channels, out_channels=_FIRST_WIDTH, has_bias=True, activation=nn.ReLU())
        self.widen = nn.Linear(_FIRST_WIDTH, _MEMBER_WIDTH)
        self.join = JoinedLinearNorm(
            in_channels=2 * _MEMBER_WIDTH,
            out_channels=_JOINED_WIDTH,
            has_bias=True,
            activation=nn.ReLU(),
            first="global_features",
            fused=fused,
        )
        self.leave = nn.Linear(_JOINED_WIDTH, out_channels)

    def forward(self, groups: Tensor) -> Tensor:
        """Map groups (M, K, in_channels) -> (M, out_channels)."""
        members_MKC = self.widen(self.enter(groups))
        joined_MKC = self.join(members_MKC.max(dim=1).values, members_MKC)
        return self.leave(joined_MKC).max(dim=1).values


class PatchEmbedding(nn.Module):
    """Patch embedding: a class token and a token for each group of a cloud, with position embeddings.

    `forward(points (B, N, 3), channels (B, N, in_channels)) -> (tokens, positions, centres)`, the first two of shape
    (B, 1 + num_groups, width), the centres (B, num_groups, 3). A member of a group has its position relative to the
    centre and its channels after the third. Raises ValueError as `group_points` does.
    Source: Yu et al. 2022, Point-BERT, section 3.1.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        width: int,
        num_groups: int,
        group_size: int,
        min_squared_norm: float | None,
        patch_width: int | None = None,
    ) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.group_size = group_size
        self.min_squared_norm = min_squared_norm
        patch_width = patch_width or max(1, 2 * width // 3)
        self.patches = MiniPointNet(in_channels=in_channels, out_channels=patch_width)
        self.reduce: nn.Module = nn.Identity()
        if patch_width != width:
            self.reduce = nn.Linear(patch_width, width)
            init_trunc_normal(self.reduce)
        hidden, out = nn.Linear(3, _POSITION_HIDDEN), nn.Linear(_POSITION_HIDDEN, width)
        self.position = nn.Sequential(hidden, nn.GELU(), out)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.class_position = nn.Parameter(torch.empty(1, 1, width))
        for linear in (hidden, out):
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
        tokens = torch.cat([self.class_token.expand(points.shape[0], -1, -1), self.reduce(patches_BGC)], dim=1)
        positions = torch.cat([self.class_position.expand(points.shape[0], -1, -1), self.position(centres)], dim=1)
        return tokens, positions, centres


class PointBERTOutput(TypedDict):
    """`logits` (B, num_classes), before any softmax."""

    logits: Tensor


@registry.point_encoders.add("point_bert")
class PointBERTEncoder(Encoder):
    """Point-BERT encoder: a transformer over a class token and patch tokens; the class token joined with their maximum.

    `encode` returns (B, 2 * width). Each of `num_groups` tokens represents the `group_size` points about a centre; the
    positions of the centres are added before every block. The authors take 64 groups of 32 for 1,024 points and 512 of
    32 for 8,192. Sampling starts at the first point, in training and in evaluation; else the order of the points does
    not matter. The vector of a group has `patch_width` numbers, by default two thirds of `width`, and is mapped to a
    token; one of `width` is the token itself, as in Point-MAE. Weights of the authors need `min_squared_norm: 1e-3`:
    the sampling that they were trained with skips points nearer to the origin. Channels beyond the coordinates are an
    addition of ours: the members of a group have them. `drop_path` drops branches at random in training. `embed` makes
    tokens, `trunk` is the transformer.
    Source: Yu et al. 2022, section 3.1, the feature and positions as in its code; layout of lulutang0608/Point-BERT.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        width: Width = 384,
        depth: Count = 12,
        num_heads: Count = 6,
        num_groups: Count = 64,
        group_size: Count = 32,
        drop_path: Probability = 0.1,
        min_squared_norm: NonNegativeFloat | None = None,
        patch_width: Width | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.feature_width = 2 * width
        self.embed = PatchEmbedding(
            in_channels=in_channels,
            width=width,
            num_groups=num_groups,
            group_size=group_size,
            min_squared_norm=min_squared_norm,
            patch_width=patch_width,
        )
        self.trunk = TransformerEncoder(width=width, depth=depth, num_heads=num_heads, drop_path=drop_path)

    def encode(self, *, points: Tensor, features: Tensor | None = None) -> Tensor:
        """Encode `points` (B, N, 3) in any unit.

        `features` (B, N, in_channels - 3) are required if the model has more channels.
        """
        channels = concat_channels(points, features, in_channels=self.in_channels)
        tokens, positions, _ = self.embed(points, channels)
        tokens = self.trunk(tokens, positions)
        return torch.cat([tokens[:, 0], tokens[:, 1:].max(dim=1).values], dim=-1)


@registry.models.add("point_bert")
class PointBERT(PointBERTEncoder, Model):
    """Point-BERT classifier: its point transformer and a two-layer head, fully trained or as a frozen extractor.

    Frozen: `optimizer.frozen: [{modules: embed}, {modules: trunk}]`. The arguments are those of the point encoder
    `point_bert`. Source: Yu et al. 2022, section 4.2; layout of lulutang0608/Point-BERT.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        width: Width = 384,
        depth: Count = 12,
        num_heads: Count = 6,
        num_groups: Count = 64,
        group_size: Count = 32,
        drop_path: Probability = 0.1,
        dropout: Probability = 0.5,
        min_squared_norm: NonNegativeFloat | None = None,
        patch_width: Width | None = None,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            width=width,
            depth=depth,
            num_heads=num_heads,
            num_groups=num_groups,
            group_size=group_size,
            drop_path=drop_path,
            min_squared_norm=min_squared_norm,
            patch_width=patch_width,
        )
        self.head = nn.Sequential(
            nn.Linear(self.feature_width, _HEAD_WIDTH),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(_HEAD_WIDTH, num_classes),
        )

    def forward(self, *, points: Tensor, features: Tensor | None = None) -> PointBERTOutput:
        """Predict from `points` (B, N, 3) in any unit.

        `features` (B, N, in_channels - 3) are required if the model has more channels.
        """
        return {"logits": self.head(self.encode(points=points, features=features))}


_DEPTH = 12
_TAP_BLOCKS = (4, 8, 12)
"""Numbers of blocks after which features are taken."""
_NUM_HEADS = 6
_PARTS_HEAD_WIDTH = 128


_NUM_CHANNEL_GROUPS = 4
_SLOPE = 0.2


class EdgePropagation(nn.Module):
    """Two EdgeConv steps for upsampling: coarse to fine points, then among fine points.

    `forward` maps the `features` (B, N, channels) of fine `points` and `coarse_features` (B, M, channels) to
    (B, N, out_channels). An edge carries (f_j - f_i, f_i) through a linear map, a group norm over
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

    def forward(self, points: Tensor, features: Tensor, coarse_points: Tensor, coarse_features: Tensor) -> Tensor:
        """Map features (B, N, C) and coarse_features (B, M, C), with their points, -> (B, N, out_channels)."""
        received = self._over_edges(0, points, features, coarse_points, coarse_features)
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


class PointBERTPointsOutput(TypedDict):
    """`logits` of every point before the softmax: (B, N, num_classes) or (P, num_classes), as the input."""

    logits: Tensor


@registry.models.add("point_bert_parts")
class PointBERTParts(Model):
    """Point-BERT part segmentation: features of three depths, propagated from the groups to all points.

    The object's category is an input. The tokens of the 4th and the 8th block reach `num_centres` points each by
    interpolation, those of the last by edges through both; all points receive them by interpolation, joined with their
    category and channels. Clouds need at least `num_centres[0]` points, and are of one size in a batch. Sampling starts
    at the first point, in training and in evaluation. Published weights need `min_squared_norm: 1e-3`, as for
    `point_bert`, whose pre-trained `embed` and `trunk` have the same names. Source: Yu et al. 2022, section 4.2; layout
    of lulutang0608/Point-BERT.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        num_categories: int,
        width: Width = 384,
        num_groups: Count = 128,
        group_size: Count = 32,
        num_centres: tuple[Count, Count] = (512, 256),
        drop_path: Probability = 0.1,
        dropout: Probability = 0.5,
        min_squared_norm: NonNegativeFloat | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.num_categories = num_categories
        self.num_centres = num_centres
        self.min_squared_norm = min_squared_norm
        self.embed = PatchEmbedding(
            in_channels=in_channels,
            width=width,
            num_groups=num_groups,
            group_size=group_size,
            min_squared_norm=min_squared_norm,
        )
        self.trunk = TransformerEncoder(width=width, depth=_DEPTH, num_heads=_NUM_HEADS, drop_path=drop_path)
        self.propagations = nn.ModuleList(
            FeaturePropagation(in_channels=skip_width + width, widths=(4 * width, width))
            for skip_width in (num_categories + in_channels, 3, 3)
        )
        self.edges = nn.ModuleList(
            EdgePropagation(channels=width, hidden=4 * width // 3, out_channels=width) for _ in num_centres
        )
        self.head = nn.Sequential(
            LinearNorm(in_channels=width, out_channels=_PARTS_HEAD_WIDTH, has_bias=True, activation=nn.ReLU()),
            nn.Dropout(dropout),
            nn.Linear(_PARTS_HEAD_WIDTH, num_classes),
        )

    def forward(
        self, *, points: Tensor, category: Tensor, features: Tensor | None = None, offsets: Tensor | None = None
    ) -> PointBERTPointsOutput:
        """Predict from `points` (B, N, 3) or, with `offsets` (B+1,), (B*N, 3), in any unit.

        `features` are as wide as the data set states.
        `category` (B,) int64. Raises ValueError for clouds of several sizes and for values that are not finite.
        """
        channels_BNC = dense_channels(points, features, offsets, in_channels=self.in_channels)
        chosen = one_hot_category(category, like=channels_BNC, num_categories=self.num_categories)
        all_points = channels_BNC[..., :3]
        groups, (early, middle, late) = self._group_features(all_points, channels_BNC)
        fine, coarse = (self._centres(all_points, count) for count in self.num_centres)

        to_all, to_fine, to_coarse = self.propagations
        fine_features = to_fine(fine, fine, groups, early)
        coarse_features = to_coarse(coarse, coarse, groups, middle)
        over_fine, over_coarse = self.edges
        coarse_features = over_coarse(coarse, coarse_features, groups, late)
        fine_features = over_fine(fine, fine_features, coarse, coarse_features)
        repeated_BNK = chosen[:, None].expand(-1, channels_BNC.shape[1], -1)
        own_BNC = torch.cat([repeated_BNK, channels_BNC], dim=-1)
        logits = self.head(to_all(all_points, own_BNC, fine, fine_features))
        return {"logits": logits.view(*points.shape[:-1], logits.shape[-1])}

    def _group_features(self, points: Tensor, channels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the centres of the groups, and their features (B, num_groups, width) at each tapped depth."""
        tokens, positions, centres = self.embed(points, channels)
        taken = []
        for number, block in enumerate(self.trunk.blocks, start=1):
            tokens = block(tokens + positions)
            if number in _TAP_BLOCKS:
                taken.append(self.trunk.norm(tokens)[:, 1:])
        return centres, taken

    def _centres(self, points: Tensor, count: int) -> Tensor:
        return gather_rows(points, sample_centres(points, count, min_squared_norm=self.min_squared_norm))
