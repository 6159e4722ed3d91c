"""Benchmarks of neighbours, sampling, balls, interpolation and LiDAR scans against textbook forms and other packages.

Coordinates are uniform in a cube. If implementations round differently, coordinates are rounded first, so that every
squared distance is exact in float32 and results do not depend on the last bit.

Other packages (SciPy, scikit-learn, faiss, fpsample) come with the extra `peers`, are imported only when they run, and
get torch's number of threads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import textbook
from benchmarks.case import BenchmarkCase, Implementation, Run, allclose, equal, implementation
from sightline import ops
from sightline.ops.views.projection import RangeView, compute_pixels, gather_to_image, project_scans
from sightline.ops.voxels.lift import KNNVote, gaussian_window, lift_knn, lift_knn_reference

RADIUS = 0.25
"""Radius of the ball query; a power of two, so that its square is exact."""
_NUM_CLASSES = 20
_VOTE = KNNVote(is_circular=False)
_BUCKET_HEIGHTS = (3, 4, 5, 6, 7, 8, 9)
"""Heights of fpsample's trees that are tried."""
ROUNDINGS = 10 * 2.0**-24
"""Relative rounding of two compared squared distances of three channels in float32: five roundings each."""


def cases() -> list[BenchmarkCase]:
    return [
        neighbour_case(batch=32, points=1024, channels=3, neighbours=20),
        neighbour_case(batch=8, points=1024, channels=64, neighbours=20),
        neighbour_case(batch=8, points=1024, channels=128, neighbours=20),
        neighbour_case(batch=1, points=4096, channels=128, neighbours=20),
        neighbour_case(batch=1, points=8192, channels=3, neighbours=20),
        neighbour_case(batch=1, points=65_536, channels=3, neighbours=20),
        sampling_case(batch=32, points=1024, samples=512),
        sampling_case(batch=8, points=8192, samples=1024),
        sampling_case(batch=1, points=65_536, samples=4096),
        sampling_case(batch=1, points=65_536, samples=16_384),
        sampling_case(batch=1, points=1_000_000, samples=2048),
        ball_case(batch=32, points=1024, centres=512, neighbours=32),
        interpolation_case(batch=32, points=128, queries=512, features=256),
        *_list_scan_cases(),
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
    return ops.nearest_neighbours(inputs["points"], num_neighbours=inputs["num_neighbours"])


def _sample_by_masked_loop(inputs: dict[str, Any]) -> Tensor:
    return textbook.masked_farthest_points(inputs["points"], inputs["num_samples"], inputs["start"])


def _sample(inputs: dict[str, Any]) -> Tensor:
    return ops.farthest_points(inputs["points"], num_samples=inputs["num_samples"], start=inputs["start"])


def _query_by_mask_and_sort(inputs: dict[str, Any]) -> Tensor:
    return textbook.first_in_ball(inputs["points"], inputs["centres"], RADIUS, inputs["num_neighbours"])


def _query_balls(inputs: dict[str, Any]) -> Tensor:
    return ops.points_in_balls(
        inputs["points"], centres=inputs["centres"], radius=RADIUS, num_neighbours=inputs["num_neighbours"]
    )


def _interpolate_by_sorting(inputs: dict[str, Any]) -> Tensor:
    return textbook.interpolate_three(inputs["features"], inputs["points"], inputs["queries"])


def _interpolate(inputs: dict[str, Any]) -> Tensor:
    return ops.interpolate(inputs["features"], points=inputs["points"], queries=inputs["queries"])


# --- other packages --------------------------------------------------------------------------------------------------


def neighbour_peers(channels: int) -> tuple[Implementation, ...]:
    """List the neighbour searches: k-d trees for few channels, and the exhaustive search of faiss."""
    trees = (
        implementation("scipy_ckdtree", _scipy_neighbours, same_neighbours, needs="scipy"),
        implementation("sklearn_kdtree", _sklearn_neighbours, same_neighbours, needs="sklearn"),
    )
    return (
        *(trees if channels <= 8 else ()),
        Implementation("faiss_flat", _faiss_neighbours, same_neighbours, "faiss"),
    )


def sampling_peers() -> tuple[Implementation, ...]:
    """List fpsample's plain loop and its buckets at their best height, which ignore the given start.

    Its machine code uses fused multiply-add, so that points that almost tie may be exchanged.
    """
    return (
        implementation("fpsample", _fpsample_plain, farthest_each_time, needs="fpsample"),
        Implementation("fpsample_buckets", _open_fpsample_buckets, farthest_each_time, needs="fpsample"),
    )


def _scipy_neighbours(inputs: dict[str, Any]) -> Tensor:
    from scipy.spatial import cKDTree

    workers = torch.get_num_threads()
    return _search_by_cloud(inputs, lambda cloud, count: cKDTree(cloud).query(cloud, k=count, workers=workers)[1])


def _sklearn_neighbours(inputs: dict[str, Any]) -> Tensor:
    from sklearn.neighbors import KDTree

    return _search_by_cloud(inputs, lambda cloud, count: KDTree(cloud).query(cloud, k=count, return_distance=False))


@contextmanager
def _faiss_neighbours(inputs: dict[str, Any]) -> Iterator[Run]:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())

    def search(cloud: np.ndarray, count: int) -> np.ndarray:
        index = faiss.IndexFlatL2(cloud.shape[1])
        index.add(cloud)
        return index.search(cloud, count)[1]

    yield lambda: _search_by_cloud(inputs, search)


def _search_by_cloud(inputs: dict[str, Any], search: Any) -> Tensor:
    indices = [search(cloud, inputs["num_neighbours"]) for cloud in inputs["points"].numpy()]
    return torch.from_numpy(np.stack(indices).astype(np.int64))


def _fpsample_plain(inputs: dict[str, Any]) -> Tensor:
    import fpsample

    return _sample_by_cloud(inputs, fpsample.fps_sampling)


@contextmanager
def _open_fpsample_buckets(inputs: dict[str, Any]) -> Iterator[Run]:
    """Sample with trees of the height that is fastest for these clouds: the better of two untimed calls decides."""
    import fpsample

    def run(height: int) -> Tensor:
        sample = partial(fpsample.bucket_fps_kdline_sampling, h=height)
        return _sample_by_cloud(inputs, sample)

    def seconds(height: int) -> float:
        start = time.process_time()
        run(height)
        return time.process_time() - start

    fitting = [height for height in _BUCKET_HEIGHTS if 2**height <= inputs["points"].shape[1]]
    yield partial(run, min(fitting, key=lambda height: min(seconds(height), seconds(height))))


def _sample_by_cloud(inputs: dict[str, Any], sample: Any) -> Tensor:
    indices = [sample(cloud, inputs["num_samples"], start_idx=inputs["start"]) for cloud in inputs["points"].numpy()]
    return torch.from_numpy(np.stack(indices).astype(np.int64))


# --- rules -----------------------------------------------------------------------------------------------------------


def same_neighbours(inputs: dict[str, Any], expected: Tensor, actual: Tensor) -> str | None:
    """Compare neighbour indices exactly, except among neighbours at exactly equal distances.

    `inputs["points"]` (B, N, C); results (B, N, K), nearest first. The clouds of these cases are rounded so that every
    squared distance is exact in float32, in the expanded form too; so no tolerance is needed.
    """
    if expected.shape != actual.shape:
        return f"shape {tuple(actual.shape)}, the baseline's is {tuple(expected.shape)}"
    differs = (expected != actual).any(dim=-1)
    cloud, query = differs.nonzero(as_tuple=True)
    points = inputs["points"].double()
    for name, index in (("the baseline", expected), ("it", actual)):
        rows = index[cloud, query].sort(dim=-1).values
        if (rows[:, 1:] == rows[:, :-1]).any():
            return f"{name} names a neighbour twice"
    distances = [
        (points[cloud[:, None], index[cloud, query]] - points[cloud, query][:, None]).square().sum(dim=-1)
        for index in (expected, actual)
    ]
    wrong = (distances[0] != distances[1]).any(dim=-1)
    if not wrong.any():
        return None
    row = int(wrong.nonzero()[0])
    where = f"cloud {int(cloud[row])}, point {int(query[row])}"
    return f"{int(wrong.sum())} of {differs.numel()} points have other neighbours, first {where}"


def farthest_each_time(inputs: dict[str, Any], expected: Tensor, found: Tensor) -> str | None:
    """Check that every point after the first is the farthest from all earlier ones, up to float32 rounding.

    `inputs["points"]` (B, N, 3); results (B, M). Distances are computed in float64 along the result itself, so that
    another decision of a tie, or another first point, does not make all later points wrong.
    """
    if expected.shape != found.shape:
        return f"shape {tuple(found.shape)}, the baseline's is {tuple(expected.shape)}"
    for cloud, (points, samples) in enumerate(zip(inputs["points"].double(), found, strict=True)):
        channels = points.T.contiguous()
        nearest = channels.new_full((len(points),), float("inf"))
        for position, index in enumerate(samples.tolist()):
            if position > 0 and not nearest[index] >= nearest.max() * (1 - ROUNDINGS):
                return f"cloud {cloud}, place {position}: point {index} is not the farthest from those before it"
            nearest = nearest.minimum((channels - channels[:, index, None]).square().sum(dim=0))
    return None


# --- LiDAR scans -----------------------------------------------------------------------------------------------------


def _list_scan_cases() -> list[BenchmarkCase]:
    size = {"beams": 64, "azimuths": 1900, "width": 2048}  # 121,600 points, as many as a scan of KITTI
    return [
        BenchmarkCase(
            suite="geometry",
            label="project_{beams}x{azimuths}_to_{width}",
            size=size,
            quick={"azimuths": 90, "width": 64},
            make=_make_scan,
            baseline=implementation("argsort", _project_by_sorting, equal),
            variants=(implementation("sightline", _project, equal),),
        ),
        BenchmarkCase(
            suite="geometry",
            label="lift_knn_{beams}x{azimuths}_from_{width}",
            size=size,
            quick={"azimuths": 90, "width": 64},
            make=_make_labelled_scan,
            baseline=implementation("unfold", _lift_by_unfolding, equal),
            variants=(implementation("sightline", _lift, equal), implementation("plain", _lift_reference, equal)),
        ),
    ]


def _make_scan(*, beams: int, azimuths: int, width: int) -> dict[str, Any]:
    """Simulate a scan of a sensor 1.73 m above the ground, between walls 5 to 40 m away; ordered by laser."""
    generator = torch.Generator().manual_seed(0)
    pitch = torch.linspace(math.radians(2), math.radians(-24.3), beams)[:, None]
    azimuth = (torch.arange(azimuths) + 0.5) * (2 * math.pi / azimuths)
    wall = (5 + 35 * torch.rand(azimuths // 20 + 1, generator=generator)).repeat_interleave(20)[:azimuths]
    distance = torch.minimum(wall / pitch.cos(), torch.where(pitch < 0, -1.73 / pitch.sin(), torch.inf))
    distance = (distance + 0.02 * torch.randn(beams, azimuths, generator=generator)).flatten()
    aim = [pitch.cos() * azimuth.cos(), pitch.cos() * azimuth.sin(), pitch.sin().expand(-1, azimuths)]
    points = torch.stack([component.flatten() * distance for component in aim], dim=1)
    view = RangeView(beams, width)
    return {"points": points, "view": view, "offsets": torch.tensor([0, len(points)])}


def _make_labelled_scan(*, beams: int, azimuths: int, width: int) -> dict[str, Any]:
    """Make a scan with a random label per block of pixels; distances in a window tie only by rounding."""
    scan = _make_scan(beams=beams, azimuths=azimuths, width=width)
    projection = project_scans(scan["points"], view=scan["view"], offsets=scan["offsets"])
    generator = torch.Generator().manual_seed(1)
    blocks = torch.randint(1, _NUM_CLASSES, (1, 1, beams // 4 + 1, width // 4 + 1), generator=generator)
    label = blocks.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)[:, 0, :beams, :width].contiguous()
    images = {"label": label, "range_image": gather_to_image(projection.point_index, projection.ranges, empty=-1)}
    return {**scan, **images, "pixel": projection.pixel, "point_range": projection.ranges}


def _project_by_sorting(inputs: dict[str, Any]) -> Tensor:
    """Project by sorting all points by range and writing them from the farthest to the nearest."""
    pixels = compute_pixels(inputs["points"], view=inputs["view"], offsets=inputs["offsets"])
    ranges = pixels.ranges.numpy()
    order = np.argsort(ranges, kind="stable")[::-1]
    order = order[np.isfinite(ranges[order])]
    point_index = np.full(inputs["view"].num_pixels, -1)
    point_index[pixels.pixel.numpy()[order]] = order
    return torch.from_numpy(point_index).view(1, inputs["view"].height, -1)


def _project(inputs: dict[str, Any]) -> Tensor:
    return project_scans(inputs["points"], view=inputs["view"], offsets=inputs["offsets"]).point_index


def _lift_by_unfolding(inputs: dict[str, Any]) -> Tensor:
    """Vote as lidar-bonnetal: unfold the windows of all pixels, then select those of the points.

    Pixels outside the image are set to invalid first: their range of zero is a fault of that code, without cost.
    """
    size, reach = _VOTE.window, _VOTE.window // 2
    ranges, point_range, pixel = inputs["range_image"], inputs["point_range"], inputs["pixel"]
    ranges = functional.pad(ranges, (reach,) * 4, value=-1)
    window_ranges = functional.unfold(ranges[None], size)[:, :, pixel]
    window_ranges[window_ranges < 0] = torch.inf
    window_ranges[:, size * size // 2] = point_range
    distance = (window_ranges - point_range).abs() * (1 - gaussian_window(size, _VOTE.sigma).float()).view(1, -1, 1)
    nearest = distance.topk(_VOTE.num_neighbours, dim=1, largest=False, sorted=False).indices
    labels = functional.unfold(inputs["label"][None].float(), size, padding=reach).long()[:, :, pixel]
    labels = labels.gather(1, nearest)
    labels[distance.gather(1, nearest) > _VOTE.cutoff_m] = _NUM_CLASSES
    votes = torch.zeros(1, _NUM_CLASSES + 1, len(pixel)).scatter_add_(1, labels, torch.ones_like(labels).float())
    return votes[0, 1:-1].argmax(dim=0) + 1


def _lift(inputs: dict[str, Any]) -> Tensor:
    return lift_knn(vote=_VOTE, **_lift_arguments(inputs))


def _lift_reference(inputs: dict[str, Any]) -> Tensor:
    return lift_knn_reference(vote=_VOTE, **_lift_arguments(inputs))


def _lift_arguments(inputs: dict[str, Any]) -> dict[str, Tensor]:
    return {name: inputs[name] for name in ("label", "range_image", "pixel", "point_range", "offsets")}
