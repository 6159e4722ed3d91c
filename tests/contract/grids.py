"""Toys of dense maps: voxels to heat maps, and range images with class weights."""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from sightline.contract.loss import Loss
from sightline.contract.metric import MeanMetric
from tests.contract.toy import NUM_CLASSES, CrossEntropySum, Logits, Made, Toy, field, supervised

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


# range image: ignored pixels, class weights


def _range_image(draw: np.random.Generator) -> dict[str, Any]:
    label = torch.from_numpy(draw.integers(-1, NUM_CLASSES, size=(4, 8)))
    return {"image": torch.from_numpy(draw.normal(size=(2, 4, 8))) + label, "label": label}


class RangeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, NUM_CLASSES, 1))

    def forward(self, *, image: Tensor) -> Logits:
        return {"logits": self.net(image)}


GRIDS: dict[str, Toy] = {
    "pose": Toy(
        HeatNet,
        supervised({"heat": HeatError}),
        Made(_grid, voxels=field(), target=field(), visible=field()),
        {"heat": 1.0},
        Peaks,
    ),
    "range": Toy(
        RangeNet,
        supervised({"ce": lambda: CrossEntropySum((0.3, 1.7, 2.5))}),
        Made(_range_image, image=field(), label=field()),
        {"ce": 1.0},
    ),
}
