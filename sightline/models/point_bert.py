"""Point-BERT's point transformer, as feature extractor and for classification. Source: Yu et al. 2022, Point-BERT."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor, nn

from sightline import registry
from sightline.arguments import Count, NonNegativeFloat, Probability
from sightline.layers.cloud import concat_channels
from sightline.layers.mlp import Width
from sightline.layers.patch_tokens import PatchEmbedding
from sightline.layers.transformer import TransformerEncoder

__all__ = ["PointBERT", "PointBERTEncoder", "PointBERTOutput"]

_HEAD_WIDTH = 256


class PointBERTOutput(TypedDict):
    """`logits` (B, num_classes), before any softmax."""

    logits: Tensor


@registry.point_encoders.add("point_bert")
class PointBERTEncoder(nn.Module):
    """Point-BERT encoder: a transformer over a class token and patch tokens; the class token joined with their maximum.

    `encode` returns (B, 2 * width). Each of `num_groups` tokens represents the `group_size` points about a centre; the
    positions of the centres are added before every block. The authors take 64 groups of 32 for 1,024 points and 512 of
    32 for 8,192. Sampling starts at the first point, in training and in evaluation; else the order of the points does
    not matter. Published weights need `min_squared_norm: 1e-3`: the sampling that they were trained with skips
    points nearer to the origin. Channels beyond the coordinates are an addition of ours: the members of a group have
    them. `drop_path` drops branches at random in training. `embed` makes tokens, `trunk` is the transformer.
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
class PointBERT(PointBERTEncoder):
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
