"""DGCNN for the classification of clouds, and the segmentation of objects and scenes.

Source: Wang et al. 2019, Dynamic Graph CNN.
"""

from __future__ import annotations

from typing import Literal, TypedDict

import torch
from torch import Tensor, nn

from sightline.contract import registry
from sightline.contract.arguments import Count, Probability, Width
from sightline.contract.errors import ConfigError
from sightline.contract.model import Encoder, Model
from sightline.layers.cloud_layouts import concat_channels, dense_channels, one_hot_category
from sightline.layers.edge_conv import EdgeConv, EdgeMLP, PlainEdgeConv, PlainEdgeMLP
from sightline.layers.mlp import JoinedLinearNorm, LinearNorm
from sightline.layers.pooling import LinearNormMax, LinearNormPool
from sightline.ops.points.grouping import assert_meant_for, scale_num_neighbours
from sightline.ops.points.neighbours import nearest_neighbours

_EDGE_WIDTHS = (64, 64, 128, 256)


class DGCNNOutput(TypedDict):
    """`logits` (B, num_classes), before any softmax."""

    logits: Tensor


@registry.point_encoders.add("dgcnn")
class DGCNNEncoder(Encoder):
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
            points  # where the next graph is sought: coordinates alone at first, without a point's other channels
        )
        levels = []
        for edge_conv in self.edges:
            index = nearest_neighbours(graph_space, num_neighbours=num_neighbours)
            values = graph_space = edge_conv(values, index)
            levels.append(values)
        return self.embed(torch.cat(levels, dim=-1))


@registry.models.add("dgcnn")
class DGCNN(DGCNNEncoder, Model):
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


_WIDTH = 64
_NUM_LEVELS = 3
_CATEGORY_WIDTH = 64


class DGCNNPointsOutput(TypedDict):
    """`logits` of every point before the softmax: (B, N, num_classes) or (P, num_classes), as the input."""

    logits: Tensor


class SpatialTransform(nn.Module):
    """Spatial transform: a 3 x 3 matrix predicted from a cloud's graph, initially the identity: (B, N, 3) -> (B, 3, 3).

    It is multiplied from the right. Source: Wang et al. 2019, figure 3 (spatial transform).
    """

    def __init__(self, *, num_neighbours: int, fused: bool) -> None:
        super().__init__()
        self.num_neighbours = num_neighbours
        self.edge = (EdgeMLP if fused else PlainEdgeMLP)(in_channels=3, widths=(64, 128))
        self.embed = LinearNormMax(in_channels=128, out_channels=1024, activation=_leaky(), fused=fused)
        matrix = nn.Linear(256, 9)
        nn.init.zeros_(matrix.weight)
        with torch.no_grad():
            matrix.bias.copy_(torch.eye(3).flatten())
        self.head = nn.Sequential(_leaky_segmentation_layer(1024, 512), _leaky_segmentation_layer(512, 256), matrix)

    def forward(self, points: Tensor) -> Tensor:
        index = nearest_neighbours(points, num_neighbours=self.num_neighbours)
        return self.head(self.embed(self.edge(points, index))).view(-1, 3, 3)


class _Levels(nn.Module):
    """Three edge convolutions on dynamic graphs: all their outputs, and the max pooling of a map of them.

    `forward(values (B, N, in_channels), near (B, N, 3)) -> (maxima (B, embedding), outputs (B, N, 192))`; the first
    graph is built in `near`, the others among the features.
    """

    def __init__(self, *, in_channels: int, num_neighbours: int, embedding: int, fused: bool) -> None:
        super().__init__()
        self.num_neighbours = num_neighbours
        network, conv = (EdgeMLP, EdgeConv) if fused else (PlainEdgeMLP, PlainEdgeConv)
        self.edges = nn.ModuleList(
            [
                network(in_channels=in_channels, widths=(_WIDTH, _WIDTH)),
                network(in_channels=_WIDTH, widths=(_WIDTH, _WIDTH)),
                conv(in_channels=_WIDTH, out_channels=_WIDTH),
            ]
        )
        self.embed = LinearNormMax(
            in_channels=_NUM_LEVELS * _WIDTH, out_channels=embedding, activation=_leaky(), fused=fused
        )

    def forward(self, values: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
        levels = []
        for edge in self.edges:
            index = nearest_neighbours(near, num_neighbours=self.num_neighbours)
            values = near = edge(values, index)
            levels.append(values)
        each_BNC = torch.cat(levels, dim=-1)
        return self.embed(each_BNC), each_BNC


@registry.point_encoders.add("dgcnn_parts")
class DGCNNPartsEncoder(Encoder):
    """DGCNN encoder for parts: a spatial transform, three edge convolutions, and max pooling of their outputs.

    `encode` returns (B, embedding), independent of the order of the points. Clouds need at least `num_neighbours`
    points, and are of one size in a batch; the authors take 40 of 2048. If points have more channels than coordinates,
    only coordinates are transformed, and the first graph is built among them. `fused: false` uses the plain forms of
    all layers: the same numbers, several times slower, for comparison.
    Source: Wang et al. 2019, figure 3 and section 4.4; layout of antao97/dgcnn.pytorch.
    """

    def __init__(
        self, *, in_channels: int, num_neighbours: Count = 40, embedding: Width = 1024, fused: bool = True
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.feature_width = embedding
        self.alignment = SpatialTransform(num_neighbours=num_neighbours, fused=fused)
        self.levels = _Levels(in_channels=in_channels, num_neighbours=num_neighbours, embedding=embedding, fused=fused)

    def encode(self, *, points: Tensor, features: Tensor | None = None, offsets: Tensor | None = None) -> Tensor:
        """Encode `points` (B, N, 3) or, with `offsets` (B+1,), (B*N, 3), in any unit.

        `features` are as wide as the data set states.
        Raises ValueError for clouds of several sizes and for values that are not finite.
        """
        global_feature, _ = self._read(dense_channels(points, features, offsets, in_channels=self.in_channels))
        return global_feature

    def _read(self, channels_BNC: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pooled feature (B, embedding) and the point features (B, N, 192)."""
        near_BN3 = channels_BNC[..., :3]
        turned_BN3 = near_BN3 @ self.alignment(near_BN3)
        global_feature, point_features = self.levels(torch.cat([turned_BN3, channels_BNC[..., 3:]], dim=-1), turned_BN3)
        return global_feature, point_features


@registry.models.add("dgcnn_parts")
class DGCNNParts(DGCNNPartsEncoder, Model):
    """DGCNN part segmentation: a spatial transform, three edge convolutions, a head; the object's category is an input.

    The order of the points does not matter. Clouds need at least `num_neighbours` points, and are of one size in a
    batch; the authors take 40 of 2048. If points have more channels than coordinates, only coordinates are transformed,
    and the first graph is built among them. `fused: false` uses the plain forms of all layers: the same numbers,
    several times slower, for comparison.
    Source: Wang et al. 2019, figure 3 and section 4.4; layout of antao97/dgcnn.pytorch.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        num_categories: int,
        num_neighbours: Count = 40,
        embedding: Width = 1024,
        dropout: Probability = 0.5,
        fused: bool = True,
    ) -> None:
        super().__init__(in_channels=in_channels, num_neighbours=num_neighbours, embedding=embedding, fused=fused)
        self.num_categories = num_categories
        self.category = _leaky_segmentation_layer(num_categories, _CATEGORY_WIDTH)
        self.join = JoinedLinearNorm(
            in_channels=embedding + _CATEGORY_WIDTH + _NUM_LEVELS * _WIDTH,
            out_channels=256,
            activation=_leaky(),
            fused=fused,
        )
        self.head = nn.Sequential(
            nn.Dropout(dropout),
            _leaky_segmentation_layer(256, 256),
            nn.Dropout(dropout),
            _leaky_segmentation_layer(256, 128),
            nn.Linear(128, num_classes, bias=False),
        )

    def forward(
        self, *, points: Tensor, category: Tensor, features: Tensor | None = None, offsets: Tensor | None = None
    ) -> DGCNNPointsOutput:
        """Predict from `points` (B, N, 3) or, with `offsets` (B+1,), (B*N, 3), in any unit.

        `features` are as wide as the data set states.
        `category` (B,) int64. Raises ValueError for clouds of several sizes and for values that are not finite.
        """
        channels_BNC = dense_channels(points, features, offsets, in_channels=self.in_channels)
        chosen = one_hot_category(category, like=channels_BNC, num_categories=self.num_categories)
        global_feature, point_features = self._read(channels_BNC)
        logits = self.head(self.join(torch.cat([global_feature, self.category(chosen)], dim=-1), point_features))
        return {"logits": logits.view(*points.shape[:-1], logits.shape[-1])}


@registry.models.add("dgcnn_scenes")
class DGCNNScenes(Model):
    """DGCNN scene segmentation: the class of every point of a block, by three edge convolutions, max pooling, a head.

    `first_graph` is where the first graph is built: among the `points`, or in the last three channels, the
    `normalised_position`, where the published code takes its nine channels xyz, rgb and position in the room. The order
    of the points does not matter. Clouds need at least `num_neighbours` points, and are of one size in a batch; the
    authors take 20 of 4096. `fused: false` uses the plain forms of all layers: the same numbers, several times slower,
    for comparison.
    Source: Wang et al. 2019, section 4.5; layout of antao97/dgcnn.pytorch.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        first_graph: Literal["points", "normalised_position"] = "points",
        num_neighbours: Count = 20,
        embedding: Width = 1024,
        dropout: Probability = 0.5,
        fused: bool = True,
    ) -> None:
        super().__init__()
        if first_graph == "normalised_position" and in_channels < 6:
            raise ConfigError(
                f"dgcnn_scenes.first_graph: normalised_position is in the last three of at least 6 channels, there are "
                f"{in_channels}; give the points their position in the room as last feature, or take points"
            )
        self.in_channels = in_channels
        self.first_graph = first_graph
        self.levels = _Levels(in_channels=in_channels, num_neighbours=num_neighbours, embedding=embedding, fused=fused)
        self.join = JoinedLinearNorm(
            in_channels=embedding + _NUM_LEVELS * _WIDTH, out_channels=512, activation=_leaky(), fused=fused
        )
        self.head = nn.Sequential(
            _leaky_segmentation_layer(512, 256), nn.Dropout(dropout), nn.Linear(256, num_classes, bias=False)
        )

    def forward(
        self, *, points: Tensor, features: Tensor | None = None, offsets: Tensor | None = None
    ) -> DGCNNPointsOutput:
        """Predict from `points` (B, N, 3) or, with `offsets` (B+1,), (B*N, 3), in any unit.

        `features` are as wide as the data set states.
        Raises ValueError for clouds of several sizes and for values that are not finite.
        """
        channels_BNC = dense_channels(points, features, offsets, in_channels=self.in_channels)
        near_BN3 = channels_BNC[..., -3:] if self.first_graph == "normalised_position" else channels_BNC[..., :3]
        logits = self.head(self.join(*self.levels(channels_BNC, near_BN3)))
        return {"logits": logits.view(*points.shape[:-1], logits.shape[-1])}


def _leaky() -> nn.Module:
    return nn.LeakyReLU(negative_slope=0.2)


def _leaky_segmentation_layer(in_channels: int, out_channels: int) -> LinearNorm:
    return LinearNorm(in_channels=in_channels, out_channels=out_channels, activation=_leaky())
