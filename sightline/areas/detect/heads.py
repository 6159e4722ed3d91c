"""Heads of detectors: RetinaNet, FCOS and YOLO.

Base of detection heads: towers shared by all levels, and predictions at priors in one order.

RetinaNet heads: one class and box per anchor, or two of both. Source: Lin et al. 2017, Focal Loss.

Heads with centre-ness: FCOS, at points, and ATSS, at one anchor per cell. Source: Tian et al. 2019, FCOS.

YOLOv3's neck and head, and YOLOX's head. Sources: Redmon and Farhadi 2018, YOLOv3; Ge et al. 2021, YOLOX.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal, NotRequired, TypedDict

import torch
from annotated_types import Gt, Lt
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.contract import registry
from sightline.contract.arguments import Count, NonNegativeFloat
from sightline.contract.errors import ConfigError
from sightline.layers.images import NORMS, ConvBlock, ConvNorm, NormName, join_channels, make_group_norm
from sightline.ops.box_overlaps import box_sizes, promote_to_float32
from sightline.ops.priors import PriorKind, Priors

PriorProbability = Annotated[float, Gt(0.0), Lt(1.0)]
"""Probability that is neither 0 nor 1."""
_STD = 0.01


class HeadOutput(TypedDict):
    """`logits` (B, P, num_classes), before the sigmoid, and `codes` (B, P, 4) of the boxes at P priors.

    Priors count levels from the finest, in each the cells of a row, in each the priors of a cell.
    """

    logits: Tensor
    codes: Tensor


class CentreOutput(HeadOutput):
    """HeadOutput with `centreness` (B, P), before the sigmoid."""

    centreness: Tensor


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


class DenseHead(nn.Module):
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


class RetinaOutput(HeadOutput):
    """HeadOutput, optionally with `density` (B, P): the predicted highest IoU of a prior's object with another object.

    The targets are 0 to 1; predictions are not bounded.
    """

    density: NotRequired[Tensor]


@registry.heads.add("retina")
class RetinaHead(DenseHead):
    """RetinaNet head: logits and box deltas at `num_anchors` anchors per cell; 6,463,220 parameters.

    This number is for 80 classes and 9 anchors on five levels of 256 channels, without `density`. With it, the head
    also predicts the density of objects at each anchor, for the loss `box_density` and the suppression `adaptive`: a
    1 x 1 convolution reduces each map to a quarter of its channels, and a 5 x 5 convolution takes the reduced map, the
    logits and the deltas together. Source: Lin et al. 2017, Focal Loss for Dense Object Detection, section 4; Liu et
    al. 2019, Adaptive NMS, section 3.3, there in a proposal network.
    """

    priors = "anchors"

    def __init__(
        self,
        *,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        num_classes: int,
        num_anchors: Count = 9,
        num_convs: Count = 4,
        prior: PriorProbability = 0.01,
        density: bool = False,
    ) -> None:
        super().__init__(
            channels=channels,
            strides=strides,
            num_classes=num_classes,
            priors_per_cell=num_anchors,
            num_convs=num_convs,
        )
        self.output_keys = frozenset({"logits", "codes"} | ({"density"} if density else set()))
        self.density: nn.ModuleDict | None = None
        if density:
            width = max(1, channels[0] // 4)
            taken = width + num_anchors * (num_classes + 4)
            self.density = nn.ModuleDict(
                {
                    "reduce": ConvBlock(
                        in_channels=channels[0], out_channels=width, kernel_size=1, activation=nn.ReLU()
                    ),
                    "predict": ConvBlock(in_channels=taken, out_channels=num_anchors, kernel_size=5),
                }
            )
        self._start(prior)

    def forward(self, maps: Sequence[Tensor]) -> RetinaOutput:
        """Predict at all priors from maps (B, channels, H, W) of every level, finest first.

        `codes` are box deltas: the offset of the box's centre in x, in widths of the anchor, and in y, in heights of
        it; then the logarithms of the box's width and height over those of the anchor.
        """
        logits = [self.classes(self.class_tower(level_map)) for level_map in maps]
        codes = [self.boxes(self.box_tower(level_map)) for level_map in maps]
        output: RetinaOutput = {
            "logits": flatten_to_priors(logits, self.num_classes),
            "codes": flatten_to_priors(codes, 4),
        }
        if self.density is not None:
            rows = zip(map(self.density["reduce"], maps), logits, codes, strict=True)
            densities = [self.density["predict"](torch.cat(row, dim=1)) for row in rows]
            output["density"] = flatten_to_priors(densities, 1)[..., 0]
        return output


@registry.heads.add("retina_emd")
class RetinaEMDHead(DenseHead):
    """RetinaNet head with two predictions per anchor (EMD), for boxes that hide one another; 4,928,090 parameters.

    For 1 class and 9 anchors. `logits` (B, P, 2, num_classes) and `codes` (B, P, 2, 4); otherwise as retina. Both
    predictions are one proposal: the suppression `set` keeps both. Source: Chu et al. 2020, Detection in Crowded
    Scenes, section 3.
    """

    priors = "anchors"
    predictions_per_prior = 2

    def __init__(
        self,
        *,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        num_classes: int,
        num_anchors: Count = 9,
        num_convs: Count = 4,
        prior: PriorProbability = 0.01,
    ) -> None:
        super().__init__(
            channels=channels,
            strides=strides,
            num_classes=num_classes,
            priors_per_cell=num_anchors,
            num_convs=num_convs,
        )
        self._start(prior)

    def forward(self, maps: Sequence[Tensor]) -> HeadOutput:
        """Predict at all priors from maps (B, channels, H, W), finest first."""
        logits = flatten_to_priors(
            [self.classes(self.class_tower(level_map)) for level_map in maps], 2 * self.num_classes
        )
        codes = flatten_to_priors([self.boxes(self.box_tower(level_map)) for level_map in maps], 8)
        return {"logits": logits.unflatten(2, (2, -1)), "codes": codes.unflatten(2, (2, -1))}


@registry.heads.add("fcos")
class FCOSHead(DenseHead):
    """FCOS head: logits, distances to the sides of a box and centre-ness at a point per cell; 4,920,666 parameters.

    The number is for 80 classes, on five levels of 256 channels, with group norm in the towers.
    `codes` are the distances from the point to the left, top, right and bottom side, in pixels. With `distances: relu`
    a distance is relu(scale * output) times the level's stride, as in the authors' later code; with `exp` it is
    exp(scale * output), as in the paper. `scales`: each level learns its `scale`; without, it is 1.
    `centreness_on` names the tower whose maps predict centre-ness; in the paper it is that of classes, `cls`.
    Source: Tian et al. 2019, FCOS, section 3; layout of tianzhi0549/FCOS.
    """

    priors: ClassVar[PriorKind] = "points"

    def __init__(
        self,
        *,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        num_classes: int,
        num_convs: Count = 4,
        distances: Literal["relu", "exp"] = "relu",
        centreness_on: Literal["box", "cls"] = "box",
        scales: bool = True,
        prior: PriorProbability = 0.01,
    ) -> None:
        super().__init__(
            channels=channels,
            strides=strides,
            num_classes=num_classes,
            priors_per_cell=1,
            num_convs=num_convs,
            norm=make_group_norm,
        )
        self.distances, self.centreness_on = distances, centreness_on
        self.centreness = ConvBlock(in_channels=channels[0], out_channels=1, kernel_size=3)
        self.scales = nn.Parameter(torch.ones(len(strides))) if scales else None
        self._start(prior)

    def forward(self, maps: Sequence[Tensor]) -> CentreOutput:
        """Predict at all priors from maps (B, channels, H, W) of every level, finest first."""
        logits, codes, centreness = [], [], []
        for level, values in enumerate(maps):
            of_class, of_box = self.class_tower(values), self.box_tower(values)
            logits.append(self.classes(of_class))
            raw = self.boxes(of_box)
            codes.append(self._code(raw if self.scales is None else self.scales[level] * raw, self.strides[level]))
            centreness.append(self.centreness(of_box if self.centreness_on == "box" else of_class))
        return {
            "logits": flatten_to_priors(logits, self.num_classes),
            "codes": flatten_to_priors(codes, 4),
            "centreness": flatten_to_priors(centreness, 1)[..., 0],
        }

    def _code(self, values: Tensor, stride: int) -> Tensor:
        """Convert a level's box outputs to box codes."""
        return values.exp() if self.distances == "exp" else values.relu() * stride


@registry.heads.add("atss")
class ATSSHead(FCOSHead):
    """ATSS head: logits, box deltas and centre-ness at one anchor per cell; 4,920,666 parameters for 80 classes.

    On five levels of 256 channels; otherwise as fcos. `codes` are deltas as those of retina.
    Source: Zhang et al. 2020, ATSS, section 3.1 and 4; layout of sfzhang15/ATSS.
    """

    priors = "anchors"

    def __init__(
        self,
        *,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        num_classes: int,
        num_convs: Count = 4,
        prior: PriorProbability = 0.01,
    ) -> None:
        super().__init__(channels=channels, strides=strides, num_classes=num_classes, num_convs=num_convs, prior=prior)

    def _code(self, values: Tensor, stride: int) -> Tensor:
        return values


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
            outputs.insert(0, self.blocks[level](join_channels([maps[level], upsampled])))
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
