"""Windows over scenes too large, or too dense, for one pass; what several of them say of a point is averaged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from sightline.contract.types import PREPARED, Batch
from sightline.ops.dtypes import promote_to_float32
from sightline.ops.voxels.cells import sparse_voxels

Origin = Literal["kept", "minimum"]
"""Origin of a window's coordinates: unchanged, or the smallest of each axis within the window."""
ForwardFunction = Callable[[Batch], Tensor]
"""Function from a batch to the logits of its points, one row each."""

_BLOCKS_AT_ONCE = 16


class Windows(Protocol):
    """Interface of windows: compute the logits (P, C) of one cloud from those of its windows; `protocol` names them."""

    protocol: str

    def __call__(self, forward: ForwardFunction, cloud: Batch) -> Tensor: ...


class SphereWindows:
    """Sphere windows: neighbourhoods of at most `max_points` points that cover all points; logits are averaged.

    A cloud with no more points is one window, all of it. The points of a window keep their order.
    Source: the test of POSTECH-CVLab's Point Transformer on S3DIS, after Zhao et al. 2021.
    """

    protocol = "windows"

    def __init__(self, *, max_points: int, origin: Origin) -> None:
        self.max_points = max_points
        self.origin = origin

    def __call__(self, forward: ForwardFunction, cloud: Batch) -> Tensor:
        mean = MeanRows(len(cloud["points"]))
        for index in sphere_windows(cloud["points"], max_points=self.max_points):
            mean.add(index, forward(_make_window(cloud, index, self.origin)))
        return mean()


class BlockWindows:
    """Block windows: vertical columns over squares of `size_m`, every `stride_m`, of `num_points` points each.

    Horizontal coordinates are relative to the centre of the square. The points of a column are assigned to its windows
    in turn, so that each window covers the column regardless of the order of points; windows are filled up with
    repeated points of the column, whose predictions count like any other.
    Source: Qi et al. 2017 (PointNet), section 5.1 (blocks of 1 m), and its code (stride one half at test).
    """

    protocol = "blocks"

    def __init__(self, *, size_m: float, stride_m: float, num_points: int) -> None:
        self.size_m = size_m
        self.stride_m = stride_m
        self.num_points = num_points

    def __call__(self, forward: ForwardFunction, cloud: Batch) -> Tensor:
        points = cloud["points"]
        mean = MeanRows(len(points))
        waiting: list[tuple[Tensor, Tensor]] = []
        for middle, index in column_windows(points, size_m=self.size_m, stride_m=self.stride_m):
            times = -(-len(index) // self.num_points)
            filled = index.repeat(times * self.num_points // len(index) + 1)[: times * self.num_points]
            waiting += [(middle, part) for part in filled.view(self.num_points, times).unbind(dim=1)]
            if len(waiting) >= _BLOCKS_AT_ONCE:
                self._add_logits(forward, cloud, waiting, mean)
                waiting = []
        if waiting:
            self._add_logits(forward, cloud, waiting, mean)
        return mean()

    def _add_logits(
        self, forward: ForwardFunction, cloud: Batch, blocks: list[tuple[Tensor, Tensor]], mean: MeanRows
    ) -> None:
        middles, indices = (torch.stack(column) for column in zip(*blocks, strict=True))
        batch = {**cloud, "points": cloud["points"][indices] - middles[:, None]}
        del batch["offsets"]
        if "features" in cloud:
            batch["features"] = cloud["features"][indices]
        if "category" in cloud:
            batch["category"] = cloud["category"].expand(len(blocks))
        mean.add(indices.flatten(), forward(batch))


class TileWindows:
    """Tiles: squares of `size_m` from the lowest coordinates on, each predicted with all points up to `halo_m` around.

    Each point is in one tile, which gives its logits; those around it are read alone. These are the logits of the whole
    cloud where the network reads nothing that is farther away than the halo. `up_axis` is that of the height.
    """

    protocol = "tiles"

    def __init__(self, *, size_m: float, halo_m: float, up_axis: str) -> None:
        self.size_m = size_m
        self.halo_m = halo_m
        self.axes = [axis for axis, name in enumerate("xyz") if name != up_axis]

    def locate(self, plan: Tensor) -> Tensor:
        """Return the tile (N, 2) of each point, from its two coordinates of the plan in float64."""
        return ((plan - plan.amin(dim=0)) / self.size_m).floor().long()

    def describe(self, points: Tensor) -> str:
        """Describe in how many tiles the points (N, 3) of a cloud are."""
        number = len(self.locate(points[:, self.axes].double()).unique(dim=0))
        return (
            f"predicted in {number} tile{'s' * (number != 1)} of {self.size_m:g} m, with {self.halo_m:g} m around each"
        )

    def __call__(self, forward: ForwardFunction, cloud: Batch) -> Tensor:
        points, logits = cloud["points"], None
        plan = points[:, self.axes].double()
        lowest, tile = plan.amin(dim=0), self.locate(plan)
        for place in tile.unique(dim=0):
            first = lowest + place * self.size_m
            is_own = (tile == place).all(dim=1)
            is_near = ((plan >= first - self.halo_m) & (plan <= first + self.size_m + self.halo_m)).all(dim=1)
            index = (is_own | is_near).nonzero().flatten()
            window = {**_make_window(cloud, index, "kept"), PREPARED: {"grid_corner": points.amin(dim=0)}}
            part, kept = forward(window), is_own[index]
            logits = part.new_empty((len(points), part.shape[-1])) if logits is None else logits
            logits[index[kept]] = part[kept]
        assert logits is not None, "no tile was predicted"
        return logits


class FragmentWindows:
    """Fragments of a grid: clouds of one point in each cube of `size_m`, as many as the fullest cube has points.

    Together they hold every point; a cube of fewer points repeats them, and their predictions count like any other.
    Probabilities are averaged: the logits are the logarithms of their mean. One fragment is predicted at a time. With
    views (`evaluate.votes`) the means of the views are averaged; the published code adds up all predictions of a point,
    so that a view in which its cube is predicted more often counts more.
    Source: the test of Pointcept (its GridSample and SemSegTester), after Wu et al. 2022 and 2024.
    """

    protocol = "fragments"

    def __init__(self, *, size_m: float) -> None:
        self.size_m = size_m

    def __call__(self, forward: ForwardFunction, cloud: Batch) -> Tensor:
        mean = MeanRows(len(cloud["points"]))
        for index in sparse_voxels(cloud["points"], side=self.size_m).iterate_fragments():
            mean.add(index, promote_to_float32(forward(_make_window(cloud, index, "kept"))).softmax(dim=-1))
        return mean().log()


def sphere_windows(points: Tensor, *, max_points: int) -> Iterator[Tensor]:
    """Yield the rows (at most `max_points`,) int64, rising, of neighbourhoods that cover all `points` (P, 3).

    Each is centred at the first point that no earlier one contains, and takes the nearest points to it.
    """
    if len(points) <= max_points:
        yield torch.arange(len(points), device=points.device)
        return
    is_seen = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    while not bool(is_seen.all()):
        middle = points[int((~is_seen).to(torch.uint8).argmax())]  # the first of equal maxima
        squared = (points - middle).square().sum(dim=1)
        index = squared.topk(max_points, largest=False).indices.sort().values
        is_seen[index] = True
        yield index


def column_windows(points: Tensor, *, size_m: float, stride_m: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield centre (3,), 0 in height, and rows (K,) of every column that contains points (P, 3); z is up.

    The squares start at the smallest coordinates and reach the largest; every point is in at least one.
    """
    low, high = points.amin(dim=0)[:2], points.amax(dim=0)[:2]
    counts = [max(1, math.ceil((extent - size_m) / stride_m) + 1) for extent in (high - low).tolist()]
    for row in range(counts[0]):
        for column in range(counts[1]):
            corner = low + points.new_tensor([row, column]) * stride_m
            is_last = torch.tensor([row == counts[0] - 1, column == counts[1] - 1], device=points.device)
            across = points[:, :2] - corner
            is_inside = (across >= 0) & ((across <= size_m) | is_last)  # the last include rounded sums
            index = is_inside.all(dim=1).nonzero().flatten()
            if len(index):
                yield torch.cat([corner + size_m / 2, corner.new_zeros(1)]), index


def split_clouds(batch: Batch) -> Iterator[Batch]:
    """Split a packed batch into batches of one cloud: points, features, category."""
    for number, (start, end) in enumerate(pairwise(batch["offsets"].tolist())):
        cloud: dict[str, Any] = {"points": batch["points"][start:end]}
        cloud["offsets"] = torch.tensor([0, end - start], device=batch["points"].device)
        if "features" in batch:
            cloud["features"] = batch["features"][start:end]
        if "category" in batch:
            cloud["category"] = batch["category"][number : number + 1]
        yield cloud


class MeanRows:
    """Accumulator of the mean row of each of `num_points` points over its predictions: `total` over `times`."""

    def __init__(self, num_points: int) -> None:
        self.num_points = num_points
        self.total: Tensor | None = None
        self.times: Tensor | None = None

    def add(self, index: Tensor, values: Tensor) -> None:
        """Add the rows of values (..., C) to the points of `index`."""
        rows = values.flatten(0, -2)
        rows = rows if rows.dtype == torch.float64 else rows.float()
        if self.total is None:
            self.total = rows.new_zeros(self.num_points, rows.shape[1])
            self.times = rows.new_zeros(self.num_points)
        assert self.times is not None
        # One window at a time, so that the order of the sum is fixed; rows that a window holds twice are added apart.
        self.total.index_add_(0, index, rows)
        self.times.index_add_(0, index, torch.ones_like(rows[:, 0]))

    def __call__(self) -> Tensor:
        assert self.total is not None, "no window was predicted"
        assert self.times is not None
        return self.total / self.times[:, None]


def _make_window(cloud: Batch, index: Tensor, origin: Origin) -> Batch:
    points = cloud["points"][index]
    if origin == "minimum":
        points = points - points.amin(dim=0)
    window = {**cloud, "points": points, "offsets": torch.tensor([0, len(index)], device=index.device)}
    if "features" in cloud:
        window["features"] = cloud["features"][index]
    return window
