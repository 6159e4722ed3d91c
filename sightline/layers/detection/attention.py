"""Attention over the channels and the places of a map: each layer scales what comes in and keeps its shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, cast

import torch
from torch import Tensor, nn

__all__ = ["ATTENTIONS", "CBAM", "ECA", "AttentionName", "SimAM", "SqueezeExcitation"]

AttentionName = Literal["none", "se", "cbam", "eca", "simam"]


class SqueezeExcitation(nn.Module):
    """x times the sigmoid of two matrices, with a ReLU between, of its mean over the map; (B, C, H, W) -> the same.

    The inner width is C / `reduction`. Source: Hu et al. 2018, Squeeze-and-Excitation Networks, eq. 2 to 4.
    """

    def __init__(self, channels: int, *, reduction: int = 16, bias: bool = False) -> None:
        super().__init__()
        inner = max(channels // reduction, 1)
        self.reduce = nn.Linear(channels, inner, bias=bias)
        self.expand = nn.Linear(inner, channels, bias=bias)

    def forward(self, image: Tensor) -> Tensor:
        weights = self.expand(self.reduce(image.mean(dim=(2, 3))).relu()).sigmoid()
        return cast(Tensor, image * weights[:, :, None, None])


class CBAM(nn.Module):
    """Channels scaled by one network of their mean and of their maximum, then places by those over the channels.

    Source: Woo et al. 2018, CBAM, eq. 2 and 3, without a bias.
    """

    def __init__(self, channels: int, *, reduction: int = 16, size: int = 7) -> None:
        super().__init__()
        inner = max(channels // reduction, 1)
        self.channels = nn.Sequential(
            nn.Linear(channels, inner, bias=False), nn.ReLU(), nn.Linear(inner, channels, bias=False)
        )
        self.places = nn.Conv2d(2, 1, size, padding=size // 2, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        weights = self.channels(image.mean(dim=(2, 3))) + self.channels(image.amax(dim=(2, 3)))
        image = image * weights.sigmoid()[:, :, None, None]
        both = torch.cat([image.mean(dim=1, keepdim=True), image.amax(dim=1, keepdim=True)], dim=1)
        return cast(Tensor, image * self.places(both).sigmoid())


class ECA(nn.Module):
    """x times the sigmoid of a convolution over the channels of its mean over the map.

    The kernel has t = (log2 C + 1) / 2 taps, rounded down, or one more where that is even.
    Source: Wang et al. 2020, ECA-Net, eq. 12; layout of BangguWu/ECANet.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        taps = int((math.log2(channels) + 1) / 2)
        taps += 1 - taps % 2
        self.conv = nn.Conv1d(1, 1, taps, padding=taps // 2, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        weights = self.conv(image.mean(dim=(2, 3))[:, None])[:, 0].sigmoid()
        return cast(Tensor, image * weights[:, :, None, None])


class SimAM(nn.Module):
    """x times the sigmoid of how far it is from the mean of its channel, without a parameter.

    A map of one pixel has no spread: it is scaled by the sigmoid of 1/2.
    Source: Yang et al. 2021, SimAM, eq. 5 and figure 3, lambda 1e-4.
    """

    def __init__(self, channels: int, *, regularisation: float = 1e-4) -> None:
        super().__init__()
        self.regularisation = regularisation

    def forward(self, image: Tensor) -> Tensor:
        squares = (image - image.mean(dim=(2, 3), keepdim=True)).square()
        spread = squares.sum(dim=(2, 3), keepdim=True) / max(image.shape[2] * image.shape[3] - 1, 1)
        return image * (squares / (4 * (spread + self.regularisation)) + 0.5).sigmoid()


ATTENTIONS: Mapping[AttentionName, Callable[[int], nn.Module] | None] = {
    "none": None,
    "se": SqueezeExcitation,
    "cbam": CBAM,
    "eca": ECA,
    "simam": SimAM,
}
"""What makes the attention of a number of channels, by its name in a config."""
