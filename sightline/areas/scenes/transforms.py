"""Sampling, cropping and placing of scenes, with all fields of a point (colour, normal, label, ...).

Clouds of data sets with ragged fields come one at a time, (1, N, ...). Random choices are each cloud's own.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.contract import registry
from sightline.contract.arguments import Count, PositiveFloat, PositiveFraction, UpAxis
from sightline.contract.draws import Draws
from sightline.contract.errors import DataError
from sightline.contract.transform import Transform
from sightline.contract.types import Field
from sightline.parts.transforms.point_selection import PointSelection, PointSelector, full_cloud_fields

_MAX_CELLS = 2**62
_TRIES = 64


@registry.transforms.add("voxel_sample")
class VoxelSample(PointSelector):
    """Voxel (grid) sampling: one point of each occupied cube of side `size_m`, in their original order.

    Cubes start at the cloud's lowest coordinates. `choice` takes a uniformly `random` point of each, or the one
    `nearest` to its centre. `score_all` lets evaluation score the removed points, too: it adds `nearest`, the row of
    the kept point closest to each, and `whole_label`; then no transform that chooses or reorders points may follow.
    Raises DataError for stacked batches, in which clouds cannot come to differ in size.

    >>> import torch
    >>> from sightline.areas.scenes.transforms import VoxelSample
    >>> from sightline.contract.draws import Draws
    >>> points = torch.tensor([[[0.0, 0, 0], [0.25, 0, 0], [1.5, 0, 0]]])  # two in the first cube, one in the second
    >>> VoxelSample(size_m=1.0, choice="nearest")(Draws.from_seed(0), points=points)["points"]
    tensor([[[0.2500, 0.0000, 0.0000],
             [1.5000, 0.0000, 0.0000]]])

    Source: the voxel sampling of Choy et al. 2019 and of the Point Transformer's training, Zhao et al. 2021 (0.04 m).
    """

    def __init__(
        self, *, size_m: PositiveFloat = 0.04, choice: Literal["random", "nearest"] = "random", score_all: bool = False
    ) -> None:
        self.size_m = size_m
        self.choice = choice
        self.score_all = score_all
        self.adds: dict[str, Field] = full_cloud_fields() if score_all else {}

    def choose(self, draws: Draws, points: Tensor) -> PointSelection:
        _assert_one(points, "voxel_sample")
        return PointSelection(torch.from_numpy(self._select_rows(draws, points[0].numpy()))[None])

    def _select_rows(self, draws: Draws, points: np.ndarray) -> np.ndarray:
        """Return the sorted rows of the points to keep."""
        groups = voxel_groups(points, size=self.size_m)
        counts = np.diff(groups.starts, append=len(points))
        if self.choice == "random":
            # a remainder of 64 random bits favours the first members by less than the number of members in 2^64
            member = (draws.bits(len(counts))[0] % counts.astype(np.uint64)).astype(np.int64)
            return np.sort(groups.order[groups.starts + member])
        squared = sum((share - np.floor(share) - 0.5) ** 2 for share in _in_cubes(points, self.size_m))[groups.order]
        is_nearest = squared == np.repeat(np.minimum.reduceat(squared, groups.starts), counts)
        candidates = np.flatnonzero(is_nearest)  # of a cube in the order of their rows, so the first is taken
        _, first = np.unique(np.repeat(np.arange(len(counts)), counts)[candidates], return_index=True)
        return np.sort(groups.order[candidates[first]])


@registry.transforms.add("crop_points")
class CropPoints(PointSelector):
    """Crop of each cloud of more than `max_points` to the points nearest to a random one, in their original order.

    `max_share` crops all clouds, to at most this share of their points. `distance` is measured in `space`, which gives
    a ball, or along the `floor`, which gives an upright column.

    >>> import torch
    >>> from sightline.areas.scenes.transforms import CropPoints
    >>> from sightline.contract.draws import Draws
    >>> points = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [10, 0, 0], [11, 0, 0]]])  # two pairs
    >>> cropped = CropPoints(up_axis="z", max_points=2)(Draws.from_seed(0), points=points)["points"]
    >>> cropped[0, 1] - cropped[0, 0]  # one of the pairs
    tensor([1., 0., 0.])

    Source: the training of POSTECH-CVLab's Point Transformer, after Zhao et al. 2021 (80,000 points, in space); Wu et
    al. 2024 (Point Transformer V3), its training code for S3DIS (a share of 0.6).
    """

    def __init__(
        self,
        *,
        up_axis: UpAxis,
        max_points: Count,
        max_share: PositiveFraction = 1.0,
        distance: Literal["space", "floor"] = "space",
    ) -> None:
        self.max_points = max_points
        self.max_share = max_share
        self.axes = [axis for axis in range(3) if distance == "space" or "xyz"[axis] != up_axis]

    def choose(self, draws: Draws, points: Tensor) -> PointSelection | None:
        num_points = points.shape[1]
        num_kept = max(1, min(self.max_points, math.floor(self.max_share * num_points)))
        if num_points <= num_kept:
            return None
        centre = torch.from_numpy((draws.bits(1)[:, 0] % np.uint64(num_points)).astype(np.int64))
        coordinates = points[..., self.axes]
        squared = (coordinates - coordinates[torch.arange(len(points)), centre][:, None]).square().sum(dim=-1)
        index = squared.argsort(dim=1, stable=True)[:, :num_kept].sort(dim=1).values
        return PointSelection(index)


@registry.transforms.add("sample_block")
class SampleBlock(PointSelector):
    """Block sampling: `num_points` random points of an upright block of each room, `size_m` wide both ways.

    The block's axis goes through a random point; a block with fewer than `fewest` points is drawn again, and after 64
    draws the fullest is used. No point comes twice while there is another. The block's axis moves to the origin;
    heights are unchanged. Raises DataError for stacked batches.

    >>> import torch
    >>> from sightline.areas.scenes.transforms import SampleBlock
    >>> from sightline.contract.draws import Draws
    >>> points = torch.tensor([[[5.0, 5, 0], [5, 5, 2]]])  # a column of two points, whose axis moves to the origin
    >>> block = SampleBlock(up_axis="z", size_m=1.0, num_points=2, fewest=1)(Draws.from_seed(0), points=points)
    >>> block["points"].sort(dim=1).values  # in a random order
    tensor([[[0., 0., 0.],
             [0., 0., 2.]]])

    Source: Qi et al. 2017 (PointNet), section C, and its S3DIS training code (1 m, 4,096 points).
    """

    moves_points = True

    def __init__(
        self,
        *,
        up_axis: UpAxis,
        size_m: PositiveFloat = 1.0,
        num_points: Count = 4096,
        fewest: Count = 1024,
    ) -> None:
        self.size_m = size_m
        self.num_points = num_points
        self.fewest = fewest
        self.axes = [axis for axis in range(3) if "xyz"[axis] != up_axis]

    def choose(self, draws: Draws, points: Tensor) -> PointSelection:
        _assert_one(points, "sample_block")
        floor = points[0, :, self.axes].numpy()
        centres = (draws.bits(_TRIES)[0] % np.uint64(len(floor))).astype(np.int64)
        centre, inside = self._block(floor, centres)
        order = inside[np.argsort(draws.bits(len(inside))[0], kind="stable")]
        index = torch.from_numpy(np.resize(order, self.num_points))[None]
        origin = torch.zeros_like(points[0, 0])
        origin[self.axes] = torch.from_numpy(floor[centre])
        return PointSelection(index, origin)

    def _block(self, floor: np.ndarray, centres: np.ndarray) -> tuple[int, np.ndarray]:
        """Return the first of these centres whose block has enough points, or the fullest.

        And the rows of its points.
        """
        fullest, rows = int(centres[0]), np.zeros(0, dtype=np.int64)
        for centre in centres:
            inside = np.flatnonzero((np.abs(floor - floor[centre]) <= self.size_m / 2).all(axis=1))
            if len(inside) > len(rows):
                fullest, rows = int(centre), inside
            if len(inside) >= self.fewest:
                break
        return fullest, rows


@registry.transforms.add("place_on_floor")
class PlaceOnFloor(Transform):
    """Translation of each cloud: its ground plan begins at the origin, or is centred there, its lowest point is at 0.

    `up: keep` leaves heights unchanged: a crop may not contain the floor. Draws nothing.

    >>> import torch
    >>> from sightline.areas.scenes.transforms import PlaceOnFloor
    >>> from sightline.contract.draws import Draws
    >>> points = torch.tensor([[[1.0, 2, 3], [3, 2, 5]]])
    >>> PlaceOnFloor(up_axis="z")(Draws.from_seed(0), points=points)
    {'points': tensor([[[0., 0., 0.],
             [2., 0., 2.]]])}

    Source: the training of POSTECH-CVLab's Point Transformer, after Zhao et al. 2021 (the minimum of every axis at 0).
    """

    moves_points = True

    def __init__(
        self,
        *,
        up_axis: UpAxis,
        plan: Literal["minimum", "centre"] = "minimum",
        up: Literal["minimum", "keep"] = "minimum",
    ) -> None:
        self.plan = plan
        self.up = up
        self.is_up = torch.tensor([axis == up_axis for axis in "xyz"])

    def __call__(self, draws: Draws, *, points: Tensor) -> dict[str, Tensor]:
        low, high = points.amin(dim=1, keepdim=True), points.amax(dim=1, keepdim=True)
        plan = low if self.plan == "minimum" else (low + high) / 2
        up = low if self.up == "minimum" else torch.zeros_like(low)
        return {"points": points - torch.where(self.is_up, up, plan)}


class VoxelGroups(NamedTuple):
    """Rows (N,) int64 of a cloud's points grouped by cube, in order within a cube, and the first index of each cube."""

    order: np.ndarray
    starts: np.ndarray


def voxel_groups(points: np.ndarray, *, size: float) -> VoxelGroups:
    """Group points (N, 3) by cubes of side `size`; cubes start at the lowest coordinates of all.

    Raises DataError for coordinates that are not finite, and for more than 2^62 cubes between the first and the last.
    """
    with np.errstate(invalid="ignore"):
        shares = _in_cubes(points, size)
    highest = [float(share.max()) for share in shares]
    if not np.isfinite(highest).all():
        raise DataError("voxel_sample: found coordinates that are not finite; remove such points")
    cells, shape = [np.floor(share).astype(np.int64) for share in shares], [int(share) + 1 for share in highest]
    num_cells = shape[0] * shape[1] * shape[2]
    if num_cells > _MAX_CELLS:
        raise DataError(f"voxel_sample: cubes of {size:g} over {shape} places are too small; raise size_m")
    key = (cells[0] * shape[1] + cells[1]) * shape[2] + cells[2]
    num_bits = len(points).bit_length()
    if num_cells.bit_length() + num_bits > 63:
        order = np.argsort(key, kind="stable")
        key = key[order]
    else:  # numbers that are all different sort three times faster than rows, and alike on every machine
        both = np.sort((key << num_bits) | np.arange(len(points)))
        order, key = both & ((1 << num_bits) - 1), both >> num_bits
    return VoxelGroups(order, np.flatnonzero(np.diff(key, prepend=-1)))


def _in_cubes(points: np.ndarray, size: float) -> list[np.ndarray]:
    """Return the coordinates of each axis from the lowest, in cube sides; one axis at a time is five times as fast."""
    columns = [np.ascontiguousarray(points[:, axis]) for axis in range(3)]
    return [(column - column.min()) / points.dtype.type(size) for column in columns]


def _assert_one(points: Tensor, name: str) -> None:
    if len(points) != 1:
        raise DataError(
            f"{name}: takes clouds one at a time and got {len(points)} stacked; it is for sets of ragged clouds "
            "(synthetic_rooms, s3dis, scene_folder), sample_points is for stacked ones"
        )
