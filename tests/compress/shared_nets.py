"""A plugin of a network with all that compression has a rule for: shared weights, an embedding, a norm, unused ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sightline.areas.clouds.models.pointnet import PointNetPlainOutput
from sightline.contract import registry
from sightline.contract.model import Model


@registry.models.add("shared_net")
class SharedNet(Model):
    """The mean over points of their octants' vectors and of two layers with one weight; `spare` is never called."""

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.octants = nn.Embedding(8, 64)
        self.enter = nn.Linear(3, 64)
        self.mix = nn.Linear(64, 64)
        self.again = nn.Linear(64, 64)
        self.again.weight = self.mix.weight
        self.spare = nn.Linear(64, 64)
        self.norm = nn.BatchNorm1d(64)
        self.head = nn.Linear(64, num_classes)

    def forward(self, *, points: Tensor) -> PointNetPlainOutput:
        octants = (points > 0).long() @ torch.tensor([1, 2, 4], device=points.device)
        features = self.enter(points) + self.octants(octants)
        features = self.again(self.mix(features).relu()).relu().mean(dim=1)
        return {"logits": self.head(self.norm(features))}
