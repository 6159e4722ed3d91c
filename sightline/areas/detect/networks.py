"""Networks of detection: backbones, the necks FPN and PAFPN, and the detector that joins backbone, neck and head.

Backbones map images to the feature maps C3, C4 and C5, with strides 8, 16 and 32: ResNets, Darknet-53, CSPDarknet.
Heads are in heads.py. Sources: Lin et al. 2017, FPN; Wang et al. 2020, CSPNet; Ge et al. 2021, YOLOX.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, NotRequired, cast

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.areas.detect.heads import HeadOutput
from sightline.contract import registry
from sightline.contract.arguments import Backbone, Count, Head, Neck, NonNegativeFloat
from sightline.contract.binding import model_output_keys
from sightline.contract.errors import ConfigError
from sightline.layers.images import (
    ATTENTIONS,
    NORMS,
    AttentionName,
    ConvBlock,
    ConvNorm,
    NormName,
    assert_images,
    freeze_module,
    join_channels,
)
from sightline.parts.models.darknet import Darknet
from sightline.parts.models.resnet import BASIC, BOTTLENECK, RESNET_DEPTHS, ResidualStages

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


_POOLED = (5, 9, 13)


def _unit(in_channels: int, out_channels: int, kernel_size: int, norm: NormName, stride: int = 1) -> ConvNorm:
    return ConvNorm(
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=kernel_size,
        stride=stride,
        activation=nn.SiLU(),
        norm=NORMS[norm],
    )


class _Bottleneck(nn.Module):
    """Bottleneck: convolutions of 1x1 and 3x3 pixels, with a shortcut if `adds`."""

    def __init__(self, channels: int, norm: NormName, *, adds: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(_unit(channels, channels, 1, norm), _unit(channels, channels, 3, norm))
        self.adds = adds

    def forward(self, image: Tensor) -> Tensor:
        residual = self.layers(image)
        return cast(Tensor, image + residual if self.adds else residual)


class _CSPBlock(nn.Module):
    """CSP block: half of the channels pass through `depth` bottlenecks, the other half past them.

    Source: Wang et al. 2020, fig. 2.
    """

    def __init__(self, in_channels: int, out_channels: int, depth: int, norm: NormName, *, adds: bool) -> None:
        super().__init__()
        inner = out_channels // 2
        self.enter, self.past = _unit(in_channels, inner, 1, norm), _unit(in_channels, inner, 1, norm)
        self.blocks = nn.Sequential(*(_Bottleneck(inner, norm, adds=adds) for _ in range(depth)))
        self.leave = _unit(2 * inner, out_channels, 1, norm)

    def forward(self, image: Tensor) -> Tensor:
        both = join_channels([self.blocks(self.enter(image)), self.past(image)])
        return cast(Tensor, self.leave(both))


class _PyramidPooling(nn.Module):
    """Spatial pyramid pooling (SPP): max pooling over 5, 9 and 13 cells, concatenated with the input.

    Source: He et al. 2015, SPP-net; YOLOX's form.
    """

    def __init__(self, channels: int, norm: NormName) -> None:
        super().__init__()
        self.enter = _unit(channels, channels // 2, 1, norm)
        self.leave = _unit(channels // 2 * (1 + len(_POOLED)), channels, 1, norm)

    def forward(self, image: Tensor) -> Tensor:
        values = self.enter(image)
        pooled = [F.max_pool2d(values, size, stride=1, padding=size // 2) for size in _POOLED]
        return cast(Tensor, self.leave(join_channels([values, *pooled])))


@registry.backbones.add("cspdarknet")
class CSPDarknet(nn.Module):
    """CSPDarknet, YOLOX's backbone: maps of 4, 8 and 16 times `width` channels; `depth` blocks in the first stage.

    YOLOX-tiny has the width 24 and a depth of 1, -s 32 and 1, -m 48 and 2, -l 64 and 3, -x 80 and 4; that of -s has
    4,212,672 parameters. The stem (Focus) stacks every second pixel of every second row as four images of a quarter's
    size. `norm` and `frozen_stages` are those of resnet18. Source: Ge et al. 2021, YOLOX; Wang et al. 2020, CSPNet.
    """

    strides = STRIDES

    def __init__(
        self,
        *,
        in_channels: int = 3,
        width: Count = 32,
        depth: Count = 1,
        norm: NormName = "bn",
        frozen_stages: FrozenStages = 0,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.channels = tuple(width * 2**level for level in (2, 3, 4))
        self.stem = _unit(4 * in_channels, width, 3, norm)
        stages = []
        for stage, num_blocks in enumerate((depth, 3 * depth, 3 * depth, depth)):
            wide, is_last = width * 2 ** (stage + 1), stage == 3
            pooling = [_PyramidPooling(wide, norm)] if is_last else []
            block = _CSPBlock(wide, wide, num_blocks, norm, adds=not is_last)
            stages.append(nn.Sequential(_unit(wide // 2, wide, 3, norm, stride=2), *pooling, block))
        self.stages = nn.ModuleList(stages)
        for part in [self.stem, *self.stages][:frozen_stages]:
            freeze_module(part)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map `image` (B, in_channels, H, W), normalised -> C3, C4, C5. Raises ValueError for any other layout."""
        assert_images(image, channels=self.in_channels)
        image = F.pad(image, (0, image.shape[3] % 2, 0, image.shape[2] % 2))
        corners = [image[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        values, maps = self.stem(torch.cat(corners, dim=1)), []
        for stage in self.stages:
            values = stage(values)
            maps.append(values)
        return maps[1:]


@registry.necks.add("pafpn")
class PathAggregation(nn.Module):
    """PAFPN: a feature pyramid with a top-down and a bottom-up pathway of cross-stage partial blocks.

    Maps keep their numbers of channels; each level has twice those of the next finer one. `depth` is that of
    cspdarknet. Source: Liu et al. 2018, PANet, section 3.1; Ge et al. 2021, YOLOX.
    """

    def __init__(
        self, *, channels: tuple[int, ...], strides: tuple[int, ...], depth: Count = 1, norm: NormName = "bn"
    ) -> None:
        super().__init__()
        self.channels, self.strides = tuple(channels), tuple(strides)
        pairs = list(pairwise(channels))

        def block(in_channels: int, out_channels: int) -> _CSPBlock:
            return _CSPBlock(in_channels, out_channels, depth, norm, adds=False)

        self.reduce = nn.ModuleList(_unit(coarse, fine, 1, norm) for fine, coarse in pairs)
        self.down = nn.ModuleList(block(2 * fine, fine) for fine, _ in pairs)
        self.strided = nn.ModuleList(_unit(fine, fine, 3, norm, stride=2) for fine, _ in pairs)
        self.up = nn.ModuleList(block(2 * fine, coarse) for fine, coarse in pairs)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Fuse maps (B, channels, H, W), finest first, to maps of the same shapes."""
        values = maps[-1]
        reduced: list[Tensor] = []
        for level in range(len(maps) - 2, -1, -1):
            reduced.insert(0, self.reduce[level](values))
            upsampled = F.interpolate(reduced[0], maps[level].shape[2:])
            values = self.down[level](join_channels([upsampled, maps[level]]))
        outputs = [values]
        for strided, up, lateral in zip(self.strided, self.up, reduced, strict=True):
            outputs.append(up(join_channels([strided(outputs[-1]), lateral])))
        return outputs


_COARSER = 2
"""Number of levels that may follow those of the backbone."""


@registry.necks.add("fpn")
class FPN(nn.Module):
    """FPN: a pyramid of `width` channels on a backbone's maps: levels 3 to 5, or up to 7 by convolutions of stride 2.

    P6 is computed from C5, as RetinaNet's authors did, or from P5, as in most code; P7 from the ReLU of P6. A coarse
    map is resized to the exact size of the next by `upsample`. On ResNet-50, 3 levels have 2,688,512 parameters, 5
    levels 3,868,672 with P6 of P5 and 7,997,440 with P6 of C5. Source: Lin et al. 2017, Feature Pyramid Networks,
    section 3; Lin et al. 2017, Focal Loss, section 4 (P6 and P7).
    """

    def __init__(
        self,
        *,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        width: Count = 256,
        levels: tuple[int, ...] = (3, 4, 5, 6, 7),
        p6_source: Literal["c5", "p5"] = "p5",
        upsample: Literal["nearest", "bilinear"] = "nearest",
    ) -> None:
        super().__init__()
        backbone_levels = tuple(round(math.log2(stride)) for stride in strides)
        possible = [
            backbone_levels + tuple(backbone_levels[-1] + 1 + more for more in range(count))
            for count in range(_COARSER + 1)
        ]
        if levels not in possible:
            allowed = " or ".join(str(list(level_channels)) for level_channels in possible)
            raise ConfigError(f"levels: found {list(levels)}; on a backbone of strides {strides} give {allowed}")
        coarser = levels[len(backbone_levels) :]
        self.channels = (width,) * len(levels)
        self.strides = tuple(2**level for level in levels)
        self.p6_source, self.upsample = p6_source, upsample
        self.laterals = nn.ModuleList(
            ConvBlock(in_channels=level_channels, out_channels=width, kernel_size=1) for level_channels in channels
        )
        self.outputs = nn.ModuleList(ConvBlock(in_channels=width, out_channels=width, kernel_size=3) for _ in channels)
        first = channels[-1] if p6_source == "c5" else width
        self.coarser = nn.ModuleList(
            ConvBlock(in_channels=first if coarse_index == 0 else width, out_channels=width, kernel_size=3, stride=2)
            for coarse_index in range(len(coarser))
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Fuse maps (B, channels, H, W), finest first, to a map (B, width, H, W) of each level, finest first."""
        merged = [lateral(level_map) for lateral, level_map in zip(self.laterals, maps, strict=True)]
        for level in range(len(merged) - 1, 0, -1):
            size = merged[level - 1].shape[2:]
            merged[level - 1] = merged[level - 1] + F.interpolate(merged[level], size, mode=self.upsample)
        outputs = [output(level_map) for output, level_map in zip(self.outputs, merged, strict=True)]
        values = maps[-1] if self.p6_source == "c5" else outputs[-1]
        for level, conv in enumerate(self.coarser):
            values = _coarser(conv, values.relu() if level else values)
            outputs.append(values)
        return outputs


def _coarser(conv: nn.Module, values: Tensor) -> Tensor:
    """Compute the next coarser map; on a CPU always in full precision if it is one cell wide.

    torch 2.13 leaves memory uninitialised in the bf16 gradient of such a convolution's weights.
    """
    is_narrow = values.shape[3] == 1 and values.device.type == "cpu"
    with torch.autocast("cpu", enabled=False) if is_narrow else contextlib.nullcontext():
        result: Tensor = conv(values.to(next(conv.parameters()).dtype) if is_narrow else values)
    return result


class DetectorOutput(HeadOutput):
    """Output of the head, and `level_shapes` (B, L, 2) int64, on the host: rows and columns of each level's map.

    The levels are the same for every image of the batch.
    """

    centreness: NotRequired[Tensor]
    objectness: NotRequired[Tensor]
    density: NotRequired[Tensor]
    level_shapes: Tensor


@registry.models.add("detector")
class Detector(nn.Module):
    """Object detector: a backbone, a neck on its maps and a head on those of the neck, each of `sightline list`.

    Each states its `channels` and `strides` for the next. With resnet50, fpn, retina and 80 classes it has 33,839,924
    parameters, with fcos 32,297,370. With `channels_last`, weights and values have their channels together in memory.
    Source: Lin et al. 2017, Focal Loss for Dense Object Detection, figure 3.
    """

    def __init__(self, *, backbone: Backbone, neck: Neck, head: Head, channels_last: bool = False) -> None:
        super().__init__()
        self.backbone, self.neck, self.head = backbone, neck, head
        self.channels_last = channels_last
        if channels_last:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.output_keys = model_output_keys(head, owner="the head") | {"level_shapes"}

    def forward(self, *, image: Tensor) -> DetectorOutput:
        """Predict from `image` (B, in_channels, H, W), normalised; rows and columns of any number."""
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        maps = self.neck(self.backbone(image))
        shapes = torch.tensor([level_map.shape[2:] for level_map in maps], device="cpu").expand(image.shape[0], -1, -1)
        return cast(DetectorOutput, {**self.head(maps), "level_shapes": shapes})
