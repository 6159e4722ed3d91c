"""Clouds and draws for the tests of transforms of scenes."""

from __future__ import annotations

import torch
from torch import Tensor

from sightline.draws import Draws
from sightline.types import SampleKey

__all__ = ["draws_of", "make_scene"]


def draws_of(num_clouds: int = 1, *, first: int = 0, seed: int = 3) -> Draws:
    """The streams of consecutive samples."""
    return Draws.for_samples([SampleKey(index=first + i, epoch=2, seed=seed) for i in range(num_clouds)])


def make_scene(num_points: int = 3000, num_clouds: int = 1, *, seed: int = 0) -> dict[str, Tensor]:
    """Clouds in a room of 3 m x 2 m x 2.5 m; `part` numbers the points, so that it tells where each came from."""
    generator = torch.Generator().manual_seed(seed + 17 * num_points)
    points = torch.rand(num_clouds, num_points, 3, generator=generator) * torch.tensor([3.0, 2.0, 2.5])
    number = torch.arange(num_clouds * num_points).reshape(num_clouds, num_points)
    return {
        "points": points,
        "colours": torch.rand(num_clouds, num_points, 3, generator=generator),
        "label": number % 13,
        "part": number,
        "place": points / torch.tensor([3.0, 2.0, 2.5]),
    }
