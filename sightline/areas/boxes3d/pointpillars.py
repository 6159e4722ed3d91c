"""PointPillars: pillars of points, their features from above, a convolutional backbone and a head at anchors.

Source: Lang et al. 2019, PointPillars: Fast Encoders for Object Detection from Point Clouds; the layers are those of
OpenPCDet's published KITTI network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, NamedTuple, TypeAlias

import torch
from annotated_types import Len
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import TypedDict

from sightline.areas.boxes3d.grid import Extent, PillarGrid
from sightline.contract import registry
from sightline.contract.arguments import Count, PositiveFloat, PositiveFraction
from sightline.contract.errors import ConfigError
from sightline.contract.model import Model, NetworkParts
from sightline.layers.batch_norm import weighted_batch_norm
from sightline.layers.cloud_layouts import as_packed
from sightline.ops.segments.extremes import scatter_extremes
from sightline.ops.voxels.pillars import HardPillars, hard_pillars
from sightline.ops.waits import is_on_host, is_recording

_EPS = 1e-3
"""Of all batch norms, as in SECOND and its successors."""
_PRIOR_PROBABILITY = 0.01
"""Of each class at each anchor before training."""
CODE_WIDTH = 7
"""Numbers of a box's code."""
NUM_ROTATIONS = 2
"""Anchors of a class in each cell: along x and along y."""
KITTI_EXTENT_M: Extent = (0.0, -39.68, -3.0, 69.12, 39.68, 1.0)
Widths: TypeAlias = Annotated[tuple[Count, ...], Len(1)]


class BlockOfConvolutions(TypedDict):
    """Block of the backbone: one convolution with `stride`, then `num_layers` more, all of `width` channels.

    What comes out is brought to `up_width` channels, `up_stride` times as many cells each way.
    """

    num_layers: Count
    width: Count
    stride: Count
    up_width: Count
    up_stride: Count


PUBLISHED: tuple[BlockOfConvolutions, ...] = (
    {"num_layers": 3, "width": 64, "stride": 2, "up_width": 128, "up_stride": 1},
    {"num_layers": 5, "width": 128, "stride": 2, "up_width": 128, "up_stride": 2},
    {"num_layers": 5, "width": 256, "stride": 2, "up_width": 128, "up_stride": 4},
)


class PointPillarsOutput(TypedDict):
    """Predictions at the anchors of each frame, in the order y, x, class of the anchor, rotation.

    `logits` (B, A, K) before the sigmoid, `codes` (B, A, 7) relative to the anchors, `direction` (B, A, 2) logits of
    the half of the circle.
    """

    logits: Tensor
    codes: Tensor
    direction: Tensor


class PillarEncoder(nn.Module):
    """Features (V, C) of pillars from their points.

    A point has its coordinates and features, its distance to the mean of its pillar's points and to the pillar's
    middle: 6 numbers more than `in_channels`. Each layer is a product without a bias, batch norm and ReLU, then the
    largest over the pillar; but for the last, half as wide and joined with that. Empty places of a pillar, up to its
    largest number of points, are zeros before the first product, and take part in batch norm and maximum, as in the
    published code: they are alike, so that one row stands for them, and counts as often. Source: section 2.1.
    """

    def __init__(self, *, in_channels: int, widths: Sequence[int], momentum: float) -> None:
        super().__init__()
        sides = [in_channels + 6, *widths]
        outs = [*(width // 2 for width in widths[:-1]), widths[-1]]
        self.linear = nn.ModuleList(
            nn.Linear(side, out, bias=False) for side, out in zip(sides[:-1], outs, strict=True)
        )
        self.norm = nn.ModuleList(nn.BatchNorm1d(out, eps=_EPS, momentum=momentum) for out in outs)

    def forward(self, values: Tensor, pillars: PillarRows, middles: Tensor) -> Tensor:
        """Encode points `values` (N, F) of V pillars around their `middles` (V, 3): (V, C)."""
        rows, num_pillars = pillars.rows, len(middles)
        place = functional.pad(values[:, :3], (0, 0, 0, 1))
        count = pillars.num_points.clamp(min=1)[:, None]
        mean = place[pillars.point_index].sum(dim=1) / count
        own = values[pillars.points]
        of_point = rows[: len(own)].clamp(max=num_pillars - 1)
        decorated = torch.cat([own, own[:, :3] - mean[of_point], own[:, :3] - middles[of_point]], dim=1)
        features = functional.pad(decorated, (0, 0, 0, num_pillars))
        for number, (linear, norm) in enumerate(zip(self.linear, self.norm, strict=True), start=1):
            assert isinstance(norm, nn.modules.batchnorm._BatchNorm)  # or what synchronises it
            features = weighted_batch_norm(norm, linear(features), pillars.weight).relu()
            largest = scatter_extremes(features[None], rows[None], num_pillars + 1, is_highest=True)[0][0]
            if number == len(self.linear):
                return largest[:-1]
            features = torch.cat([features, largest[rows]], dim=1)
        raise AssertionError("an encoder has a layer")

    def encode_tables(self, pillars: Tensor, num_points: Tensor, middles: Tensor) -> Tensor:
        """Encode tables of pillars (V, T, F), whose first `num_points` (V,) rows are points: (V, C), as `forward`.

        It is the published form, for graphs: whole tables take more memory, and fewer kinds of operators.
        """
        place = pillars[..., :3]
        mean = place.sum(dim=1) / num_points.clamp(min=1)[:, None]
        decorated = torch.cat([pillars, place - mean[:, None], place - middles[:, None]], dim=2)
        is_point = torch.arange(pillars.shape[1], device=pillars.device) < num_points[:, None]
        features = torch.where(is_point[..., None], decorated, 0.0)
        for number, (linear, norm) in enumerate(zip(self.linear, self.norm, strict=True), start=1):
            features = norm(linear(features).transpose(1, 2)).transpose(1, 2).relu()
            largest = features.amax(dim=1)
            if number == len(self.linear):
                return largest
            features = torch.cat([features, largest[:, None].expand_as(features)], dim=2)
        raise AssertionError("an encoder has a layer")


class PillarRows(NamedTuple):
    """Points, and after them one row for the empty places of each of V pillars.

    `points` (N,) are the points that have rows, `point_index` (V, T) those of each pillar, padded by the place after
    the last; `rows` (N + V,) is the pillar of each row, V for none, and `weight` (N + V,) how often a row counts.
    """

    points: Tensor
    point_index: Tensor
    num_points: Tensor
    rows: Tensor
    weight: Tensor

    @classmethod
    def of(cls, point_index: Tensor, num_points: Tensor, *, num_values: int) -> PillarRows:
        """Make the rows for `point_index` (V, T), -1 for empty places, of `num_values` points.

        On a host, points that no pillar has get no row; elsewhere theirs counts 0 times, so that nothing is waited for.
        """
        num_pillars, most = point_index.shape
        padded = torch.where(point_index >= 0, point_index, num_values)
        pillar = torch.arange(num_pillars, device=padded.device)
        of_point = torch.full((num_values + 1,), num_pillars, device=padded.device)
        of_point = of_point.scatter(0, padded.flatten(), pillar.repeat_interleave(most))[:-1]
        if is_on_host(padded):
            points = (of_point < num_pillars).nonzero().flatten()
            of_point = of_point[points]
        else:
            points = torch.arange(num_values, device=padded.device)
        num_empty = torch.where(num_points > 0, most - num_points, 0)
        rows = torch.cat([of_point, torch.where(num_empty > 0, pillar, num_pillars)])
        weight = torch.cat([(of_point < num_pillars).long(), num_empty])
        return cls(points, padded, num_points, rows, weight)


class BirdsEyeBackbone(nn.Module):
    """Blocks of 3 x 3 convolutions, coarser and coarser, each brought to one size and joined. Source: section 2.2."""

    def __init__(self, *, in_channels: int, blocks: Sequence[BlockOfConvolutions], momentum: float) -> None:
        super().__init__()
        self.blocks, self.ups = nn.ModuleList(), nn.ModuleList()
        for block in blocks:
            width = block["width"]
            layers = [_convolve(in_channels, width, block["stride"], momentum)]
            layers += [_convolve(width, width, 1, momentum) for _ in range(block["num_layers"])]
            self.blocks.append(nn.Sequential(*layers))
            up = nn.ConvTranspose2d(width, block["up_width"], block["up_stride"], block["up_stride"], bias=False)
            norm = nn.BatchNorm2d(block["up_width"], eps=_EPS, momentum=momentum)
            self.ups.append(nn.Sequential(up, norm, nn.ReLU()))
            in_channels = width

    def forward(self, canvas: Tensor) -> Tensor:
        """Map a view from above (B, C, H, W) -> (B, sum of `up_widths`, H / s, W / s)."""
        maps = []
        for block, up in zip(self.blocks, self.ups, strict=True):
            canvas = block(canvas)
            maps.append(up(canvas))
        return torch.cat(maps, dim=1)


def _convolve(in_channels: int, out_channels: int, stride: int, momentum: float) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels, eps=_EPS, momentum=momentum), nn.ReLU())


@registry.models.add("pointpillars")
class PointPillars(Model):
    """PointPillars; 4,834,888 parameters for three classes and points with one feature.

    `extent_m` are the lowest x, y, z and the highest of what is looked at, in metres of the sensor's frame, KITTI's by
    default; its width and depth must be whole numbers of `pillar_m` cells, as many as the network's strides divide. A
    pillar keeps its first `max_points` points, a frame its first `max_pillars` pillars. `blocks` are those of the
    backbone, the finest first, by default the published ones. `momentum` is the share of a step in the running
    statistics of batch norms: the published one needs thousands of steps.
    Source: Lang et al. 2019, section 2.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        extent_m: Extent = KITTI_EXTENT_M,
        pillar_m: tuple[PositiveFloat, PositiveFloat] = (0.16, 0.16),
        max_points: Count = 32,
        max_pillars: Count = 16_000,
        encoder_widths: Widths = (64,),
        blocks: Annotated[tuple[BlockOfConvolutions, ...], Len(1)] | None = None,
        momentum: PositiveFraction = 0.01,
    ) -> None:
        super().__init__()
        blocks = PUBLISHED if blocks is None else blocks
        coarsest = math.prod(block["stride"] for block in blocks)
        self.grid = PillarGrid.of(extent_m, pillar_m, stride=_find_stride(blocks), coarsest=coarsest)
        self.num_classes, self.in_channels = num_classes, in_channels
        self.max_points, self.max_pillars = max_points, max_pillars
        self.encoder = PillarEncoder(in_channels=in_channels, widths=encoder_widths, momentum=momentum)
        self.backbone = BirdsEyeBackbone(in_channels=encoder_widths[-1], blocks=blocks, momentum=momentum)
        per_cell, width = num_classes * NUM_ROTATIONS, sum(block["up_width"] for block in blocks)
        self.classes = nn.Conv2d(width, per_cell * num_classes, 1)
        self.boxes = nn.Conv2d(width, per_cell * CODE_WIDTH, 1)
        self.direction = nn.Conv2d(width, per_cell * 2, 1)
        nn.init.constant_(_bias(self.classes), -math.log((1 - _PRIOR_PROBABILITY) / _PRIOR_PROBABILITY))
        nn.init.normal_(self.boxes.weight, std=0.001)

    def forward(
        self, *, points: Tensor, features: Tensor | None = None, offsets: Tensor | None = None
    ) -> PointPillarsOutput:
        """Detect in `points` (B, N, 3), or (P, 3) with `offsets` (B+1,), in metres of the sensor's frame.

        `features` are (..., in_channels - 3). A frame may have no points. Raises ValueError for another width.
        """
        if is_recording():  # which rows are taken is not known there
            return self.compute(**self.gather(points=points, features=features, offsets=offsets))
        values, offsets = self._join(points, features, offsets)
        return self.detect(self.encode(values, offsets))

    def split_for_graph(self) -> NetworkParts:
        """Split the network after its tables of pillars."""
        numbers = {
            "extent_m": self.grid.extent_m,
            "pillar_m": self.grid.pillar_m,
            "num_cells": self.grid.num_cells,
            "max_points": self.max_points,
            "max_pillars": self.max_pillars,
        }
        what = (
            "Points are gathered in pillars: the cells of a grid that points of extent_m fall into, of which cells has "
            "the row floor((y - lowest y) / side) and, alike, the column along x. Pillars stand in the order of their "
            "first points, as many as there are, at most max_pillars; each keeps its first max_points points in "
            "pillars, and num_points counts them. Places of pillars that no point takes are zeros; a frame with fewer "
            "pillars than others of a batch ends with places of num_points 0, and cells -1."
        )
        return NetworkParts(self.gather, self.compute, "pillars", what, numbers)

    @torch.no_grad()
    def gather(
        self, *, points: Tensor, features: Tensor | None = None, offsets: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Gather the points of B frames in tables, of as many pillars V as the frame with the most of them has.

        A recorded graph has all V = `max_pillars` places.

        `pillars` (B, V, T, F) are the points of each, `num_points` (B, V) their numbers, 0 where there is no pillar,
        and `cells` (B, V, 2) rows and columns of the grid. What no point takes are zeros, -1 in `cells`.
        """
        values, offsets = self._join(points, features, offsets)
        pillars = self._find_pillars(values, offsets)
        most = self.max_pillars
        if not is_recording():
            most = max((pillars.num_points > 0).sum(dim=1).tolist(), default=0)
        index = pillars.point_index[:, :most]
        return {
            "pillars": functional.pad(values, (0, 0, 0, 1))[index],  # row -1
            "num_points": pillars.num_points[:, :most],
            "cells": pillars.cells[:, :most],
        }

    def compute(self, *, pillars: Tensor, num_points: Tensor, cells: Tensor) -> PointPillarsOutput:
        """Detect in the tables that `gather` returns; any places of a frame may have no pillar."""
        middles = self.grid.find_middles(cells.flatten(0, 1), pillars.dtype)
        encoded = self.encoder.encode_tables(pillars.flatten(0, 1), num_points.flatten(), middles)
        num_frames = num_points.shape[0]  # a graph takes a length for a constant
        frame = torch.arange(num_frames, device=cells.device)[:, None].expand_as(num_points).flatten()
        placed = self._place(encoded, cells.flatten(0, 1), num_points.flatten(), frame, num_frames)
        return self.detect(placed)

    def _join(self, points: Tensor, features: Tensor | None, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return packed points with their features (P, F), and offsets."""
        points, features, offsets = as_packed(points, features, offsets)
        values = points if features is None else torch.cat([points, features.to(points)], dim=1)
        if values.shape[1] != self.in_channels:
            raise ValueError(
                f"pointpillars: found points of {values.shape[1]} numbers, built for {self.in_channels}; take the data "
                "set of the training, or one with the same features"
            )
        return values, offsets

    def _find_pillars(self, values: Tensor, offsets: Tensor) -> HardPillars:
        limits = {"max_points": self.max_points, "max_pillars": self.max_pillars}
        return hard_pillars(values[:, :3], offsets, side_m=self.grid.pillar_m, range_m=self.grid.extent_m, **limits)

    def encode(self, values: Tensor, offsets: Tensor) -> Tensor:
        """Encode points `values` (P, F) into the view from above (B, C, H, W); a cell without points is zero."""
        num_frames, pillars = len(offsets) - 1, self._find_pillars(values, offsets)
        cells, num_points = pillars.cells.flatten(0, 1), pillars.num_points.flatten()
        point_index = pillars.point_index.flatten(0, 1)
        frame = torch.arange(num_frames, device=cells.device).repeat_interleave(self.max_pillars)
        if is_on_host(cells):  # places that no pillar takes cost time there, and nothing waits
            is_taken = (num_points > 0).nonzero().flatten()
            cells, num_points, point_index, frame = (
                table[is_taken] for table in (cells, num_points, point_index, frame)
            )
        rows = PillarRows.of(point_index, num_points, num_values=len(values))
        encoded = self.encoder(values, rows, self.grid.find_middles(cells, values.dtype))
        return self._place(encoded, cells, num_points, frame, num_frames)

    def _place(self, encoded: Tensor, cells: Tensor, num_points: Tensor, frame: Tensor, num_frames: int) -> Tensor:
        """Place encoded pillars (V, C) of frames (V,) in the view from above; those without a point are left out."""
        height, width = self.grid.num_cells
        place = torch.where(
            num_points > 0, (frame * height + cells[:, 0]) * width + cells[:, 1], num_frames * height * width
        )
        canvas = encoded.new_zeros(num_frames * height * width + 1, encoded.shape[1])
        canvas = canvas.index_copy(0, place, encoded)[:-1]
        return canvas.view(num_frames, height, width, -1).permute(0, 3, 1, 2)

    def detect(self, canvas: Tensor) -> PointPillarsOutput:
        """Detect in the view from above (B, C, H, W)."""
        features = self.backbone(canvas)
        return {
            "logits": _to_anchors(self.classes(features), self.num_classes),
            "codes": _to_anchors(self.boxes(features), CODE_WIDTH),
            "direction": _to_anchors(self.direction(features), 2),
        }


def _to_anchors(maps: Tensor, width: int) -> Tensor:
    """Order predictions (B, A * width, H, W) by cell and anchor: (B, H * W * A, width)."""
    return maps.permute(0, 2, 3, 1).unflatten(3, (-1, width)).flatten(1, 3)


def _bias(convolution: nn.Conv2d) -> Tensor:
    assert convolution.bias is not None
    return convolution.bias


def _find_stride(blocks: Sequence[BlockOfConvolutions]) -> int:
    """Return the cells of a pillar grid in one of the head. Raises ConfigError for levels of different sizes."""
    reached, ends = 1, []
    for block in blocks:
        reached *= block["stride"]
        ends.append(reached / block["up_stride"])
    if any(first != second for first, second in pairwise(ends)) or ends[0] != int(ends[0]):
        raise ConfigError(
            f"pointpillars.blocks: stride and up_stride lead to cells of {', '.join(f'{end:g}' for end in ends)} "
            "pillars; all levels need the same whole number"
        )
    return int(ends[0])
