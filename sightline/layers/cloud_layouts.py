"""Layouts of clouds, stacked or packed, and the checks of networks on their inputs."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from sightline.ops.dtypes import widen_labels
from sightline.ops.points.distances import assert_finite
from sightline.ops.waits import read_list, require, send_list


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
