"""Benchmarks of rendered clouds and of heat maps, each against its plain form."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.case import BenchmarkCase, allclose, equal, implementation
from sightline.areas.clouds.sets.synthetic_shapes import SyntheticShapes
from sightline.areas.pose.sets.synthetic_hands import SyntheticHands
from sightline.areas.pose.v2v import PlaceCube
from sightline.contract.draws import Draws
from sightline.contract.types import SampleKey
from sightline.ops.heat_maps import gaussian_heatmaps, gaussian_heatmaps_reference
from sightline.ops.pinhole import ring_cameras
from sightline.ops.rendering import render_cloud, render_cloud_reference
from sightline.ops.voxels import CubePlacement, to_voxels

_CUBE_MM = 200.0


def cases() -> list[BenchmarkCase]:
    return [
        BenchmarkCase(
            suite="data",
            label="render_{clouds}x{points}_{views}x{size_px}px",
            size={"clouds": 4, "points": 1024, "views": 12, "size_px": 96},
            quick={"clouds": 1, "points": 64, "views": 2, "size_px": 24},
            make=_make_clouds,
            baseline=implementation("plain", partial(_render_views, render_cloud_reference), equal),
            variants=(implementation("sightline", partial(_render_views, render_cloud), equal),),
        ),
        BenchmarkCase(
            suite="data",
            label="heatmaps_{frames}x21x{size}",
            size={"frames": 4, "size": 88},
            quick={"frames": 1, "size": 24},
            make=make_frames,
            baseline=implementation("dense", _make_dense_heatmaps, allclose(1e-6)),
            variants=(implementation("sightline", _make_heatmaps, allclose(1e-6)),),
        ),
    ]


def _make_clouds(*, clouds: int, points: int, views: int, size_px: int) -> dict[str, Any]:
    shapes = SyntheticShapes(split="train", train_size=clouds, num_points=points)
    batch = shapes.get_batch([SampleKey(index, 0, 0) for index in range(clouds)])
    return {"points": batch["points"], "cameras": ring_cameras(views, size_px=size_px)}


def _render_views(render: Callable[..., np.ndarray], inputs: dict[str, Any]) -> Tensor:
    return torch.stack([torch.from_numpy(render(cloud.numpy(), inputs["cameras"])) for cloud in inputs["points"]])


def make_frames(*, frames: int, size: int) -> dict[str, Any]:
    """Make hands in cubes that vary as in training."""
    hands = SyntheticHands(split="train", train_size=frames, test_size=1)
    keys = [SampleKey(index, 0, 0) for index in range(frames)]
    batch = hands.get_batch(keys)
    place_cube = PlaceCube(cube_mm=_CUBE_MM, size=size, scale=(0.8, 1.2), max_angle_rad=0.698, max_shift=4.0)
    rows = place_cube(Draws.for_samples(keys), reference=batch["reference"])["placement"]
    placement = CubePlacement.from_rows(rows)
    return {**batch, "placement": placement, "cells": to_voxels(batch["joints"].double(), placement) / 2}


def _make_dense_heatmaps(inputs: dict[str, Any]) -> Tensor:
    return gaussian_heatmaps_reference(inputs["cells"], cells=inputs["placement"].size // 2).float()


def _make_heatmaps(inputs: dict[str, Any]) -> Tensor:
    return gaussian_heatmaps(inputs["cells"], cells=inputs["placement"].size // 2)
