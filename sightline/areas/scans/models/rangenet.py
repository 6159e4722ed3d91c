"""RangeNet on range images: Darknet and a mirrored decoder. Source: Milioto et al. 2019.

Base class of range-image networks: input check, output and memory format.

DeepLabv3 on range images: a dilated ResNet and atrous spatial pyramid pooling. Source: Chen et al. 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal, TypedDict, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.contract import registry
from sightline.contract.arguments import Count, FractionBelowOne
from sightline.layers.images import ConvBlock, join_channels
from sightline.layers.range_image import CircularPad, UpsampleColumns, assert_range_images
from sightline.parts.models.darknet import DARKNET21, DARKNET53, Darknet, DarknetBlock
from sightline.parts.models.resnet import ResidualNetwork


class RangeImageOutput(TypedDict):
    """`logits` (S, H, W, num_classes) of every pixel, before any softmax."""

    logits: Tensor


class RangeImageNetwork(nn.Module):
    """Network from range images to logits of the same size; subclasses define `forward_logits`.

    With `channels_last`, weights and values have their channels together in memory.
    """

    size_divisors: tuple[int, int] = (1, 1)
    """Divisors of the rows and the columns of an image."""

    def __init__(self, *, in_channels: int, channels_last: bool) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.channels_last = channels_last

    def forward(self, *, image: Tensor) -> RangeImageOutput:
        """Predict from `image` (S, in_channels, H, W), normalised.

        Raises ValueError for other channels and impossible sizes.
        """
        assert_range_images(image, in_channels=self.in_channels, multiples=self.size_divisors)
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        return {"logits": self.forward_logits(image).permute(0, 2, 3, 1)}

    def forward_logits(self, image: Tensor) -> Tensor:
        """Compute logits (S, num_classes, H, W) from images (S, in_channels, H, W)."""
        raise NotImplementedError

    def _order(self) -> None:
        """Convert the weights to the requested memory format; called once all layers exist."""
        if self.channels_last:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


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
        joined: Tensor = self.join(join_channels([*(view(values) for view in self.views), mean]))
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
