"""Residual networks (ResNet) on images. Source: He et al. 2016, Deep Residual Learning for Image Recognition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from torch import Tensor, nn

from sightline.contract import registry
from sightline.contract.model import Encoder
from sightline.layers.images import ConvNorm, assert_images
from sightline.layers.range_image import build_pool

LayerFactory = Callable[[int], nn.Module]
"""Factory of a norm, or of an attention layer, for a number of channels."""
RESNET_DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
}
"""Blocks of each stage. Source: He et al. 2016, table 1."""
BASIC, BOTTLENECK = (3, 3), (1, 3, 1)
"""Kernel sizes of a block. Source: He et al. 2016, figure 5."""
_WIDTH = 64


class _Block(nn.Module):
    """Residual block: convolutions of `sizes` kernels and `channels` channels, plus a shortcut.

    The first kernel larger than one pixel has the stride, all of them the dilation; if shapes change, the shortcut is a
    1x1 convolution. `attention` makes the last layer of the branch.
    Source: He et al. 2016, equation 2.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        channels: Sequence[int],
        sizes: Sequence[int],
        stride: int,
        dilation: int,
        circular: bool,
        norm: LayerFactory | None,
        attention: LayerFactory | None,
    ) -> None:
        super().__init__()
        strided, last = next(index for index, size in enumerate(sizes) if size > 1), len(sizes) - 1
        self.layers = nn.Sequential(
            *(
                ConvNorm(
                    in_channels=width_in,
                    out_channels=width_out,
                    kernel_size=size,
                    stride=stride if index == strided else 1,
                    dilation=dilation,
                    activation=nn.ReLU() if index < last else None,
                    norm=norm,
                    circular=circular,
                )
                for index, (width_in, width_out, size) in enumerate(
                    zip((in_channels, *channels[:-1]), channels, sizes, strict=True)
                )
            ),
            *(() if attention is None else (attention(channels[-1]),)),
        )
        is_same = in_channels == channels[-1] and stride == 1
        self.shortcut = (
            nn.Identity()
            if is_same
            else ConvNorm(in_channels=in_channels, out_channels=channels[-1], kernel_size=1, stride=stride, norm=norm)
        )

    def forward(self, image: Tensor) -> Tensor:
        return cast(Tensor, (self.layers(image) + self.shortcut(image)).relu())


class ResidualStages(nn.Module):
    """ResNet stem and four stages of blocks, each of half the resolution of the previous one.

    `norm` makes the norms if they are not batch norm, `attention` a layer at the end of each residual branch.
    `num_dilated` stages at the end keep their resolution: their kernels are dilated instead, twice as much as in the
    stage before, the first block of each still as much as that one. Source: He et al. 2016; Chen et al. 2017, figure 3.
    """

    def __init__(
        self,
        *,
        depths: Sequence[int],
        sizes: Sequence[int],
        expansion: int,
        in_channels: int = 3,
        width: int = _WIDTH,
        stem_stride: tuple[int, int] = (2, 2),
        num_dilated: int = 0,
        circular: bool = False,
        norm: LayerFactory | None = None,
        attention: LayerFactory | None = None,
    ) -> None:
        super().__init__()
        self.out_channels = expansion * width * 2 ** (len(depths) - 1)
        self.stem = ConvNorm(
            in_channels=in_channels,
            out_channels=width,
            kernel_size=7,
            stride=stem_stride,
            activation=nn.ReLU(),
            norm=norm,
            circular=circular,
        )
        self.pool = build_pool(nn.MaxPool2d, size=3, stride=2, circular=circular)
        stages, width_in, dilation = [], width, 1
        for stage, depth in enumerate(depths):
            inner = width * 2**stage
            channels = (*(inner for _ in sizes[1:]), expansion * inner)
            is_dilated = stage >= len(depths) - num_dilated
            blocks = []
            for number in range(depth):
                stride = 2 if stage > 0 and number == 0 and not is_dilated else 1
                blocks.append(
                    _Block(
                        in_channels=width_in,
                        channels=channels,
                        sizes=sizes,
                        stride=stride,
                        dilation=2 * dilation if is_dilated and number > 0 else dilation,
                        circular=circular,
                        norm=norm,
                        attention=attention,
                    )
                )
                width_in = channels[-1]
            dilation *= 2 if is_dilated else 1
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)

    def forward_features(self, image: Tensor) -> list[Tensor]:
        """Map an image (B, in_channels, H, W) to the maps of every stage."""
        values, maps = self.pool(self.stem(image)), []
        for stage in self.stages:
            values = stage(values)
            maps.append(values)
        return maps


class ResidualNetwork(ResidualStages):
    """ResNet up to its last stage: (B, in_channels, H, W) -> (B, out_channels, H / 32, W / 32), rounded up."""

    def forward(self, image: Tensor) -> Tensor:
        return self.forward_features(image)[-1]


class _ResNet(ResidualNetwork, Encoder):
    """ResNet encoder: global average pooling of the last stage."""

    def __init__(self, *, depths: Sequence[int], sizes: Sequence[int], expansion: int) -> None:
        super().__init__(depths=depths, sizes=sizes, expansion=expansion)
        self.feature_width = self.out_channels

    def encode(self, *, image: Tensor) -> Tensor:
        """Encode `image` (B, 3, H, W), normalised -> (B, feature_width). Raises ValueError for any other layout."""
        assert_images(image)
        return self(image).mean(dim=(2, 3))


@registry.image_encoders.add("resnet18")
class ResNet18Encoder(_ResNet):
    """ResNet-18: eight blocks of two convolutions; images of any size, features (B, 512).

    Source: He et al. 2016, table 1 (18-layer), shortcuts B.
    """

    def __init__(self) -> None:
        super().__init__(depths=RESNET_DEPTHS["resnet18"], sizes=BASIC, expansion=1)


@registry.image_encoders.add("resnet34")
class ResNet34Encoder(_ResNet):
    """ResNet-34: sixteen blocks of two convolutions; images of any size, features (B, 512).

    Source: He et al. 2016, table 1 (34-layer), shortcuts B.
    """

    def __init__(self) -> None:
        super().__init__(depths=RESNET_DEPTHS["resnet34"], sizes=BASIC, expansion=1)


@registry.image_encoders.add("resnet50")
class ResNet50Encoder(_ResNet):
    """ResNet-50: sixteen blocks of three convolutions; images of any size, features (B, 2048).

    A block takes its stride in the convolution of 3 x 3 pixels, as torchvision's does, not in its first as the paper's.
    Source: He et al. 2016, table 1 (50-layer), shortcuts B; layout of pytorch/vision.
    """

    def __init__(self) -> None:
        super().__init__(depths=RESNET_DEPTHS["resnet50"], sizes=BOTTLENECK, expansion=4)


@registry.image_encoders.add("resnet101")
class ResNet101Encoder(_ResNet):
    """ResNet-101: 33 blocks of three convolutions; images of any size, features (B, 2048); strides as in ResNet-50.

    Source: He et al. 2016, table 1 (101-layer), shortcuts B; layout of pytorch/vision.
    """

    def __init__(self) -> None:
        super().__init__(depths=RESNET_DEPTHS["resnet101"], sizes=BOTTLENECK, expansion=4)
