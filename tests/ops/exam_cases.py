"""The rows of the exam of operators: one for each operator and kind of arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sightline.ops.operator import OPERATORS

DEVICELESS = torch.device("meta")


@dataclass(frozen=True)
class OperatorCase:
    """Arguments of an operator, made for a float format.

    `tolerance` 0 asks for equal bits; else it is a share of the largest number of a result. `differentiable` are the
    places of arguments with a gradient. `table` makes the arguments of a large case, on the meta device: the launches
    of its GPU kernel are built for each architecture. `export` makes arguments without ties for the recorded graph, if
    the order of equal numbers is left to the runtime there.
    """

    operator: str
    label: str
    make: Callable[[torch.dtype], tuple[Any, ...]]
    tolerance: float = 0.0
    differentiable: tuple[int, ...] = ()
    table: Callable[[], tuple[Any, ...]] | None = None
    export: Callable[[torch.dtype], tuple[Any, ...]] | None = None

    def __str__(self) -> str:
        return f"{self.operator}-{self.label}"


def clouds(dtype: torch.dtype, *shape: int, seed: int = 0) -> Tensor:
    """Clouds drawn from a normal distribution; the second has many points at few places, and so ties."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(shape, dtype=torch.float64, generator=generator)
    drawn[1:2] = torch.randint(0, 4, drawn[1:2].shape, generator=generator).double() / 8
    return drawn.to(dtype)


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=DEVICELESS)


def indices(*shape: int) -> Tensor:
    return empty(*shape, dtype=torch.int64)


def _sample(num_points: int, num_samples: int, limit: float = torch.inf, barred: float = -1.0) -> Any:
    first = torch.tensor([0, num_points // 2, num_points - 1])
    return lambda dtype: (clouds(dtype, 3, num_points, 3), first, num_samples, limit, barred)


def _sample_packed(dtype: torch.dtype) -> tuple[Any, ...]:
    sizes, counts = [70, 0, 70, 33, 1], [9, 0, 9, 33, 1]
    offsets, sample_offsets = (torch.tensor([0, *torch.tensor(each).cumsum(0).tolist()]) for each in (sizes, counts))
    points = clouds(dtype, 2, 87, 3).flatten(0, 1)
    return points, offsets, torch.tensor([3, 0, 69, 0, 0]), sample_offsets, sizes, counts, torch.inf


def _search(num_points: int, num_channels: int, num_neighbours: int, num_queries: int | None = None) -> dict[str, Any]:
    """Neighbours of the points themselves or of other queries, with ties and, for the graph, without."""

    def make(dtype: torch.dtype, *, first: int = 0) -> tuple[Any, ...]:
        points = clouds(dtype, 3, num_points, num_channels)[first::2]
        queries = None if num_queries is None else clouds(dtype, 3, num_queries, num_channels, seed=1)[first::2] + 0.125
        return points, queries, num_neighbours

    return {"make": partial(make, first=1), "export": make}


OFFSETS = torch.tensor([0, 37, 37, 38, 80])
FOUR = torch.arange(5)


def _search_packed(dtype: torch.dtype, *, first: int = 0, has_queries: bool = True) -> tuple[Any, ...]:
    points, queries = clouds(dtype, 3, 40, 3)[first::2].flatten(0, 1), clouds(dtype, 1, 21, 3, seed=1)[0]
    points = points.repeat(2, 1)[:80] if first else points
    return points, OFFSETS, *((queries, torch.tensor([0, 9, 9, 9, 21])) if has_queries else (None, None)), 6


def _query_balls(
    num_points: int,
    num_channels: int,
    num_neighbours: int,
    radius: float,
    *,
    mark: bool = True,
    has_rim: bool = True,
) -> Any:
    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        points = clouds(dtype, 3, num_points, num_channels)
        return points, points[:, ::3] + (0.25 if mark else 0), radius, num_neighbours, mark, has_rim

    return make


def _query_packed_balls(dtype: torch.dtype) -> tuple[Any, ...]:
    points = clouds(dtype, 2, 40, 3).flatten(0, 1)
    return points, OFFSETS, points[::4] + 0.125, torch.tensor([0, 10, 12, 12, 20]), 0.6, 5, True, True


def _rows(num_samples: int, num_channels: int, *further: Any, layout: str = "any", holes: bool = False) -> Any:
    """Rows with ties, if there is a second sample, and one index for all: of 9 segments, some are empty."""

    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        values = clouds(dtype, num_samples, 70, num_channels)
        if holes:
            values[:, ::9], values[:, 1::4] = torch.nan, -torch.inf
        drawn = torch.randint(0, 5, (1, 70), generator=torch.Generator().manual_seed(4)) * 2
        rising = drawn.sort(dim=1).values
        bounds = torch.searchsorted(rising, torch.arange(10)[None])
        return values, {"any": drawn, "sorted": rising, "bounds": bounds}[layout], 9, *further, layout

    return make


def _row_table(num_channels: int, *further: Any) -> Any:
    num_indices = 20_001 if further[-1] == "bounds" else 200_000
    return lambda: (empty(1, 200_000, num_channels), indices(1, num_indices), 20_000, *further)


def _weigh(weighting: str, num_channels: int, *, has_mask: bool) -> Any:
    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(2)
        points, queries = clouds(dtype, 2, 20, num_channels), clouds(dtype, 2, 37, num_channels, seed=1)
        index = torch.randint(0, 20, (2, 37, 3), generator=generator)
        is_valid = torch.rand(index.shape, generator=generator) < 0.7
        is_valid[..., 0] = True
        return points, queries, index, is_valid if has_mask else None, weighting

    return make


def _edges(dtype: torch.dtype, num_clouds: int, *, is_half: bool = False) -> tuple[Any, ...]:
    """Pairs of 6 channels, index, sign, shift and offset; in bfloat16 with an offset where the rest is float32."""
    generator = torch.Generator().manual_seed(1)
    pairs = clouds(dtype, num_clouds, 13, 12)
    index = torch.randint(0, 13, (num_clouds, 13, 4), generator=generator)
    sign, shift = torch.tensor([1.0, -1, 0, 1, -1, 1], dtype=dtype), torch.randn(6, generator=generator).to(dtype)
    offset = torch.randn(num_clouds, 1, 12, generator=generator).to(dtype) if is_half else None
    return pairs.bfloat16() if is_half and dtype == torch.float32 else pairs, index, sign, shift, offset


def _edge_gradients(dtype: torch.dtype, *, is_half: bool = False) -> tuple[Any, ...]:
    pairs, index, _, shift, offset = _edges(dtype, 2, is_half=is_half)
    position = (index[:, :, :1] * torch.arange(1, 7) % 4).to(torch.uint8)
    drawn = clouds(dtype, 3, 2, 13, 6, seed=2)
    return pairs, index, position, drawn[2], drawn[0, 0, 0], drawn[0, 0, 1], shift, offset


def _edge_table(*, is_half: bool) -> tuple[Any, ...]:
    pairs = empty(32, 1024, 256, dtype=torch.bfloat16 if is_half else torch.float32)
    return pairs, indices(32, 1024, 20), empty(128), empty(128), empty(32, 1, 256) if is_half else None


def _edge_gradients_table(*, is_half: bool) -> tuple[Any, ...]:
    pairs, index, sign, shift, offset = _edge_table(is_half=is_half)
    position = empty(32, 1024, 128, dtype=torch.uint8)
    return pairs, index, position, empty(32, 1024, 128), sign, sign, shift, offset


def _statistics(dtype: torch.dtype) -> tuple[Any, ...]:
    values = clouds(torch.float64, 1, 40, 5)[0] + 3
    origin, running = values[0].to(dtype), clouds(dtype, 1, 2, 5)[0]
    moved = values - origin
    return origin, moved.sum(dim=0), moved.square().sum(dim=0), running[0], running[1], 40, 0.1, 1e-5, dtype


def _statistics_table() -> tuple[Any, ...]:
    each, sums = empty(128), empty(128, dtype=torch.float64)
    return each, sums, sums, each, each, 655360, 0.1, 1e-5, torch.float32


def boxes(dtype: torch.dtype, count: int, seed: int) -> Tensor:
    """Boxes of which many overlap, some are equal, some have no area and some corners are the wrong way round."""
    corners = (clouds(dtype, 2, count, 4, seed=seed) * 8).flatten(0, 1)[: 2 * count : 2]
    return torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:] + 6], dim=1)


def _penalise(kind: str, eps: float) -> Any:
    return lambda dtype: (boxes(dtype, 37, 0), boxes(dtype, 70, 1), kind, eps)


def _detections(num_proposals: int) -> Any:
    """Scores in threes that are equal, and a limit for each box."""
    labels, proposals = torch.arange(70) % 3, torch.arange(num_proposals) // 6
    return lambda dtype: (
        boxes(dtype, 70, 2),
        1 - torch.arange(70) // 3 / torch.tensor(24, dtype=dtype),
        labels,
        torch.linspace(0.1, 1, 70, dtype=dtype),
        proposals,
    )


def _weakened(is_linear: bool) -> Any:
    detections = _detections(0)
    return lambda dtype: (*detections(dtype)[:4], is_linear, 0.01)


def _pool(ratio: int, *, is_gradient: bool = False) -> Any:
    """Regions of maps, some outside or inverted; the gradient adds up those of ten regions."""

    def make(dtype: torch.dtype, *, ratio: int = ratio) -> tuple[Any, ...]:
        image = torch.arange(10)[:, None] % 2
        rois = torch.cat([image.to(dtype), boxes(dtype, 10, 3)], dim=1)
        if is_gradient:
            return clouds(dtype, 10, 3, 4, 2), rois, [2, 3, 9, 12], 0.5, ratio, True
        return clouds(dtype, 2, 3, 9, 12), rois, 4, 2, 0.5, ratio, True

    return {"make": make, "export": partial(make, ratio=ratio or 2), "tolerance": 1e-6, "differentiable": (0,)}


def footprints(dtype: torch.dtype, count: int, seed: int) -> Tensor:
    """Places, half sizes, cosines and sines of turned boxes, many of which overlap."""
    drawn = clouds(torch.float64, 1, count, 5, seed=seed)[0]
    turn = drawn[:, 4:]
    return torch.cat([2 * drawn[:, :2], drawn[:, 2:4].abs() + 0.5, turn.cos(), turn.sin()], dim=1).to(dtype)


def _pillar_grid(dtype: torch.dtype, *, num_axes: int = 3) -> tuple[Any, ...]:
    """Points of four frames, one of them empty, some outside and many on borders, and a grid of 5 x 3 pillars."""
    points, lowest = clouds(dtype, 2, 40, 4).flatten(0, 1), torch.tensor([-1, -0.75, -2], dtype=dtype)
    points[0], points[1, 0], points[2, :2] = -50, 1e9, lowest[:2]
    return points, OFFSETS, lowest[:num_axes], torch.tensor([0.5, 0.75, 4], dtype=dtype)[:num_axes], [5, 3]


def _cells(count: int = 80, *, is_unique: bool = True) -> tuple[Tensor, Tensor]:
    """Cells of one cloud, and the cloud (V,) of each; some twice if they are not unique."""
    drawn = torch.randint(0, 5, (count, 3), generator=torch.Generator().manual_seed(6))
    cells = drawn.unique(dim=0) if is_unique else drawn
    return cells, torch.zeros(len(cells), dtype=torch.int64)


def _convolve(size: int, in_channels: int, out_channels: int, *, is_gradient: bool = False, count: int = 9) -> Any:
    """Channels that are no multiple of a vector, and rows whose neighbours are missing; size 2 makes coarse voxels."""

    def make(dtype: torch.dtype) -> tuple[Any, ...]:
        cells, cloud = _cells(count)
        if size == 2:
            *_, table, reverse, num_outputs = OPERATORS["stride_table"](cells, cloud, 2, 2, 0, None)
            table = table[: int(num_outputs)]
        else:
            table = OPERATORS["neighbour_table"](cells, cloud, size)
            reverse = table.flip(1)
        values = clouds(dtype, 1, len(cells), in_channels)[0]
        if is_gradient:
            return values, clouds(dtype, 1, len(table), out_channels, seed=1)[0], table
        weight = clouds(dtype, 1, size**3, in_channels, out_channels, seed=2)[0]
        return values, weight, clouds(dtype, 1, out_channels, 1, seed=3)[0, :, 0], table, reverse

    return {"make": make, "tolerance": 1e-6, "differentiable": (0, 1) if is_gradient else (0, 1, 2)}


def _take(dtype: torch.dtype) -> tuple[Any, ...]:
    """Rows that two take, one, or none; and two places for no row."""
    rows = torch.tensor([0, 3, -1, 1, 3, 5, -1])
    return clouds(dtype, 1, 6, 4)[0], rows, torch.tensor([[0, -1], [3, -1], [-1, -1], [1, 4], [-1, -1], [-1, 5]])


@dataclass(frozen=True)
class LargeCall:
    """Arguments (on the meta device) of a float format for which a kernel takes another form, and its launches."""

    operator: str
    label: str
    make: Callable[[torch.dtype], tuple[Any, ...]]
    launches: int = 1

    def __str__(self) -> str:
        return f"{self.operator}-{self.label}"


def _suppress_table(count: int, *, has_proposals: bool) -> Any:
    index = indices(count)
    return lambda dtype: (
        *(empty(count, 4, dtype=dtype), empty(count, dtype=dtype), index, empty(count, dtype=dtype)),
        index if has_proposals else index[:0],
    )


LARGE = [
    LargeCall(
        "nearest_neighbours", "more than a warp holds", lambda dtype: (empty(4, 4096, 3, dtype=dtype), None, 2000)
    ),
    LargeCall(
        "nearest_neighbours",
        "rows far apart",
        lambda dtype: (empty(1, 2**28, 8, dtype=dtype).expand(2, -1, -1), None, 8),
    ),
    LargeCall(
        "farthest_points",
        "few channels",
        lambda dtype: (empty(24, 1024, 2, dtype=dtype), indices(24), 512, torch.inf, -1.0),
    ),
    LargeCall(
        "farthest_points",
        "many channels",
        lambda dtype: (empty(4, 20_000, 64, dtype=dtype), indices(4), 500, torch.inf, -1.0),
    ),
    LargeCall(
        "farthest_points",
        "up to its registers",
        lambda dtype: (empty(4, 2**15 // dtype.itemsize, 3, dtype=dtype), indices(4), 500, torch.inf, -1.0),
    ),
    LargeCall(
        "points_in_balls",
        "thousands",
        lambda dtype: (empty(4, 4096, 3, dtype=dtype), empty(4, 1024, 3, dtype=dtype), 0.2, 3000, True, True),
    ),
    LargeCall(
        "inverse_distance_weights",
        "of many neighbours",
        lambda dtype: (
            *(empty(4, 4096, 3, dtype=dtype), empty(4, 512, 3, dtype=dtype), indices(4, 512, 1024)),
            *(None, "inverse"),
        ),
    ),
    *(
        LargeCall(
            "keep_greedily", f"in blocks{label}", _suppress_table(100_000, has_proposals=bool(label)), launches=11
        )
        for label in ("", ", with proposals")
    ),
]

CASES = [
    OperatorCase(
        "inverse_distance_weights",
        "of squares",
        _weigh("inverse_square", 3, has_mask=False),
        tolerance=1e-6,
        table=lambda: (empty(24, 128, 3), empty(24, 512, 3), indices(24, 512, 3), None, "inverse_square"),
    ),
    OperatorCase(
        "inverse_distance_weights",
        "of distances",
        _weigh("inverse", 5, has_mask=True),
        tolerance=1e-6,
        table=lambda: (
            *(empty(1, 4096, 3), empty(1, 16384, 3), indices(1, 16384, 3)),
            *(empty(1, 16384, 3, dtype=torch.bool), "inverse"),
        ),
    ),
    OperatorCase("nearest_neighbours", "in space", **_search(70, 3, 20), table=lambda: (empty(32, 1024, 3), None, 20)),
    OperatorCase(
        "nearest_neighbours", "all", **_search(37, 2, 37, 9), table=lambda: (empty(4, 4096, 3), empty(4, 1024, 3), 32)
    ),
    OperatorCase("nearest_neighbours", "one", **_search(5, 4, 1, 20), table=lambda: (empty(4, 4096, 3), None, 16)),
    OperatorCase(
        "nearest_neighbours", "of features", **_search(65, 24, 9), table=lambda: (empty(32, 1024, 64), None, 20)
    ),
    OperatorCase(
        "nearest_neighbours",
        "of other features",
        **_search(33, 128, 33, 20),
        table=lambda: (empty(32, 1024, 128), None, 20),
    ),
    OperatorCase(
        "nearest_neighbours",
        "many",
        **_search(140, 3, 130, 3),
        table=lambda: (empty(4, 4096, 3), None, 200),
    ),
    OperatorCase("nearest_by_differences", "of features", **_search(65, 24, 9)),
    OperatorCase(
        "packed_nearest_neighbours",
        "ragged",
        partial(_search_packed, first=1, has_queries=False),
        export=partial(_search_packed, has_queries=False),
        table=lambda: (empty(16384, 3), 4096 * FOUR, None, None, 16),
    ),
    OperatorCase(
        "packed_nearest_neighbours",
        "of queries",
        _search_packed,
        table=lambda: (empty(16384, 3), 4096 * FOUR, empty(4096, 3), 1024 * FOUR, 3),
    ),
    OperatorCase(
        "points_in_balls",
        "marked",
        _query_balls(70, 3, 20, 0.5),
        table=lambda: (empty(24, 1024, 3), empty(24, 512, 3), 0.2, 32, True, True),
    ),
    OperatorCase(
        "points_in_balls",
        "own centres",
        _query_balls(37, 3, 50, 0.25, mark=False),
        table=lambda: (empty(24, 512, 3), empty(24, 128, 3), 0.4, 64, True, True),
    ),
    OperatorCase(
        "points_in_balls",
        "of features",
        _query_balls(37, 12, 7, 4.5),
        table=lambda: (empty(24, 512, 64), empty(24, 128, 64), 0.4, 128, True, True),
    ),
    OperatorCase("points_in_balls", "without the rim", _query_balls(37, 3, 50, 0.25, has_rim=False)),
    OperatorCase("estimate_normals", "of a cloud", lambda dtype: (clouds(dtype, 1, 50, 3), 9), tolerance=1e-6),
    OperatorCase(
        "packed_points_in_balls",
        "ragged",
        _query_packed_balls,
        table=lambda: (empty(16384, 3), 4096 * FOUR, empty(4096, 3), 1024 * FOUR, 0.1, 32, True, True),
    ),
    OperatorCase("scatter_rows", "any order", _rows(1, 3), 1e-6, (0,), table=_row_table(64, "any")),
    OperatorCase("scatter_rows", "sorted", _rows(3, 20, layout="sorted"), 1e-6),
    OperatorCase("scatter_rows", "bounds", _rows(2, 5, layout="bounds"), 1e-6, (0,), table=_row_table(1, "bounds")),
    OperatorCase("scatter_extremes", "highest", _rows(1, 3, True), 0.0, (0,), table=_row_table(64, True, "any")),
    OperatorCase("scatter_extremes", "lowest", _rows(3, 20, False, layout="sorted")),
    OperatorCase(
        "scatter_extremes", "bounds", _rows(1, 5, True, layout="bounds"), 0.0, (0,), table=_row_table(1, True, "bounds")
    ),
    OperatorCase("scatter_extremes", "NaN and -inf", _rows(3, 5, True, holes=True)),
    OperatorCase(
        "gather_segments",
        "of two samples",
        lambda dtype: (clouds(dtype, 2, 9, 3), torch.arange(40).reshape(2, 20) % 7),
        differentiable=(0,),
    ),
    OperatorCase(
        "grid_cluster",
        "of samples",
        lambda dtype: (
            *(clouds(dtype, 1, 50, 3)[0], torch.tensor([0.3, 0.5, 1], dtype=dtype)),
            *(torch.full((3,), -9, dtype=dtype), torch.full((3,), 9, dtype=dtype), torch.arange(50) // 20),
        ),
    ),
    OperatorCase(
        "farthest_points",
        "all",
        _sample(37, 37),
        table=lambda: (empty(24, 1024, 3), indices(24), 512, torch.inf, -1.0),
    ),
    OperatorCase(
        "farthest_points",
        "barred",
        _sample(100, 30, 0.9, 1.5),
        table=lambda: (empty(8, 8192, 3), indices(8), 1024, torch.inf, -1.0),
    ),
    OperatorCase(
        "farthest_points",
        "several channels",
        lambda dtype: (clouds(dtype, 2, 40, 5), torch.tensor([1, 2]), 9, torch.inf, -1.0),
        table=lambda: (empty(1, 65536, 3), indices(1), 4096, torch.inf, -1.0),
    ),
    OperatorCase(
        "packed_farthest_points",
        "ragged",
        _sample_packed,
        table=lambda: (*(empty(16384, 3), indices(5), indices(4), indices(5), [4096] * 4, [1024] * 4, torch.inf),),
    ),
    OperatorCase("edge_extremes", "one cloud", lambda dtype: _edges(dtype, 1), 1e-6, (0,)),
    OperatorCase(
        "edge_extremes", "ties", lambda dtype: _edges(dtype, 3), 1e-6, table=lambda: _edge_table(is_half=False)
    ),
    OperatorCase(
        "edge_extremes",
        "bfloat16",
        lambda dtype: _edges(dtype, 1, is_half=True),
        1e-6,
        (0, 4),
        table=lambda: _edge_table(is_half=True),
    ),
    OperatorCase("edge_gradients", "float", _edge_gradients, 1e-6, table=lambda: _edge_gradients_table(is_half=False)),
    OperatorCase(
        "edge_gradients",
        "bfloat16",
        lambda dtype: _edge_gradients(dtype, is_half=True),
        2**-8,  # sums are rounded to bfloat16
        table=lambda: _edge_gradients_table(is_half=True),
    ),
    OperatorCase("batch_statistics", "float", _statistics, 1e-6, table=_statistics_table),
    OperatorCase(
        "statistics_gradients",
        "float",
        lambda dtype: (*clouds(dtype, 1, 4, 5)[0], 40),
        1e-6,
        table=lambda: (*(empty(128) for _ in range(4)), 655360),
    ),
    *(
        OperatorCase(
            name,
            "all pairs",
            lambda dtype: (boxes(dtype, 37, 0), boxes(dtype, 70, 1)),
            table=lambda: (empty(10_000, 4), empty(1000, 4)),
        )
        for name in ("box_iou", "box_ioa")
    ),
    *(
        OperatorCase("penalised_iou", kind, _penalise(kind, eps))
        for kind, eps in (("giou", 0.0), ("diou", 0.5), ("ciou", 1e-7))
    ),
    *(
        OperatorCase(
            "keep_greedily",
            f"{num_proposals} proposals",
            _detections(num_proposals),
            table=lambda count=num_proposals: (
                *(empty(30_000, 4), empty(30_000), indices(30_000), empty(30_000)),
                indices(30_000 if count else 0),
            ),
        )
        for num_proposals in (0, 70)
    ),
    OperatorCase("weaken", "linear", _weakened(True)),
    OperatorCase("weaken", "Gaussian", _weakened(False), tolerance=1e-6),
    OperatorCase(
        "points_in_boxes",
        "upright",
        lambda dtype: (clouds(dtype, 2, 90, 3).flatten(0, 1), clouds(dtype, 1, 12, 8, seed=1)[0].abs(), 0.5, 0.1),
        table=lambda: (empty(120_000, 3), empty(50, 8), 0.1, 0.0),
    ),
    OperatorCase(
        "points_in_lidar_boxes",
        "upright",
        lambda dtype: (clouds(dtype, 2, 90, 3).flatten(0, 1), clouds(dtype, 1, 12, 8, seed=1)[0].abs(), 0.5, 0.1),
    ),
    OperatorCase(
        "bev_overlap",
        "all pairs",
        lambda dtype: (footprints(dtype, 9, 0), footprints(dtype, 12, 1), False),
        differentiable=(0, 1),
    ),
    OperatorCase(
        "bev_overlap",
        "aligned",
        lambda dtype: (footprints(dtype, 12, 0), footprints(dtype, 12, 1), True),
        differentiable=(0, 1),
    ),
    *(
        OperatorCase(
            "keep_apart",
            "circles" if is_circle else "turned",
            lambda dtype, is_circle=is_circle: (
                *(footprints(dtype, 70, 0), 1 - torch.arange(70) / torch.tensor(70, dtype=dtype), torch.arange(70) % 3),
                *(torch.arange(70) % 7 > 0, 0.2, is_circle),
            ),
        )
        for is_circle in (False, True)
    ),
    OperatorCase("hard_pillars", "ragged", lambda dtype: (*_pillar_grid(dtype), 4, 7)),
    OperatorCase("dynamic_pillars", "ragged", lambda dtype: _pillar_grid(dtype, num_axes=2)),
    OperatorCase("group_cells", "ragged", lambda dtype: (_cells(is_unique=False)[0] - 2, OFFSETS)),
    OperatorCase("neighbour_table", "three", lambda dtype: (*_cells(), 3)),
    OperatorCase("neighbour_table", "five, cells twice", lambda dtype: (*_cells(is_unique=False), 5)),
    OperatorCase("stride_table", "halves", lambda dtype: (*_cells(), 2, 2, 0, None)),
    OperatorCase("stride_table", "three of an extent", lambda dtype: (*_cells(), 3, 2, 1, [5, 4, 5])),
    OperatorCase("convolve_voxels", "three", **_convolve(3, 2, 1)),
    OperatorCase("convolve_voxels", "halves", **_convolve(2, 1, 3)),
    replace(OperatorCase("convolve_voxels", "wide", **_convolve(3, 5, 18, count=400)), differentiable=()),
    replace(
        OperatorCase("convolve_voxels", "by matrix products", **_convolve(3, 128, 128, count=150)), differentiable=()
    ),
    OperatorCase("correlate_voxels", "three", **_convolve(3, 2, 1, is_gradient=True)),
    OperatorCase("correlate_voxels", "halves", **_convolve(2, 1, 3, is_gradient=True)),
    replace(
        OperatorCase("correlate_voxels", "wide", **_convolve(2, 34, 16, count=400, is_gradient=True)), differentiable=()
    ),
    OperatorCase("take_rows", "twice, once and never", _take, differentiable=(0,)),
    OperatorCase("roi_align", "as many samples as pixels", **_pool(0)),
    OperatorCase("roi_align", "four samples", **_pool(2)),
    OperatorCase("roi_align_gradient", "as many samples as pixels", **_pool(0, is_gradient=True)),
]
