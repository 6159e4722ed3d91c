"""YOLOv3 and YOLOX: backbones, necks and heads, and SimOTA, which assigns boxes by the predictions of YOLOX.

Their losses are objectness, class_bce and box_overlap. Sources: Redmon and Farhadi 2018, YOLOv3; Ge et al. 2021, YOLOX.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.areas.detect.candidates import candidate_pairs, class_costs, is_within_reach
from sightline.areas.detect.networks import (
    FinestStride,
    FrozenStages,
    HeadOutput,
    PriorProbability,
    flatten_to_priors,
    init_prior_bias,
    strides_from,
)
from sightline.contract import registry
from sightline.contract.arguments import Count, NonNegativeFloat, PositiveFloat
from sightline.contract.model import Backbone, Head, Neck
from sightline.layers.attention import ATTENTIONS, AttentionName
from sightline.layers.images import ConvBlock, ConvNorm, assert_images
from sightline.layers.norms import NORMS, NormName, freeze_module
from sightline.ops.boxes.overlaps import box_iou, box_sizes, column_blocks
from sightline.ops.boxes.priors import PriorKind, Priors
from sightline.ops.dtypes import promote_to_float32
from sightline.parts.boxes.assigner import BACKGROUND, Assigner, Assignment, PriorPredictions
from sightline.parts.models.darknet import Darknet

_SLOPE = 0.1


@registry.backbones.add("darknet53")
class Darknet53Backbone(Darknet, Backbone):
    """Darknet-53; 40,584,928 parameters, maps of 256, 512 and 1,024 channels; arguments as those of resnet18.

    `slope` is that of the leaky ReLU, in NuayHL's code 0.01.
    Source: Redmon and Farhadi 2018, YOLOv3, table 1.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        width: Count = 32,
        norm: NormName = "bn",
        frozen_stages: FrozenStages = 0,
        slope: NonNegativeFloat = 0.1,
        finest_stride: FinestStride = 8,
        attention: AttentionName = "none",
    ) -> None:
        super().__init__(
            in_channels=in_channels, width=width, norm=NORMS[norm], slope=slope, attention=ATTENTIONS[attention]
        )
        self.in_channels = in_channels
        self.strides = strides_from(finest_stride)
        self.channels = self.channels[-len(self.strides) :]
        for part in [self.stem, *self.stages][:frozen_stages]:
            freeze_module(part)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map `image` (B, in_channels, H, W), normalised -> a map of each stride. Raises ValueError for others."""
        assert_images(image, channels=self.in_channels)
        return super().forward(image)[-len(self.strides) :]


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
    """Bottleneck: convolutions of 1x1 and 3x3 pixels, optional attention, with a shortcut if `adds`."""

    def __init__(self, channels: int, norm: NormName, *, adds: bool, attention: AttentionName = "none") -> None:
        super().__init__()
        make = ATTENTIONS[attention]
        self.layers = nn.Sequential(
            _unit(channels, channels, 1, norm),
            _unit(channels, channels, 3, norm),
            *(() if make is None else (make(channels),)),
        )
        self.adds = adds

    def forward(self, image: Tensor) -> Tensor:
        residual = self.layers(image)
        return cast(Tensor, image + residual if self.adds else residual)


class _CSPBlock(nn.Module):
    """CSP block: half of the channels pass through `depth` bottlenecks, the other half past them.

    Source: Wang et al. 2020, fig. 2.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        depth: int,
        norm: NormName,
        *,
        adds: bool,
        attention: AttentionName = "none",
    ) -> None:
        super().__init__()
        inner = out_channels // 2
        self.enter, self.past = _unit(in_channels, inner, 1, norm), _unit(in_channels, inner, 1, norm)
        self.blocks = nn.Sequential(*(_Bottleneck(inner, norm, adds=adds, attention=attention) for _ in range(depth)))
        self.leave = _unit(2 * inner, out_channels, 1, norm)

    def forward(self, image: Tensor) -> Tensor:
        both = torch.cat([self.blocks(self.enter(image)), self.past(image)], dim=1)
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
        return cast(Tensor, self.leave(torch.cat([values, *pooled], dim=1)))


@registry.backbones.add("cspdarknet")
class CSPDarknet(Backbone):
    """CSPDarknet, YOLOX's backbone: maps of 4, 8 and 16 times `width` channels; `depth` blocks in the first stage.

    YOLOX-tiny has the width 24 and a depth of 1, -s 32 and 1, -m 48 and 2, -l 64 and 3, -x 80 and 4; that of -s has
    4,212,672 parameters. The stem (Focus) stacks every second pixel of every second row as four images of a quarter's
    size. `norm`, `frozen_stages` and `finest_stride` are those of resnet18; `attention` ends every bottleneck.
    Source: Ge et al. 2021, YOLOX; Wang et al. 2020, CSPNet.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        width: Count = 32,
        depth: Count = 1,
        norm: NormName = "bn",
        frozen_stages: FrozenStages = 0,
        finest_stride: FinestStride = 8,
        attention: AttentionName = "none",
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.strides = strides_from(finest_stride)
        self.channels = tuple(width * stride // 2 for stride in self.strides)
        self.stem = _unit(4 * in_channels, width, 3, norm)
        stages = []
        for stage, num_blocks in enumerate((depth, 3 * depth, 3 * depth, depth)):
            wide, is_last = width * 2 ** (stage + 1), stage == 3
            pooling = [_PyramidPooling(wide, norm)] if is_last else []
            block = _CSPBlock(wide, wide, num_blocks, norm, adds=not is_last, attention=attention)
            stages.append(nn.Sequential(_unit(wide // 2, wide, 3, norm, stride=2), *pooling, block))
        self.stages = nn.ModuleList(stages)
        for part in [self.stem, *self.stages][:frozen_stages]:
            freeze_module(part)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map `image` (B, in_channels, H, W), normalised -> a map of each stride. Raises ValueError for others."""
        assert_images(image, channels=self.in_channels)
        image = F.pad(image, (0, image.shape[3] % 2, 0, image.shape[2] % 2))
        corners = [image[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        values, maps = self.stem(torch.cat(corners, dim=1)), []
        for stage in self.stages:
            values = stage(values)
            maps.append(values)
        return maps[-len(self.strides) :]


@registry.necks.add("pafpn")
class PathAggregation(Neck):
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
            values = self.down[level](torch.cat([upsampled, maps[level]], dim=1))
        outputs = [values]
        for strided, up, lateral in zip(self.strided, self.up, reduced, strict=True):
            outputs.append(up(torch.cat([strided(outputs[-1]), lateral], dim=1)))
        return outputs


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
class YOLOv3Neck(Neck):
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
class YOLOv3Head(Head):
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
class YOLOXHead(Head):
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


_MIN_SIMOTA_IOU, _MIN_LOG, _FAR = 1e-8, -100.0, 1e6


@registry.assigners.add("simota")
class SimOTA(Assigner):
    """SimOTA: each box takes the priors of lowest cost, about as many as its `topk` best IoUs sum to (dynamic k).

    Candidates are less than `radius` strides from the middle of a box; those of other boxes cost 1e6 more. The cost is
    the binary cross entropy of the root of class probability times objectness, plus `iou_weight` times -log IoU. A
    prior that several boxes take goes to the box with the lowest cost. With `guarantee`, a box that is then
    without a prior gets its cheapest free candidate. Source: Ge et al. 2021, YOLOX, section 2.3.
    """

    prior_kinds: ClassVar[frozenset[PriorKind]] = frozenset({"points"})
    needs_predictions: ClassVar[bool] = True

    def __init__(
        self,
        *,
        radius: PositiveFloat = 1.5,
        topk: Count = 10,
        iou_weight: NonNegativeFloat = 3.0,
        guarantee: bool = True,
    ) -> None:
        self.radius, self.topk, self.iou_weight, self.guarantee = radius, topk, iou_weight, guarantee

    def match(self, priors: Priors, boxes: Tensor, labels: Tensor, predicted: PriorPredictions) -> Assignment:
        """Match points (P) to boxes (M, 4) of labels (M,) by predictions: `matched` and `num_claims` (P,)."""
        matched = torch.full((len(priors),), BACKGROUND, device=boxes.device)
        num_claims = torch.zeros_like(matched)
        candidates = candidate_pairs(priors, boxes, self.radius)[1].unique()
        if not len(candidates):
            return Assignment(matched, num_claims)
        costs = _Costs(priors, boxes, labels, predicted, candidates, self.radius, self.iou_weight)
        all_candidates = torch.arange(len(candidates), device=boxes.device)
        parts = column_blocks(len(candidates), len(boxes), boxes.device)
        box, candidate = torch.cat([self._select_candidates(costs, part, all_candidates) for part in parts]).unbind(
            dim=1
        )
        count = torch.zeros_like(all_candidates).index_add_(0, candidate, torch.ones_like(candidate))
        owner = torch.full_like(all_candidates, BACKGROUND)
        owner[candidate] = box
        contested = (count > 1).nonzero().flatten()
        owner[contested] = costs.cheapest_box(contested)
        if self.guarantee:
            _guarantee_priors(owner, costs)
        matched[candidates], num_claims[candidates] = owner, count
        return Assignment(matched, num_claims)

    def _select_candidates(self, costs: _Costs, part: slice, every: Tensor) -> Tensor:
        """Select the candidates of some boxes: pairs (n, 2) of box and candidate index, equal costs in their order."""
        cost, overlap = costs.compute(part, every)
        best = overlap.topk(min(self.topk, len(every)), dim=1).values
        number = best.sum(dim=1).long().clamp(min=1)
        limit = cost.topk(best.shape[1], dim=1, largest=False).values.gather(1, number[:, None] - 1)
        is_taken, is_tied = cost < limit, cost == limit
        is_taken |= is_tied & (is_tied.cumsum(dim=1) <= number[:, None] - is_taken.sum(dim=1, keepdim=True))
        return is_taken.nonzero() + number.new_tensor([part.start, 0])


@dataclass(frozen=True)
class _Costs:
    """Cost matrix of boxes and candidates, computed in blocks."""

    priors: Priors
    boxes: Tensor
    labels: Tensor
    predicted: PriorPredictions
    candidates: Tensor
    radius: float
    iou_weight: float

    def compute(self, rows: slice | Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return costs and IoUs (R, C) of some boxes and candidates."""
        chosen, boxes = self.candidates[indices], self.boxes[rows]
        overlap = box_iou(boxes, self.predicted.boxes[chosen].to(boxes.dtype))
        cost = self._class_cost[indices][:, self.labels[rows]].T + self.iou_weight * -(overlap + _MIN_SIMOTA_IOU).log()
        is_own = is_within_reach(boxes, self.priors.centres[chosen], self.radius * self.priors.prior_stride[chosen])
        return torch.where(is_own, cost, cost + _FAR), overlap

    def cheapest_box(self, indices: Tensor) -> Tensor:
        """Return the box of lowest cost for each of these candidates."""
        cheapest = torch.zeros_like(indices)
        lowest = self.boxes.new_full(indices.shape, torch.inf)
        for part in column_blocks(len(indices), len(self.boxes), indices.device):
            cost, box = self.compute(part, indices)[0].min(dim=0)
            cheapest = torch.where(cost < lowest, box + part.start, cheapest)
            lowest = torch.minimum(lowest, cost)
        return cheapest

    @cached_property
    def _class_cost(self) -> Tensor:
        """Classification cost (N, K) of each class as the only true one."""
        log_p = F.logsigmoid(self.predicted.logits[self.candidates])
        if self.predicted.objectness is not None:
            log_p = (log_p + F.logsigmoid(self.predicted.objectness[self.candidates])[:, None]) / 2
        log_rest = (-log_p.expm1()).log().clamp(min=_MIN_LOG)
        return class_costs(-log_rest, -log_p.clamp(min=_MIN_LOG))[0]


def _guarantee_priors(owner: Tensor, costs: _Costs) -> None:
    """Give boxes without a candidate their cheapest free one, in the order of cost."""
    is_orphan = torch.ones(len(costs.boxes), dtype=torch.bool, device=owner.device)
    is_orphan[owner[owner >= 0]] = False
    orphans, free = is_orphan.nonzero().flatten(), (owner < 0).nonzero().flatten()
    if not len(orphans) or not len(free):
        return
    cost = costs.compute(orphans, free)[0]
    for _ in range(min(cost.shape)):
        row, column = divmod(int(cost.argmin()), len(free))
        owner[free[column]] = orphans[row]
        cost[row], cost[:, column] = torch.inf, torch.inf
