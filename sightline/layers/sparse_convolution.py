"""Layers on sparse voxels: convolutions with their parameters, batch norm, and the residual block of two of them.

A weight is (places, in, out), its places with z fastest. Sources: Graham et al. 2018; Choy et al. 2019.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sightline.layers.row_norm import normalise_rows
from sightline.layers.voxel_levels import VoxelLevel
from sightline.ops.voxels.kernel_maps import KernelMap
from sightline.ops.voxels.sparse_convolution import sparse_convolution


class SparseConvolution(nn.Module):
    """Weight (size^3, in_channels, out_channels) of a sparse convolution, and a bias (out_channels,) if it has one.

    Weights begin uniform within 1 / sqrt(size^3 in_channels), as torch's convolutions do.
    `forward(values (N, in_channels), kernel_map) -> (M, out_channels)`.
    """

    def __init__(self, *, in_channels: int, out_channels: int, size: int, has_bias: bool = False) -> None:
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(torch.empty(size**3, in_channels, out_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if has_bias else None
        bound = 1 / math.sqrt(size**3 * in_channels)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, values: Tensor, kernel_map: KernelMap) -> Tensor:
        """Convolve values (N, in_channels) -> (M, out_channels)."""
        return sparse_convolution(values, self.weight, kernel_map, self.bias)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[2]}, size={self.size}"


class SparseConvolutionNorm(nn.Module):
    """Sparse convolution and batch norm: `forward(values, kernel_map, num_voxels)`, the voxels of its output."""

    def __init__(self, *, in_channels: int, out_channels: int, size: int, eps: float, momentum: float) -> None:
        super().__init__()
        self.conv = SparseConvolution(in_channels=in_channels, out_channels=out_channels, size=size)
        self.norm = nn.BatchNorm1d(out_channels, eps=eps, momentum=momentum)

    def forward(self, values: Tensor, kernel_map: KernelMap, num_voxels: int) -> Tensor:
        """Map values (N, in_channels) -> (M, out_channels)."""
        return normalise_rows(self.norm, self.conv(values, kernel_map), num_voxels)


class SparseResidualBlock(nn.Module):
    """Two submanifold convolutions of size 3 with batch norm, and a shortcut around both, ReLU after each.

    The shortcut is a linear layer with batch norm where widths differ. `forward(values (N, in_channels), level)`.
    Source: He et al. 2016, figure 2; Choy et al. 2019, figure 4.
    """

    def __init__(self, *, in_channels: int, out_channels: int, eps: float, momentum: float) -> None:
        super().__init__()

        def layer(width: int, size: int) -> SparseConvolutionNorm:
            return SparseConvolutionNorm(
                in_channels=width, out_channels=out_channels, size=size, eps=eps, momentum=momentum
            )

        self.first, self.second = layer(in_channels, 3), layer(out_channels, 3)
        self.shortcut = layer(in_channels, 1) if in_channels != out_channels else None

    def forward(self, values: Tensor, level: VoxelLevel) -> Tensor:
        """Map values (N, in_channels) of a level -> (N, out_channels)."""
        around, count = level.around[3], level.num_voxels
        direct = values if self.shortcut is None else self.shortcut(values, level.pointwise, count)
        hidden = self.first(values, around, count).relu()
        return (self.second(hidden, around, count) + direct).relu()
