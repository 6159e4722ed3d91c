"""Benchmarks of neighbours, sampling, ball query and interpolation against textbook forms and other packages.

Coordinates are uniform in a cube. If implementations round differently, coordinates are rounded first, so that every
squared distance is exact in float32 and results do not depend on the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks import textbook
from benchmarks.agreement import same_neighbours
from benchmarks.third_party import neighbour_peers, sampling_peers
from sightline import geometry
from sightline.bench.case import BenchmarkCase, Implementation, Run, allclose, equal, implementation

RADIUS = 0.25
"""Radius of the ball query; a power of two, so that its square is exact."""


def cases() -> list[BenchmarkCase]:
    return [
        neighbour_case(batch=32, points=1024, channels=3, neighbours=20),
        neighbour_case(batch=8, points=1024, channels=64, neighbours=20),
        neighbour_case(batch=1, points=8192, channels=3, neighbours=20),
        neighbour_case(batch=1, points=65_536, channels=3, neighbours=20),
        sampling_case(batch=32, points=1024, samples=512),
        sampling_case(batch=8, points=8192, samples=1024),
        sampling_case(batch=1, points=65_536, samples=4096),
        sampling_case(batch=1, points=65_536, samples=16_384),
        sampling_case(batch=1, points=1_000_000, samples=2048),
        ball_case(batch=32, points=1024, centres=512, neighbours=32),
        interpolation_case(batch=32, points=128, queries=512, features=256),
    ]


def neighbour_case(*, batch: int, points: int, channels: int, neighbours: int) -> BenchmarkCase:
    """Make a case of the nearest neighbours of every point in its own cloud."""
    fits = batch * points**2 <= 2**28  # three matrices of a gigabyte at most
    return BenchmarkCase(
        suite="geometry",
        label="knn_{batch}x{points}x{channels}_k{neighbours}",
        size={"batch": batch, "points": points, "channels": channels, "neighbours": neighbours},
        quick={"batch": min(batch, 2), "points": 128},
        make=_make_rounded_clouds,
        baseline=Implementation("matmul_topk", _open_topk, same_neighbours)
        if fits
        else implementation("matmul_topk_in_blocks", _find_by_topk_in_blocks, same_neighbours),
        variants=(implementation("sightline", _find_neighbours, same_neighbours), *neighbour_peers(channels)),
    )


def sampling_case(*, batch: int, points: int, samples: int) -> BenchmarkCase:
    """Make a case of farthest-point sampling from point 0. All forms sum squares in one order: no rounding needed."""
    return BenchmarkCase(
        suite="geometry",
        label="fps_{batch}x{points}_to_{samples}",
        size={"batch": batch, "points": points, "samples": samples},
        quick={"batch": min(batch, 2), "points": 256, "samples": 32},
        make=_make_clouds_to_sample,
        baseline=implementation("masked_loop", _sample_by_masked_loop, equal),
        variants=(implementation("sightline", _sample, equal), *sampling_peers()),
    )


def ball_case(*, batch: int, points: int, centres: int, neighbours: int) -> BenchmarkCase:
    """Make a case of the first points within a quarter of the cube's half width."""
    return BenchmarkCase(
        suite="geometry",
        label="ball_{batch}x{points}_at_{centres}_k{neighbours}",
        size={"batch": batch, "points": points, "centres": centres, "neighbours": neighbours},
        quick={"batch": 2, "points": 128, "centres": 32},
        make=_make_clouds_with_centres,
        baseline=implementation("mask_and_sort", _query_by_mask_and_sort, equal),
        variants=(implementation("sightline", _query_balls, equal),),
    )


def interpolation_case(*, batch: int, points: int, queries: int, features: int) -> BenchmarkCase:
    """Make a case of interpolation from the three nearest points; results may differ by float32 rounding."""
    rule = allclose(1e-5)
    return BenchmarkCase(
        suite="geometry",
        label="interpolate_{batch}x{points}_to_{queries}_c{features}",
        size={"batch": batch, "points": points, "queries": queries, "features": features},
        quick={"batch": 2, "points": 32, "queries": 64, "features": 8},
        make=_make_features,
        baseline=implementation("sort", _interpolate_by_sorting, rule),
        variants=(implementation("sightline", _interpolate, rule),),
    )


# --- inputs ----------------------------------------------------------------------------------------------------------


def _draw_uniform(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def _round_coordinates(values: Tensor) -> Tensor:
    """Round to 1/1024 for up to four channels, else to 1/128: sums of squares stay below 2^24 units."""
    unit = 1024 if values.shape[-1] <= 4 else 128
    return torch.floor(values * unit) / unit


def _make_rounded_clouds(*, batch: int, points: int, channels: int, neighbours: int) -> dict[str, Any]:
    return {"points": _round_coordinates(_draw_uniform(batch, points, channels, seed=0)), "num_neighbours": neighbours}


def _make_clouds_to_sample(*, batch: int, points: int, samples: int) -> dict[str, Any]:
    return {"points": _draw_uniform(batch, points, 3, seed=1), "num_samples": samples, "start": 0}


def _make_clouds_with_centres(*, batch: int, points: int, centres: int, neighbours: int) -> dict[str, Any]:
    cloud = _round_coordinates(_draw_uniform(batch, points, 3, seed=2))
    return {"points": cloud, "centres": cloud[:, :centres].contiguous(), "num_neighbours": neighbours}


def _make_features(*, batch: int, points: int, queries: int, features: int) -> dict[str, Any]:
    return {
        "features": _draw_uniform(batch, points, features, seed=3),
        "points": _round_coordinates(_draw_uniform(batch, points, 3, seed=4)),
        "queries": _round_coordinates(
            _draw_uniform(batch, queries, 3, seed=1004)
        ),  # no query's third and fourth points tie
    }


# --- forms -----------------------------------------------------------------------------------------------------------


@contextmanager
def _open_topk(inputs: dict[str, Any]) -> Iterator[Run]:
    channels_first = inputs["points"].transpose(1, 2).contiguous()  # as that code keeps its clouds
    yield lambda: textbook.neighbours_by_topk(channels_first, inputs["num_neighbours"])


def _find_by_topk_in_blocks(inputs: dict[str, Any]) -> Tensor:
    return textbook.neighbours_by_topk_in_blocks(inputs["points"], inputs["num_neighbours"])


def _find_neighbours(inputs: dict[str, Any]) -> Tensor:
    return geometry.nearest_neighbours(inputs["points"], num_neighbours=inputs["num_neighbours"])


def _sample_by_masked_loop(inputs: dict[str, Any]) -> Tensor:
    return textbook.masked_farthest_points(inputs["points"], inputs["num_samples"], inputs["start"])


def _sample(inputs: dict[str, Any]) -> Tensor:
    return geometry.farthest_point_sample(inputs["points"], num_samples=inputs["num_samples"], start=inputs["start"])


def _query_by_mask_and_sort(inputs: dict[str, Any]) -> Tensor:
    return textbook.first_in_ball(inputs["points"], inputs["centres"], RADIUS, inputs["num_neighbours"])


def _query_balls(inputs: dict[str, Any]) -> Tensor:
    return geometry.ball_query(
        inputs["points"], centres=inputs["centres"], radius=RADIUS, num_neighbours=inputs["num_neighbours"]
    )


def _interpolate_by_sorting(inputs: dict[str, Any]) -> Tensor:
    return textbook.interpolate_three(inputs["features"], inputs["points"], inputs["queries"])


def _interpolate(inputs: dict[str, Any]) -> Tensor:
    return geometry.interpolate(inputs["features"], points=inputs["points"], queries=inputs["queries"])
