"""Feature pyramid network (FPN): maps of equal width with a top-down pathway. Source: Lin et al. 2017."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline import registry
from sightline.arguments import Count
from sightline.errors import ConfigError
from sightline.layers.images import ConvBlock

__all__ = ["FPN"]

_COARSER = 2
"""Number of levels that may follow those of the backbone."""


@registry.necks.add("fpn")
class FPN(nn.Module):
    """FPN: a pyramid of `width` channels on a backbone's maps: levels 3 to 5, or up to 7 by convolutions of stride 2.

    P6 is computed from C5, as RetinaNet's authors did, or from P5, as in most code; P7 from the ReLU of P6. A coarse
    map is resized to the exact size of the next by `upsample`. On ResNet-50, 3 levels have 2,688,512 parameters, 5
    levels 3,868,672 with P6 of P5 and 7,997,440 with P6 of C5. Source: Lin et al. 2017, Feature Pyramid Networks,
    section 3; Lin et al. 2017, Focal Loss, section 4 (P6 and P7).
    """

    def __init__(
        self,
        *,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        width: Count = 256,
        levels: tuple[int, ...] = (3, 4, 5, 6, 7),
        p6_source: Literal["c5", "p5"] = "p5",
        upsample: Literal["nearest", "bilinear"] = "nearest",
    ) -> None:
        super().__init__()
        backbone_levels = tuple(round(math.log2(stride)) for stride in strides)
        possible = [
            backbone_levels + tuple(backbone_levels[-1] + 1 + more for more in range(count))
            for count in range(_COARSER + 1)
        ]
        if levels not in possible:
            allowed = " or ".join(str(list(level_channels)) for level_channels in possible)
            raise ConfigError(f"levels: found {list(levels)}; on a backbone of strides {strides} give {allowed}")
        coarser = levels[len(backbone_levels) :]
        self.channels = (width,) * len(levels)
        self.strides = tuple(2**level for level in levels)
        self.p6_source, self.upsample = p6_source, upsample
        self.laterals = nn.ModuleList(
            ConvBlock(in_channels=level_channels, out_channels=width, kernel_size=1) for level_channels in channels
        )
        self.outputs = nn.ModuleList(ConvBlock(in_channels=width, out_channels=width, kernel_size=3) for _ in channels)
        first = channels[-1] if p6_source == "c5" else width
        self.coarser = nn.ModuleList(
            ConvBlock(in_channels=first if coarse_index == 0 else width, out_channels=width, kernel_size=3, stride=2)
            for coarse_index in range(len(coarser))
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Fuse maps (B, channels, H, W), finest first, to a map (B, width, H, W) of each level, finest first."""
        merged = [lateral(level_map) for lateral, level_map in zip(self.laterals, maps, strict=True)]
        for level in range(len(merged) - 1, 0, -1):
            size = merged[level - 1].shape[2:]
            merged[level - 1] = merged[level - 1] + F.interpolate(merged[level], size, mode=self.upsample)
        outputs = [output(level_map) for output, level_map in zip(self.outputs, merged, strict=True)]
        values = maps[-1] if self.p6_source == "c5" else outputs[-1]
        for level, conv in enumerate(self.coarser):
            values = _coarser(conv, values.relu() if level else values)
            outputs.append(values)
        return outputs


def _coarser(conv: nn.Module, values: Tensor) -> Tensor:
    """Compute the next coarser map; on a CPU always in full precision if it is one cell wide.

    torch 2.13 leaves memory uninitialised in the bf16 gradient of such a convolution's weights.
    """
    is_narrow = values.shape[3] == 1 and values.device.type == "cpu"
    with torch.autocast("cpu", enabled=False) if is_narrow else contextlib.nullcontext():
        result: Tensor = conv(values.to(next(conv.parameters()).dtype) if is_narrow else values)
    return result
