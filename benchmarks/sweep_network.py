"""Benchmark of a network on a whole LiDAR sweep: Point Transformer V3 of the published size, one forward pass.

The baseline is the plain form of its sparse parts: maps by sorted numbers and a search for each place of a kernel, and
convolutions that gather the pairs of each place, multiply, and add to the outputs. Attention is torch's in both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.case import BenchmarkCase, Implementation, Run, allclose
from sightline.areas.scans.sets.synthetic_lidar import SyntheticLidar
from sightline.layers import patch_transformer, sparse_convolution, voxel_levels
from sightline.ops.operator import OPERATORS
from sightline.ops.segments.offsets import offsets_to_batch
from sightline.ops.voxels.kernel_maps import KernelMap
from sightline.parts.models import ptv3
from sightline.parts.models.ptv3 import PTv3


@dataclass(frozen=True)
class SweepInputs:
    """Points (P, 3) of a sweep with their reflectance (P, 1), and the network."""

    points: Tensor
    features: Tensor
    network: PTv3

    @torch.no_grad()
    def predict(self) -> Tensor:
        return self.network(points=self.points[None], features=self.features[None])["logits"]


def cases() -> list[BenchmarkCase]:
    return [
        BenchmarkCase(
            suite="models",
            label="ptv3_sweep_{num_columns}_w{width}",
            size={"num_columns": 1170, "width": 32},
            quick={"num_columns": 40, "width": 16},
            make=draw_sweep,
            baseline=Implementation("plain", _open_plain, allclose(1e-4)),
            variants=(Implementation("sightline", _open, allclose(1e-4)),),
        )
    ]


def draw_sweep(*, num_columns: int, width: int) -> SweepInputs:
    """Draw a sweep of 32 beams, and a network on voxels of 5 cm; a width of 32 is the published one."""
    scan = SyntheticLidar(split="train", sensor={"preset": "hdl32"}, num_columns=num_columns).scan("train", 0)
    torch.manual_seed(0)
    times = width // 16
    network = PTv3(
        num_classes=16,
        in_channels=4,
        grid_m=0.05,
        encoder_widths=tuple(16 * times * factor for factor in (1, 2, 4, 8, 16)),
        decoder_widths=tuple(16 * times * factor for factor in (8, 4, 2, 2)),
    )
    return SweepInputs(torch.from_numpy(scan.points), torch.from_numpy(scan.remission)[:, None], network.eval())


@contextmanager
def _open(inputs: SweepInputs) -> Iterator[Run]:
    inputs.predict()
    yield inputs.predict


@contextmanager
def _open_plain(inputs: SweepInputs) -> Iterator[Run]:
    with ExitStack() as replaced:
        for module, name, function in (
            (sparse_convolution, "sparse_convolution", _convolve_plainly),
            (voxel_levels, "neighbour_table", _map_plainly),
            *((module, "linear_rows", _map_rows) for module in (patch_transformer, ptv3)),
        ):
            replaced.enter_context(patch.object(module, name, function))
        inputs.predict()
        yield inputs.predict


def _convolve_plainly(values: Tensor, weight: Tensor, kernel_map: KernelMap, bias: Tensor | None = None) -> Tensor:
    table = kernel_map.table
    result = values.new_zeros((table.shape[0], weight.shape[2]))
    for place in range(table.shape[1]):
        rows = table[:, place]
        outputs = (rows >= 0).nonzero()[:, 0]
        if len(outputs):
            result.index_add_(0, outputs, values[rows[outputs].long()] @ weight[place])
    return result if bias is None else result + bias


def _map_plainly(cells: Tensor, offsets: Tensor, *, size: int) -> Tensor:
    table: Tensor = OPERATORS["neighbour_table"].plain(cells, offsets_to_batch(offsets, len(cells)), size)
    return table


def _map_rows(layer: nn.Linear, values: Tensor, num_rows: int) -> Tensor:
    mapped: Tensor = layer(values[:num_rows])
    return mapped
