"""Choose and reorder the points of clouds; what belongs to a point (normal, colour, label, ...) goes with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from sightline import registry
from sightline.arguments import Count, Probability
from sightline.draws import Draws
from sightline.errors import ConfigError, DataError

__all__ = ["DropPoints", "SamplePoints", "ShufflePoints", "choose_points", "index_after_drop"]


@registry.transforms.add("sample_points")
class SamplePoints:
    """Every cloud keeps `num_points` of its points, none twice: its first ones, or a random subset in random order.

    Raises DataError for clouds with fewer points. Source: simple random sampling by a random permutation's head.
    """

    def __init__(self, *, num_points: Count, order: Literal["first", "random"] = "random") -> None:
        self.num_points = num_points
        self.order = order

    def __call__(
        self,
        draws: Draws,
        *,
        points: Tensor,
        normals: Tensor | None = None,
        channels: Tensor | None = None,
        features: Tensor | None = None,
        part: Tensor | None = None,
        label: Tensor | None = None,
        colours: Tensor | None = None,
        place: Tensor | None = None,
        nearest: Tensor | None = None,
    ) -> dict[str, Tensor]:
        available = points.shape[1]
        if available < self.num_points:
            raise DataError(
                f"sample_points: the clouds have {available} points, num_points asks for {self.num_points}; "
                f"set num_points to at most {available}"
            )
        if self.order == "first":
            index_BK = torch.arange(self.num_points).expand(len(points), -1)
        else:
            index_BK = draws.permutation(available)[:, : self.num_points]
        return _chosen(index_BK, points, normals, channels, features, part, label, colours, place, nearest)


@registry.transforms.add("shuffle_points")
class ShufflePoints:
    """Every cloud keeps its points, in a random order that is uniform over all orders.

    Source: Wang et al. 2019 (DGCNN), whose training shuffles the points of each cloud.
    """

    def __call__(
        self,
        draws: Draws,
        *,
        points: Tensor,
        normals: Tensor | None = None,
        channels: Tensor | None = None,
        features: Tensor | None = None,
        part: Tensor | None = None,
        label: Tensor | None = None,
        colours: Tensor | None = None,
        place: Tensor | None = None,
        nearest: Tensor | None = None,
    ) -> dict[str, Tensor]:
        index_BN = draws.permutation(points.shape[1])
        return _chosen(index_BN, points, normals, channels, features, part, label, colours, place, nearest)


@registry.transforms.add("drop_points")
class DropPoints:
    """Every cloud loses a share of its points, uniform in [0, max_ratio); copies of its first point take their places.

    The number of points stays; the copies carry the first point's normal, channels, features and part too.
    Source: Qi et al. 2017 (PointNet++), section 3.3 (random input dropout, 95 % there; 0.875 in its training code).
    """

    def __init__(self, *, max_ratio: Probability = 0.875) -> None:
        self.max_ratio = max_ratio

    def __call__(
        self,
        draws: Draws,
        *,
        points: Tensor,
        normals: Tensor | None = None,
        channels: Tensor | None = None,
        features: Tensor | None = None,
        part: Tensor | None = None,
        label: Tensor | None = None,
        colours: Tensor | None = None,
        place: Tensor | None = None,
        nearest: Tensor | None = None,
    ) -> dict[str, Tensor]:
        ratio_B1 = draws.uniform(1, high=self.max_ratio)
        index_BN = index_after_drop(draws.uniform(points.shape[1]), ratio_B1)
        return _chosen(index_BN, points, normals, channels, features, part, label, colours, place, nearest)


def index_after_drop(uniform: Tensor, ratio: Tensor) -> Tensor:
    """Each point's own index, or 0 where `uniform` (B, N) is at most `ratio` (B, 1): int64 (B, N)."""
    own = torch.arange(uniform.shape[1]).expand_as(uniform)
    return torch.where(uniform <= ratio, torch.zeros_like(own), own)


def _chosen(
    index: Tensor,
    points: Tensor,
    normals: Tensor | None,
    channels: Tensor | None,
    features: Tensor | None,
    part: Tensor | None,
    label: Tensor | None,
    colours: Tensor | None,
    place: Tensor | None,
    nearest: Tensor | None,
) -> dict[str, Tensor]:
    if nearest is not None:
        raise ConfigError(
            "sample_points, shuffle_points and drop_points cannot follow voxel_sample with score_all: its rows of kept "
            "points would be wrong; put them before it, or take them out of transforms.evaluate"
        )
    fields = {"points": points, "normals": normals, "channels": channels, "features": features, "part": part}
    fields |= {"colours": colours, "place": place}
    is_of_points = label is not None and label.ndim > 1  # else one label for the whole cloud, which stays
    return choose_points(index, fields | {"label": label if is_of_points else None})


def choose_points(index: Tensor, fields: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """The rows `index` (B, K) of every field (B, N, ...) that is there: new tensors (B, K, ...)."""
    rows_B1 = torch.arange(len(index)).unsqueeze(1)
    return {name: field[rows_B1, index] for name, field in fields.items() if field is not None}
