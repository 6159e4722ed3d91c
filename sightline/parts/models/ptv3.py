"""Point Transformer V3: attention among the voxels of patches that space-filling curves cut a cloud into."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

from annotated_types import Interval, Len
from torch import Tensor, nn
from torch.nn import functional

from sightline.contract import registry
from sightline.contract.arguments import Count, PositiveFloat, Width
from sightline.contract.errors import ConfigError
from sightline.layers.curve_levels import CurveDepth, CurveRule, PatchSizes, list_permutations
from sightline.layers.patch_transformer import (
    NORM_EPS,
    NORM_MOMENTUM,
    PatchTransformerBlock,
    VoxelPooling,
    VoxelUnpooling,
)
from sightline.layers.row_linear import linear_rows
from sightline.layers.sparse_convolution import SparseConvolutionNorm
from sightline.layers.voxel_levels import VoxelLevel
from sightline.parts.models.voxel_network import VoxelNetwork

DataFlow = Literal["consistent", "main", "v1.5.1"]
_DEPTHS: dict[DataFlow, CurveDepth] = {"consistent": "fixed", "main": "extent", "v1.5.1": "extent_v1.5.1"}


class _Stage(nn.Module):
    """Blocks at one level, each along the next curve of a permutation."""

    def __init__(self, blocks: Sequence[PatchTransformerBlock], source: DataFlow) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.source = source

    def forward(
        self,
        values: Tensor,
        level: VoxelLevel,
        permutation: Sequence[int],
        skipped: Tensor | None = None,
    ) -> Tensor:
        """Map the values (N, width) of a level; `skipped` is their part of a skip connection, of a decoder."""
        source = values if skipped is None or self.source == "consistent" else skipped
        for number, block in enumerate(self.blocks):
            values, branch = block(values, source, level, permutation[number % len(permutation)])
            source = branch if self.source == "v1.5.1" else values
        return values


class PatchTransformer(VoxelNetwork):
    """U-shaped network of attention inside of patches; `PTv3` names its sizes.

    Heads have `head_width` channels. `cpe_input` is what the convolution of a block reads, `curve_depth` and
    `patch_sizes` are the rules of its curves; `has_table` adds a table of relative positions.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        grid_m: float,
        inputs: Literal["all", "features"],
        encoder_widths: Sequence[int],
        encoder_blocks: Sequence[int],
        decoder_widths: Sequence[int],
        decoder_blocks: Sequence[int],
        head_width: int,
        patch_size: int,
        drop_path: float,
        cpe_input: DataFlow,
        curve_depth: CurveDepth,
        patch_sizes: PatchSizes,
        has_table: bool,
        norm_first: bool,
    ) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, grid_m=grid_m, inputs=inputs)
        _assert_lengths(encoder_widths, encoder_blocks, decoder_widths, decoder_blocks)
        self.curves = CurveRule(patch_size, curve_depth, patch_sizes)
        self.batch_dependence = self.curves.batch_dependence
        self.level_sizes = ((3, 5), *[(3,)] * len(decoder_widths))
        self.stem = SparseConvolutionNorm(
            in_channels=self.voxel_channels,
            out_channels=encoder_widths[0],
            size=5,
            eps=NORM_EPS,
            momentum=NORM_MOMENTUM,
        )

        def build_stages(widths: Sequence[int], counts: Sequence[int], rates: list[float]) -> nn.ModuleList:
            stages = []
            for width, count in zip(widths, counts, strict=True):
                blocks = [
                    PatchTransformerBlock(
                        width=width,
                        num_heads=_count_heads(width, head_width),
                        patch_size=patch_size,
                        drop_path=rates.pop(0),
                        has_table=has_table,
                        norm_first=norm_first,
                    )
                    for _ in range(count)
                ]
                stages.append(_Stage(blocks, cpe_input))
            return nn.ModuleList(stages)

        self.pools = nn.ModuleList(
            VoxelPooling(in_channels=width_in, out_channels=width) for width_in, width in pairwise(encoder_widths)
        )
        self.encoder = build_stages(encoder_widths, encoder_blocks, _list_rates(drop_path, sum(encoder_blocks)))
        self.unpools = nn.ModuleList(
            VoxelUnpooling(in_channels=width_in, skip_channels=skip, out_channels=width)
            for (width_in, width), skip in zip(
                pairwise([encoder_widths[-1], *decoder_widths]), encoder_widths[-2::-1], strict=True
            )
        )
        rates = _list_rates(drop_path, sum(decoder_blocks))[::-1]
        self.decoder = build_stages(decoder_widths, decoder_blocks, rates)
        self.head = nn.Linear([*encoder_widths, *decoder_widths][-1], num_classes)

    def compute(
        self, values: Tensor, levels: Sequence[VoxelLevel], permutations: Sequence[Sequence[int]] | None = None
    ) -> Tensor:
        """Compute the logits (N, num_classes) of voxels from their features (V, C); N is the first level's capacity.

        `permutations` are the curves of each level's blocks in turn, by default those of `list_permutations`.
        """
        if permutations is None:
            permutations = list_permutations(len(levels), is_shuffled=self.training)
        finest = levels[0]
        values = functional.gelu(self.stem(finest.pad(values), finest.around[5], finest.num_voxels))
        skips = []
        for number, stage in enumerate(self.encoder):
            if number:
                values = self.pools[number - 1](values, levels[number - 1], levels[number])
            values = stage(values, levels[number], permutations[number])
            skips.append(values)
        skips.pop()
        for stage, unpool in zip(self.decoder, self.unpools, strict=True):
            number = len(skips) - 1
            values, skipped = unpool(values, skips.pop(), levels[number], levels[number + 1])
            values = stage(values, levels[number], permutations[number], skipped)
        return linear_rows(self.head, values, finest.num_voxels)


@registry.models.add("ptv3")
class PTv3(PatchTransformer):
    """Point Transformer V3 on voxels of side `grid_m`: attention inside of patches of `patch_size` voxels on a curve.

    Voxels are ordered along four space-filling curves, which blocks take in turn; each training step shuffles them,
    evaluation never does. Without sizes it is the published PTv3m1; heads have 16 channels. `data_flow` is what the
    convolution of a block reads: its input (`consistent`); in the first block of a stage of the decoder the skip
    connection alone (`main`, Pointcept from 1.6 on); and in further blocks the branch of the MLP before alone
    (`v1.5.1`, of the published weights). Curves have 16 bits, in the latter two as many as the largest cloud needs.
    `patches: segments` are those of flash attention; `shared` ones are as large as the smallest cloud of the batch
    allows, and `shared_with_positions` add learned terms for relative positions, as published for S3DIS. Without these
    three a cloud's output does not depend on others in its batch. Training needs two voxels at the coarsest level.
    Source: Wu et al. 2024, Point Transformer V3: Simpler, Faster, Stronger; Pointcept's PTv3m1.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        grid_m: PositiveFloat = 0.02,
        inputs: Literal["all", "features"] = "all",
        encoder_widths: Annotated[tuple[Width, ...], Len(1)] = (32, 64, 128, 256, 512),
        encoder_blocks: Annotated[tuple[Count, ...], Len(1)] = (2, 2, 2, 6, 2),
        decoder_widths: tuple[Width, ...] = (256, 128, 64, 64),
        decoder_blocks: tuple[Count, ...] = (2, 2, 2, 2),
        patch_size: Count = 1024,
        drop_path: Annotated[float, Interval(ge=0, lt=1)] = 0.3,
        data_flow: DataFlow = "consistent",
        patches: Literal["segments", "shared", "shared_with_positions"] = "segments",
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            in_channels=in_channels,
            grid_m=grid_m,
            inputs=inputs,
            encoder_widths=encoder_widths,
            encoder_blocks=encoder_blocks,
            decoder_widths=decoder_widths,
            decoder_blocks=decoder_blocks,
            head_width=16,
            patch_size=patch_size,
            drop_path=drop_path,
            cpe_input=data_flow,
            curve_depth=_DEPTHS[data_flow],
            patch_sizes="segments" if patches == "segments" else "shared",
            has_table=patches == "shared_with_positions",
            norm_first=True,
        )


def _assert_lengths(
    encoder_widths: Sequence[int],
    encoder_blocks: Sequence[int],
    decoder_widths: Sequence[int],
    decoder_blocks: Sequence[int],
) -> None:
    if len(encoder_widths) != len(encoder_blocks) or len(decoder_widths) != len(decoder_blocks):
        raise ConfigError(
            f"ptv3: found {len(encoder_widths)} encoder_widths, {len(encoder_blocks)} encoder_blocks, "
            f"{len(decoder_widths)} decoder_widths, {len(decoder_blocks)} decoder_blocks; give one of each for every "
            "stage"
        )
    if len(decoder_widths) != len(encoder_widths) - 1:
        raise ConfigError(
            f"ptv3: found {len(decoder_widths)} decoder_widths for {len(encoder_widths)} encoder_widths; the decoder "
            "has a stage less, from the second coarsest level to the finest"
        )


def _count_heads(width: int, head_width: int) -> int:
    if width % head_width:
        raise ConfigError(f"head_width: {head_width} does not divide a width of {width}; give another")
    return width // head_width


def _list_rates(drop_path: float, count: int) -> list[float]:
    """List the probabilities of dropping a branch of `count` blocks, from 0 to `drop_path`."""
    return [drop_path * number / max(1, count - 1) for number in range(count)]
