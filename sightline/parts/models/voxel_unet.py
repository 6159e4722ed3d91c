"""Networks on sparse voxels that label points: SpUNet and MinkUNet, U-shaped networks of sparse convolutions.

Both are `VoxelUNet`; they differ in stem, widths, where a stage widens, and batch norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch
from annotated_types import Len
from torch import Tensor, nn

from sightline.contract import registry
from sightline.contract.arguments import Count, PositiveFloat, Width
from sightline.contract.errors import ConfigError
from sightline.layers.sparse_convolution import SparseConvolution, SparseConvolutionNorm, SparseResidualBlock
from sightline.layers.voxel_levels import VoxelLevel
from sightline.parts.models.voxel_network import VoxelNetwork


class _Stage(nn.Module):
    """Convolution to another level with batch norm and ReLU, and residual blocks there."""

    def __init__(
        self,
        *,
        in_channels: int,
        resized_to: int,
        skip_channels: int,
        out_channels: int,
        num_blocks: int,
        eps: float,
        momentum: float,
    ) -> None:
        super().__init__()
        self.resize = SparseConvolutionNorm(
            in_channels=in_channels, out_channels=resized_to, size=2, eps=eps, momentum=momentum
        )
        widths = [resized_to + skip_channels, *[out_channels] * num_blocks]
        self.blocks = nn.ModuleList(
            SparseResidualBlock(in_channels=width_in, out_channels=width, eps=eps, momentum=momentum)
            for width_in, width in pairwise(widths)
        )

    def forward(self, values: Tensor, fine: VoxelLevel, coarse: VoxelLevel, skip: Tensor | None = None) -> Tensor:
        """Map the values of `fine` down to `coarse`; with `skip`, those of `coarse` up to `fine` and beside it."""
        assert fine.down is not None
        kernel_map, level = (fine.down, coarse) if skip is None else (fine.down.inverted(), fine)
        values = self.resize(values, kernel_map, level.num_voxels).relu()
        if skip is not None:
            values = torch.cat([values, skip], dim=1)
        for block in self.blocks:
            values = block(values, level)
        return values


class VoxelUNet(VoxelNetwork):
    """U-shaped network on sparse voxels; `SpUNet` and `MinkUNet` name its sizes.

    `stem_sizes` are the kernels of its first convolutions. A stage of the encoder widens where it halves the
    resolution, or in its first block (`widens: block`).
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        grid_m: float,
        inputs: Literal["all", "features"],
        stem_width: int,
        stem_sizes: Sequence[int],
        encoder_widths: Sequence[int],
        encoder_blocks: Sequence[int],
        decoder_widths: Sequence[int],
        decoder_blocks: Sequence[int],
        widens: Literal["down", "block"],
        eps: float,
        momentum: float,
    ) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, grid_m=grid_m, inputs=inputs)
        norm = {"eps": eps, "momentum": momentum}
        stem_widths = [self.voxel_channels, *[stem_width] * len(stem_sizes)]
        self.stem = nn.ModuleList(
            SparseConvolutionNorm(in_channels=width_in, out_channels=width, size=size, **norm)
            for (width_in, width), size in zip(pairwise(stem_widths), stem_sizes, strict=True)
        )
        self.stem_sizes = tuple(stem_sizes)
        self.level_sizes = (tuple(sorted({*stem_sizes, 3})), *[(3,)] * len(encoder_widths))
        ins = [stem_width, *encoder_widths[:-1]]
        self.encoder = nn.ModuleList(
            _Stage(
                in_channels=width_in,
                resized_to=width if widens == "down" else width_in,
                skip_channels=0,
                out_channels=width,
                num_blocks=count,
                **norm,
            )
            for width_in, width, count in zip(ins, encoder_widths, encoder_blocks, strict=True)
        )
        self.decoder = nn.ModuleList(
            _Stage(
                in_channels=width_in, resized_to=width, skip_channels=skip, out_channels=width, num_blocks=count, **norm
            )
            for width_in, width, skip, count in zip(
                [encoder_widths[-1], *decoder_widths[:-1]], decoder_widths, ins[::-1], decoder_blocks, strict=True
            )
        )
        self.head = SparseConvolution(in_channels=decoder_widths[-1], out_channels=num_classes, size=1, has_bias=True)

    def compute(self, values: Tensor, levels: Sequence[VoxelLevel]) -> Tensor:
        """Compute the logits (N, num_classes) of voxels from their features (V, C); N is the first level's capacity."""
        finest = levels[0]
        values = finest.pad(values)
        for layer, size in zip(self.stem, self.stem_sizes, strict=True):
            values = layer(values, finest.around[size], finest.num_voxels).relu()
        skips = [values]
        for stage, (fine, coarse) in zip(self.encoder, pairwise(levels), strict=True):
            skips.append(stage(skips[-1], fine, coarse))
        values = skips.pop()
        for stage, (coarse, fine) in zip(self.decoder, pairwise(levels[::-1]), strict=True):
            values = stage(values, fine, coarse, skips.pop())
        logits: Tensor = self.head(values, finest.pointwise)
        return logits


@registry.models.add("spunet")
class SpUNet(VoxelUNet):
    """SpUNet: a U-shaped network of submanifold and strided convolutions on sparse voxels of side `grid_m`.

    Stem of size 5; each stage of the encoder halves the resolution. Predicts for every point. `inputs: features` leaves
    the coordinates out, as the published networks for rooms do. Weights of linear and submanifold layers begin with a
    standard deviation of 0.02. Clouds may have any size; in evaluation the output for a cloud does not depend on the
    others in its batch; training needs two voxels at the coarsest level.
    Source: Pointcept's SpUNet-v1m1, after Graham et al. 2018 and Choy et al. 2019, figure 4.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        grid_m: PositiveFloat = 0.02,
        inputs: Literal["all", "features"] = "all",
        stem_width: Width = 32,
        encoder_widths: Annotated[tuple[Width, ...], Len(1)] = (32, 64, 128, 256),
        encoder_blocks: Annotated[tuple[Count, ...], Len(1)] = (2, 3, 4, 6),
        decoder_widths: Annotated[tuple[Width, ...], Len(1)] = (256, 128, 96, 96),
        decoder_blocks: Annotated[tuple[Count, ...], Len(1)] = (2, 2, 2, 2),
    ) -> None:
        stages = {
            "encoder_widths": encoder_widths,
            "encoder_blocks": encoder_blocks,
            "decoder_widths": decoder_widths,
            "decoder_blocks": decoder_blocks,
        }
        _assert_equal_lengths("spunet", stages)
        super().__init__(
            num_classes=num_classes,
            in_channels=in_channels,
            grid_m=grid_m,
            inputs=inputs,
            stem_width=stem_width,
            stem_sizes=(5,),
            encoder_widths=encoder_widths,
            encoder_blocks=encoder_blocks,
            decoder_widths=decoder_widths,
            decoder_blocks=decoder_blocks,
            widens="down",
            eps=1e-3,
            momentum=0.01,
        )
        for module in self.modules():
            if isinstance(module, SparseConvolution) and module.size % 2:
                nn.init.trunc_normal_(module.weight, std=0.02)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)


def _assert_equal_lengths(model: str, stages: dict[str, tuple[int, ...]]) -> None:
    if len({len(values) for values in stages.values()}) > 1:
        found = ", ".join(f"{len(values)} {name}" for name, values in stages.items())
        raise ConfigError(f"{model}: found {found}; give one of each for every stage")


@registry.models.add("minkunet")
class MinkUNet(VoxelUNet):
    """MinkUNet: residual blocks of sparse convolutions in a U shape, on voxels of side `grid_m`.

    Stages keep their width where they halve the resolution, and widen in their first block. Without sizes it is
    MinkUNet34C; `stem_sizes: [3, 3]` is the form of spvnas (there `stem_width` to `decoder_widths` are
    32, 32 64 128 256 and 256 128 96 96, times its channel ratio). Weights begin normal, by their fan-out. All else is
    as in `spunet`.
    Source: Choy et al. 2019, figure 4 and table of networks; MinkowskiEngine's and spvnas's published code.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        grid_m: PositiveFloat = 0.02,
        inputs: Literal["all", "features"] = "all",
        stem_width: Width = 32,
        stem_sizes: Annotated[tuple[Literal[1, 3, 5], ...], Len(1)] = (5,),
        encoder_widths: Annotated[tuple[Width, ...], Len(1)] = (32, 64, 128, 256),
        encoder_blocks: Annotated[tuple[Count, ...], Len(1)] = (2, 3, 4, 6),
        decoder_widths: Annotated[tuple[Width, ...], Len(1)] = (256, 128, 96, 96),
        decoder_blocks: Annotated[tuple[Count, ...], Len(1)] = (2, 2, 2, 2),
    ) -> None:
        stages = {
            "encoder_widths": encoder_widths,
            "encoder_blocks": encoder_blocks,
            "decoder_widths": decoder_widths,
            "decoder_blocks": decoder_blocks,
        }
        _assert_equal_lengths("minkunet", stages)
        super().__init__(
            num_classes=num_classes,
            in_channels=in_channels,
            grid_m=grid_m,
            inputs=inputs,
            stem_width=stem_width,
            stem_sizes=stem_sizes,
            encoder_widths=encoder_widths,
            encoder_blocks=encoder_blocks,
            decoder_widths=decoder_widths,
            decoder_blocks=decoder_blocks,
            widens="block",
            eps=1e-5,
            momentum=0.1,
        )
        for module in self.modules():
            if isinstance(module, SparseConvolution) and module is not self.head:
                places, _, width = module.weight.shape
                nn.init.normal_(module.weight, std=math.sqrt(2 / (places * width)))
