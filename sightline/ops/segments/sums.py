"""Sums of rows by segment, and rows gathered by segment: each is the gradient of the other.

A CPU adds the rows of a segment one after another, a GPU, which sorts them by segment, in a fixed tree: no order of
threads changes a bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.ops.gpu_kernels import gpu_kernel, next_power_of_2, tl
from sightline.ops.numba_kernels import numba_kernel, run_parallel
from sightline.ops.operator import operator
from sightline.ops.segments.rows import Layout, check_segments, list_segments, number_segments, sort_rows
from sightline.ops.waits import is_on_host


def scatter_rows(values: Tensor, index: Tensor, num_segments: int, *, layout: Layout = "any") -> tuple[Tensor, Tensor]:
    """Add up the rows of each segment: `values` (B, E, K), `index` (I, E) -> sums (B, N, K), counts (I, N) int64.

    The index is in a layout of `rows.py`; a GPU sorts rows in `any` order. Raises ValueError for an index that names
    none of `num_segments` segments, or is in another layout.
    """
    return _scatter_rows(values, index, num_segments, layout)


def gather_segments(values: Tensor, index: Tensor) -> Tensor:
    """Gather the numbers of each row's segment: `values` (B, N, K), `index` (I, E) -> (B, E, K).

    Raises ValueError for an index outside.
    """
    return _gather_segments(values, index)


def _check(values: Tensor, index: Tensor, num_segments: int, layout: str) -> None:
    check_segments(index, num_segments, layout, values.shape[1])


@operator(launches=1, check=_check, stacked=True)
def _scatter_rows(values: Tensor, index: Tensor, num_segments: int, layout: str) -> tuple[Tensor, Tensor]:
    num_samples, num_rows, num_channels = values.shape
    index = list_segments(index, num_rows) if layout == "bounds" else index
    segment = number_segments(index, num_samples, num_segments)
    sums = _add_rows(values.flatten(0, 1), segment, num_samples * num_segments)
    of_index = number_segments(index, len(index), num_segments)
    counts = _add_rows(torch.ones_like(of_index), of_index, len(index) * num_segments)
    return sums.reshape(num_samples, num_segments, num_channels), counts.reshape(len(index), num_segments)


def _add_rows(rows: Tensor, segment: Tensor, num_segments: int) -> Tensor:
    """Add up rows (P, ...) of segments (P,), without those that come after the last."""
    if rows.is_floating_point() and not is_on_host(rows):  # `index_add` adds in any order there
        return add_sorted_rows(rows, segment, num_segments)
    return rows.new_zeros((num_segments + 1, *rows.shape[1:])).index_add(0, segment, rows)[:num_segments]


def add_sorted_rows(rows: Tensor, segment: Tensor, num_segments: int) -> Tensor:
    """Add up rows (P, K) of floats in segments (P,), sorted first."""
    rising, order = segment.sort(stable=True)
    offsets = torch.searchsorted(rising, torch.arange(num_segments + 1, device=rows.device))
    return torch.segment_reduce(rows[order], "sum", offsets=offsets, axis=0, unsafe=True)


@_scatter_rows.fake
def _(values: Tensor, index: Tensor, num_segments: int, layout: str) -> tuple[Tensor, Tensor]:
    sums = values.new_empty((values.shape[0], num_segments, values.shape[2]))
    return sums, index.new_empty((index.shape[0], num_segments))


def _save_index(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    values, index, *further = inputs
    ctx.save_for_backward(index)
    ctx.num_rows, ctx.layout = values.shape[1], further[-1] if further else "any"


@_scatter_rows.gradient(_save_index)
def _(ctx: Any, to_sums: Tensor, _: Any) -> tuple[Any, ...]:
    (index,) = ctx.saved_tensors
    index = list_segments(index, ctx.num_rows) if ctx.layout == "bounds" else index
    return _gather_segments(to_sums, index), None, None, None


def _check_gather(values: Tensor, index: Tensor) -> None:
    check_segments(index, values.shape[1])


@operator(check=_check_gather, stacked=True)
def _gather_segments(values: Tensor, index: Tensor) -> Tensor:
    num_samples, num_segments, num_channels = values.shape
    inside = index.clamp(min=0, max=num_segments - 1)  # one outside is an error, which a step may read later
    segment = number_segments(inside, num_samples, num_segments)
    rows = values.flatten(0, 1).index_select(0, segment)
    return rows.reshape(num_samples, index.shape[1], num_channels)


@_gather_segments.fake
def _(values: Tensor, index: Tensor) -> Tensor:
    return values.new_empty((values.shape[0], index.shape[1], values.shape[2]))


@_gather_segments.gradient(_save_index)
def _(ctx: Any, to_rows: Tensor) -> tuple[Any, ...]:
    (index,) = ctx.saved_tensors
    return _scatter_rows(to_rows, index, ctx.num_rows, "any")[0], None


# --- CPU: threads go through all rows, each for segments of its own ---------------------------------------------------


@_scatter_rows.cpu_kernel
def _(values: Tensor, index: Tensor, num_segments: int, layout: str) -> tuple[Tensor, Tensor]:
    array = values.detach().contiguous().numpy()
    sums = np.empty((len(values), num_segments, values.shape[2]), array.dtype)  # in large pages, unlike those of torch
    counts = np.zeros((len(index), num_segments), np.int64)
    arrays = array, index.contiguous().numpy(), sums
    if layout == "bounds":
        run_parallel(_add_up_between, len(values) * num_segments, *arrays)
        counts = np.diff(arrays[1])
    elif len(values):
        run_parallel(_add_up, len(values) * num_segments, *arrays, counts)
    return torch.from_numpy(sums), torch.from_numpy(counts)


@numba_kernel
def _add_up(first: int, last: int, values: np.ndarray, index: np.ndarray, sums: np.ndarray, counts: np.ndarray) -> None:
    """Compute segments first to last, numbered through all samples; the first sample of an index counts its rows."""
    num_samples, num_segments, num_channels = sums.shape
    for sample in range(first // max(1, num_segments), (last - 1) // max(1, num_segments) + 1):
        lowest = max(first - sample * num_segments, 0)
        end = min(last - sample * num_segments, num_segments)
        for segment in range(lowest, end):
            for channel in range(num_channels):
                sums[sample, segment, channel] = 0
        of_sample = sample * len(index) // num_samples
        one = 1 if sample == 0 or (sample - 1) * len(index) // num_samples < of_sample else 0
        for row in range(values.shape[1]):
            segment = index[of_sample, row]
            if lowest <= segment < end:
                counts[of_sample, segment] += one
                for channel in range(num_channels):
                    sums[sample, segment, channel] += values[sample, row, channel]


@numba_kernel
def _add_up_between(first: int, last: int, values: np.ndarray, bounds: np.ndarray, sums: np.ndarray) -> None:
    num_samples, num_segments, num_channels = sums.shape
    for number in range(first, last):
        sample, segment = number // num_segments, number % num_segments
        of_sample = sample * len(bounds) // num_samples
        for channel in range(num_channels):
            sums[sample, segment, channel] = 0
        for row in range(bounds[of_sample, segment], bounds[of_sample, segment + 1]):
            for channel in range(num_channels):
                sums[sample, segment, channel] += values[sample, row, channel]


# --- GPU: a program a segment -----------------------------------------------------------------------------------------

_TILE_BYTES = 2048
"""Sums that a program of a segment holds."""


def channels_of_program(num_channels: int) -> tuple[int, int]:
    """Return how many channels a program takes, and how many programs a segment needs."""
    channels = min(64, next_power_of_2(max(1, num_channels)))
    return channels, -(-num_channels // channels)


@_scatter_rows.gpu_kernel(lambda values, *_: values.is_floating_point())  # whole numbers are exact in any order
def _(values: Tensor, index: Tensor, num_segments: int, layout: str) -> tuple[Tensor, Tensor]:
    num_samples, num_rows, num_channels = values.shape
    order, offsets = sort_rows(index, num_segments, layout, num_rows)
    sums = values.new_empty((num_samples, num_segments, num_channels))
    channels, num_blocks = channels_of_program(num_channels)
    _add_up_tiles.launch(
        num_samples * num_segments * num_blocks,
        values.contiguous(),
        order,
        offsets,
        sums,
        num_samples // max(1, len(index)),
        num_rows,
        num_segments,
        num_channels,
        num_blocks,
        CHANNELS=channels,
        ROWS=_TILE_BYTES // values.itemsize // channels,
        num_warps=1,
    )
    return sums, offsets.diff()


@gpu_kernel
def _add_up_tiles(  # type: ignore[no-untyped-def]
    values,
    order,
    offsets,
    sums,
    samples_of_index: tl.int64,
    num_rows: tl.int64,
    num_segments: tl.int64,
    num_channels: tl.int64,
    num_blocks: tl.int32,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
):
    number = (tl.program_id(0) // num_blocks).to(tl.int64)
    sample, index_sample = number // num_segments, number // num_segments // samples_of_index
    bounds = offsets + index_sample * (num_segments + 1) + number % num_segments
    begin, end = tl.maximum(tl.load(bounds), 0), tl.minimum(tl.load(bounds + 1), num_rows)
    channel = (tl.program_id(0) % num_blocks) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    totals = tl.zeros([ROWS, CHANNELS], sums.dtype.element_ty)
    while begin < end:
        position = begin + tl.arange(0, ROWS)[:, None]
        is_row = position < end
        row = position if order is None else tl.load(order + index_sample * num_rows + position, mask=is_row, other=0)
        numbers = values + (sample * num_rows + row) * num_channels + channel
        totals += tl.load(numbers, mask=is_row & (channel < num_channels), other=0.0)
        begin += ROWS
    total = tl.sum(totals, axis=0)[None, :]
    tl.store(sums + number * num_channels + channel, total, mask=channel < num_channels)
