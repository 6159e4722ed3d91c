"""RangeNet on range images: Darknet and a mirrored decoder. Source: Milioto et al. 2019."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, cast

from torch import Tensor, nn

from sightline.areas.scans.models.range_image_network import RangeImageNetwork
from sightline.contract import registry
from sightline.contract.arguments import Count, FractionBelowOne
from sightline.layers.images import ConvBlock
from sightline.layers.range_image import UpsampleColumns
from sightline.parts.models.darknet import DARKNET21, DARKNET53, Darknet, DarknetBlock

_MOMENTUM = 0.01
_SLOPE = 0.1


class _Up(nn.Module):
    """Decoder stage: columns doubled, batch norm, leaky ReLU and a residual block as wide inside as its input."""

    def __init__(self, *, in_channels: int, out_channels: int, circular: bool) -> None:
        super().__init__()
        self.upsample = UpsampleColumns(in_channels=in_channels, out_channels=out_channels, circular=circular)
        self.norm = nn.BatchNorm2d(out_channels, momentum=_MOMENTUM)
        self.activation = nn.LeakyReLU(_SLOPE)
        self.block = DarknetBlock(
            channels=out_channels, hidden_channels=in_channels, momentum=_MOMENTUM, slope=_SLOPE, circular=circular
        )

    def forward(self, image: Tensor) -> Tensor:
        return cast(Tensor, self.block(self.activation(self.norm(self.upsample(image)))))


class _RangeNet(RangeImageNetwork):
    """RangeNet: Darknet that halves columns alone, and a decoder that doubles them and adds the encoder's skips."""

    size_divisors = (1, 32)
    depths: ClassVar[Sequence[int]]

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        width: Count = 32,
        dropout: FractionBelowOne = 0.01,
        detach_skips: bool = False,
        circular: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__(in_channels=in_channels, channels_last=channels_last)
        self.detach_skips = detach_skips
        self.backbone = Darknet(
            in_channels=in_channels,
            depths=self.depths,
            width=width,
            strides=((1, 2),) * len(self.depths),
            momentum=_MOMENTUM,
            slope=_SLOPE,
            dropout=dropout,
            circular=circular,
        )
        raised = self.backbone.channels[::-1]
        self.up = nn.ModuleList(
            _Up(in_channels=width_in, out_channels=width_out, circular=circular)
            for width_in, width_out in pairwise(raised)
        )
        self.dropout = nn.Dropout2d(dropout)
        self.head = ConvBlock(in_channels=width, out_channels=num_classes, kernel_size=3, circular=circular)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()  # as published: torch's own start
        self._order()

    def forward_logits(self, image: Tensor) -> Tensor:
        *skips, values = self.backbone(image)
        for up, skip in zip(self.up, reversed(skips), strict=True):
            values = up(values) + (skip.detach() if self.detach_skips else skip)
        return cast(Tensor, self.head(self.dropout(values)))


@registry.models.add("rangenet21")
class RangeNet21(_RangeNet):
    """RangeNet on Darknet-21; 24,712,980 parameters for 20 classes. Columns are multiples of 32.

    `width` is the channels of the stem; the widest stage has 32 times as many. `circular`: the columns are a full turn.
    `detach_skips`: no gradient through the skips, as in the authors' code.
    Source: Milioto et al. 2019, RangeNet++, figure 3; layout of PRBonn/lidar-bonnetal.
    """

    depths = DARKNET21


@registry.models.add("rangenet53")
class RangeNet53(_RangeNet):
    """RangeNet on Darknet-53; 50,377,364 parameters for 20 classes. Sizes and arguments as those of rangenet21.

    Source: Milioto et al. 2019, RangeNet++, figure 3; layout of PRBonn/lidar-bonnetal.
    """

    depths = DARKNET53
