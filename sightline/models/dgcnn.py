"""DGCNN for the classification of clouds. Source: Wang et al. 2019, Dynamic Graph CNN."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor, nn

from sightline import registry
from sightline.arguments import Count, Probability
from sightline.geometry.neighbours import assert_meant_for, nearest_neighbours, scale_num_neighbours
from sightline.layers.cloud import concat_channels
from sightline.layers.edge_conv import EdgeConv, PlainEdgeConv
from sightline.layers.mlp import LinearNorm, Width
from sightline.layers.pooling import LinearNormPool

__all__ = ["DGCNN", "DGCNNEncoder", "DGCNNOutput"]

_EDGE_WIDTHS = (64, 64, 128, 256)


class DGCNNOutput(TypedDict):
    """`logits` (B, num_classes), before any softmax."""

    logits: Tensor


@registry.point_encoders.add("dgcnn")
class DGCNNEncoder(nn.Module):
    """DGCNN encoder: four edge convolutions on dynamic kNN graphs, then max and mean pooling of a map of their outputs.

    `encode` returns (B, 2 * embedding), independent of the order of the points. Clouds need at least as many points as
    a point has neighbours; the authors of CrossPoint take 15 of 2048. With `neighbours_at`, `num_neighbours` refers to
    clouds of that many points, and a cloud of more or fewer has neighbours in proportion: 10 at 256 are 40 at 1024, so
    that edges keep their length and weights trained on sparse clouds see familiar neighbourhoods. `fused: false` uses
    the plain forms of all layers: the same numbers, several times slower, for comparison.
    Source: Wang et al. 2019, figure 3; layout of WangYueFt/dgcnn.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_neighbours: Count = 20,
        neighbours_at: Count | None = None,
        embedding: Width = 1024,
        fused: bool = True,
    ) -> None:
        super().__init__()
        assert_meant_for(neighbours_at, num_neighbours=num_neighbours)
        self.in_channels = in_channels
        self.num_neighbours = num_neighbours
        self.neighbours_at = neighbours_at
        self.feature_width = 2 * embedding
        edge_conv = EdgeConv if fused else PlainEdgeConv
        widths_in = (in_channels, *_EDGE_WIDTHS[:-1])
        self.edges = nn.ModuleList(
            edge_conv(in_channels=width, out_channels=width_out)
            for width, width_out in zip(widths_in, _EDGE_WIDTHS, strict=True)
        )
        self.embed = LinearNormPool(
            in_channels=sum(_EDGE_WIDTHS), out_channels=embedding, negative_slope=0.2, fused=fused
        )

    def encode(self, *, points: Tensor, features: Tensor | None = None) -> Tensor:
        """Encode `points` (B, N, 3) in any unit.

        `features` (B, N, in_channels - 3) are required if the model has more channels.
        """
        values = concat_channels(points, features, in_channels=self.in_channels)
        num_neighbours = scale_num_neighbours(
            self.num_neighbours, reference_num_points=self.neighbours_at, num_points=points.shape[1]
        )
        graph_space = (
            points  # where the next graph is sought: coordinates alone at first, whatever else a point carries
        )
        levels = []
        for edge_conv in self.edges:
            index = nearest_neighbours(graph_space, num_neighbours=num_neighbours)
            values = graph_space = edge_conv(values, index)
            levels.append(values)
        return self.embed(torch.cat(levels, dim=-1))


@registry.models.add("dgcnn")
class DGCNN(DGCNNEncoder):
    """DGCNN: four edge convolutions on dynamic kNN graphs, first among the coordinates, then among the features.

    The output does not depend on the order of the points. Clouds need at least `num_neighbours` points; the authors
    take 20 of 1024 and 40 of 2048. `neighbours_at` as in the encoder `dgcnn`. `fused: false` uses the plain forms of
    all layers: the same numbers, several times slower, for comparison.
    Source: Wang et al. 2019, figure 3; layout of WangYueFt/dgcnn.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        num_neighbours: Count = 20,
        neighbours_at: Count | None = None,
        embedding: Width = 1024,
        dropout: Probability = 0.5,
        fused: bool = True,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            num_neighbours=num_neighbours,
            neighbours_at=neighbours_at,
            embedding=embedding,
            fused=fused,
        )
        self.head = nn.Sequential(
            _leaky_layer(self.feature_width, 512),
            nn.Dropout(dropout),
            _leaky_layer(512, 256, has_bias=True),
            nn.Dropout(dropout),
            nn.Linear(256, num_classes),
        )

    def forward(self, *, points: Tensor, features: Tensor | None = None) -> DGCNNOutput:
        """Predict from `points` (B, N, 3) in any unit.

        `features` (B, N, in_channels - 3) are required if the model has more channels.
        """
        return {"logits": self.head(self.encode(points=points, features=features))}


def _leaky_layer(in_channels: int, out_channels: int, has_bias: bool = False) -> LinearNorm:
    activation = nn.LeakyReLU(negative_slope=0.2)
    return LinearNorm(in_channels=in_channels, out_channels=out_channels, has_bias=has_bias, activation=activation)
