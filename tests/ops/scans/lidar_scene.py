"""A street of known surfaces and the returns of a laser scanner in it, ray by ray: the oracle of projections."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["BEAMS_DEG", "NAMES", "Scan", "cast_scan"]

BEAMS_DEG = (*np.linspace(2, -8.33, 32), *np.linspace(-8.83, -24.33, 32))
NAMES = ("none", "road", "sidewalk", "terrain", "car", "person", "building", "pole", "trunk")
_HEIGHT_M = 1.73
_NEAREST_M, _FARTHEST_M = 0.9, 80.0


class Scan(NamedTuple):
    """Points (N, 3) float32 in the sensor's frame, their beam, counted from the highest, and their class, (N,) int64.

    One beam follows another, each from straight ahead to the left.
    """

    points: Tensor
    ring: Tensor
    label: Tensor


def cast_scan(*, num_azimuths: int = 2048, noise_m: float = 0.02, seed: int = 0) -> Scan:
    """The nearest hit of each ray, by formula: the ground by strips, upright boxes, upright cylinders."""
    draw = np.random.default_rng(seed)
    azimuth = 2 * np.pi * (np.arange(num_azimuths) + 0.5) / num_azimuths
    pitch = np.radians(BEAMS_DEG)[:, None]
    ray = np.stack(np.broadcast_arrays(np.cos(pitch) * np.cos(azimuth), np.cos(pitch) * np.sin(azimuth), np.sin(pitch)))
    ray = ray.reshape(3, -1)
    label = np.zeros(ray.shape[1], dtype=np.int64)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.where(ray[2] < 0, -_HEIGHT_M / ray[2], np.inf)
        aside = np.abs(distance * ray[1])
        label[:] = np.where(aside < 4, 1, np.where(aside < 6, 2, 3))
        for hit, name in _things(draw, ray):
            is_nearer = (hit > _NEAREST_M) & (hit < distance)
            label[is_nearer] = NAMES.index(name)
            distance = np.where(is_nearer, hit, distance)
    is_return = (distance > _NEAREST_M) & (distance < _FARTHEST_M)
    noisy = distance + noise_m * draw.standard_normal(distance.shape)
    points = (ray[:, is_return] * noisy[is_return]).T.astype(np.float32)
    ring = np.repeat(np.arange(len(BEAMS_DEG)), num_azimuths)[is_return]
    return Scan(torch.from_numpy(points), torch.from_numpy(ring), torch.from_numpy(label[is_return]))


def _things(draw: np.random.Generator, ray: np.ndarray) -> list[tuple[np.ndarray, str]]:
    """How far each ray goes to each thing, inf where it misses, and what the thing is called."""
    hits = []
    for _ in range(6):
        hits.append((_box(ray, (draw.uniform(-25, 25), draw.choice([-3.2, 3.2])), (4.2, 1.8, 1.5)), "car"))
    for _ in range(3):
        hits.append((_box(ray, (draw.uniform(-15, 15), draw.choice([-5, 5])), (0.6, 0.6, 1.8)), "person"))
    for place in np.linspace(-45, 45, 5):
        hits += [(_box(ray, (place, side), (16, 8, 8)), "building") for side in (-14.0, 14.0)]
    for name, count, radius, top in (("pole", 8, 0.1, 4.0), ("trunk", 6, 0.2, 1.5)):
        for _ in range(count):
            middle = (draw.uniform(-30, 30), draw.choice([-1, 1]) * draw.uniform(6, 9))
            hits.append((_cylinder(ray, middle, radius, top), name))
    return hits


def _box(ray: np.ndarray, middle: tuple[float, float], size: tuple[float, float, float]) -> np.ndarray:
    low = np.array([middle[0] - size[0] / 2, middle[1] - size[1] / 2, -_HEIGHT_M])[:, None]
    high = low + np.array(size)[:, None]
    first, last = np.sort([low / ray, high / ray], axis=0)
    entry = first.max(axis=0)
    return np.where(entry <= last.min(axis=0), entry, np.inf)


def _cylinder(ray: np.ndarray, middle: tuple[float, float], radius: float, top: float) -> np.ndarray:
    square = ray[0] ** 2 + ray[1] ** 2
    along = ray[0] * middle[0] + ray[1] * middle[1]
    root = along**2 - square * (middle[0] ** 2 + middle[1] ** 2 - radius**2)
    entry = (along - np.sqrt(np.maximum(root, 0))) / square
    height = entry * ray[2] + _HEIGHT_M
    return np.where((root >= 0) & (height >= 0) & (height <= top), entry, np.inf)
