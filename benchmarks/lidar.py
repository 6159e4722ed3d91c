"""Benchmarks of range projection and kNN voting of LiDAR scans, against the published code."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sightline.bench.case import BenchmarkCase, equal, implementation
from sightline.geometry.scans.lift import KNNVote, gaussian_window, lift_knn, lift_knn_reference
from sightline.geometry.scans.projection import (
    RangeView,
    compute_pixels,
    gather_to_image,
    nearest_returns_reference,
    project_scans,
)

_NUM_CLASSES = 20
_VOTE = KNNVote(is_circular=False)


def cases() -> list[BenchmarkCase]:
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
    point_index = nearest_returns_reference(pixels.ranges, place=pixels.pixel, num_places=inputs["view"].num_pixels)
    return point_index.view(1, inputs["view"].height, -1)


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
