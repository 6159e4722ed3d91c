"""YOLOv3's neck and head, and YOLOX's head. Sources: Redmon and Farhadi 2018, YOLOv3; Ge et al. 2021, YOLOX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline import registry
from sightline.arguments import Count, NonNegativeFloat
from sightline.geometry.boxes.overlaps import box_sizes, promote_to_float32
from sightline.geometry.boxes.priors import Priors
from sightline.layers.detection.norms import NORMS, NormName
from sightline.layers.images import ConvBlock, ConvNorm
from sightline.models.detection.head import HeadOutput, PriorProbability, flatten_to_priors, init_prior_bias

__all__ = ["ObjectOutput", "YOLOXHead", "YOLOv3Head", "YOLOv3Neck"]

_SLOPE = 0.1


class ObjectOutput(HeadOutput):
    """HeadOutput with `objectness` (B, P), before the sigmoid: the score of an object of any class."""

    objectness: Tensor


def _leaky(in_channels: int, out_channels: int, kernel_size: int, slope: float, norm: NormName) -> ConvNorm:
    activation = nn.LeakyReLU(slope)
    return ConvNorm(
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=kernel_size,
        activation=activation,
        norm=NORMS[norm],
    )


@registry.necks.add("yolov3")
class YOLOv3Neck(nn.Module):
    """YOLOv3 neck: five convolutions per level, with a top-down pathway of concatenated, upsampled maps.

    The finest map has `width` channels, each coarser one twice as many; `slope` is that of the leaky ReLU. On
    Darknet-53, with the head yolov3 of 3 anchors and 80 classes, it has 21,364,221 parameters.
    Source: Redmon and Farhadi 2018, YOLOv3, section 2.3.
    """

    def __init__(
        self,
        *,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        width: Count = 128,
        slope: NonNegativeFloat = _SLOPE,
        norm: NormName = "bn",
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.channels = tuple(width * 2**level for level in range(len(channels)))
        routed = [width_out // 2 for width_out in self.channels[1:]] + [0]
        self.routes = nn.ModuleList(_leaky(2 * part, part, 1, slope, norm) for part in routed[:-1])

        def block(in_channels: int, width_out: int) -> nn.Sequential:
            sizes = [
                (in_channels, width_out, 1),
                (width_out, 2 * width_out, 3),
                (2 * width_out, width_out, 1),
                (width_out, 2 * width_out, 3),
                (2 * width_out, width_out, 1),
            ]
            return nn.Sequential(*(_leaky(*size, slope, norm) for size in sizes))

        levels = zip(channels, routed, self.channels, strict=True)
        self.blocks = nn.ModuleList(block(in_channels + part, width_out) for in_channels, part, width_out in levels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Fuse maps (B, channels, H, W), finest first, to a map of each level, finest first."""
        outputs = [self.blocks[-1](maps[-1])]
        for level in range(len(maps) - 2, -1, -1):
            upsampled = F.interpolate(self.routes[level](outputs[0]), maps[level].shape[2:])
            outputs.insert(0, self.blocks[level](torch.cat([maps[level], upsampled], dim=1)))
        return outputs


@registry.heads.add("yolov3")
class YOLOv3Head(nn.Module):
    """YOLOv3 head: logits, objectness and boxes at `num_anchors` anchors per cell, by two convolutions per level.

    `coding: sigmoid`: a box is up to half a stride from the middle of its anchor in x and y, as in the paper;
    `deltas`: anywhere, as those of retina. Objectness has the initial probability `prior`, each class one half, as only
    anchors with a box learn classes. `as_published: true` uses the last layer of NuayHL/ODTask, with batch norm
    and a leaky ReLU instead of a bias. Source: Redmon and Farhadi 2018, YOLOv3, sections 2.1 and 2.3.
    """

    priors = "anchors"

    def __init__(
        self,
        *,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        num_classes: int,
        num_anchors: Count = 3,
        coding: Literal["sigmoid", "deltas"] = "sigmoid",
        prior: PriorProbability = 0.01,
        slope: NonNegativeFloat = _SLOPE,
        as_published: bool = False,
        norm: NormName = "bn",
    ) -> None:
        super().__init__()
        self.num_classes, self.strides, self.priors_per_cell = num_classes, tuple(strides), num_anchors
        self.coding = coding
        count = num_anchors * (5 + num_classes)
        self.towers = nn.ModuleList(
            _leaky(level_channels, 2 * level_channels, 3, slope, norm) for level_channels in channels
        )
        self.outputs = nn.ModuleList()
        for level_channels in channels:
            plain = ConvBlock(in_channels=2 * level_channels, out_channels=count, kernel_size=1)
            init_prior_bias(plain, prior, slice(4, None, 5 + num_classes))
            self.outputs.append(_leaky(2 * level_channels, count, 1, slope, norm) if as_published else plain)

    def forward(self, maps: Sequence[Tensor]) -> ObjectOutput:
        """Predict at all priors from maps (B, channels, H, W) of every level, finest first.

        `to_deltas` converts the `codes` to deltas.
        """
        layers = zip(self.outputs, self.towers, maps, strict=True)
        outputs = flatten_to_priors(
            [output(tower(level_map)) for output, tower, level_map in layers], 5 + self.num_classes
        )
        return {"logits": outputs[..., 5:], "codes": outputs[..., :4], "objectness": outputs[..., 4]}

    def to_deltas(self, codes: Tensor, priors: Priors) -> Tensor:
        """Convert `codes` (B, P, 4) of this head to box deltas (B, P, 4) of anchors."""
        if self.coding == "deltas":
            return codes
        codes = promote_to_float32(codes)
        shift = (codes[..., :2].sigmoid() - 0.5) * priors.prior_stride[:, None] / box_sizes(priors.coordinates)
        return torch.cat([shift, codes[..., 2:]], dim=-1)


@registry.heads.add("yolox")
class YOLOXHead(nn.Module):
    """YOLOX head: logits, objectness and distances at one point per cell; every level has towers of its own.

    A level's map is projected to `width` channels, by default those of the finest; one tower is of classes, one of
    boxes and objectness. `codes` are left, top, right, bottom in pixels, computed from a shift in strides and
    logarithms of width and height in strides. With maps of 256, 512 and 1,024 channels and 80 classes it has 7,609,855
    parameters.
    Source: Ge et al. 2021, YOLOX, section 2.1; layout of Megvii-BaseDetection/YOLOX.
    """

    priors = "points"
    priors_per_cell = 1

    def __init__(
        self,
        *,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        num_classes: int,
        width: Count | None = None,
        num_convs: Count = 2,
        prior: PriorProbability = 0.01,
        norm: NormName = "bn",
    ) -> None:
        super().__init__()
        self.num_classes, self.strides = num_classes, tuple(strides)
        wide = width or channels[0]

        def unit(in_channels: int, size: int) -> ConvNorm:
            return ConvNorm(
                in_channels=in_channels, out_channels=wide, kernel_size=size, activation=nn.SiLU(), norm=NORMS[norm]
            )

        def towers() -> nn.ModuleList:
            return nn.ModuleList(nn.Sequential(*(unit(wide, 3) for _ in range(num_convs))) for _ in channels)

        def outputs(count: int, first: float = 0.5) -> nn.ModuleList:
            layers = [ConvBlock(in_channels=wide, out_channels=count, kernel_size=1) for _ in channels]
            for layer in layers:
                init_prior_bias(layer, first)
            return nn.ModuleList(layers)

        self.stems = nn.ModuleList(unit(level_channels, 1) for level_channels in channels)
        self.class_towers, self.box_towers = towers(), towers()
        self.classes, self.boxes, self.objects = outputs(num_classes, prior), outputs(4), outputs(1, prior)

    def forward(self, maps: Sequence[Tensor]) -> ObjectOutput:
        """Predict at all priors from maps (B, channels, H, W) of every level, finest first."""
        logits, codes, objectness = [], [], []
        for level, stride in enumerate(self.strides):
            values = self.stems[level](maps[level])
            logits.append(self.classes[level](self.class_towers[level](values)))
            of_box = self.box_towers[level](values)
            codes.append(_distances(self.boxes[level](of_box), stride))
            objectness.append(self.objects[level](of_box))
        return {
            "logits": flatten_to_priors(logits, self.num_classes),
            "codes": flatten_to_priors(codes, 4),
            "objectness": flatten_to_priors(objectness, 1)[..., 0],
        }


def _distances(raw: Tensor, stride: int) -> Tensor:
    """Convert outputs to distances (B, 4, H, W) in pixels from cell middles; x and y are counted from cell corners."""
    raw = promote_to_float32(raw)
    shift, half = raw[:, :2] - 0.5, raw[:, 2:].exp() / 2
    return stride * torch.cat([half - shift, half + shift], dim=1)
