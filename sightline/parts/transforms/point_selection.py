"""Selection and reordering of the points of clouds, with all fields of a point (normal, colour, label, ...)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sightline.contract import registry
from sightline.contract.arguments import Count, FractionBelowOne, NonNegativeFloat, Probability
from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.transform import Transform
from sightline.contract.types import Field
from sightline.ops.points.farthest_points import farthest_points
from sightline.ops.points.neighbours import nearest_neighbours
from sightline.ops.waits import require


class PointSelection(NamedTuple):
    """Rows to keep of each cloud, in order, (B, K) int64; and the position (3,) of the new origin, if any."""

    rows: Tensor
    origin: Tensor | None = None


class PointSelector(Transform):
    """Base of transforms that select or reorder points, with all their fields; a subclass defines `choose`.

    With `score_all`, the kept point that represents each original point is added, too: `nearest` and `whole_label`.
    """

    chooses_points = True
    score_all = False

    @abstractmethod
    def choose(self, draws: Draws, points: Tensor) -> PointSelection | None:
        """Return the rows of `points` (B, N, 3) to keep; None to keep all, unchanged."""

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
        normalised_position: Tensor | None = None,
        remission: Tensor | None = None,
        ring: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> dict[str, Tensor]:
        choice = self.choose(draws, points)
        if choice is None:
            return {}
        fields = {"points": points, "normals": normals, "channels": channels, "features": features, "part": part}
        fields |= {"colours": colours, "normalised_position": normalised_position, "remission": remission, "ring": ring}
        # Else one label for the whole cloud, or one for each box of it, which stay.
        is_of_points = label is not None and label.ndim > 1 and boxes is None
        chosen = choose_points(choice.rows, fields | {"label": label if is_of_points else None})
        if self.score_all:
            chosen["nearest"] = _find_nearest_kept(points, chosen["points"], choice.rows)
            if label is not None:
                chosen["whole_label"] = _point_labels(label).clone()
        if choice.origin is not None:
            chosen["points"] = chosen["points"] - choice.origin
        return chosen


@registry.transforms.add("sample_points")
class SamplePoints(PointSelector):
    """Sampling of `num_points` points of each cloud, none twice: its first ones, or a random subset in random order.

    A cloud of fewer points is an error or keeps all of them, and then begins again with `if_fewer: repeat`.
    `score_all` lets evaluation score the removed points, too: it adds `nearest`, the row of the kept point closest to
    each (a kept point's is its own), and `whole_label`; then no transform that chooses or reorders points may follow.
    Raises DataError for clouds with fewer points; ConfigError for `score_all` if the labels are of whole clouds.

    >>> import torch
    >>> from sightline.contract.draws import Draws
    >>> from sightline.parts.transforms.point_selection import SamplePoints
    >>> cloud = {"points": torch.tensor([[[0.0, 0, 0], [1, 0, 0], [2, 0, 0]]]), "label": torch.tensor([[7, 8, 9]])}
    >>> SamplePoints(num_points=2, order="first")(Draws.from_seed(0), **cloud)
    {'points': tensor([[[0., 0., 0.],
             [1., 0., 0.]]]), 'label': tensor([[7, 8]])}

    Source: simple random sampling by a random permutation's head.
    """

    def __init__(
        self,
        *,
        num_points: Count,
        order: Literal["first", "random"] = "random",
        if_fewer: Literal["refuse", "repeat", "keep"] = "refuse",
        score_all: bool = False,
    ) -> None:
        self.num_points = num_points
        self.order = order
        self.if_fewer = if_fewer
        self.score_all = score_all
        self.adds: dict[str, Field] = full_cloud_fields() if score_all else {}

    def choose(self, draws: Draws, points: Tensor) -> PointSelection:
        num_clouds, available, _ = points.shape
        if available < self.num_points and self.if_fewer == "refuse":
            raise DataError(
                f"sample_points: the clouds have {available} points, num_points asks for {self.num_points}; "
                f"set num_points to at most {available}, or if_fewer: repeat or keep"
            )
        num_rows = min(self.num_points, available) if self.if_fewer == "keep" else self.num_points
        rows = torch.arange(num_rows, device=points.device) % available
        if self.order == "first":
            return PointSelection(rows.expand(num_clouds, -1))
        return PointSelection(draws.permutation(available).index_select(1, rows))


@registry.transforms.add("shuffle_points")
class ShufflePoints(PointSelector):
    """Random order of each cloud's points, uniform over all orders.

    >>> import torch
    >>> from sightline.contract.draws import Draws
    >>> from sightline.parts.transforms.point_selection import ShufflePoints
    >>> cloud = {"points": torch.tensor([[[0.0, 0, 0], [1, 0, 0], [2, 0, 0]]]), "label": torch.tensor([[0, 1, 2]])}
    >>> shuffled = ShufflePoints()(Draws.from_seed(0), **cloud)
    >>> shuffled["points"][..., 0] == shuffled["label"], shuffled["label"].sort().values  # all, each with its own label
    (tensor([[True, True, True]]), tensor([[0, 1, 2]]))

    Source: Wang et al. 2019 (DGCNN), whose training shuffles the points of each cloud.
    """

    def choose(self, draws: Draws, points: Tensor) -> PointSelection:
        return PointSelection(draws.permutation(points.shape[1]))


@registry.transforms.add("farthest_points")
class FarthestPoints(PointSelector):
    """Farthest-point sampling of `num_points` points of each cloud, starting at its first point.

    Draws nothing. With `min_squared_norm`, points whose squared norm is not above it are never kept after the first, as
    in the CUDA library of the published codes (1e-3 there); if no other is left, the first is repeated.
    Raises DataError for clouds with fewer points.

    >>> import torch
    >>> from sightline.contract.draws import Draws
    >>> from sightline.parts.transforms.point_selection import FarthestPoints
    >>> points = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [5, 0, 0], [2, 0, 0]]])
    >>> FarthestPoints(num_points=3)(Draws.from_seed(0), points=points)["points"]
    tensor([[[0., 0., 0.],
             [5., 0., 0.],
             [2., 0., 0.]]])

    Source: Qi et al. 2017 (PointNet++), section 3.2; before the model, Yu et al. 2022 (Point-BERT), its training code.
    """

    def __init__(self, *, num_points: Count, min_squared_norm: NonNegativeFloat | None = None) -> None:
        self.num_points = num_points
        self.min_squared_norm = min_squared_norm

    def choose(self, draws: Draws, points: Tensor) -> PointSelection:
        if points.shape[1] < self.num_points:
            raise DataError(
                f"farthest_points: the clouds have {points.shape[1]} points, num_points asks for {self.num_points}; "
                f"set num_points to at most {points.shape[1]}"
            )
        return PointSelection(
            farthest_points(points, num_samples=self.num_points, min_squared_norm=self.min_squared_norm)
        )


@registry.transforms.add("drop_points")
class DropPoints(PointSelector):
    """Random input dropout: a share of the points, uniform in [0, max_ratio), is replaced by copies of the first point.

    The number of points is unchanged; the copies have the first point's normal, channels, features and part too. With
    `fill: none` there are no copies, and the cloud has fewer points. Raises DataError for stacked batches there.
    `ratio` is the share, rounded to whole points, in place of a uniform one. A cloud is changed with a `probability`.

    >>> import torch
    >>> from sightline.contract.draws import Draws
    >>> from sightline.parts.transforms.point_selection import DropPoints
    >>> points = torch.tensor([[[7.0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]]])
    >>> dropped = DropPoints(max_ratio=0.5)(Draws.from_seed(0), points=points)["points"]
    >>> ((dropped == points) | (dropped == points[:, :1])).all()  # a point is there, or a copy of the first is
    tensor(True)

    Source: Qi et al. 2017 (PointNet++), section 3.3 (random input dropout, 95 % there; 0.875 in its training code);
    Cortinhal et al. 2020 (SalsaNext), its training code (no copies, 0.5); Wu et al. 2022 (Point Transformer V2), its
    training code (no copies, a ratio of 0.2 with a probability of 0.2).
    """

    def __init__(
        self,
        *,
        max_ratio: Probability = 0.875,
        ratio: FractionBelowOne | None = None,
        fill: Literal["first", "none"] = "first",
        probability: Probability = 1.0,
    ) -> None:
        if ratio is not None and max_ratio != 0.875:
            raise ConfigError("drop_points: ratio stands in place of max_ratio; take one of them out")
        self.max_ratio = max_ratio
        self.ratio = ratio
        self.fill = fill
        self.probability = probability

    def choose(self, draws: Draws, points: Tensor) -> PointSelection | None:
        if self.fill == "none" and len(points) != 1:
            raise DataError(
                f"drop_points: got {len(points)} clouds stacked, which cannot come to differ in size; take fill: first"
            )
        index = self._index_after_drop(draws, points.shape[1])
        if self.probability < 1:
            own_index = torch.arange(points.shape[1], device=points.device)
            is_unchanged_B1 = draws.stream("gate").uniform(1) >= self.probability
            index = torch.where(is_unchanged_B1, own_index, index)
        if self.fill == "first":
            return PointSelection(index.clamp(min=0))
        return PointSelection(index[index >= 0][None])

    def _index_after_drop(self, draws: Draws, num_points: int) -> Tensor:
        """Return each point's own index, or -1 if it is dropped: int64 (B, N)."""
        if self.ratio is None:
            ratio_B1, uniform_BN = draws.uniform(1, high=self.max_ratio), draws.uniform(num_points)
            return index_after_drop(uniform_BN, ratio_B1, dropped=-1)
        order = draws.permutation(num_points)
        kept = order[:, round(self.ratio * num_points) :] if self.ratio else order
        return torch.full_like(order, -1).scatter(1, kept, kept)


def index_after_drop(uniform: Tensor, ratio: Tensor, *, dropped: int = 0) -> Tensor:
    """Return each point's own index, or `dropped` if `uniform` (B, N) is at most `ratio` (B, 1): int64 (B, N)."""
    own_index = torch.arange(uniform.shape[1], device=uniform.device).expand_as(uniform)
    return torch.where(uniform <= ratio, torch.full_like(own_index, dropped), own_index)


def _point_labels(label: Tensor) -> Tensor:
    if label.ndim > 1:
        return label
    raise ConfigError("score_all: predicts points, but the labels of this data set are of whole clouds; take it out")


def _find_nearest_kept(points: Tensor, kept_points: Tensor, index: Tensor) -> Tensor:
    """Return the row (B, N) of `kept_points` (B, K, 3) for each of `points` (B, N, 3): its own, else the nearest."""
    num_clouds, num_points = points.shape[:2]
    num_own = min(num_points, kept_points.shape[1])  # what comes after the last point is a repetition
    kept_index = index[:, :num_own]
    nearest = torch.empty(num_clouds, num_points, dtype=torch.int64)
    nearest.scatter_(1, kept_index, torch.arange(num_own).expand(num_clouds, -1))
    if num_own < num_points:
        is_removed = torch.ones(num_clouds, num_points, dtype=torch.bool).scatter(1, kept_index, False)
        removed = is_removed.nonzero()[:, 1].view(num_clouds, -1)
        removed_points = points.gather(1, removed[..., None].expand(-1, -1, 3))
        nearest.scatter_(1, removed, nearest_neighbours(kept_points, num_neighbours=1, queries=removed_points)[..., 0])
    return nearest


def full_cloud_fields() -> dict[str, Field]:
    """Return the fields that `score_all` adds: the kept point that represents each original point, and its label."""
    shared_arguments = {"dtype": "int64", "collate": "concatenate", "offsets": "whole_offsets"}
    return {
        "nearest": Field("whole points", unit="row of the kept points", low=0, **shared_arguments),  # type: ignore[arg-type]
        "whole_label": Field("whole points", unit="class", **shared_arguments),  # type: ignore[arg-type]
    }


def choose_points(index: Tensor, fields: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Gather the rows `index` (B, K), 0 to N - 1, of every given field (B, N, ...): new tensors (B, K, ...)."""
    chosen = {}
    first = torch.arange(len(index), device=index.device).unsqueeze(1)
    checked: set[int] = set()
    for name, field in fields.items():
        if field is not None:
            if field.shape[1] not in checked:
                require((index >= 0) & (index < field.shape[1]), partial(_make_row_error, name, index, field.shape[1]))
                checked.add(field.shape[1])
            # Rows of one long array: a quarter of the time that indexing by cloud and row takes.
            rows = (index + first * field.shape[1]).flatten()
            chosen[name] = field.flatten(0, 1).index_select(0, rows).unflatten(0, index.shape)
    return chosen


def _make_row_error(name: str, index: Tensor, num_points: int) -> IndexError:
    return IndexError(f"{name}: rows {int(index.min())} to {int(index.max())} of clouds of {num_points}")
