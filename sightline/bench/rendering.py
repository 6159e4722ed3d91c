"""Benchmarks of rendering clouds and hands: compiled code against NumPy, one disc or capsule at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.bench.case import BenchmarkCase, equal, implementation
from sightline.data.synthetic.synthetic_hands import HAND_CAMERA, SyntheticHands
from sightline.data.synthetic.synthetic_shapes import SyntheticShapes
from sightline.geometry.cameras import ring_cameras
from sightline.geometry.capsules import CapsuleDepth, render_capsules, render_capsules_reference
from sightline.geometry.rendering import render_cloud, render_cloud_reference
from sightline.types import SampleKey

__all__ = ["cases"]


def cases() -> list[BenchmarkCase]:
    return [
        BenchmarkCase(
            suite="data",
            label="render_{clouds}x{points}_{views}x{size_px}px",
            size={"clouds": 4, "points": 1024, "views": 12, "size_px": 96},
            quick={"clouds": 1, "points": 64, "views": 2, "size_px": 24},
            make=_make_clouds,
            baseline=implementation("plain", _render_reference, equal),
            variants=(implementation("sightline", _render, equal),),
        ),
        BenchmarkCase(
            suite="data",
            label="capsules_{frames}x24_320x240px",
            size={"frames": 8},
            quick={"frames": 1},
            make=_make_hands,
            baseline=implementation("plain", partial(_render_depths, render_capsules_reference), equal),
            variants=(implementation("sightline", partial(_render_depths, render_capsules), equal),),
        ),
    ]


def _make_clouds(*, clouds: int, points: int, views: int, size_px: int) -> dict[str, Any]:
    shapes = SyntheticShapes(split="train", train_size=clouds, num_points=points)
    batch = shapes.get_batch([SampleKey(index, 0, 0) for index in range(clouds)])
    return {"points": batch["points"], "cameras": ring_cameras(views, size_px=size_px)}


def _render_reference(inputs: dict[str, Any]) -> Tensor:
    views = [render_cloud_reference(cloud.numpy(), inputs["cameras"]) for cloud in inputs["points"]]
    return torch.stack([torch.from_numpy(view) for view in views])


def _render(inputs: dict[str, Any]) -> Tensor:
    views = [render_cloud(cloud.numpy(), inputs["cameras"]) for cloud in inputs["points"]]
    return torch.stack([torch.from_numpy(view) for view in views])


def _make_hands(*, frames: int) -> dict[str, Any]:
    hands = SyntheticHands(split="train", forearm=1.0).figures(range(frames))
    return {"capsules": torch.from_numpy(hands.capsules)}


def _render_depths(render: Callable[..., CapsuleDepth], inputs: dict[str, Any]) -> Tensor:
    capsules, size = inputs["capsules"].numpy(), {"height_px": HAND_CAMERA.height_px, "width_px": HAND_CAMERA.width_px}
    rendered = render(capsules, HAND_CAMERA.intrinsics, **size)
    return torch.from_numpy(np.stack((rendered.depth, rendered.owner)))
