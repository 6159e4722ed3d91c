"""A second plugin: a transform, which moves points and draws from streams of its own."""

import torch
from torch import Tensor

import sightline


@sightline.register.transform("mirror")
class Mirror(sightline.Transform):
    """Each cloud is mirrored along x with the given probability."""

    def __init__(self, *, probability: sightline.Probability = 0.5) -> None:
        self.probability = probability

    def __call__(self, draws: sightline.Draws, *, points: Tensor) -> dict[str, Tensor]:
        sign = torch.where(draws.uniform(1, 1) < self.probability, -1.0, 1.0)
        return {"points": torch.cat([points[..., :1] * sign, points[..., 1:]], dim=-1)}
