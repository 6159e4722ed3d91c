"""Blocks of volumetric networks (V2V): convolution with batch norm, residual block, upsampling block.

Volumes are (B, C, X, Y, Z). Every convolution has a bias, though one before batch norm changes nothing: published
weights hold them. Source: Moon et al. 2018, V2V-PoseNet, section 5, figure 4.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

__all__ = ["ResidualBlock3d", "UpsampleBlock3d", "VolumeBlock", "assert_volumes"]


class VolumeBlock(nn.Module):
    """`relu(norm(conv(volume)))` with an odd kernel and zero padding; the side is unchanged."""

    def __init__(self, *, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        assert kernel_size % 2 == 1, f"a kernel of {kernel_size} has no middle"
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.norm = nn.BatchNorm3d(out_channels)

    def forward(self, volume: Tensor) -> Tensor:
        """Map a volume (B, in_channels, X, Y, Z) -> (B, out_channels, X, Y, Z)."""
        return torch.relu(self.norm(self.conv(volume)))


class ResidualBlock3d(nn.Module):
    """3D residual block: two 3x3x3 convolutions plus a shortcut, a 1x1x1 convolution if the channels change.

    Without `has_shortcut` nothing is added, to measure the effect of the shortcut.
    """

    def __init__(self, *, in_channels: int, out_channels: int, has_shortcut: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv3d(in_channels, out_channels, 3, padding=1)
        self.first_norm = nn.BatchNorm3d(out_channels)
        self.second = nn.Conv3d(out_channels, out_channels, 3, padding=1)
        self.second_norm = nn.BatchNorm3d(out_channels)
        self.has_shortcut = has_shortcut
        self.shortcut: nn.Module = nn.Identity()
        if has_shortcut and in_channels != out_channels:
            self.shortcut = nn.Sequential(nn.Conv3d(in_channels, out_channels, 1), nn.BatchNorm3d(out_channels))

    def forward(self, volume: Tensor) -> Tensor:
        """Map a volume (B, in_channels, X, Y, Z) -> (B, out_channels, X, Y, Z)."""
        inner = torch.relu(self.first_norm(self.first(volume)))
        residual = cast(Tensor, self.second_norm(self.second(inner)))
        return torch.relu(residual + self.shortcut(volume) if self.has_shortcut else residual)


class UpsampleBlock3d(nn.Module):
    """`relu(norm(deconv(volume)))`: each side is doubled."""

    def __init__(self, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.deconv = nn.ConvTranspose3d(in_channels, out_channels, 2, stride=2)
        self.norm = nn.BatchNorm3d(out_channels)

    def forward(self, volume: Tensor) -> Tensor:
        """Map a volume (B, in_channels, X, Y, Z) -> (B, out_channels, 2 X, 2 Y, 2 Z)."""
        return torch.relu(self.norm(self.deconv(volume)))


def assert_volumes(volume: Tensor, *, multiple: int) -> None:
    """Raise ValueError unless `volume` is (B, 1, X, Y, Z) with sides that are multiples of `multiple`."""
    if volume.ndim != 5 or volume.shape[1] != 1:
        raise ValueError(f"volume: found the shape {tuple(volume.shape)}, expected (B, 1, X, Y, Z)")
    odd = [side for side in volume.shape[2:] if side % multiple]
    if odd:
        raise ValueError(
            f"volume: a side of {odd[0]} voxels is not a multiple of {multiple}, by which this network divides it; set "
            f"the size of place_cube to {odd[0] // multiple * multiple} or {(odd[0] // multiple + 1) * multiple}"
        )
