"""Benchmark of joint heatmaps of depth frames, against the dense form."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sightline.bench.case import BenchmarkCase, allclose, implementation
from sightline.data.synthetic.synthetic_hands import SyntheticHands
from sightline.draws import Draws
from sightline.geometry.heatmaps import gaussian_heatmaps, gaussian_heatmaps_reference
from sightline.geometry.volumes import CubePlacement, to_voxels
from sightline.transforms.volumes import PlaceCube
from sightline.types import SampleKey

_CUBE_MM = 200.0


def cases() -> list[BenchmarkCase]:
    return [
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
