"""Orders of a level's voxels along space-filling curves, and the patches there that attention of its layers shares.

They depend on the cells alone. Curves pass a voxel's neighbourhood from several sides, so that what the border of a
patch parts on one, another joins.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from sightline.ops.segments.offsets import offsets_to_batch
from sightline.ops.voxels.curves import CURVES, MAX_DEPTH, curve_order
from sightline.ops.voxels.patches import Patches, cut_patches
from sightline.ops.waits import call_on_host, read_list

CurveDepth = Literal["fixed", "extent", "extent_v1.5.1"]
"""How many bits a curve has: 16 at the finest level; those of the largest cell of the batch plus 1; or without it."""
PatchSizes = Literal["segments", "shared"]
"""A cloud with fewer voxels than a patch is a patch alone; or all clouds have patches of the smallest one's size."""


@dataclass(frozen=True)
class CurveLevel:
    """Voxels of a level along the curves in `CURVES`, and patches of up to `patch_size` of them.

    `cells` (V, 3) and `offsets` (S+1,) are the level's; `order` (4, V) are its voxels along each curve, and `inverse`
    (4, V) the place of each. With a `capacity`, features have so many rows, and patches a fixed number and size.
    """

    cells: Tensor
    offsets: Tensor
    order: Tensor
    inverse: Tensor
    patch_size: int
    capacity: int | None = None

    @cached_property
    def patches(self) -> list[Patches]:
        """The patches along each curve."""
        num_rows, num_patches, inverse = self.cells.shape[0], None, self.inverse
        if self.capacity is not None:
            num_patches = self.capacity // self.patch_size + self.offsets.shape[0] - 1
            inverse = functional.pad(inverse, (0, self.capacity - num_rows), value=self.capacity - 1)  # in no patch
            num_rows = self.capacity
        patches = cut_patches(self.offsets, num_rows, size=self.patch_size, num_patches=num_patches)
        return [patches.along(*curve) for curve in zip(self.order, inverse, strict=True)]

    def fill_up(self, capacity: int) -> CurveLevel:
        """Return the level with features of `capacity` rows: no size of a patch is read any more."""
        return replace(self, capacity=capacity)


@dataclass(frozen=True)
class CurveRule:
    """How a network cuts its voxels into patches: their size, the bits of curves, and whether clouds share a size."""

    patch_size: int
    depth: CurveDepth = "fixed"
    sizes: PatchSizes = "segments"

    @property
    def batch_dependence(self) -> str:
        """Why a cloud's patches depend on the clouds beside it, in words; empty if they do not."""
        reasons = {
            "patches are as large as the smallest cloud of a batch allows": self.sizes == "shared",
            "curves have as many bits as the largest cloud of a batch needs": self.depth != "fixed",
        }
        return ", and ".join(reason for reason, is_so in reasons.items() if is_so)

    def choose_depth(self, cells: Tensor) -> int:
        """Choose the bits of curves at the finest level, of voxels `cells` (V, 3)."""
        if self.depth == "fixed" or not cells.shape[0]:
            return MAX_DEPTH
        largest = read_list(cells.amax()[None])[0]
        return min(MAX_DEPTH, (largest + (self.depth == "extent")).bit_length())

    def order(self, cells: Tensor, offsets: Tensor, *, depth: int) -> CurveLevel:
        """Order the voxels `cells` (V, 3) of packed clouds along all curves of `depth` bits, at least one.

        A cloud of more cells along an axis, such as one with a point far away, is halved until it fits: voxels that
        are in one cell of the curve keep their order.
        """
        depth = max(1, depth)
        along = curve_order(_halve_large(cells, offsets, depth), offsets, depth=depth)
        patch_size = self.patch_size
        if self.sizes == "shared":
            bounds = torch.tensor(read_list(offsets)).diff()
            patch_size = min(patch_size, *bounds[bounds > 0].tolist())
        return CurveLevel(cells, offsets, along.order, along.inverse, patch_size)


def _halve_large(cells: Tensor, offsets: Tensor, depth: int) -> Tensor:
    """Halve the cells (V, 3) of each cloud as often as it needs to have at most 2^depth along each axis."""
    cloud = offsets_to_batch(offsets, cells.shape[0])
    largest = cells.new_zeros(offsets.shape[0] - 1).scatter_reduce(0, cloud, cells.amax(dim=1), "amax")
    halvings = torch.arange(64 - depth, device=cells.device)
    times = ((largest[:, None] >> halvings) >= 2**depth).sum(dim=1)
    return cells >> times[cloud, None]


def list_permutations(num_levels: int, *, is_shuffled: bool) -> list[list[int]]:
    """List the curve that the first, second, ... block of each level's stages follows, by its place in `CURVES`.

    Shuffled, a level permutes those of the level before, in the order that torch draws on the CPU. Source: the
    published code of Point Transformer V3, shuffled orders.
    """
    permutation = list(range(len(CURVES)))
    if not is_shuffled:
        return [permutation] * num_levels
    permutations = []
    for draw in call_on_host(_draw_permutations, num_levels, device=torch.device("cpu")):
        permutation = [permutation[place] for place in draw]
        permutations.append(permutation)
    return permutations


def _draw_permutations(count: int) -> list[list[int]]:
    return [torch.randperm(len(CURVES)).tolist() for _ in range(count)]
