"""Point Transformer on packed clouds, with one output per point or per cloud. Source: Zhao et al. 2021."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, TypedDict, cast

from torch import Tensor, nn

from sightline.areas.scenes.transitions import GlobalContext, TransitionDown, TransitionUp, segment_mean
from sightline.contract import registry
from sightline.contract.arguments import Count, Probability, Width
from sightline.contract.errors import ConfigError
from sightline.contract.model import Encoder, Model
from sightline.layers.batch_norm import SynchronisedBatchNorm
from sightline.layers.cloud_layouts import packed_channels
from sightline.layers.mlp import LinearNorm
from sightline.layers.pyramid import Edges, PyramidLevel, build_pyramid
from sightline.layers.vector_attention import SHARE_PLANES, PlainVectorAttention, VectorAttention
from sightline.ops.points.distances import assert_finite_rows
from sightline.ops.segments.offsets import locate_row
from sightline.ops.waits import read_list

_HEAD_WIDTHS = (256, 128)
_DROPOUT_OF_CLOUDS = 0.5


class PointTransformerOutput(TypedDict):
    """`logits` before the softmax: (..., num_classes) with the points' leading axes, or (S, num_classes) of clouds."""

    logits: Tensor


class PointTransformerBlock(nn.Module):
    """Point Transformer block: linear map, vector attention and linear map, each with batch norm, and a shortcut.

    `forward(features (P, channels), edges) -> (P, channels)`. Source: Zhao et al. 2021, figure 4 (a).
    """

    def __init__(self, *, channels: int, fused: bool) -> None:
        super().__init__()
        self.before = LinearNorm(in_channels=channels, out_channels=channels, activation=nn.ReLU())
        self.attention = (VectorAttention if fused else PlainVectorAttention)(channels=channels)
        self.norm = nn.BatchNorm1d(channels)
        self.after = LinearNorm(in_channels=channels, out_channels=channels)

    def forward(self, features: Tensor, edges: Edges) -> Tensor:
        attended = self.norm(self.attention(self.before(features), edges)).relu()
        return (features + self.after(attended)).relu()


class _Stage(nn.Module):
    """Transition down to a level, and its blocks."""

    def __init__(self, *, in_channels: int, channels: int, num_blocks: int, is_strided: bool, fused: bool) -> None:
        super().__init__()
        self.down = TransitionDown(in_channels=in_channels, out_channels=channels, is_strided=is_strided)
        self.blocks = nn.ModuleList(PointTransformerBlock(channels=channels, fused=fused) for _ in range(num_blocks))

    def forward(self, features: Tensor, level: PyramidLevel) -> Tensor:
        features = self.down(features, level)
        for block in self.blocks:
            features = block(features, level.neighbours)
        return features


class _Decoder(nn.Module):
    """Decoder from the coarsest level to the finest: transition up and one block per level."""

    def __init__(self, *, widths: tuple[int, ...], fused: bool) -> None:
        super().__init__()
        self.context = GlobalContext(channels=widths[-1])
        self.ups = nn.ModuleList(
            TransitionUp(in_channels=coarse, out_channels=fine) for fine, coarse in pairwise(widths)
        )
        self.blocks = nn.ModuleList(PointTransformerBlock(channels=width, fused=fused) for width in widths)

    def forward(self, features: list[Tensor], levels: list[PyramidLevel]) -> Tensor:
        values = self.blocks[-1](self.context(features[-1], levels[-1].offsets), levels[-1].neighbours)
        for level_index in reversed(range(len(self.ups))):
            values = self.ups[level_index](features[level_index], values, levels[level_index + 1])
            values = self.blocks[level_index](values, levels[level_index].neighbours)
        return cast(Tensor, values)


@registry.point_encoders.add("point_transformer")
class PointTransformerEncoder(Encoder):
    """Point Transformer encoder: vector attention at several resolutions, and the mean of the coarsest.

    (B, widths[-1]). Clouds may be of any size, packed too with `offsets`. Sampling starts at a cloud's first point:
    shuffle the points in training. The arguments are those of the model `point_transformer`, which has this encoder per
    cloud and per point, so that its weights initialise either.
    Source: Zhao et al. 2021, figure 3; layout of POSTECH-CVLab/point-transformer, by its first author.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        widths: tuple[Width, ...] = (32, 64, 128, 256, 512),
        strides: tuple[Count, ...] = (1, 4, 4, 4, 4),
        num_neighbours: tuple[Count, ...] = (8, 16, 16, 16, 16),
        num_blocks: tuple[Count, ...] = (1, 2, 3, 5, 2),
        fused: bool = True,
    ) -> None:
        super().__init__()
        _assert_stages(widths, strides, num_neighbours, num_blocks)
        self.in_channels = in_channels
        self.feature_width = widths[-1]
        self.strides = strides
        self.num_neighbours = num_neighbours
        self.stages = nn.ModuleList(
            _Stage(in_channels=width_in, channels=width, num_blocks=count, is_strided=stride > 1, fused=fused)
            for width_in, width, count, stride in zip(
                (in_channels, *widths[:-1]), widths, num_blocks, strides, strict=True
            )
        )

    def encode(self, *, points: Tensor, features: Tensor | None = None, offsets: Tensor | None = None) -> Tensor:
        """Encode `points` (B, N, 3), or (P, 3) with `offsets` (S+1,), in any unit; `features` (..., in_channels - 3).

        Raises ValueError for a cloud without points.
        """
        level_features, levels = self._read(points, features, offsets)
        _assert_no_empty_cloud(levels[0].offsets)
        return segment_mean(level_features[-1], levels[-1].offsets)

    def _read(
        self, points: Tensor, features: Tensor | None, offsets: Tensor | None
    ) -> tuple[list[Tensor], list[PyramidLevel]]:
        """Return the features of every level (P, widths[level]), and the levels."""
        packed, values, offsets = packed_channels(points, features, offsets, in_channels=self.in_channels)
        levels = build_pyramid(packed, offsets=offsets, strides=self.strides, num_neighbours=self.num_neighbours)
        assert_finite_rows(values, lambda row: locate_row(row, offsets), name="points and features")
        self._assert_statistics(levels)
        level_features = []
        for stage, level in zip(self.stages, levels, strict=True):
            values = stage(values, level)
            level_features.append(values)
        return level_features, levels

    def _assert_statistics(self, levels: list[PyramidLevel]) -> None:
        """Raise ValueError if a batch norm in training would have a single row for its statistics.

        A synchronised one may have more on other processes, and raises its own error otherwise.
        """
        norms = [module for module in self.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        if not any(norm.training and not isinstance(norm, SynchronisedBatchNorm) for norm in norms):
            return
        for stage, level in enumerate(levels):
            if len(level.points) == 1:
                raise ValueError(
                    f"point_transformer: one point is left at stage {stage + 1} of {len(levels)} in the whole batch "
                    f"({len(levels[0].points)} points came in), and batch norm in training needs two; give larger "
                    "clouds or more of them in a batch (train.tail=drop where the last one is short), or take fewer "
                    "stages"
                )


@registry.models.add("point_transformer")
class PointTransformer(PointTransformerEncoder, Model):
    """Point Transformer: vector attention among neighbours at several resolutions, on packed or stacked clouds.

    `per: point` predicts for every point, `per: cloud` for every cloud. Each stage keeps one of `strides` points of a
    cloud, at least one: clouds of any size are allowed. In evaluation the output for a cloud does not depend on the
    others in its batch; training needs two points at the coarsest level of a batch, for its batch norms. Sampling
    starts at a cloud's first point: shuffle the points in training; apart from that their order does not matter. If
    a cloud has fewer points than `num_neighbours`, all are used. `dropout` is that of the head, by
    default none per point and 0.5 per cloud. `fused: false` uses the plain forms of all layers: the same numbers,
    slower and in more memory, for comparison.
    Source: Zhao et al. 2021, figure 3; layout of POSTECH-CVLab/point-transformer, by its first author. The head per
    cloud is that of spec 2.6: the paper gives no widths, and that code has none.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        per: Literal["point", "cloud"] = "point",
        widths: tuple[Width, ...] = (32, 64, 128, 256, 512),
        strides: tuple[Count, ...] = (1, 4, 4, 4, 4),
        num_neighbours: tuple[Count, ...] = (8, 16, 16, 16, 16),
        num_blocks: tuple[Count, ...] = (1, 2, 3, 5, 2),
        dropout: Probability | None = None,
        fused: bool = True,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            widths=widths,
            strides=strides,
            num_neighbours=num_neighbours,
            num_blocks=num_blocks,
            fused=fused,
        )
        self.num_classes = num_classes
        self.decoder = _Decoder(widths=widths, fused=fused) if per == "point" else None
        if per == "point":
            self.head = _head((widths[0], widths[0]), num_classes, dropout or 0.0)
        else:
            share = _DROPOUT_OF_CLOUDS if dropout is None else dropout
            self.head = _head((widths[-1], *_HEAD_WIDTHS), num_classes, share)

    def forward(
        self, *, points: Tensor, features: Tensor | None = None, offsets: Tensor | None = None
    ) -> PointTransformerOutput:
        """Predict from `points` (B, N, 3), or (P, 3) with `offsets` (S+1,), in any unit.

        `features` (..., in_channels - 3).
        """
        if self.decoder is None:
            return {"logits": self.head(self.encode(points=points, features=features, offsets=offsets))}
        logits = self.head(self.decoder(*self._read(points, features, offsets)))
        return {"logits": logits.view(*points.shape[:-1], self.num_classes)}


def _assert_stages(
    widths: tuple[int, ...], strides: tuple[int, ...], num_neighbours: tuple[int, ...], num_blocks: tuple[int, ...]
) -> None:
    """Raise ConfigError for stages that do not fit together."""
    arguments = {"widths": widths, "strides": strides, "num_neighbours": num_neighbours, "num_blocks": num_blocks}
    if not widths or len({len(values) for values in arguments.values()}) > 1:
        counts_text = ", ".join(f"{len(values)} {name}" for name, values in arguments.items())
        raise ConfigError(
            f"point_transformer: found {counts_text}; give one of each for every stage, of which there is one"
        )
    if strides[0] != 1:
        raise ConfigError(f"point_transformer: strides[0] is {strides[0]}; the first stage keeps all points, give 1")
    uneven = [width for width in widths if width % SHARE_PLANES]
    if uneven:
        raise ConfigError(
            f"point_transformer: widths {uneven} are not multiples of {SHARE_PLANES}, the channels that share a weight"
        )


def _assert_no_empty_cloud(offsets: Tensor) -> None:
    bounds = read_list(offsets)
    for cloud, (first, last) in enumerate(pairwise(bounds)):
        if first == last:
            raise ValueError(f"offsets: cloud {cloud} has no points, so it has no class; leave it out")


def _head(widths: tuple[int, ...], num_classes: int, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        layers.append(LinearNorm(in_channels=width_in, out_channels=width_out, has_bias=True, activation=nn.ReLU()))
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))
