"""Point Cloud Transformer (PCT): full, in two simpler forms, and for part segmentation. Source: Guo et al. 2021."""

from __future__ import annotations

import math
from typing import Literal, TypedDict

import torch
from torch import Tensor, nn

from sightline.contract import registry
from sightline.contract.arguments import Count, NonNegativeFloat, Probability
from sightline.contract.model import Encoder, Model
from sightline.layers.cloud_layouts import concat_channels, dense_channels, one_hot_category
from sightline.layers.mlp import JoinedLinearNorm, LinearNorm
from sightline.layers.set_abstraction import PlainNeighbourGroup, SampleAndGroup
from sightline.ops.points.distances import assert_finite
from sightline.ops.points.grouping import assert_meant_for


class SelfAttention(nn.Module):
    """Self-attention (PCT): a layer applied to the attended values of all points, plus a residual.

    `forward((B, N, channels)) -> (B, N, channels)`. Queries and keys are one map, as in the authors' code, so that the
    similarity of two points is symmetric. Source: Guo et al. 2021 (PCT), equations 2 to 5.
    """

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        self.query = nn.Linear(channels, channels // 4, bias=False)
        self.value = nn.Linear(channels, channels)
        self.change = LinearNorm(in_channels=channels, out_channels=channels, has_bias=True, activation=nn.ReLU())

    def forward(self, values: Tensor) -> Tensor:
        """Map values (B, N, channels) -> (B, N, channels)."""
        return values + self.change(self.attention(values) @ self.value(values))

    def attention(self, values: Tensor) -> Tensor:
        """Return the attention weights (B, M, N) of each point m over the points n; their sum over n is 1."""
        return torch.softmax(self._likeness(values) / math.sqrt(self.query.out_features), dim=-1)

    def _likeness(self, values: Tensor) -> Tensor:
        query = self.query(values)
        return query @ query.mT


class OffsetAttention(SelfAttention):
    """Offset attention (PCT): the layer is applied to x - attention(x) instead of attention(x).

    The attention is a softmax over the receiving points, then divided by its sum over the source points, without the
    square root. Source: Guo et al. 2021 (PCT), equations 6 to 9.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Map values (B, N, channels) -> (B, N, channels)."""
        return values + self.change(values - self.attention(values) @ self.value(values))

    def attention(self, values: Tensor) -> Tensor:
        """Return the attention weights (B, M, N) of each point m over the points n; their sum over n is 1."""
        likeness = self._likeness(values)
        is_half = likeness.dtype == torch.float16  # whose smallest number is above the guard: 0 / 0 for an idle point
        given_BNM = torch.softmax(likeness.float() if is_half else likeness, dim=-1)
        attention_BMN = (given_BNM / (1e-9 + given_BNM.sum(dim=1, keepdim=True))).mT
        return attention_BMN.to(values.dtype) if is_half else attention_BMN


class AttentionStack(nn.Module):
    """Stacked attention layers with concatenated outputs: (B, N, channels) -> (B, N, layers * channels).

    With `codes_positions` a linear map of the coordinates, `points` (B, N, 3), is added before every layer.
    Source: Guo et al. 2021 (PCT), figure 2; the codes, model_new of Strawberry-Eat-Mango/PCT_Pytorch.
    """

    def __init__(self, *, layer: type[SelfAttention], channels: int, num_layers: int, codes_positions: bool) -> None:
        super().__init__()
        self.position = nn.Linear(3, channels) if codes_positions else None
        self.layers = nn.ModuleList(layer(channels=channels) for _ in range(num_layers))

    def forward(self, values: Tensor, points: Tensor) -> Tensor:
        """Map values (B, N, channels), points (B, N, 3) -> (B, N, layers * channels)."""
        code: Tensor | float = 0.0 if self.position is None else self.position(points)
        results = []
        for layer in self.layers:
            values = layer(values + code if self.position is not None else values)
            results.append(values)
        return torch.cat(results, dim=-1)


_NUM_LAYERS = 4
_EMBEDDING = 1024
_CATEGORY_WIDTH = 64

HeadActivation = Literal["leaky_relu", "relu"]


class PCTOutput(TypedDict):
    """`logits` (B, num_classes), before any softmax."""

    logits: Tensor


class PCTPointsOutput(TypedDict):
    """`logits` of every point before the softmax: (B, N, num_classes) or (P, num_classes), as the input."""

    logits: Tensor


@registry.point_encoders.add("pct")
class PCTEncoder(Encoder):
    """PCT encoder: two sample-and-group stages, four layers of offset attention among the samples, and max pooling.

    `encode` returns (B, 1024). Clouds need at least `num_centres[0]` points. Sampling starts at the first point, in
    training and in evaluation: shuffle the points in training. With `neighbours_at`, `num_neighbours` refers to clouds
    of that many points, and that of the first groups, which are of all points, grows in proportion (16 at 512 are 32 of
    1024); the second ones are of `num_centres[0]` points always. All else is as in the model `pct`.
    Source: Guo et al. 2021 (PCT), figure 2 and section 3.4; layout of Strawberry-Eat-Mango/PCT_Pytorch.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_centres: tuple[Count, Count] = (512, 256),
        num_neighbours: Count = 32,
        neighbours_at: Count | None = None,
        codes_positions: bool = False,
        min_squared_norm: NonNegativeFloat | None = None,
        fused: bool = True,
    ) -> None:
        super().__init__()
        assert_meant_for(neighbours_at, num_neighbours=num_neighbours)
        self.in_channels = in_channels
        self.feature_width = _EMBEDDING
        self.embed = nn.Sequential(_relu_layer(in_channels, 64), _relu_layer(64, 64))
        group = SampleAndGroup if fused else PlainNeighbourGroup
        self.groups = nn.ModuleList(
            group(
                channels=width // 2,
                num_samples=count,
                num_neighbours=num_neighbours,
                neighbours_at=meant_for,
                widths=(width, width),
                min_squared_norm=min_squared_norm,
            )
            for count, width, meant_for in zip(num_centres, (128, 256), (neighbours_at, None), strict=True)
        )
        self.prepare = nn.Sequential(*(_relu_layer(256, 256) for _ in range(1 if codes_positions else 2)))
        self.attend = AttentionStack(
            layer=OffsetAttention, channels=256, num_layers=_NUM_LAYERS, codes_positions=codes_positions
        )
        self.fuse = _leaky_layer((_NUM_LAYERS + 1) * 256)

    def encode(self, *, points: Tensor, features: Tensor | None = None) -> Tensor:
        """Encode `points` (B, N, 3) in any unit.

        `features` (B, N, in_channels - 3) are required if the model has more channels.
        """
        values = self.embed(concat_channels(points, features, in_channels=self.in_channels))
        for group in self.groups:
            points, values = group(points, values)
        attended = self.attend(self.prepare(values), points)
        fused_BNC: Tensor = self.fuse(torch.cat([attended, values], dim=-1))
        return fused_BNC.max(dim=1).values


@registry.models.add("pct")
class PCT(PCTEncoder, Model):
    """PCT: two sample-and-group stages, four layers of offset attention among the samples, max pooling, a head.

    Clouds need at least `num_centres[0]` points. Sampling starts at the first point, in training and in evaluation:
    shuffle the points in training. Published weights: those of Strawberry-Eat-Mango/PCT_Pytorch need
    `min_squared_norm: 1e-3` (its sampling skips points nearer to the origin), those of its `model_new`
    `codes_positions: true` too; those of qq456cvb/Point-Transformers `head_activation: relu`. `fused: false` uses the
    plain groups: the same numbers, slower, for comparison. `neighbours_at` as in the encoder `pct`.
    Source: Guo et al. 2021 (PCT), figure 2 and section 3.4; layout of Strawberry-Eat-Mango/PCT_Pytorch.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        num_centres: tuple[Count, Count] = (512, 256),
        num_neighbours: Count = 32,
        neighbours_at: Count | None = None,
        codes_positions: bool = False,
        head_activation: HeadActivation = "leaky_relu",
        min_squared_norm: NonNegativeFloat | None = None,
        dropout: Probability = 0.5,
        fused: bool = True,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            num_centres=num_centres,
            num_neighbours=num_neighbours,
            neighbours_at=neighbours_at,
            codes_positions=codes_positions,
            min_squared_norm=min_squared_norm,
            fused=fused,
        )
        self.head = _head(num_classes, head_activation, dropout)

    def forward(self, *, points: Tensor, features: Tensor | None = None) -> PCTOutput:
        """Predict from `points` (B, N, 3) in any unit.

        `features` (B, N, in_channels - 3) are required if the model has more channels.
        """
        return {"logits": self.head(self.encode(points=points, features=features))}


class _PointwisePCT(Encoder, Model):
    """PCT with attention among all points, without neighbourhoods; the order of the points does not matter."""

    _layer: type[SelfAttention]

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        head_activation: HeadActivation = "leaky_relu",
        dropout: Probability = 0.5,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.feature_width = _EMBEDDING
        self.embed = nn.Sequential(_relu_layer(in_channels, 128), _relu_layer(128, 128))
        self.attend = AttentionStack(layer=self._layer, channels=128, num_layers=_NUM_LAYERS, codes_positions=False)
        self.fuse = _leaky_layer(_NUM_LAYERS * 128)
        self.head = _head(num_classes, head_activation, dropout)

    def encode(self, *, points: Tensor, features: Tensor | None = None) -> Tensor:
        """Return the pooled feature (B, 1024), the head's input; `points` and `features` as in `forward`."""
        channels = concat_channels(points, features, in_channels=self.in_channels)
        assert_finite(channels, name="points")
        fused_BNC: Tensor = self.fuse(self.attend(self.embed(channels), points))
        return fused_BNC.max(dim=1).values

    def forward(self, *, points: Tensor, features: Tensor | None = None) -> PCTOutput:
        """Predict from `points` (B, N, 3) in any unit.

        `features` (B, N, in_channels - 3) are required if the model has more channels.
        """
        return {"logits": self.head(self.encode(points=points, features=features))}


@registry.models.add("pct_simple")
class SimplePCT(_PointwisePCT):
    """SPCT, PCT without neighbourhoods: offset attention among all points; memory grows with their number squared.

    The output does not depend on the order of the points. Source: Guo et al. 2021 (PCT), section 3.3 (SPCT).
    """

    _layer = OffsetAttention


@registry.models.add("pct_naive")
class NaivePCT(_PointwisePCT):
    """NPCT, PCT with plain self-attention among all points; memory grows with their number squared.

    The output does not depend on the order of the points. Source: Guo et al. 2021 (PCT), section 3.2 (naive PCT).
    """

    _layer = SelfAttention


@registry.models.add("pct_parts")
class PCTParts(Model):
    """PCT part segmentation: attention among all points, their maximum and mean, a head; the category is an input.

    The order of the points does not matter; clouds are of one size in a batch, and memory grows with their number of
    points squared. There is no sampling and no neighbourhood. `fused: false` uses the plain form of the head's first
    layer: the same numbers, slower, for comparison.
    Source: Guo et al. 2021 (PCT), section 3.3 and figure 2 (segmentation); layout of MenghaoGuo/PCT.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        num_categories: int,
        dropout: Probability = 0.5,
        fused: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.num_categories = num_categories
        self.embed = nn.Sequential(_relu_layer(in_channels, 128), _relu_layer(128, 128))
        self.attend = AttentionStack(layer=OffsetAttention, channels=128, num_layers=_NUM_LAYERS, codes_positions=False)
        self.fuse = _leaky_layer(_NUM_LAYERS * 128)
        self.category = _leaky_layer(num_categories, _CATEGORY_WIDTH)
        self.join = JoinedLinearNorm(
            in_channels=3 * _EMBEDDING + _CATEGORY_WIDTH,
            out_channels=512,
            has_bias=True,
            activation=nn.ReLU(),
            first="point_features",
            fused=fused,
        )
        self.head = nn.Sequential(
            nn.Dropout(dropout),
            LinearNorm(in_channels=512, out_channels=256, has_bias=True, activation=nn.ReLU()),
            nn.Linear(256, num_classes),
        )

    def forward(
        self, *, points: Tensor, category: Tensor, features: Tensor | None = None, offsets: Tensor | None = None
    ) -> PCTPointsOutput:
        """Predict from `points` (B, N, 3) or, with `offsets` (B+1,), (B*N, 3), in any unit.

        `features` are as wide as the data set states.
        `category` (B,) int64. Raises ValueError for clouds of several sizes and for values that are not finite.
        """
        channels_BNC = dense_channels(points, features, offsets, in_channels=self.in_channels)
        chosen = one_hot_category(category, like=channels_BNC, num_categories=self.num_categories)
        each_BNC = self.fuse(self.attend(self.embed(channels_BNC), channels_BNC[..., :3]))
        global_features = torch.cat([each_BNC.max(dim=1).values, each_BNC.mean(dim=1), self.category(chosen)], dim=-1)
        logits = self.head(self.join(global_features, each_BNC))
        return {"logits": logits.view(*points.shape[:-1], logits.shape[-1])}


def _head(num_classes: int, activation: HeadActivation, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        LinearNorm(in_channels=_EMBEDDING, out_channels=512, activation=_head_activation(activation)),
        nn.Dropout(dropout),
        LinearNorm(in_channels=512, out_channels=256, has_bias=True, activation=_head_activation(activation)),
        nn.Dropout(dropout),
        nn.Linear(256, num_classes),
    )


def _head_activation(name: HeadActivation) -> nn.Module:
    return nn.ReLU() if name == "relu" else nn.LeakyReLU(negative_slope=0.2)


def _leaky_layer(in_channels: int, out_channels: int = _EMBEDDING) -> LinearNorm:
    activation = nn.LeakyReLU(negative_slope=0.2)
    return LinearNorm(in_channels=in_channels, out_channels=out_channels, activation=activation)


def _relu_layer(in_channels: int, out_channels: int) -> LinearNorm:
    return LinearNorm(in_channels=in_channels, out_channels=out_channels, activation=nn.ReLU())
