"""Point-BERT's point transformer for part segmentation. Source: Yu et al. 2022, Point-BERT."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor, nn

from sightline import registry
from sightline.arguments import Count, NonNegativeFloat, Probability
from sightline.layers.cloud import dense_channels, one_hot_category
from sightline.layers.edge_propagation import EdgePropagation
from sightline.layers.feature_propagation import FeaturePropagation
from sightline.layers.mlp import LinearNorm, Width
from sightline.layers.patch_tokens import PatchEmbedding
from sightline.layers.set_abstraction import gather_rows, sample_centres
from sightline.layers.transformer import TransformerEncoder

__all__ = ["PointBERTParts", "PointBERTPointsOutput"]

_DEPTH = 12
_TAP_BLOCKS = (4, 8, 12)
"""Numbers of blocks after which features are taken."""
_NUM_HEADS = 6
_HEAD_WIDTH = 128


class PointBERTPointsOutput(TypedDict):
    """`logits` of every point before the softmax: (B, N, num_classes) or (P, num_classes), as the input."""

    logits: Tensor


@registry.models.add("point_bert_parts")
class PointBERTParts(nn.Module):
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
            LinearNorm(in_channels=width, out_channels=_HEAD_WIDTH, has_bias=True, activation=nn.ReLU()),
            nn.Dropout(dropout),
            nn.Linear(_HEAD_WIDTH, num_classes),
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
        return {"logits": logits.view(*points.shape[:-1], -1)}

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
