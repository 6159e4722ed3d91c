"""A second plugin: a transform, which moves points and draws from streams of its own."""

import torch
from torch import Tensor

from sightline.contract import registry
from sightline.contract.arguments import Probability
from sightline.contract.draws import Draws


@registry.transforms.add("mirror")
class Mirror:
    """Each cloud is mirrored along x with the given probability."""

    def __init__(self, *, probability: Probability = 0.5) -> None:
        self.probability = probability

    def __call__(self, draws: Draws, *, points: Tensor) -> dict[str, Tensor]:
        sign = torch.where(draws.uniform(1, 1) < self.probability, -1.0, 1.0)
        return {"points": torch.cat([points[..., :1] * sign, points[..., 1:]], dim=-1)}
