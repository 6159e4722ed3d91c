"""Clouds and draws for the tests of transforms: seeded ones, and those that a reference code made."""

from __future__ import annotations

import torch
from torch import Tensor

from sightline.contract.draws import Draws
from sightline.contract.types import SampleKey

__all__ = ["Given", "draws_of", "make_scene"]


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
        "normalised_position": points / torch.tensor([3.0, 2.0, 2.5]),
    }


class Given:
    """Hands out the numbers that a reference code drew, in their order, whatever law is asked for."""

    def __init__(self, *numbers: Tensor) -> None:
        self.numbers = list(numbers)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return self._next(shape)

    def normal(self, *shape: int) -> Tensor:
        return self._next(shape)

    def _next(self, shape: tuple[int, ...]) -> Tensor:
        drawn = self.numbers.pop(0)
        assert tuple(drawn.shape[1:]) == shape
        return drawn
