"""Benchmark of the voxelisation of depth frames, against the usual form."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.bench.case import BenchmarkCase, equal, implementation
from sightline.bench.suites import make_frames
from sightline.geometry.volumes import CubePlacement, occupancy


def cases() -> list[BenchmarkCase]:
    return [
        BenchmarkCase(
            suite="data",
            label="voxelize_{frames}x{size}",
            size={"frames": 1, "size": 88},
            quick={"frames": 1, "size": 24},
            make=make_frames,
            baseline=implementation("add_at", _count_points, equal),
            variants=(implementation("sightline", _voxelise, equal),),
        ),
    ]


def _count_points(inputs: dict[str, Any]) -> Tensor:
    """Voxelise in NumPy as users do: every pixel to a point, every point to a voxel, counted and clipped to 1."""
    placement: CubePlacement = inputs["placement"]
    size = placement.size
    volumes = np.zeros((len(placement), 1, size, size, size), dtype=np.float32)
    depths, cameras = inputs["depth"].numpy(), inputs["camera"].numpy()
    for sample, (depth, (fx, fy, u0, v0)) in enumerate(zip(depths, cameras, strict=True)):
        rows, columns = np.indices(depth.shape)
        z = depth.astype(np.float64)
        points = np.stack([(columns - u0) * z / fx, (rows - v0) * z / fy, z], axis=-1)[z > 0]
        voxels = np.floor(_to_voxel_coordinates(points, placement, sample))
        inside = voxels[((voxels >= 0) & (voxels < size)).all(axis=1)].astype(np.int64)
        np.add.at(volumes[sample, 0], tuple(inside.T), 1)
        np.minimum(volumes[sample], 1, out=volumes[sample])
    return torch.from_numpy(volumes)


def _to_voxel_coordinates(points: np.ndarray, placement: CubePlacement, sample: int) -> np.ndarray:
    """Compute voxel coordinates (P, 3) of points (P, 3) of one sample, formula by formula."""
    centre, border = placement.grid_size / 2, (placement.grid_size - placement.size) / 2
    unit = (points - placement.reference_mm[sample].numpy()) / (placement.cube_mm / 2)
    grid = (unit + 1) * (placement.size / 2) + border
    grid = (grid - centre) * float(placement.scale[sample]) + centre
    x, y = grid[:, 0] - centre, grid[:, 1] - centre
    cosine, sine = float(placement.angle_rad[sample].cos()), float(placement.angle_rad[sample].sin())
    grid[:, 0], grid[:, 1] = x * cosine - y * sine + centre, x * sine + y * cosine + centre
    return grid - placement.shift[sample].numpy()


def _voxelise(inputs: dict[str, Any]) -> Tensor:
    return occupancy(inputs["depth"], inputs["camera"], inputs["placement"])
