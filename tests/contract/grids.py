"""Toy of dense maps: voxels to heat maps."""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from sightline.contract.loss import Loss
from sightline.contract.metric import MeanMetric
from tests.contract.toy import Made, Toy, field, supervised

# pose: voxel grids to heat maps; the count is visible joints x voxels


def _grid(draw: np.random.Generator) -> dict[str, Any]:
    target = torch.from_numpy(draw.random((2, 4, 4, 4)))
    visible = torch.from_numpy(draw.random(2) < 0.6)
    return {"voxels": target.sum(0, keepdim=True), "target": target, "visible": visible}


class HeatNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 2, 1))

    def forward(self, *, voxels: Tensor) -> HeatMaps:
        return {"heat": self.net(voxels)}


class HeatMaps(TypedDict):
    heat: Tensor


class HeatError(Loss):
    def count(self, *, visible: Tensor) -> Tensor:
        return visible.sum() * 4**3

    def forward(self, *, heat: Tensor, target: Tensor, visible: Tensor) -> Tensor:
        return ((heat - target).square().flatten(2).sum(2) * visible).sum()


class Peaks(MeanMetric):
    figures = ("peak_error",)

    def values(self, *, heat: Tensor, target: Tensor) -> Tensor:
        return (heat - target).abs().flatten(1).amax(1)


GRIDS: dict[str, Toy] = {
    "pose": Toy(
        HeatNet,
        supervised({"heat": HeatError}),
        Made(_grid, voxels=field(), target=field(), visible=field()),
        {"heat": 1.0},
        (Peaks,),
    ),
}
