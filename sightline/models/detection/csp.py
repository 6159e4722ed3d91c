"""CSPDarknet and PAFPN, backbone and neck of YOLOX. Sources: Wang et al. 2020, CSPNet; Ge et al. 2021, YOLOX."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline import registry
from sightline.arguments import Count
from sightline.layers.detection.norms import NORMS, NormName, freeze_module
from sightline.layers.images import ConvNorm, assert_images
from sightline.models.detection.backbones import STRIDES, FrozenStages

__all__ = ["CSPDarknet", "PathAggregation"]

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
    """Bottleneck: convolutions of 1x1 and 3x3 pixels, with a shortcut if `adds`."""

    def __init__(self, channels: int, norm: NormName, *, adds: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(_unit(channels, channels, 1, norm), _unit(channels, channels, 3, norm))
        self.adds = adds

    def forward(self, image: Tensor) -> Tensor:
        residual = self.layers(image)
        return cast(Tensor, image + residual if self.adds else residual)


class _CSPBlock(nn.Module):
    """CSP block: half of the channels pass through `depth` bottlenecks, the other half past them.

    Source: Wang et al. 2020, fig. 2.
    """

    def __init__(self, in_channels: int, out_channels: int, depth: int, norm: NormName, *, adds: bool) -> None:
        super().__init__()
        inner = out_channels // 2
        self.enter, self.past = _unit(in_channels, inner, 1, norm), _unit(in_channels, inner, 1, norm)
        self.blocks = nn.Sequential(*(_Bottleneck(inner, norm, adds=adds) for _ in range(depth)))
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
class CSPDarknet(nn.Module):
    """CSPDarknet, YOLOX's backbone: maps of 4, 8 and 16 times `width` channels; `depth` blocks in the first stage.

    YOLOX-tiny has the width 24 and a depth of 1, -s 32 and 1, -m 48 and 2, -l 64 and 3, -x 80 and 4; that of -s has
    4,212,672 parameters. The stem (Focus) stacks every second pixel of every second row as four images of a quarter's
    size. `norm` and `frozen_stages` are those of resnet18. Source: Ge et al. 2021, YOLOX; Wang et al. 2020, CSPNet.
    """

    strides = STRIDES

    def __init__(
        self,
        *,
        in_channels: int = 3,
        width: Count = 32,
        depth: Count = 1,
        norm: NormName = "bn",
        frozen_stages: FrozenStages = 0,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.channels = tuple(width * 2**level for level in (2, 3, 4))
        self.stem = _unit(4 * in_channels, width, 3, norm)
        stages = []
        for stage, num_blocks in enumerate((depth, 3 * depth, 3 * depth, depth)):
            wide, is_last = width * 2 ** (stage + 1), stage == 3
            pooling = [_PyramidPooling(wide, norm)] if is_last else []
            block = _CSPBlock(wide, wide, num_blocks, norm, adds=not is_last)
            stages.append(nn.Sequential(_unit(wide // 2, wide, 3, norm, stride=2), *pooling, block))
        self.stages = nn.ModuleList(stages)
        for part in [self.stem, *self.stages][:frozen_stages]:
            freeze_module(part)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map `image` (B, in_channels, H, W), normalised -> C3, C4, C5. Raises ValueError for any other layout."""
        assert_images(image, channels=self.in_channels)
        image = F.pad(image, (0, image.shape[3] % 2, 0, image.shape[2] % 2))
        corners = [image[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        values, maps = self.stem(torch.cat(corners, dim=1)), []
        for stage in self.stages:
            values = stage(values)
            maps.append(values)
        return maps[1:]


@registry.necks.add("pafpn")
class PathAggregation(nn.Module):
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
