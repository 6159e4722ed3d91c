"""SalsaNext on range images: an encoder-decoder of dilated residual blocks. Source: Cortinhal et al. 2020."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.areas.scans.models.range_image_network import RangeImageNetwork
from sightline.contract import registry
from sightline.contract.arguments import Count, FractionBelowOne
from sightline.layers.images import ConvBlock
from sightline.layers.range_image import MeanPool2d, build_pool


def _unit(*, in_channels: int, out_channels: int, size: int, circular: bool, dilation: int = 1) -> ConvBlock:
    """Build a convolution, a leaky ReLU and batch norm, in this order, as in the authors' code."""
    return ConvBlock(
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=size,
        dilation=dilation,
        norm=nn.BatchNorm2d(out_channels),
        activation=nn.LeakyReLU(),
        norm_last=True,
        circular=circular,
    )


def _shortcut(in_channels: int, out_channels: int) -> ConvBlock:
    return ConvBlock(in_channels=in_channels, out_channels=out_channels, kernel_size=1, activation=nn.LeakyReLU())


class _Context(nn.Module):
    """Context block (ResContextBlock): a 1x1 convolution plus two 3x3 ones of it, the second dilated.

    Source: section III-B.
    """

    def __init__(self, *, in_channels: int, out_channels: int, circular: bool) -> None:
        super().__init__()
        sizes = {"in_channels": out_channels, "out_channels": out_channels, "size": 3}
        self.shortcut = _shortcut(in_channels, out_channels)
        self.first = _unit(**sizes, circular=circular)
        self.second = _unit(**sizes, circular=circular, dilation=2)

    def forward(self, image: Tensor) -> Tensor:
        shortcut = self.shortcut(image)
        return cast(Tensor, shortcut + self.second(self.first(shortcut)))


class _Fields(nn.Module):
    """Dilated block: three stacked convolutions, concatenated and fused by a 1x1 convolution. Source: section III-B."""

    def __init__(self, *, in_channels: int, out_channels: int, circular: bool) -> None:
        super().__init__()
        self.first = _unit(in_channels=in_channels, out_channels=out_channels, size=3, circular=circular)
        self.second = _unit(in_channels=out_channels, out_channels=out_channels, size=3, dilation=2, circular=circular)
        self.third = _unit(in_channels=out_channels, out_channels=out_channels, size=2, dilation=2, circular=circular)
        self.join = _unit(in_channels=3 * out_channels, out_channels=out_channels, size=1, circular=circular)

    def forward(self, image: Tensor) -> Tensor:
        narrow = self.first(image)
        wide = self.second(narrow)
        return cast(Tensor, self.join(torch.cat([narrow, wide, self.third(wide)], dim=1)))


class _Down(nn.Module):
    """Residual block: its output, and the same with dropout at half the size, or at full size without `halves`."""

    def __init__(
        self, *, in_channels: int, out_channels: int, dropout: float, circular: bool, halves: bool = True
    ) -> None:
        super().__init__()
        self.shortcut = _shortcut(in_channels, out_channels)
        self.fields = _Fields(in_channels=in_channels, out_channels=out_channels, circular=circular)
        self.dropout = nn.Dropout2d(dropout)
        self.pool = build_pool(MeanPool2d, size=3, stride=2, circular=circular) if halves else nn.Identity()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        values = self.shortcut(image) + self.fields(image)
        return values, self.pool(self.dropout(values))


class _Up(nn.Module):
    """Upsampling block: pixel shuffle to twice the rows and columns, then a dilated block with the skip."""

    def __init__(
        self, *, in_channels: int, skip_channels: int, out_channels: int, dropout: float, circular: bool
    ) -> None:
        super().__init__()
        self.fields = _Fields(
            in_channels=in_channels // 4 + skip_channels, out_channels=out_channels, circular=circular
        )
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        fine = self.dropout(F.pixel_shuffle(coarse, 2))
        joined = self.dropout(torch.cat([fine, skip], dim=1))
        return cast(Tensor, self.dropout(self.fields(joined)))


@registry.models.add("salsanext")
class SalsaNext(RangeImageNetwork):
    """SalsaNext: three context blocks, four down- and four upsampling stages, with skips; 6,711,572 parameters.

    For 20 classes. Rows and columns are multiples of 16. `width` (even) is the channels of the first blocks, 32 as
    published; the widest have eight times as many. `circular`: the columns are a full turn.
    Source: Cortinhal et al. 2020, figure 2; layout of TiagoCortinhal/SalsaNext, which returns a softmax.
    """

    size_divisors = (16, 16)

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        width: Count = 32,
        dropout: FractionBelowOne = 0.2,
        circular: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__(in_channels=in_channels, channels_last=channels_last)
        if width % 2:
            raise ValueError(f"width: is {width}, must be even; a quarter of twice the width becomes pixels")
        widths = [factor * width for factor in (1, 2, 4, 8, 8, 8)]
        self.context = nn.Sequential(
            *(
                _Context(in_channels=channels, out_channels=width, circular=circular)
                for channels in (in_channels, width, width)
            )
        )
        self.down = nn.ModuleList(
            _Down(
                in_channels=width_in,
                out_channels=width_out,
                dropout=dropout if level > 0 else 0.0,
                circular=circular,
                halves=level < 4,
            )
            for level, (width_in, width_out) in enumerate(pairwise(widths))
        )
        raised = [factor * width for factor in (8, 4, 4, 2, 1)]
        self.up = nn.ModuleList(
            _Up(
                in_channels=width_in,
                skip_channels=widths[4 - level],
                out_channels=width_out,
                dropout=dropout if level < 3 else 0.0,
                circular=circular,
            )
            for level, (width_in, width_out) in enumerate(pairwise(raised))
        )
        self.head = ConvBlock(in_channels=width, out_channels=num_classes, kernel_size=1)
        self._order()

    def forward_logits(self, image: Tensor) -> Tensor:
        values, skips = self.context(image), []
        for down in self.down:
            skip, values = down(values)
            skips.append(skip)
        for up, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            values = up(values, skip)
        return cast(Tensor, self.head(values))
