"""Attention over the channels and positions of a feature map: SE, CBAM, ECA and SimAM. Each keeps the map's shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, cast

import torch
from torch import Tensor, nn

AttentionName = Literal["none", "se", "cbam", "eca", "simam"]


class SqueezeExcitation(nn.Module):
    """Squeeze-and-excitation (SE): scale channels by the sigmoid of a perceptron of their means over the map.

    (B, C, H, W) -> the same shape; the hidden layer has C / `reduction` units. Source: Hu et al. 2018,
    Squeeze-and-Excitation Networks, eq. 2 to 4.
    """

    def __init__(self, channels: int, *, reduction: int = 16, bias: bool = False) -> None:
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.reduce = nn.Linear(channels, hidden, bias=bias)
        self.expand = nn.Linear(hidden, channels, bias=bias)

    def forward(self, image: Tensor) -> Tensor:
        """Scale the channels of a map: (B, C, H, W) -> (B, C, H, W)."""
        weights = self.expand(self.reduce(image.mean(dim=(2, 3))).relu()).sigmoid()
        return cast(Tensor, image * weights[:, :, None, None])


class CBAM(nn.Module):
    """CBAM: channel attention from the mean and the maximum over the map, then spatial attention over the channels.

    (B, C, H, W) -> the same shape, without biases. Source: Woo et al. 2018, CBAM, eq. 2 and 3.
    """

    def __init__(self, channels: int, *, reduction: int = 16, size: int = 7) -> None:
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.channels = nn.Sequential(
            nn.Linear(channels, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, channels, bias=False)
        )
        self.positions = nn.Conv2d(2, 1, size, padding=size // 2, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        """Scale channels, then positions of a map: (B, C, H, W) -> (B, C, H, W)."""
        weights = self.channels(image.mean(dim=(2, 3))) + self.channels(image.amax(dim=(2, 3)))
        image = image * weights.sigmoid()[:, :, None, None]
        mean_and_maximum = torch.cat([image.mean(dim=1, keepdim=True), image.amax(dim=1, keepdim=True)], dim=1)
        return cast(Tensor, image * self.positions(mean_and_maximum).sigmoid())


class ECA(nn.Module):
    """ECA: scale channels by the sigmoid of a convolution, along the channels, of their means over the map.

    (B, C, H, W) -> the same shape. The kernel has (log2 C + 1) / 2 taps, rounded down, or one more if that is even.
    Source: Wang et al. 2020, ECA-Net, eq. 12; layout of BangguWu/ECANet.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        taps = int((math.log2(channels) + 1) / 2)
        taps += 1 - taps % 2
        self.conv = nn.Conv1d(1, 1, taps, padding=taps // 2, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        """Scale the channels of a map: (B, C, H, W) -> (B, C, H, W)."""
        weights = self.conv(image.mean(dim=(2, 3))[:, None])[:, 0].sigmoid()
        return cast(Tensor, image * weights[:, :, None, None])


class SimAM(nn.Module):
    """SimAM: scale each value by the sigmoid of its squared distance from the channel's mean; no parameters.

    (B, C, H, W) -> the same shape. The distance is measured in variances of the map; that of one pixel is scaled by the
    sigmoid of 1/2. Source: Yang et al. 2021, SimAM, eq. 5 and figure 3, lambda 1e-4.
    """

    def __init__(self, channels: int, *, regularisation: float = 1e-4) -> None:
        super().__init__()
        self.regularisation = regularisation

    def forward(self, image: Tensor) -> Tensor:
        """Scale the values of a map: (B, C, H, W) -> (B, C, H, W)."""
        squares = (image - image.mean(dim=(2, 3), keepdim=True)).square()
        variance = squares.sum(dim=(2, 3), keepdim=True) / max(image.shape[2] * image.shape[3] - 1, 1)
        return image * (squares / (4 * (variance + self.regularisation)) + 0.5).sigmoid()


ATTENTIONS: Mapping[AttentionName, Callable[[int], nn.Module] | None] = {
    "none": None,
    "se": SqueezeExcitation,
    "cbam": CBAM,
    "eca": ECA,
    "simam": SimAM,
}
"""Attention layers by config name: functions of the number of channels; None: without."""
