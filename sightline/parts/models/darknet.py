"""Darknet, a backbone of residual blocks for segmentation and detection. Source: Redmon and Farhadi 2018."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from torch import Tensor, nn

from sightline.contract import registry
from sightline.contract.arguments import NonNegativeFloat
from sightline.contract.model import Encoder
from sightline.layers.images import ConvNorm, assert_images

MakeLayer = Callable[[int], nn.Module]
"""Factory of a norm, or of an attention layer, for a number of channels."""

DARKNET21 = (1, 1, 2, 2, 1)
DARKNET53 = (1, 2, 8, 8, 4)
"""Residual blocks of each stage. Sources: Milioto et al. 2019, RangeNet++; Redmon and Farhadi 2018, table 1."""


class DarknetBlock(nn.Module):
    """Residual block: 1x1 convolution to `hidden_channels`, 3x3 convolution back, optional attention, shortcut.

    Source: Redmon and Farhadi 2018, table 1.
    """

    def __init__(
        self,
        *,
        channels: int,
        hidden_channels: int,
        momentum: float,
        slope: float,
        circular: bool,
        norm: MakeLayer | None = None,
        attention: MakeLayer | None = None,
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(
                ConvNorm(
                    in_channels=width_in,
                    out_channels=width_out,
                    kernel_size=size,
                    activation=nn.LeakyReLU(slope),
                    momentum=momentum,
                    norm=norm,
                    circular=circular,
                )
                for width_in, width_out, size in ((channels, hidden_channels, 1), (hidden_channels, channels, 3))
            ),
            *(() if attention is None else (attention(channels),)),
        )

    def forward(self, image: Tensor) -> Tensor:
        return cast(Tensor, image + self.layers(image))


class Darknet(nn.Module):
    """Darknet: a stem and five stages of doubled channels, each a strided convolution and its residual blocks.

    (B, in_channels, H, W) -> the maps of the stem and of every stage, of `channels` each. With 3 input channels
    Darknet-53 has 40,584,928 parameters. `strides` are those of the stages, in rows and columns; `momentum` is that of
    the batch norms, `slope` that of the leaky ReLU, `dropout` the share of channels dropped after each stage. `norm`
    makes the norms if they are not batch norm, `attention` a layer at the end of each residual branch.
    Source: Redmon and Farhadi 2018, YOLOv3, table 1.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        depths: Sequence[int] = DARKNET53,
        width: int = 32,
        strides: Sequence[tuple[int, int]] = ((2, 2),) * 5,
        momentum: float = 0.1,
        slope: float = 0.1,
        dropout: float = 0.0,
        circular: bool = False,
        norm: MakeLayer | None = None,
        attention: MakeLayer | None = None,
    ) -> None:
        super().__init__()
        self.channels = tuple(width * 2**level for level in range(len(depths) + 1))

        def make_conv(width_in: int, width_out: int, stride: tuple[int, int]) -> ConvNorm:
            return ConvNorm(
                in_channels=width_in,
                out_channels=width_out,
                kernel_size=3,
                stride=stride,
                activation=nn.LeakyReLU(slope),
                momentum=momentum,
                norm=norm,
                circular=circular,
            )

        def make_block(channels: int) -> DarknetBlock:
            return DarknetBlock(
                channels=channels,
                hidden_channels=channels // 2,
                momentum=momentum,
                slope=slope,
                circular=circular,
                norm=norm,
                attention=attention,
            )

        self.stem = make_conv(in_channels, width, (1, 1))
        self.stages = nn.ModuleList(
            nn.Sequential(make_conv(width_in, width_out, stride), *(make_block(width_out) for _ in range(depth)))
            for width_in, width_out, depth, stride in zip(
                self.channels, self.channels[1:], depths, strides, strict=False
            )
        )
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, image: Tensor) -> list[Tensor]:
        features = [self.stem(image)]
        for stage in self.stages:
            features.append(self.dropout(stage(features[-1])))
        return features


@registry.image_encoders.add("darknet53")
class Darknet53Encoder(Darknet, Encoder):
    """Darknet-53: 52 convolutions; images of any size, features (B, 1024). `slope` is that of the leaky ReLU.

    Source: Redmon and Farhadi 2018, YOLOv3, table 1.
    """

    feature_width = 1024

    def __init__(self, *, slope: NonNegativeFloat = 0.1) -> None:
        super().__init__(slope=slope)

    def encode(self, *, image: Tensor) -> Tensor:
        """Encode `image` (B, 3, H, W), normalised -> (B, feature_width). Raises ValueError for any other layout."""
        assert_images(image)
        return self(image)[-1].mean(dim=(2, 3))
