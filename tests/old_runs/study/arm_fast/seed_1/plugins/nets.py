"""A plugin of networks that are small enough to be kept in the repository with their checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sightline import registry
from sightline.models.scale_net import ScaleNetOutput
from sightline.models.v2v import V2VOutput


@registry.models.add("tiny_volumes")
class TinyVolumes(nn.Module):
    """Heat maps from two convolutions."""

    def __init__(self, *, num_joints: int) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.MaxPool3d(2))
        self.output = nn.Conv3d(4, num_joints, 1)

    def forward(self, *, volume: Tensor) -> V2VOutput:
        return {"likelihood": self.output(self.encode(volume))}


@registry.models.add("tiny_offset")
class TinyOffset(nn.Module):
    """An offset from the means of 64 patches of a crop."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 3)

    def forward(self, *, crop: Tensor) -> ScaleNetOutput:
        return {"offset": self.head(torch.nn.functional.adaptive_avg_pool2d(crop, 8).flatten(1))}
