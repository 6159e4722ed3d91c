"""Networks of RetinaNet and FCOS: ResNets, the feature pyramid, towers of heads, and the detector that joins them.

Backbones map images to the feature maps C3, C4 and C5, with strides 8, 16 and 32; with `finest_stride: 4` also to C2,
and neck, head and priors have that level, too. Source: Lin et al. 2017, FPN.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal, NotRequired, TypedDict, cast

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.contract import registry
from sightline.contract.arguments import BackboneBlock, Count, HeadBlock, NeckBlock
from sightline.contract.errors import ConfigError
from sightline.contract.model import Backbone, Head, Model, Neck, model_output_keys
from sightline.layers.attention import ATTENTIONS, AttentionName
from sightline.layers.images import ConvBlock, assert_images
from sightline.layers.norms import NORMS, NormName, freeze_module
from sightline.ops.boxes.priors import PriorKind
from sightline.parts.models.resnet import BASIC, BOTTLENECK, RESNET_DEPTHS, ResidualStages

FrozenStages = Annotated[int, Ge(0), Le(4)]
"""Number of frozen parts, from the image on: the stem is the first, then the stages."""
FinestStride = Literal[4, 8]
"""Stride of the finest map of a backbone: 4 adds C2, for small objects."""


def strides_from(finest: FinestStride) -> tuple[int, ...]:
    """Return the strides of a backbone's maps, finest first."""
    return (4, 8, 16, 32) if finest == 4 else (8, 16, 32)


class _ResNet(ResidualStages, Backbone):
    depths: ClassVar[Sequence[int]]
    sizes: ClassVar[Sequence[int]]

    def __init__(
        self,
        *,
        in_channels: int = 3,
        width: Count = 64,
        norm: NormName = "bn",
        frozen_stages: FrozenStages = 0,
        finest_stride: FinestStride = 8,
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
        self.strides = strides_from(finest_stride)
        self.channels = tuple(expansion * width * stride // 4 for stride in self.strides)
        for part in [self.stem, *self.stages][:frozen_stages]:
            freeze_module(part)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map `image` (B, in_channels, H, W), normalised -> a map of each stride. Raises ValueError for others."""
        assert_images(image, channels=self.in_channels)
        return self.forward_features(image)[-len(self.strides) :]


@registry.backbones.add("resnet18")
class ResNet18(_ResNet):
    """ResNet-18; 11,176,512 parameters, maps of 128, 256 and 512 channels, with `finest_stride: 4` of 64 before these.

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


_COARSER = 2
"""Number of levels that may follow those of the backbone."""


@registry.necks.add("fpn")
class FPN(Neck):
    """FPN: a pyramid of `width` channels on a backbone's maps, and up to two coarser maps by convolutions of stride 2.

    Level n has the stride 2^n. `levels` are all of these by default: 3 to 7, or 2 to 7 with `finest_stride: 4`.
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
        levels: tuple[int, ...] | None = None,
        p6_source: Literal["c5", "p5"] = "p5",
        upsample: Literal["nearest", "bilinear"] = "nearest",
    ) -> None:
        super().__init__()
        backbone_levels = tuple(round(math.log2(stride)) for stride in strides)
        possible = [
            backbone_levels + tuple(backbone_levels[-1] + 1 + more for more in range(count))
            for count in range(_COARSER + 1)
        ]
        levels = possible[-1] if levels is None else levels
        if levels not in possible:
            allowed = " or ".join(str(list(level_channels)) for level_channels in possible)
            first_level = {3: 8, 2: 4}.get(levels[0] if levels else 0)
            is_other = first_level not in (None, strides[0])
            other = f", or, from {levels[0]} on, model.backbone.finest_stride={first_level}" if is_other else ""
            raise ConfigError(f"levels: found {list(levels)}; on a backbone of strides {strides} give {allowed}{other}")
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


PriorProbability = Annotated[float, Gt(0.0), Lt(1.0)]
"""Probability that is neither 0 nor 1."""
_STD = 0.01


class HeadOutput(TypedDict):
    """`logits` (B, P, num_classes), before the sigmoid, and `codes` (B, P, 4) of the boxes at P priors.

    Priors count levels from the finest, in each the cells of a row, in each the priors of a cell.
    """

    logits: Tensor
    codes: Tensor


def flatten_to_priors(maps: Sequence[Tensor], numbers: int) -> Tensor:
    """Flatten maps (B, A * numbers, H, W) of all levels to (B, P, numbers).

    By level, row, column and prior of a cell.
    """
    levels = [level_map.unflatten(1, (-1, numbers)).permute(0, 3, 4, 1, 2).flatten(1, 3) for level_map in maps]
    return torch.cat(levels, dim=1)


def init_prior_bias(layer: ConvBlock, prior: float, channels: slice = slice(None)) -> None:
    """Set the biases of a layer to -ln((1 - prior) / prior), so that the initial probability is `prior`."""
    assert layer.conv.bias is not None
    with torch.no_grad():
        layer.conv.bias[channels] = -math.log((1 - prior) / prior)


class DenseHead(Head):
    """Dense head: two towers of 3x3 convolutions that all levels share, one for classes, one for boxes.

    A head states its kind of `priors`, and their number per cell, `priors_per_cell`. Subclasses end
    their constructor with `_start`: all weights start with a deviation of 0.01, and each class has the probability
    `prior` at each prior.
    Source: Lin et al. 2017, Focal Loss for Dense Object Detection, section 4.
    """

    priors: ClassVar[PriorKind]
    priors_per_cell: int
    predictions_per_prior: ClassVar[int] = 1

    def __init__(
        self,
        *,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        priors_per_cell: int,
        num_convs: int,
        norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if len(set(channels)) > 1:
            raise ConfigError(
                f"channels: the levels share this head, but have {', '.join(map(str, channels))} channels; put a neck "
                "with one width in front"
            )
        self.num_classes, self.strides, self.priors_per_cell = num_classes, tuple(strides), priors_per_cell
        width = channels[0]

        def block() -> ConvBlock:
            own_norm = None if norm is None else norm(width)
            return ConvBlock(in_channels=width, out_channels=width, kernel_size=3, norm=own_norm, activation=nn.ReLU())

        self.class_tower, self.box_tower = (nn.Sequential(*(block() for _ in range(num_convs))) for _ in range(2))
        count = priors_per_cell * self.predictions_per_prior
        self.classes = ConvBlock(in_channels=width, out_channels=count * num_classes, kernel_size=3)
        self.boxes = ConvBlock(in_channels=width, out_channels=count * 4, kernel_size=3)

    def _start(self, prior: float) -> None:
        """Initialise the weights; called once all layers exist."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                assert module.bias is not None
                nn.init.normal_(module.weight, std=_STD)
                nn.init.zeros_(module.bias)
        init_prior_bias(self.classes, prior)


class DetectorOutput(HeadOutput):
    """Output of the head, and `level_shapes` (B, L, 2) int64, on the host: rows and columns of each level's map.

    The levels are the same for every image of the batch.
    """

    centreness: NotRequired[Tensor]
    objectness: NotRequired[Tensor]
    level_shapes: Tensor


@registry.models.add("detector")
class Detector(Model):
    """Object detector: a backbone, a neck on its maps and a head on those of the neck, each of `sightline list`.

    Each states its `channels` and `strides` for the next. With resnet50, fpn, retina and 80 classes it has 33,839,924
    parameters, with fcos 32,297,370. With `channels_last`, weights and values have their channels together in memory.
    Source: Lin et al. 2017, Focal Loss for Dense Object Detection, figure 3.
    """

    def __init__(
        self, *, backbone: BackboneBlock, neck: NeckBlock, head: HeadBlock, channels_last: bool = False
    ) -> None:
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
