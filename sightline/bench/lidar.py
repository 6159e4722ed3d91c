"""Range images of LiDAR scans and the kNN vote for all their points, against the forms of the published code."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sightline.bench.agreement import equal
from sightline.bench.case import BenchmarkCase, implementation
from sightline.geometry.scans.lift import KNNVote, gaussian_window, lift_knn, lift_knn_reference
from sightline.geometry.scans.projection import (
    RangeView,
    compute_pixels,
    gather_to_image,
    nearest_returns_reference,
    project_scans,
)

__all__ = ["cases"]

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
            make=_scan,
            baseline=implementation("argsort", _by_sorting, equal),
            variants=(implementation("sightline", _projected, equal),),
        ),
        BenchmarkCase(
            suite="geometry",
            label="lift_knn_{beams}x{azimuths}_from_{width}",
            size=size,
            quick={"azimuths": 90, "width": 64},
            make=_scan_with_labels,
            baseline=implementation("unfold", _by_unfolding, equal),
            variants=(implementation("sightline", _lifted, equal), implementation("plain", _lifted_plainly, equal)),
        ),
    ]


def _scan(*, beams: int, azimuths: int, width: int) -> dict[str, Any]:
    """Returns of a sensor as high as a man between walls that stand 5 to 40 m away, laser after laser."""
    generator = torch.Generator().manual_seed(0)
    pitch = torch.linspace(math.radians(2), math.radians(-24.3), beams)[:, None]
    azimuth = (torch.arange(azimuths) + 0.5) * (2 * math.pi / azimuths)
    wall = (5 + 35 * torch.rand(azimuths // 20 + 1, generator=generator)).repeat_interleave(20)[:azimuths]
    distance = torch.minimum(wall / pitch.cos(), torch.where(pitch < 0, -1.73 / pitch.sin(), torch.inf))
    distance = (distance + 0.02 * torch.randn(beams, azimuths, generator=generator)).flatten()
    aim = [pitch.cos() * azimuth.cos(), pitch.cos() * azimuth.sin(), pitch.sin().expand(-1, azimuths)]
    points = torch.stack([each.flatten() * distance for each in aim], dim=1)
    view = RangeView(beams, width)
    return {"points": points, "view": view, "offsets": torch.tensor([0, len(points)])}


def _scan_with_labels(*, beams: int, azimuths: int, width: int) -> dict[str, Any]:
    """The same and a random label for every block of pixels; no two distances of a window tie but for rounding."""
    scan = _scan(beams=beams, azimuths=azimuths, width=width)
    found = project_scans(scan["points"], view=scan["view"], offsets=scan["offsets"])
    generator = torch.Generator().manual_seed(1)
    blocks = torch.randint(1, _NUM_CLASSES, (1, 1, beams // 4 + 1, width // 4 + 1), generator=generator)
    label = blocks.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)[:, 0, :beams, :width].contiguous()
    images = {"label": label, "range_image": gather_to_image(found.point_index, found.ranges, empty=-1)}
    return {**scan, **images, "pixel": found.pixel, "point_range": found.ranges}


def _by_sorting(inputs: dict[str, Any]) -> Tensor:
    """The same pixels; all points sorted by range, and written from the farthest to the nearest."""
    found = compute_pixels(inputs["points"], view=inputs["view"], offsets=inputs["offsets"])
    shown = nearest_returns_reference(found.ranges, place=found.pixel, num_places=inputs["view"].num_pixels)
    return shown.view(1, inputs["view"].height, -1)


def _projected(inputs: dict[str, Any]) -> Tensor:
    return project_scans(inputs["points"], view=inputs["view"], offsets=inputs["offsets"]).point_index


def _by_unfolding(inputs: dict[str, Any]) -> Tensor:
    """As lidar-bonnetal writes it: the windows of all pixels are laid out, then those of the points taken.

    Pixels outside of the image are made invalid first: a range of zero is a fault of that code, which costs no time.
    """
    size, reach = _VOTE.window, _VOTE.window // 2
    ranges, own, pixel = inputs["range_image"], inputs["point_range"], inputs["pixel"]
    ranges = functional.pad(ranges, (reach,) * 4, value=-1)
    near = functional.unfold(ranges[None], size)[:, :, pixel]
    near[near < 0] = torch.inf
    near[:, size * size // 2] = own
    distance = (near - own).abs() * (1 - gaussian_window(size, _VOTE.sigma).float()).view(1, -1, 1)
    chosen = distance.topk(_VOTE.num_neighbours, dim=1, largest=False, sorted=False).indices
    names = functional.unfold(inputs["label"][None].float(), size, padding=reach).long()[:, :, pixel]
    names = names.gather(1, chosen)
    names[distance.gather(1, chosen) > _VOTE.cutoff_m] = _NUM_CLASSES
    votes = torch.zeros(1, _NUM_CLASSES + 1, len(pixel)).scatter_add_(1, names, torch.ones_like(names).float())
    return votes[0, 1:-1].argmax(dim=0) + 1


def _lifted(inputs: dict[str, Any]) -> Tensor:
    return lift_knn(vote=_VOTE, **_of_lift(inputs))


def _lifted_plainly(inputs: dict[str, Any]) -> Tensor:
    return lift_knn_reference(vote=_VOTE, **_of_lift(inputs))


def _of_lift(inputs: dict[str, Any]) -> dict[str, Tensor]:
    return {name: inputs[name] for name in ("label", "range_image", "pixel", "point_range", "offsets")}
