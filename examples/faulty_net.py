"""A small PointNet with a silent bug: its layers are in a plain list, so they are never trained nor saved."""

from itertools import pairwise
from typing import TypedDict

from torch import Tensor, nn

import sightline


class Output(TypedDict):
    logits: Tensor


@sightline.register.model("faulty_net")
class FaultyNet(sightline.Model):
    """A small PointNet: layers on every point, the maximum over the points, a layer of classes."""

    def __init__(self, *, num_classes: int, in_channels: int, is_mended: bool = False) -> None:
        super().__init__()
        widths = (in_channels, 64, 128, 256)
        layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(widths)]
        self.layers = nn.ModuleList(layers) if is_mended else layers
        self.classes = nn.Linear(256, num_classes)

    def forward(self, points: Tensor) -> Output:
        for layer in self.layers:
            points = layer(points)
        return {"logits": self.classes(points.amax(dim=1))}
