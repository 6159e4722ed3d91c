"""Priors: the boxes (anchors) or points that predictions start from, laid out over the real maps of a network."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "BACKGROUND",
    "IGNORED",
    "PRESETS",
    "AnchorShapes",
    "PriorGrid",
    "PriorKind",
    "Priors",
    "make_anchors",
    "make_points",
]

PriorKind = Literal["anchors", "points"]
BACKGROUND = -1
"""The target of a prior that is to predict that nothing is there."""
IGNORED = -2
"""The target of a prior that counts in no loss."""


@dataclass(frozen=True)
class PriorGrid:
    """Where the cells of a map lie in the image: cell i at i + `offset` steps from the corner, 0.5 at its middle.

    A step is the level's stride. Where `image_px` (height, width) is given, it is that side over the number of cells,
    rounded down: 13 cells of the stride 64 on a side of 800 pixels have steps of 61, as in torchvision's detectors.
    With `offset_px`, the first cell of every level lies so many pixels from the corner, as in CrowdDet.
    """

    offset: float = 0.5
    image_px: tuple[int, int] | None = None
    offset_px: float | None = None

    def centres(self, maps: tuple[int, int], stride: int, device: torch.device | None = None) -> Tensor:
        """x, y (H * W, 2) of a map of H x W cells, row by row, float64."""
        steps = (stride, stride)
        if self.image_px is not None:
            steps = (self.image_px[0] // maps[0], self.image_px[1] // maps[1])
        y, x = (
            torch.arange(count, dtype=torch.float64, device=device) * step
            + (self.offset * step if self.offset_px is None else self.offset_px)
            for count, step in zip(maps, steps, strict=True)
        )
        return torch.stack([x.expand(maps), y[:, None].expand(maps)], dim=2).flatten(0, 1)


_MIDDLES = PriorGrid()


@dataclass(frozen=True)
class Priors:
    """All priors of an image, level after level, each in the order (H, W, A): rows of cells, then the A of one cell.

    `rows` are boxes (P, 4) of `anchors`, or x, y (P, 2) of `points`, in pixels of the network's input. Of each level
    there are `strides` (the nominal pixels from cell to cell), `maps` (height, width in cells) and `num_per_cell` (A).
    """

    kind: PriorKind
    coordinates: Tensor
    strides: tuple[int, ...]
    maps: tuple[tuple[int, int], ...]
    priors_per_cell: tuple[int, ...]
    grid: PriorGrid = _MIDDLES

    def __len__(self) -> int:
        return len(self.coordinates)

    @property
    def num_per_level(self) -> tuple[int, ...]:
        """How many priors each level has."""
        return tuple(h * w * a for (h, w), a in zip(self.maps, self.priors_per_cell, strict=True))

    @property
    def level_slices(self) -> list[slice]:
        """The rows of each level."""
        ends = itertools.accumulate(self.num_per_level, initial=0)
        return [slice(first, last) for first, last in itertools.pairwise(ends)]

    @cached_property
    def prior_level(self) -> Tensor:
        """The place (P,) int64 of each prior's level, from 0."""
        counts = torch.tensor(self.num_per_level, device=self.coordinates.device)
        return torch.repeat_interleave(counts, output_size=len(self))

    @cached_property
    def prior_stride(self) -> Tensor:
        """The stride (P,) of each prior's level, in pixels, of the type of the rows."""
        return self.coordinates.new_tensor(self.strides)[self.prior_level]

    @cached_property
    def centres(self) -> Tensor:
        """x, y (P, 2): the points, or the middles of the anchors, which are equal for all of one cell."""
        if self.kind == "points":
            return self.coordinates
        parts = [
            self.grid.centres(size, stride, self.coordinates.device).repeat_interleave(count, dim=0)
            for size, stride, count in zip(self.maps, self.strides, self.priors_per_cell, strict=True)
        ]
        return torch.cat(parts).to(self.coordinates.dtype)

    def to_boxes(self, side_strides: float) -> Tensor:
        """The anchors (P, 4); around points, squares whose side is so many strides."""
        if self.kind == "anchors":
            return self.coordinates
        half = (self.prior_stride * (side_strides / 2))[:, None]
        return torch.cat([self.coordinates - half, self.coordinates + half], dim=1)


@dataclass(frozen=True)
class AnchorShapes:
    """Anchors of one cell: `scales` times `ratios` (height over width), the ratios of a scale one after another.

    The base size is `base_strides` strides. `keeps: area`: scale * base is the side of the square of the same area, for
    every ratio; `keeps: width`: it is the width, and the area rises with the ratio. `whole_px`: scale * base is rounded
    down to whole pixels, then half of each width and height to the nearest, as in torchvision's detectors.
    """

    scales: tuple[float, ...]
    ratios: tuple[float, ...]
    base_strides: float = 4.0
    preserves: Literal["area", "width"] = "area"
    whole_px: bool = False

    def sizes(self, stride: int) -> list[tuple[float, float]]:
        """Width and height of each anchor, in pixels."""
        found = []
        for scale, ratio in itertools.product(self.scales, self.ratios):
            side = self.base_strides * stride * scale
            side = math.floor(side) if self.whole_px else side
            width = side / math.sqrt(ratio) if self.preserves == "area" else side
            sides = (width, width * ratio)
            found.append((2.0 * round(sides[0] / 2), 2.0 * round(sides[1] / 2)) if self.whole_px else sides)
        return found


_OCTAVES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
PRESETS: Mapping[str, AnchorShapes] = MappingProxyType(
    {
        "retinanet": AnchorShapes(_OCTAVES, (0.5, 1.0, 2.0)),
        "crowddet": AnchorShapes(_OCTAVES, (1.0, 2.0, 3.0)),
        "s3": AnchorShapes((0.75, 1.0), (2.0, 4.0), preserves="width"),
    }
)
"""RetinaNet's (Lin et al. 2017), CrowdDet's for standing people (Chu et al. 2020), and those of NuayHL/ODTask."""


def make_anchors(
    maps: Sequence[tuple[int, int]],
    strides: Sequence[int],
    shapes: AnchorShapes | Sequence[Sequence[tuple[float, float]]],
    *,
    grid: PriorGrid = _MIDDLES,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Priors:
    """Anchors around every cell, where `grid` places it.

    `maps` are the heights and widths of the feature maps that the network really gives. `shapes` are a rule for every
    stride, or the widths and heights of each level. Raises ValueError where levels are missing.
    """
    sizes = [shapes.sizes(stride) for stride in strides] if isinstance(shapes, AnchorShapes) else list(shapes)
    _assert_levels(maps=maps, strides=strides, shapes=sizes)
    parts = []
    for size, stride, level in zip(maps, strides, sizes, strict=True):
        centres = grid.centres(size, stride, device)[:, None]
        half = torch.tensor(level, dtype=torch.float64, device=device) / 2
        parts.append(torch.cat([centres - half, centres + half], dim=2).flatten(0, 1))
    counts = tuple(len(level) for level in sizes)
    return Priors("anchors", torch.cat(parts).to(dtype), tuple(strides), tuple(maps), counts, grid)


def make_points(
    maps: Sequence[tuple[int, int]],
    strides: Sequence[int],
    *,
    grid: PriorGrid = _MIDDLES,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Priors:
    """One point for every cell; see `make_anchors`."""
    _assert_levels(maps=maps, strides=strides)
    parts = [grid.centres(size, stride, device) for size, stride in zip(maps, strides, strict=True)]
    return Priors("points", torch.cat(parts).to(dtype), tuple(strides), tuple(maps), (1,) * len(parts), grid)


def _assert_levels(**levels: Sequence[object]) -> None:
    counts = {name: len(values) for name, values in levels.items()}
    if len(set(counts.values())) > 1 or not min(counts.values()):
        found = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise ValueError(f"priors: found {found}; expected one of each for every level of the network")
