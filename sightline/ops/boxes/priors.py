"""Priors: the boxes (anchors) or points that predictions refer to, laid out over a network's feature maps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

PriorKind = Literal["anchors", "points"]
BACKGROUND = -1
"""Target of a prior that must predict background."""
IGNORED = -2
"""Target of a prior that no loss counts."""


@dataclass(frozen=True)
class PriorGrid:
    """Prior positions: cell i of a map is i + `offset` steps from the image's corner; 0.5 is the middle of the cell.

    A step is the level's stride. With `image_px` (height, width), it is that side over the number of cells, rounded
    down: 13 cells of the stride 64 on a side of 800 pixels have steps of 61, as in torchvision's detectors. With
    `offset_px`, the first cell of every level is that many pixels from the corner, as in CrowdDet.
    """

    offset: float = 0.5
    image_px: tuple[int, int] | None = None
    offset_px: float | None = None

    def centres(self, maps: tuple[int, int], stride: int, device: torch.device | None = None) -> Tensor:
        """Return x, y (H * W, 2) float64 of the cells of a map of H x W cells, row by row."""
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
    """All priors of an image, level by level, each in the order (H, W, A).

    Rows of cells, then the A priors of one cell. `coordinates` are boxes of `anchors`, (P, 4) in pixels of the
    network's input or (P, 7) in space (x, y, z, dx, dy, dz in metres, yaw); or x, y (P, 2) of `points`. Each level has
    one entry in `strides` (the nominal pixels from cell to cell), `maps` (height, width in cells) and
    `priors_per_cell` (A).
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
        """Number of priors of each level."""
        return tuple(h * w * a for (h, w), a in zip(self.maps, self.priors_per_cell, strict=True))

    @property
    def level_slices(self) -> list[slice]:
        """Slice of the rows of each level."""
        ends = itertools.accumulate(self.num_per_level, initial=0)
        return [slice(first, last) for first, last in itertools.pairwise(ends)]

    @cached_property
    def on_host(self) -> Priors:
        """The same priors on the host (cached)."""
        return replace(self, coordinates=self.coordinates.cpu())

    @cached_property
    def prior_level(self) -> Tensor:
        """Level index (P,) int64 of each prior, from 0."""
        counts = torch.tensor(self.num_per_level, device=self.coordinates.device)
        return torch.repeat_interleave(counts, output_size=len(self))

    @cached_property
    def prior_stride(self) -> Tensor:
        """Stride (P,) of each prior's level, in pixels, in the dtype of the coordinates."""
        return self.coordinates.new_tensor(self.strides)[self.prior_level]

    @cached_property
    def centres(self) -> Tensor:
        """Centres x, y (P, 2) of the priors.

        The points, or the middles of the anchors, which are equal for all of one cell.
        """
        if self.kind == "points":
            return self.coordinates
        if self.coordinates.shape[1] == 7:
            return self.coordinates[:, :2]
        parts = [
            self.grid.centres(size, stride, self.coordinates.device).repeat_interleave(count, dim=0)
            for size, stride, count in zip(self.maps, self.strides, self.priors_per_cell, strict=True)
        ]
        return torch.cat(parts).to(self.coordinates.dtype)

    def to_boxes(self, side_strides: float) -> Tensor:
        """Return the anchors, (P, 4) or (P, 7); for points, squares (P, 4) with a side of `side_strides` strides."""
        if self.kind == "anchors":
            return self.coordinates
        half = (self.prior_stride * (side_strides / 2))[:, None]
        return torch.cat([self.coordinates - half, self.coordinates + half], dim=1)


@dataclass(frozen=True)
class AnchorShapes:
    """Anchors of one cell: `scales` times `ratios` (height over width), all ratios of the first scale first.

    The base size is `base_strides` strides. `preserves: area`: scale * base is the side of the square of the same area,
    for every ratio; `preserves: width`: it is the width, and the area rises with the ratio. `whole_px`: scale * base is
    rounded down to whole pixels, then half of each width and height to the nearest, as in torchvision's detectors.
    """

    scales: tuple[float, ...]
    ratios: tuple[float, ...]
    base_strides: float = 4.0
    preserves: Literal["area", "width"] = "area"
    whole_px: bool = False

    def sizes(self, stride: int) -> list[tuple[float, float]]:
        """Return width and height of each anchor of a cell, in pixels."""
        sizes = []
        for scale, ratio in itertools.product(self.scales, self.ratios):
            side = self.base_strides * stride * scale
            side = math.floor(side) if self.whole_px else side
            width = side / math.sqrt(ratio) if self.preserves == "area" else side
            sides = (width, width * ratio)
            sizes.append((2.0 * round(sides[0] / 2), 2.0 * round(sides[1] / 2)) if self.whole_px else sides)
        return sizes


_OCTAVES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
PRESETS: Mapping[str, AnchorShapes] = MappingProxyType(
    {
        "retinanet": AnchorShapes(_OCTAVES, (0.5, 1.0, 2.0)),
        "crowddet": AnchorShapes(_OCTAVES, (1.0, 2.0, 3.0)),
        "s3": AnchorShapes((0.75, 1.0), (2.0, 4.0), preserves="width"),
    }
)
"""Anchors of RetinaNet (Lin et al. 2017), of CrowdDet for standing people (Chu et al. 2020), and of NuayHL/ODTask."""


def make_anchors(
    maps: Sequence[tuple[int, int]],
    strides: Sequence[int],
    shapes: AnchorShapes | Sequence[Sequence[tuple[float, float]]],
    *,
    grid: PriorGrid = _MIDDLES,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Priors:
    """Lay out anchors (P, 4) around the centres that `grid` gives to the cells.

    `maps` are the heights and widths of the network's actual feature maps. `shapes` are a rule for every stride, or the
    widths and heights of each level. Raises ValueError if levels are missing.
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
    """Lay out one point (P, 2) per cell; see `make_anchors`."""
    _assert_levels(maps=maps, strides=strides)
    parts = [grid.centres(size, stride, device) for size, stride in zip(maps, strides, strict=True)]
    return Priors("points", torch.cat(parts).to(dtype), tuple(strides), tuple(maps), (1,) * len(parts), grid)


def _assert_levels(**levels: Sequence[object]) -> None:
    counts = {name: len(values) for name, values in levels.items()}
    if len(set(counts.values())) > 1 or not min(counts.values()):
        counts_text = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise ValueError(f"priors: found {counts_text}; expected one of each for every level of the network")
