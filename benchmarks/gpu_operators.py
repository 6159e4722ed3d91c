"""Operators that are measured on a GPU: kinds of shapes, each dearest first."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sightline import ops
from sightline.layers.edge_conv import EdgeConv
from sightline.ops.operator import OPERATORS
from sightline.ops.waits import send_list


@dataclass(frozen=True)
class OperatorShape:
    """Call of an operator at one size: `make(device, share)` makes it, with so small a share of the samples.

    `max_ms` is the bar on an H100. The row exists once an operator of that name has a GPU kernel.
    """

    operator: str
    label: str
    make: Callable[[torch.device, int], Callable[[], Any]]
    max_ms: float | None = None

    @property
    def name(self) -> str:
        return f"{self.operator} {self.label}"

    @property
    def has_kernel(self) -> bool:
        return self.operator in OPERATORS and OPERATORS[self.operator].gpu is not None


def _drawn(device: torch.device, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def _rooms(device: torch.device, share: int, *sizes: int) -> tuple[Tensor, list[int], Tensor]:
    """Points of rooms, their numbers, and their offsets, which the host knows as it does in a step."""
    counts = [size // share for size in sizes or (4096,) * 4]
    offsets = send_list([0, *itertools.accumulate(counts)], device)
    return _drawn(device, sum(counts), 3), counts, offsets


def _sampling(clouds: int, points: int, samples: int, *, channels: int = 3, dtype: torch.dtype = torch.float32) -> Any:
    def make(device: torch.device, share: int) -> Callable[[], Any]:
        drawn = _drawn(device, clouds, points // share, channels, dtype=dtype)
        return lambda: ops.farthest_points(drawn, samples // share)

    return make


def _packed_sampling(*sizes: int) -> Any:
    def make(device: torch.device, share: int) -> Callable[[], Any]:
        points, counts, offsets = _rooms(device, share, *sizes)
        samples = send_list([count // 4 for count in counts], device)
        return lambda: ops.packed_farthest_points(points, samples, offsets=offsets).index

    return make


def _searching(
    clouds: int,
    points: int,
    channels: int,
    neighbours: int,
    queries: int | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Any:
    def make(device: torch.device, share: int) -> Callable[[], Any]:
        drawn, count = _drawn(device, clouds, points // share, channels, dtype=dtype), min(neighbours, points // share)
        asked = None if queries is None else drawn[:, : max(queries // share, 1)].contiguous()
        return lambda: ops.nearest_neighbours(drawn, num_neighbours=count, queries=asked)

    return make


def _packed_searching(neighbours: int) -> Any:
    def make(device: torch.device, share: int) -> Callable[[], Any]:
        points, _, offsets = _rooms(device, share)
        return lambda: ops.packed_nearest_neighbours(points, offsets=offsets, num_neighbours=neighbours).index

    return make


def _packed_balls(device: torch.device, share: int) -> Callable[[], Any]:
    points, _, offsets = _rooms(device, share)
    return lambda: ops.packed_points_in_balls(
        points, offsets=offsets, centres=points, centre_offsets=offsets, radius=0.2, num_neighbours=32
    )


def _balls(
    clouds: int, points: int, centres: int, radius: float, neighbours: int, *, dtype: torch.dtype = torch.float32
) -> Any:
    def make(device: torch.device, share: int) -> Callable[[], Any]:
        drawn = _drawn(device, clouds, points // share, 3, dtype=dtype)
        middle = drawn[:, : centres // share].contiguous()
        return lambda: ops.points_in_balls(drawn, centres=middle, radius=radius, num_neighbours=neighbours)

    return make


def _interpolating(device: torch.device, share: int) -> Callable[[], Any]:
    points = _drawn(device, 16, 2048 // share, 3)
    known = points[:, : 512 // share].contiguous()
    features = _drawn(device, *known.shape[:2], 128, seed=1)
    return lambda: ops.interpolate(features, points=known, queries=points)


def _reducing(reduce: Callable[..., Any], channels: int) -> Any:
    """Rows of 100,000 segments, in any order."""

    def make(device: torch.device, share: int) -> Callable[[], Any]:
        rows, segments = 1_000_000 // share, 100_000 // share
        index = torch.randint(segments, (rows,), generator=torch.Generator().manual_seed(1)).to(device)
        values = _drawn(device, rows, channels)
        return lambda: reduce(values, index, dim=0, dim_size=segments)

    return make


def _boxes(device: torch.device, count: int, seed: int = 0) -> Tensor:
    """Boxes of 20 to 120 pixels a side in an image of 1,000."""
    corner, size = torch.rand(2, count, 2, generator=torch.Generator().manual_seed(seed))
    return torch.cat([1000 * corner, 1000 * corner + 20 + 100 * size], dim=1).to(device)


def _overlapping(dtype: torch.dtype) -> Any:
    def make(device: torch.device, share: int) -> Callable[[], Any]:
        anchors, labels = _boxes(device, 100_000 // share).to(dtype), _boxes(device, 100, seed=1).to(dtype)
        return lambda: ops.box_iou(anchors, labels)

    return make


def _suppressing(count: int, dtype: torch.dtype = torch.float32) -> Any:
    def make(device: torch.device, share: int) -> Callable[[], Any]:
        boxes = _boxes(device, count // share).to(dtype)
        scores = _drawn(device, len(boxes), dtype=dtype).sigmoid()
        return lambda: ops.nms(boxes, scores, 0.5)

    return make


def _finding_boxes(dtype: torch.dtype) -> Any:
    def make(device: torch.device, share: int) -> Callable[[], Any]:
        points = 20 * _drawn(device, 120_000 // share, 3, dtype=dtype)
        boxes = 20 * _drawn(device, 50, 7, seed=1, dtype=dtype)
        boxes[:, 3:6] = boxes[:, 3:6].abs() / 10
        return lambda: ops.points_in_boxes(points, boxes, frame="camera")

    return make


def _edges(channels: int, *, is_trained: bool, dtype: torch.dtype = torch.float32) -> Any:
    """An edge convolution of DGCNN, 20 neighbours; with its backward pass, all gradients."""

    def make(device: torch.device, share: int) -> Callable[[], Any]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layer = EdgeConv(in_channels=64, out_channels=channels).to(device, dtype).train()
        size = 1024 // share
        features = _drawn(device, 32, size, 64, dtype=dtype).requires_grad_(is_trained)
        drawn = torch.randint(size, (32, size, 20), generator=torch.Generator().manual_seed(1)).to(device)

        def run() -> Any:
            with torch.set_grad_enabled(is_trained):
                result = layer(features, drawn)
            if not is_trained:
                return result
            return result, torch.autograd.grad(result.sum(), [features, *layer.parameters()])

        return run

    return make


SHAPES = [
    OperatorShape("farthest_points", "24 x 1,024 to 512", _sampling(24, 1024, 512), 2.6),
    OperatorShape("packed_farthest_points", "4 rooms of 4,096 to 1,024", _packed_sampling()),
    OperatorShape(
        "packed_farthest_points", "rooms of 7,000, 4,096, 2,500, 400", _packed_sampling(7000, 4096, 2500, 400)
    ),
    OperatorShape("farthest_points", "1 x 65,536 to 4,096", _sampling(1, 65536, 4096)),
    OperatorShape("farthest_points", "8 x 8,192 to 1,024", _sampling(8, 8192, 1024)),
    OperatorShape("farthest_points", "32 x 1,024 to 256", _sampling(32, 1024, 256)),
    OperatorShape("edge_extremes", "32 x 1,024 x 128, both passes", _edges(128, is_trained=True), 1.0),
    OperatorShape("edge_extremes", "32 x 1,024 x 128, forward", _edges(128, is_trained=False)),
    OperatorShape("edge_extremes", "32 x 1,024 x 64, both passes", _edges(64, is_trained=True)),
    OperatorShape("nearest_neighbours", "32 x 1,024 x 3, 20 of them", _searching(32, 1024, 3, 20), 0.4),
    OperatorShape("nearest_neighbours", "32 x 1,024 x 128, 20 of them", _searching(32, 1024, 128, 20), 0.8),
    OperatorShape("nearest_neighbours", "32 x 1,024 x 64, 20 of them", _searching(32, 1024, 64, 20)),
    OperatorShape("nearest_neighbours", "4 x 16,384 x 3, 16 of them", _searching(4, 16384, 3, 16)),
    OperatorShape("nearest_neighbours", "16 x 256 x 3, 16 of them for 128", _searching(16, 256, 3, 16, 128)),
    OperatorShape("packed_nearest_neighbours", "4 rooms of 4,096, 8 of them", _packed_searching(8)),
    OperatorShape("packed_nearest_neighbours", "4 rooms of 4,096, 16 of them", _packed_searching(16)),
    OperatorShape("points_in_balls", "24 x 1,024 at 512, 32 of them", _balls(24, 1024, 512, 0.2, 32)),
    OperatorShape("points_in_balls", "24 x 512 at 128, 64 of them", _balls(24, 512, 128, 0.4, 64)),
    OperatorShape("packed_points_in_balls", "4 rooms of 4,096, 32 of them", _packed_balls),
    OperatorShape("inverse_distance_weights", "16 x 512 x 128 at 2,048, interpolated", _interpolating),
    OperatorShape("scatter_rows", "1,000,000 x 64 to 100,000", _reducing(ops.scatter_sum, 64)),
    OperatorShape("scatter_extremes", "1,000,000 x 64 to 100,000", _reducing(ops.scatter_max, 64)),
    OperatorShape("scatter_rows", "1,000,000 x 3 to 100,000", _reducing(ops.scatter_sum, 3)),
    OperatorShape("box_iou", "100,000 x 100", _overlapping(torch.float32)),
    OperatorShape("keep_greedily", "5,000 boxes, suppressed", _suppressing(5000)),
    OperatorShape("points_in_boxes", "120,000 in 50", _finding_boxes(torch.float32)),
    OperatorShape("points_in_balls", "16 x 15,000 at 3,750, 32 of them", _balls(16, 15000, 3750, 0.1, 32)),
    OperatorShape("farthest_points", "8 x 1,024 x 64 to 256", _sampling(8, 1024, 256, channels=64)),
    OperatorShape("nearest_neighbours", "4 x 4,096 x 3, 2,000 of them", _searching(4, 4096, 3, 2000)),
    OperatorShape("keep_greedily", "100,000 boxes, suppressed", _suppressing(100_000)),
    OperatorShape("farthest_points", "24 x 1,024 to 512, float64", _sampling(24, 1024, 512, dtype=torch.float64)),
    OperatorShape("farthest_points", "8 x 8,192 to 1,024, float64", _sampling(8, 8192, 1024, dtype=torch.float64)),
    OperatorShape(
        "nearest_neighbours", "32 x 1,024 x 3, 20 of them, float64", _searching(32, 1024, 3, 20, dtype=torch.float64)
    ),
    OperatorShape(
        "nearest_neighbours", "32 x 1,024 x 64, 20 of them, float64", _searching(32, 1024, 64, 20, dtype=torch.float64)
    ),
    OperatorShape(
        "points_in_balls", "24 x 1,024 at 512, 32 of them, float64", _balls(24, 1024, 512, 0.2, 32, dtype=torch.float64)
    ),
    OperatorShape(
        "edge_extremes", "32 x 1,024 x 64, both passes, float64", _edges(64, is_trained=True, dtype=torch.float64)
    ),
    OperatorShape("box_iou", "100,000 x 100, float64", _overlapping(torch.float64)),
    OperatorShape("keep_greedily", "5,000 boxes, suppressed, float64", _suppressing(5000, torch.float64)),
    OperatorShape("points_in_boxes", "120,000 in 50, float64", _finding_boxes(torch.float64)),
]
