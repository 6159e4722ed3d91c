"""Detection backbones: images to the feature maps C3, C4 and C5, with strides 8, 16 and 32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from annotated_types import Ge, Le
from torch import Tensor

from sightline import registry
from sightline.arguments import Count, NonNegativeFloat
from sightline.layers.detection.attention import ATTENTIONS, AttentionName
from sightline.layers.detection.norms import NORMS, NormName, freeze_module
from sightline.layers.images import assert_images
from sightline.models.darknet import Darknet
from sightline.models.resnet import BASIC, BOTTLENECK, RESNET_DEPTHS, ResidualStages

__all__ = ["STRIDES", "Darknet53Backbone", "FrozenStages", "ResNet18", "ResNet34", "ResNet50", "ResNet101"]

FrozenStages = Annotated[int, Ge(0), Le(4)]
"""Number of frozen parts, from the image on: the stem is the first, then the stages."""
STRIDES = (8, 16, 32)


class _ResNet(ResidualStages):
    depths: ClassVar[Sequence[int]]
    sizes: ClassVar[Sequence[int]]
    strides = STRIDES

    def __init__(
        self,
        *,
        in_channels: int = 3,
        width: Count = 64,
        norm: NormName = "bn",
        frozen_stages: FrozenStages = 0,
        attention: AttentionName = "none",
    ) -> None:
        expansion = 4 if self.sizes is BOTTLENECK else 1
        super().__init__(
            depths=self.depths,
            sizes=self.sizes,
            expansion=expansion,
            in_channels=in_channels,
            width=width,
            norm=NORMS[norm],
            attention=ATTENTIONS[attention],
        )
        self.in_channels = in_channels
        self.channels = tuple(expansion * width * 2**level for level in (1, 2, 3))
        for part in [self.stem, *self.stages][:frozen_stages]:
            freeze_module(part)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map `image` (B, in_channels, H, W), normalised -> C3, C4, C5. Raises ValueError for any other layout."""
        assert_images(image, channels=self.in_channels)
        return self.forward_features(image)[1:]


@registry.backbones.add("resnet18")
class ResNet18(_ResNet):
    """ResNet-18; 11,176,512 parameters, maps of 128, 256 and 512 channels.

    `norm`: batch norm, batch norm frozen as it was loaded, or group norm. `frozen_stages` parts are not trained, the
    stem counted first: 2 are the stem and the stage of C2. `attention` ends the residual branch of every block.
    Source: He et al. 2016, Deep Residual Learning, table 1; layout of pytorch/vision.
    """

    depths, sizes = RESNET_DEPTHS["resnet18"], BASIC


@registry.backbones.add("resnet34")
class ResNet34(_ResNet):
    """ResNet-34; 21,284,672 parameters, otherwise as resnet18. Source: He et al. 2016, table 1."""

    depths, sizes = RESNET_DEPTHS["resnet34"], BASIC


@registry.backbones.add("resnet50")
class ResNet50(_ResNet):
    """ResNet-50; 23,508,032 parameters, maps of 512, 1,024 and 2,048 channels; arguments as those of resnet18.

    A block takes its stride in the convolution of 3 x 3 pixels. Source: He et al. 2016, table 1; layout of
    pytorch/vision.
    """

    depths, sizes = RESNET_DEPTHS["resnet50"], BOTTLENECK


@registry.backbones.add("resnet101")
class ResNet101(_ResNet):
    """ResNet-101; 42,500,160 parameters, otherwise as resnet50. Source: He et al. 2016, table 1."""

    depths, sizes = RESNET_DEPTHS["resnet101"], BOTTLENECK


@registry.backbones.add("darknet53")
class Darknet53Backbone(Darknet):
    """Darknet-53; 40,584,928 parameters, maps of 256, 512 and 1,024 channels; arguments as those of resnet18.

    `slope` is that of the leaky ReLU, in NuayHL's code 0.01.
    Source: Redmon and Farhadi 2018, YOLOv3, table 1.
    """

    strides = STRIDES

    def __init__(
        self,
        *,
        in_channels: int = 3,
        width: Count = 32,
        norm: NormName = "bn",
        frozen_stages: FrozenStages = 0,
        attention: AttentionName = "none",
        slope: NonNegativeFloat = 0.1,
    ) -> None:
        super().__init__(
            in_channels=in_channels, width=width, norm=NORMS[norm], attention=ATTENTIONS[attention], slope=slope
        )
        self.in_channels = in_channels
        self.channels = self.channels[3:]
        for part in [self.stem, *self.stages][:frozen_stages]:
            freeze_module(part)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map `image` (B, in_channels, H, W), normalised -> C3, C4, C5. Raises ValueError for any other layout."""
        assert_images(image, channels=self.in_channels)
        return super().forward(image)[3:]
