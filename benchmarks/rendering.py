"""Benchmark of heat maps against their dense form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.case import BenchmarkCase, allclose, implementation
from sightline.areas.pose.sets.synthetic_hands import SyntheticHands
from sightline.areas.pose.v2v import PlaceCube
from sightline.contract.draws import Draws
from sightline.contract.types import SampleKey
from sightline.ops.voxels.cubes import CubePlacement, to_voxels
from sightline.ops.voxels.heat_maps import gaussian_heatmaps

_CUBE_MM = 200.0
_SIGMA = 1.7


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
    centres = torch.arange(inputs["placement"].size // 2, dtype=torch.float64) + 0.5
    grid = torch.stack(torch.meshgrid(centres, centres, centres, indexing="ij"), dim=-1)
    squared = ((grid - inputs["cells"][:, :, None, None, None]) ** 2).sum(dim=-1)
    return torch.exp(-squared / (2 * _SIGMA**2)).float()


def _make_heatmaps(inputs: dict[str, Any]) -> Tensor:
    return gaussian_heatmaps(inputs["cells"], inputs["placement"].size // 2, axes="xyz")
