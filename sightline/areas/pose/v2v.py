"""V2V-PoseNet: occupied voxels to a likelihood of every joint at every voxel. Source: Moon et al. 2018."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypedDict, cast

import torch
from torch import Tensor, nn

from sightline.contract import registry
from sightline.layers.images import checkpoint_activations


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


Init = Literal["v2v", "torch_default", "kaiming"]
_INIT_STD = 0.001


class V2VOutput(TypedDict):
    """`likelihood` (B, J, X/2, Y/2, Z/2), unbounded: the last layer is linear."""

    likelihood: Tensor


class _VolumeNetwork(nn.Module):
    """Base of volumetric networks: arguments, initialisation, memory format, and activation checkpointing."""

    size_divisor = 8

    def __init__(
        self,
        *,
        num_joints: int,
        shortcuts: bool = True,
        init: Init = "v2v",
        channels_last: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.shortcuts = shortcuts
        self.channels_last = channels_last
        self.recompute = recompute
        self._build(num_joints)
        self._start(init)

    def _build(self, num_joints: int) -> None:
        """Make the layers."""
        raise NotImplementedError

    def block(self, in_channels: int, out_channels: int) -> ResidualBlock3d:
        """Make a residual block, with or without its shortcut."""
        return ResidualBlock3d(in_channels=in_channels, out_channels=out_channels, has_shortcut=self.shortcuts)

    def forward(self, *, volume: Tensor) -> V2VOutput:
        """Predict from `volume` (B, 1, X, Y, Z): 1 where a voxel is occupied, else 0."""
        assert_volumes(volume, multiple=self.size_divisor)
        if self.channels_last:
            volume = volume.contiguous(memory_format=torch.channels_last_3d)
        return {"likelihood": self.likelihood(volume)}

    def likelihood(self, volume: Tensor) -> Tensor:
        """Compute the likelihood (B, J, X/2, Y/2, Z/2) of a volume (B, 1, X, Y, Z)."""
        raise NotImplementedError

    def stage(self, layers: nn.Module, volume: Tensor) -> Tensor:
        """Apply `layers` to a volume.

        With `recompute`, its inner values are recomputed in backward instead of stored.
        """
        return checkpoint_activations(layers, volume) if self.recompute and torch.is_grad_enabled() else layers(volume)

    def _start(self, init: Init) -> None:
        starts: dict[Init, Callable[[Tensor], object]] = {
            "v2v": lambda weight: nn.init.normal_(weight, std=_INIT_STD),
            "kaiming": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"),
        }
        for module in self.modules():
            if init in starts and isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
                starts[init](module.weight)
                nn.init.zeros_(cast(Tensor, module.bias))
        if self.channels_last:
            self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


@registry.models.add("v2v")
class V2V(_VolumeNetwork):
    """V2V-PoseNet as published: sides halved three times and doubled twice, with residual blocks and two skips.

    The sides of a volume are multiples of 8, 88 in the paper; 3,410,453 parameters for 21 joints. `shortcuts: false`
    removes the shortcuts of residual blocks and the skips, `init` is the initialisation of the weights (a deviation of
    0.001 as published), `channels_last` the memory format that bf16 on a CPU is fast in, `recompute` trades time for
    memory. Source: Moon et al. 2018, figure 4; layout of V2V-PoseNet_RELEASE.
    """

    def _build(self, num_joints: int) -> None:
        block = self.block
        self.stem = nn.Sequential(VolumeBlock(in_channels=1, out_channels=16, kernel_size=7), nn.MaxPool3d(2))
        self.front = nn.Sequential(block(16, 32), block(32, 32), block(32, 32))
        self.outer_skip = block(32, 32) if self.shortcuts else None
        self.down = nn.Sequential(nn.MaxPool3d(2), block(32, 64))
        self.inner_skip = block(64, 64) if self.shortcuts else None
        self.middle = nn.Sequential(nn.MaxPool3d(2), block(64, 128), block(128, 128), block(128, 128))
        self.inner_up = UpsampleBlock3d(in_channels=128, out_channels=64)
        self.inner = block(64, 64)
        self.outer_up = UpsampleBlock3d(in_channels=64, out_channels=32)
        self.back = nn.Sequential(
            block(32, 32),
            VolumeBlock(in_channels=32, out_channels=32, kernel_size=1),
            VolumeBlock(in_channels=32, out_channels=32, kernel_size=1),
        )
        self.output = nn.Conv3d(32, num_joints, 1)

    def likelihood(self, volume: Tensor) -> Tensor:
        outer = self.stage(self.front, self.stage(self.stem, volume))
        inner = self.stage(self.down, outer)
        raised = self.stage(self.inner_up, self.stage(self.middle, inner))
        if self.inner_skip is not None:
            raised = raised + self.stage(self.inner_skip, inner)
        raised = self.stage(self.outer_up, self.stage(self.inner, raised))
        if self.outer_skip is not None:
            raised = raised + self.stage(self.outer_skip, outer)
        return cast(Tensor, self.output(self.stage(self.back, raised)))


@registry.models.add("v2v_small")
class V2VSmall(_VolumeNetwork):
    """Small V2V-PoseNet for quick work: one block per stage, 8 to 32 channels, sides halved twice.

    The sides of a volume are multiples of 4. Arguments as those of v2v. Source: made here, after Moon et al. 2018.
    """

    size_divisor = 4

    def _build(self, num_joints: int) -> None:
        block = self.block
        self.stem = nn.Sequential(VolumeBlock(in_channels=1, out_channels=8, kernel_size=5), nn.MaxPool3d(2))
        self.front = block(8, 16)
        self.skip = block(16, 16) if self.shortcuts else None
        self.middle = nn.Sequential(nn.MaxPool3d(2), block(16, 32))
        self.up = UpsampleBlock3d(in_channels=32, out_channels=16)
        self.output = nn.Conv3d(16, num_joints, 1)

    def likelihood(self, volume: Tensor) -> Tensor:
        outer = self.stage(self.front, self.stage(self.stem, volume))
        raised = self.stage(self.up, self.stage(self.middle, outer))
        if self.skip is not None:
            raised = raised + self.stage(self.skip, outer)
        return cast(Tensor, self.output(raised))
