"""DeepLabv3 on range images: a dilated ResNet and atrous spatial pyramid pooling. Source: Chen et al. 2017."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.areas.scans.models.range_image_network import RangeImageNetwork
from sightline.contract import registry
from sightline.contract.arguments import Count, FractionBelowOne
from sightline.layers.images import ConvBlock
from sightline.layers.range_image import CircularPad
from sightline.parts.models.resnet import ResidualNetwork

_DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
_RATES = (12, 24, 36)
_STRIDE = 8


def _unit(*, in_channels: int, out_channels: int, size: int, circular: bool, dilation: int = 1) -> ConvBlock:
    return ConvBlock(
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=size,
        dilation=dilation,
        bias=False,
        norm=nn.BatchNorm2d(out_channels),
        activation=nn.ReLU(),
        circular=circular,
    )


class _Pyramid(nn.Module):
    """Atrous spatial pyramid pooling (ASPP): a 1x1 convolution, three dilated ones and image pooling, joined.

    Source: Chen et al. 2017, figure 5 (a to c).
    """

    def __init__(self, *, in_channels: int, out_channels: int, dropout: float, circular: bool) -> None:
        super().__init__()
        self.views = nn.ModuleList(
            _unit(in_channels=in_channels, out_channels=out_channels, size=size, dilation=rate, circular=circular)
            for size, rate in ((1, 1), *((3, rate) for rate in _RATES))
        )
        self.mean = _unit(in_channels=in_channels, out_channels=out_channels, size=1, circular=circular)
        joined = (len(self.views) + 1) * out_channels
        self.join = _unit(in_channels=joined, out_channels=out_channels, size=1, circular=circular)
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor) -> Tensor:
        if self.training and len(values) == 1 and isinstance(self.mean.norm, nn.BatchNorm2d):
            raise ValueError(
                "deeplabv3: found a training batch of one image, whose mean has one value a channel: nothing to "
                "normalise; give train.batch_size of at least 2 images a micro-batch and train.tail=drop, or "
                "distributed.sync_batch_norm"
            )
        mean = self.mean(values.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, *values.shape[2:])
        joined: Tensor = self.join(torch.cat([*(view(values) for view in self.views), mean], dim=1))
        return self.dropout(joined)


@registry.models.add("deeplabv3")
class DeepLabV3(RangeImageNetwork):
    """DeepLabv3: a ResNet of `depth` 50 or 101 at stride 8; 39,644,884 or 58,637,012 parameters for 20 classes.

    Images of any size; with `circular`, if the columns are a full turn, columns are multiples of 8. `stem_rows: 1`
    keeps the rows in the first convolution, for the few that a range image has. `width` is the channels of the stem.
    Source: Chen et al. 2017, section 3; layout of pytorch/vision without its auxiliary head.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        depth: Literal[50, 101] = 50,
        width: Count = 64,
        stem_rows: Literal[1, 2] = 2,
        dropout: FractionBelowOne = 0.5,
        circular: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__(in_channels=in_channels, channels_last=channels_last)
        self.size_divisors = (1, _STRIDE if circular else 1)
        self.backbone = ResidualNetwork(
            depths=_DEPTHS[depth],
            sizes=(1, 3, 1),
            expansion=4,
            in_channels=in_channels,
            width=width,
            stem_stride=(stem_rows, 2),
            num_dilated=2,
            circular=circular,
        )
        self.pyramid = _Pyramid(
            in_channels=self.backbone.out_channels, out_channels=4 * width, dropout=dropout, circular=circular
        )
        self.smooth = _unit(in_channels=4 * width, out_channels=4 * width, size=3, circular=circular)
        self.head = ConvBlock(in_channels=4 * width, out_channels=num_classes, kernel_size=1)
        self.wrap = CircularPad(1) if circular else None
        self._order()

    def forward_logits(self, image: Tensor) -> Tensor:
        coarse: Tensor = self.head(self.smooth(self.pyramid(self.backbone(image))))
        height, width = image.shape[2:]
        if self.wrap is None:
            return F.interpolate(coarse, (height, width), mode="bilinear")
        fine = F.interpolate(self.wrap(coarse), (height, width + 2 * _STRIDE), mode="bilinear")
        return fine[..., _STRIDE:-_STRIDE]
