"""Patches of the voxels of each level along space-filling curves, which the attention of a network's layers shares.

They depend on the cells alone. Curves pass a voxel's neighbourhood from several sides, so that what the border of a
patch parts on one, another joins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sightline.contract.errors import ConfigError
from sightline.layers.voxel_levels import VoxelLevel
from sightline.ops.voxels.curves import CURVES, MAX_DEPTH, curve_order
from sightline.ops.voxels.patches import Patches, cut_patches
from sightline.ops.waits import is_on_host, read_list

CurveDepth = Literal["fixed", "extent", "extent_v1.5.1"]
"""How many bits a curve has: 16 at the finest level; those of the largest cell of the batch plus 1; or without it."""
PatchRule = Literal["segments", "shared"]
"""A cloud with fewer voxels than a patch is a patch alone; or all clouds have patches of the smallest one's size."""


@dataclass(frozen=True)
class CurveLevel:
    """Voxels of a level: `patches` along each of the curves in `CURVES`, their `cells` (V, 3), and their parents.

    `parents` (capacity,) int64 are the voxels of the next level, -1 for none.
    """

    patches: tuple[Patches, ...]
    cells: Tensor
    parents: Tensor | None


def build_curve_levels(
    levels: Sequence[VoxelLevel], *, patch_size: int, depth: CurveDepth = "fixed", rule: PatchRule = "segments"
) -> list[CurveLevel]:
    """Order the voxels of each level along all curves, and cut them into patches.

    On a GPU nothing is read, unless the depth or the rule depends on the batch. Raises ValueError for more cells along
    an axis than a curve has.
    """
    finest = choose_depth(levels[0].cells, depth)
    return [_order_level(level, patch_size, finest - number, rule) for number, level in enumerate(levels)]


def choose_depth(cells: Tensor, rule: CurveDepth) -> int:
    """Choose the bits of curves for voxels `cells` (V, 3) by a rule."""
    if rule == "fixed":
        return MAX_DEPTH
    largest = int(read_list(cells.amax()[None])[0])
    return max(1, (largest + (rule == "extent")).bit_length())


def _order_level(level: VoxelLevel, patch_size: int, depth: int, rule: PatchRule) -> CurveLevel:
    cells, offsets = level.cells, level.offsets
    along = curve_order(cells, offsets, depth=max(1, depth))
    if rule == "shared":
        counts = torch.tensor(read_list(offsets)).diff()
        patch_size = min(patch_size, int(counts[counts > 0].min()))
    num_patches = None
    if not is_on_host(cells):  # as many as the voxels of the level's form could have
        patch_size = min(patch_size, level.capacity)
        num_patches = level.capacity // patch_size + offsets.shape[0] - 1
    patches = cut_patches(offsets, level.num_voxels, size=patch_size, num_patches=num_patches)
    of_curves = zip(along.order, along.inverse, strict=True)
    parents = None if level.down is None else level.down.reverse.amax(dim=1).long()
    return CurveLevel(
        tuple(patches.along(*each).fill_up(level.capacity) for each in of_curves),
        cells,
        parents,
    )


def list_permutations(num_levels: int, *, is_shuffled: bool) -> list[list[int]]:
    """List the curve that the first, second, ... block of each level's stages follows, by its place in `CURVES`.

    Shuffled, a level permutes those of the level before, in the order that torch draws on the CPU. Source: the
    published code of Point Transformer V3, shuffled orders.
    """
    permutation, permutations = list(range(len(CURVES))), []
    for _ in range(num_levels):
        if is_shuffled:
            permutation = [permutation[place] for place in torch.randperm(len(CURVES)).tolist()]
        permutations.append(permutation)
    return permutations


def assert_curves_reach(num_levels: int) -> None:
    """Raise ConfigError for more levels than a curve of 16 bits can be halved."""
    if num_levels > MAX_DEPTH:
        raise ConfigError(f"{num_levels} levels: a curve of {MAX_DEPTH} bits is halved {MAX_DEPTH - 1} times at most")
