"""Layers of Point Transformer V3 on sparse voxels: attention inside of patches, its block, pooling and unpooling.

Source: Wu et al. 2024, Point Transformer V3: Simpler, Faster, Stronger, section 4, and its published code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sightline.contract.errors import ConfigError
from sightline.layers.row_linear import linear_rows
from sightline.layers.row_norm import normalise_channels, normalise_rows
from sightline.layers.sparse_convolution import SparseConvolution
from sightline.layers.stochastic_depth import StochasticDepth
from sightline.layers.voxel_levels import VoxelLevel
from sightline.ops.segments.extremes import scatter_extremes
from sightline.ops.segments.taken_rows import take_rows
from sightline.ops.voxels.patch_attention import patch_attention, relative_reach

NORM_EPS, NORM_MOMENTUM = 1e-3, 0.01
"""Of batch norms in the published network."""


class PatchAttention(nn.Module):
    """Multi-head attention inside of patches of voxels: `forward(values (N, width), level, curve)`.

    With a table (`has_table`), scores have a learned term for the distance of two voxels along each axis, which the
    table for patches of `patch_size` holds. Raises ConfigError for a width that the heads do not divide.
    """

    def __init__(self, *, width: int, num_heads: int, patch_size: int, has_table: bool) -> None:
        super().__init__()
        if width % num_heads:
            raise ConfigError(f"head_width: {num_heads} heads do not divide a width of {width}; give another width")
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.table = None
        if has_table:
            self.table = nn.Parameter(torch.empty(3 * (2 * relative_reach(patch_size) + 1), num_heads))
            nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, values: Tensor, level: VoxelLevel, curve: int) -> Tensor:
        """Attend among the voxels of each patch along a curve: (N, width) -> (N, width)."""
        assert level.curves is not None
        query_key_value = linear_rows(self.qkv, values, level.num_voxels).unflatten(1, (3, self.num_heads, -1))
        table = None if self.table is None else self.table.to(query_key_value.dtype)
        cells = None if table is None else level.curves.cells
        received = patch_attention(query_key_value, level.curves.patches[curve], table=table, cells=cells)
        return linear_rows(self.project, received, level.num_voxels)


class PatchTransformerBlock(nn.Module):
    """Block of Point Transformer V3: positions by a sparse convolution, attention inside of patches, and an MLP.

    Each is added to what comes in. Layer norm is before attention and MLP, or after they are added
    (`norm_first: false`). Both branches are dropped at random, voxel by voxel, with probability `drop_path`.
    `forward(values, source, level, curve)` has the input `source` (N, width) of the convolution apart; it
    returns the result (N, width) and, before it was added, that of the MLP.
    """

    def __init__(
        self,
        *,
        width: int,
        num_heads: int,
        patch_size: int,
        drop_path: float,
        has_table: bool,
        norm_first: bool,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.position_conv = SparseConvolution(in_channels=width, out_channels=width, size=3, has_bias=True)
        self.position_linear = nn.Linear(width, width)
        self.position_norm = nn.LayerNorm(width)
        self.attend_norm = nn.LayerNorm(width)
        self.attend = PatchAttention(width=width, num_heads=num_heads, patch_size=patch_size, has_table=has_table)
        self.change_norm = nn.LayerNorm(width)
        self.expand, self.reduce = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop_path = StochasticDepth(drop_path)

    def forward(self, values: Tensor, source: Tensor, level: VoxelLevel, curve: int) -> tuple[Tensor, Tensor]:
        """Map the values (N, width) of a level's voxels, along one curve -> two of (N, width)."""
        count = level.num_voxels
        position = linear_rows(self.position_linear, self.position_conv(source, level.around[3]), count)
        values = values + normalise_channels(self.position_norm, position, count)
        before = normalise_channels(self.attend_norm, values, count) if self.norm_first else values
        values = values + self.drop_path(self.attend(before, level, curve))
        if not self.norm_first:
            values = normalise_channels(self.attend_norm, values, count)
        before = normalise_channels(self.change_norm, values, count) if self.norm_first else values
        hidden = functional.gelu(linear_rows(self.expand, before, count))
        branch = self.drop_path(linear_rows(self.reduce, hidden, count))
        values = values + branch
        if not self.norm_first:
            values = normalise_channels(self.change_norm, values, count)
        return values, branch


class LinearRowNorm(nn.Module):
    """Linear layer and batch norm over the voxels of a level: `forward(values (N, in), num_rows)`."""

    def __init__(self, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels)
        self.norm = nn.BatchNorm1d(out_channels, eps=NORM_EPS, momentum=NORM_MOMENTUM)

    def forward(self, values: Tensor, num_rows: int) -> Tensor:
        """Map rows (N, in_channels) -> (N, out_channels)."""
        return normalise_rows(self.norm, linear_rows(self.linear, values, num_rows), num_rows)


class VoxelPooling(nn.Module):
    """Pool to the next level: a linear layer, the highest of a voxel's members in each channel, batch norm and GELU.

    Of equal ones, the first member has the gradient. `forward(values (N, in_channels), fine, coarse)`.
    """

    def __init__(self, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels)
        self.norm = nn.BatchNorm1d(out_channels, eps=NORM_EPS, momentum=NORM_MOMENTUM)

    def forward(self, values: Tensor, fine: VoxelLevel, coarse: VoxelLevel) -> Tensor:
        """Map the values of `fine` down to `coarse`: (N, in_channels) -> (M, out_channels)."""
        mapped = linear_rows(self.linear, values, fine.num_voxels)
        parents = torch.where(fine.parents < 0, coarse.capacity, fine.parents)  # a segment more, for filled rows
        highest, _ = scatter_extremes(mapped[None], parents[None], coarse.capacity + 1, is_highest=True)
        return functional.gelu(normalise_rows(self.norm, highest[0, : coarse.capacity], coarse.num_voxels))


class VoxelUnpooling(nn.Module):
    """Add the values of a coarse level to those of the level before it, each after a linear layer, batch norm and GELU.

    `forward(values (M, in_channels), skip (N, skip_channels), fine, coarse)` returns the sum and, alone, the
    part of the skip connection, (N, out_channels) each.
    """

    def __init__(self, *, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.raised = LinearRowNorm(in_channels=in_channels, out_channels=out_channels)
        self.skipped = LinearRowNorm(in_channels=skip_channels, out_channels=out_channels)

    def forward(self, values: Tensor, skip: Tensor, fine: VoxelLevel, coarse: VoxelLevel) -> tuple[Tensor, Tensor]:
        """Map the values of `coarse` and `fine` -> two of (N, out_channels)."""
        assert fine.down is not None
        raised = functional.gelu(self.raised(values, coarse.num_voxels))
        skipped = functional.gelu(self.skipped(skip, fine.num_voxels))
        return take_rows(raised, fine.parents, fine.down.table) + skipped, skipped
