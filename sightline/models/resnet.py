"""Residual networks that read images. Source: He et al. 2016, Deep Residual Learning for Image Recognition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from sightline import registry
from sightline.layers.images import ConvNorm, assert_images
from sightline.layers.range_image.columns import pooling

__all__ = ["ResNet18Encoder", "ResNet50Encoder", "ResidualNetwork"]

_WIDTH = 64


class _Block(nn.Module):
    """Convolutions of `sizes` kernels and `channels` channels, added to what came in. Source: He et al. 2016, eq. 2.

    The first kernel larger than one pixel takes the stride, all of them the dilation; where shapes change, a
    convolution of one pixel brings what came in to the new one.
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
    ) -> None:
        super().__init__()
        strided, last = next(place for place, size in enumerate(sizes) if size > 1), len(sizes) - 1
        self.layers = nn.Sequential(
            *(
                ConvNorm(
                    in_channels=before,
                    out_channels=after,
                    size=size,
                    stride=stride if place == strided else 1,
                    dilation=dilation,
                    activation=nn.ReLU() if place < last else None,
                    circular=circular,
                )
                for place, (before, after, size) in enumerate(
                    zip((in_channels, *channels[:-1]), channels, sizes, strict=True)
                )
            )
        )
        is_same = in_channels == channels[-1] and stride == 1
        self.shortcut = (
            nn.Identity()
            if is_same
            else ConvNorm(in_channels=in_channels, out_channels=channels[-1], size=1, stride=stride)
        )

    def forward(self, image: Tensor) -> Tensor:
        return cast(Tensor, (self.layers(image) + self.shortcut(image)).relu())


class ResidualNetwork(nn.Module):
    """A stem and four stages of blocks, each of half the resolution of the last; (B, in_channels, H, W) -> the last.

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
    ) -> None:
        super().__init__()
        self.out_channels = expansion * width * 2 ** (len(depths) - 1)
        self.stem = ConvNorm(
            in_channels=in_channels,
            out_channels=width,
            size=7,
            stride=stem_stride,
            activation=nn.ReLU(),
            circular=circular,
        )
        self.pool = pooling(nn.MaxPool2d, size=3, stride=2, circular=circular)
        stages, before, dilation = [], width, 1
        for place, depth in enumerate(depths):
            inner = width * 2**place
            channels = (*(inner for _ in sizes[1:]), expansion * inner)
            is_dilated = place >= len(depths) - num_dilated
            blocks = []
            for number in range(depth):
                stride = 2 if place > 0 and number == 0 and not is_dilated else 1
                blocks.append(
                    _Block(
                        in_channels=before,
                        channels=channels,
                        sizes=sizes,
                        stride=stride,
                        dilation=2 * dilation if is_dilated and number > 0 else dilation,
                        circular=circular,
                    )
                )
                before = channels[-1]
            dilation *= 2 if is_dilated else 1
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)

    def forward(self, image: Tensor) -> Tensor:
        values = self.pool(self.stem(image))
        for stage in self.stages:
            values = stage(values)
        return cast(Tensor, values)


class _ResNet(ResidualNetwork):
    """The mean over the image of what a residual network gives."""

    def __init__(self, *, depths: Sequence[int], sizes: Sequence[int], expansion: int) -> None:
        super().__init__(depths=depths, sizes=sizes, expansion=expansion)
        self.feature_width = self.out_channels

    def encode(self, *, image: Tensor) -> Tensor:
        """`image` (B, 3, H, W), normalised -> (B, feature_width). Raises ValueError for any other layout."""
        assert_images(image)
        return self(image).mean(dim=(2, 3))


@registry.image_encoders.add("resnet18")
class ResNet18Encoder(_ResNet):
    """ResNet-18: eight blocks of two convolutions; images of any size, features (B, 512).

    Source: He et al. 2016, table 1 (18-layer), shortcuts B.
    """

    def __init__(self) -> None:
        super().__init__(depths=(2, 2, 2, 2), sizes=(3, 3), expansion=1)


@registry.image_encoders.add("resnet50")
class ResNet50Encoder(_ResNet):
    """ResNet-50: sixteen blocks of three convolutions; images of any size, features (B, 2048).

    A block takes its stride in the convolution of 3 x 3 pixels, as torchvision's does, not in its first as the paper's.
    Source: He et al. 2016, table 1 (50-layer), shortcuts B; layout of pytorch/vision.
    """

    def __init__(self) -> None:
        super().__init__(depths=(3, 4, 6, 3), sizes=(1, 3, 1), expansion=4)
