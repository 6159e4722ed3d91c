"""Linear layer with batch norm and activation: the block that point networks repeat.

Layouts of clouds, stacked or packed, and the checks of networks on their inputs.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.ops.distances import assert_finite
from sightline.ops.labels import widen_labels
from sightline.ops.waits import read_list, require, send_list


class LinearNorm(nn.Module):
    """`activation(norm(linear(x)))` over the last axis of (..., in_channels) -> (..., out_channels).

    All leading axes are the batch of the normalisation. Equivalent to a convolution of size 1 with batch norm.
    """

    def __init__(
        self, *, in_channels: int, out_channels: int, has_bias: bool = False, activation: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels, bias=has_bias)
        self.norm = nn.BatchNorm1d(out_channels)
        self.activation = activation if activation is not None else nn.Identity()

    def forward(self, values: Tensor) -> Tensor:
        """Map values (..., in_channels) -> (..., out_channels)."""
        return self.normalise_and_activate(self.linear(values))

    def normalise_and_activate(self, mapped: Tensor) -> Tensor:
        """Apply norm and activation to the result of a linear map: (..., out_channels) -> (..., out_channels)."""
        normed = self.norm(mapped.reshape(-1, mapped.shape[-1])).view(mapped.shape)
        return self.activation(normed)


class JoinedLinearNorm(LinearNorm):
    """`LinearNorm` over the concatenation of a cloud's global feature and each point's features.

    `forward(global_features (B, W), point_features (B, N, E)) -> (B, N, out_channels)`; `first` names the part that
    comes first among the `in_channels` = W + E, for published weights. The plain form (`fused=False`, the tested
    reference) repeats the global feature at all points; here it is mapped once per cloud. Same state, same numbers,
    same gradients.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        has_bias: bool = False,
        activation: nn.Module | None = None,
        first: Literal["global_features", "point_features"] = "global_features",
        fused: bool = True,
    ) -> None:
        super().__init__(in_channels=in_channels, out_channels=out_channels, has_bias=has_bias, activation=activation)
        self.first = first
        self.fused = fused

    def forward(self, global_features: Tensor, point_features: Tensor) -> Tensor:  # type: ignore[override]
        """Map global_features (B, W), point_features (B, N, E) -> (B, N, out_channels)."""
        parts = (
            (global_features, point_features) if self.first == "global_features" else (point_features, global_features)
        )
        if not self.fused:
            return super().forward(torch.cat([_at_points(part, point_features) for part in parts], dim=-1))
        first_weight, second_weight = self.linear.weight.split([part.shape[-1] for part in parts], dim=1)
        global_weight, point_weight = (
            (first_weight, second_weight) if self.first == "global_features" else (second_weight, first_weight)
        )
        return self.normalise_and_activate(
            F.linear(global_features, global_weight, self.linear.bias)[:, None] + F.linear(point_features, point_weight)
        )


def _at_points(part: Tensor, point_features: Tensor) -> Tensor:
    return part if part.ndim == point_features.ndim else part[:, None].expand(-1, point_features.shape[1], -1)


def concat_channels(points: Tensor, features: Tensor | None, *, in_channels: int) -> Tensor:
    """Concatenate coordinates and further channels: (B, N, 3) and (B, N, in_channels - 3) -> (B, N, in_channels).

    Raises ValueError, naming the found and the expected shape, for any other layout or width, and for clouds of three
    points, whose layout is unknown.
    """
    if points.ndim != 3 or points.shape[-1] != 3 or points.shape[1] == 0:
        hint = "; the channels come last here: transpose it" if points.ndim == 3 and points.shape[1] == 3 else ""
        raise ValueError(f"points: found the shape {tuple(points.shape)}, expected (B, N, 3) with N >= 1{hint}")
    if points.shape[1] == 3:
        raise ValueError(
            f"points: found the shape {tuple(points.shape)}, which may be three points or three channels; give clouds "
            "of another number of points, channels last"
        )
    return _concat_features(points, features, in_channels)


def _concat_features(points: Tensor, features: Tensor | None, in_channels: int) -> Tensor:
    """Concatenate points (..., 3) and features (..., in_channels - 3). Raises ValueError for others."""
    expected = (*points.shape[:-1], in_channels - 3)
    shape = (*points.shape[:-1], 0) if features is None else tuple(features.shape)
    if shape != expected:
        description = "no features (width 0)" if features is None else f"the shape {shape}"
        raise ValueError(
            f"features: found {description}, expected {expected}: this model was built for {in_channels} channels, "
            "xyz and what follows it"
        )
    return points if features is None else torch.cat([points, features], dim=-1)


def as_dense(points: Tensor, features: Tensor | None, offsets: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return clouds of one size, stacked: `points` (B, N, 3) and `features` (B, N, F), from either layout.

    To return a per-point output (B, N, C) in the layout of the input, use `.view(*points.shape[:-1], C)`.
    Raises ValueError for clouds of different sizes, which a network of this kind cannot take.
    """
    if offsets is None:
        return points, features
    bounds = read_list(offsets)
    sizes = [last - first for first, last in pairwise(bounds)]
    if len({*sizes}) > 1:
        raise ValueError(
            f"offsets: found clouds of {min(sizes)} to {max(sizes)} points in one batch, this model takes clouds of "
            "one size; let a transform choose as many of each (sample_points), or take a model for ragged clouds"
        )
    shape = (len(sizes), sizes[0], -1)
    return points.view(shape), None if features is None else features.view(shape)


def dense_channels(points: Tensor, features: Tensor | None, offsets: Tensor | None, *, in_channels: int) -> Tensor:
    """Return all channels of clouds of one size, stacked: (B, N, in_channels), from either layout.

    Raises ValueError as `as_dense` and `concat_channels` do, and for numbers that are not finite, naming the sample.
    """
    points, features = as_dense(points, features, offsets)
    channels = concat_channels(points, features, in_channels=in_channels)
    assert_finite(channels, name="points")
    return channels


def as_packed(points: Tensor, features: Tensor | None, offsets: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return packed clouds: `points` (P, 3), `features` (P, F) and `offsets` (S+1,), from either layout.

    Raises ValueError for points in neither layout.
    """
    if offsets is not None:
        if points.ndim != 2:
            raise ValueError(f"points: found the shape {tuple(points.shape)} beside offsets, expected (P, 3)")
        return points, features, offsets
    if points.ndim != 3:
        raise ValueError(f"points: found the shape {tuple(points.shape)} without offsets, expected (B, N, 3)")
    num_clouds, num_points, _ = points.shape
    offsets = send_list([cloud * num_points for cloud in range(num_clouds + 1)], points.device)
    return points.flatten(0, 1), None if features is None else features.flatten(0, 1), offsets


def packed_channels(
    points: Tensor, features: Tensor | None, offsets: Tensor | None, *, in_channels: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return packed `points` (P, 3), all channels (P, in_channels), and `offsets` (S+1,), from either layout.

    Raises ValueError, naming the found and the expected shape, for any other layout or width.
    """
    if offsets is None:
        concat_channels(points, features, in_channels=in_channels)  # for its check of stacked clouds
    points, features, offsets = as_packed(points, features, offsets)
    if points.shape[1] != 3 or points.shape[0] == 0:
        raise ValueError(f"points: found the shape {tuple(points.shape)} beside offsets, expected (P, 3) with P >= 1")
    return points, _concat_features(points, features, in_channels), offsets


def one_hot_category(category: Tensor, *, like: Tensor, num_categories: int) -> Tensor:
    """Encode categories one-hot: `category` (B,) -> (B, num_categories) in the dtype of `like` (B, ...).

    Raises ValueError for categories that are not one of 0 .. num_categories-1 for each cloud.
    """
    if category.shape != like.shape[:1]:
        raise ValueError(f"category: found the shape {tuple(category.shape)} {category.dtype}, expected ({len(like)},)")
    category = widen_labels(category, "category")
    if category.numel():
        lowest, highest = category.aminmax()
        require(
            (lowest >= 0) & (highest < num_categories),
            lambda: ValueError(
                f"category: found {int(lowest)} to {int(highest)}, there are {num_categories} (0 .. "
                f"{num_categories - 1})"
            ),
        )
    # Not `one_hot`, which waits for the device to compare the categories with their number.
    return (category[:, None] == torch.arange(num_categories, device=category.device)).to(like.dtype)
