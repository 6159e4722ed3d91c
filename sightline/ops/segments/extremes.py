"""Highest or lowest rows by segment, and which rows they are: the same on every device, ties by index."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.ops.gpu_kernels import gpu_kernel, tl
from sightline.ops.numba_kernels import numba_kernel, run_parallel
from sightline.ops.operator import operator
from sightline.ops.segments.rows import Layout, check_segments, list_segments, number_segments, sort_rows
from sightline.ops.segments.sums import channels_of_program


def scatter_extremes(
    values: Tensor, index: Tensor, num_segments: int, *, is_highest: bool, layout: Layout = "any"
) -> tuple[Tensor, Tensor]:
    """Find the highest or lowest row of each segment: `values` (B, E, K), `index` (I, E) -> two of (B, N, K).

    The values, and their rows, int64: of equal ones the first; NaN wins. A segment without rows has 0 and row E. The
    gradient reaches these rows. The index is in a layout of `rows.py`. Raises ValueError for an index that names none
    of `num_segments` segments, or is in another layout.
    """
    return _scatter_extremes(values, index, num_segments, is_highest, layout)


def _check(values: Tensor, index: Tensor, num_segments: int, is_highest: bool, layout: str) -> None:
    check_segments(index, num_segments, layout, values.shape[1])


@operator(launches=1, check=_check, stacked=True)
def _scatter_extremes(
    values: Tensor, index: Tensor, num_segments: int, is_highest: bool, layout: str
) -> tuple[Tensor, Tensor]:
    num_samples, num_rows, num_channels = values.shape
    index = list_segments(index, num_rows) if layout == "bounds" else index
    segment = number_segments(index, num_samples, num_segments)[:, None].expand(-1, num_channels)
    rows = values.detach().flatten(0, 1)
    shape = (num_samples * num_segments + 1, num_channels)  # the last for rows of no segment
    kind = "amax" if is_highest else "amin"
    best = rows.new_zeros(shape).scatter_reduce(0, segment, rows, kind, include_self=False).gather(0, segment)
    is_best = (rows == best) | ((rows != rows) & (best != best))
    row = torch.arange(num_rows, device=values.device).repeat(num_samples)[:, None].where(is_best, num_rows)
    first = row.new_full(shape, num_rows).scatter_reduce(0, segment, row, "amin")[:-1]
    first = first.reshape(num_samples, num_segments, num_channels)
    padded = torch.cat([values, values.new_zeros((num_samples, 1, num_channels))], dim=1)
    return padded.gather(1, first), first


@_scatter_extremes.fake
def _(values: Tensor, index: Tensor, num_segments: int, is_highest: bool, layout: str) -> tuple[Tensor, Tensor]:
    shape = (values.shape[0], num_segments, values.shape[2])
    return values.new_empty(shape), index.new_empty(shape)


def _save_rows(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.num_rows = inputs[0].shape[1]


@_scatter_extremes.gradient(_save_rows)
def _(ctx: Any, to_best: Tensor, _: Any) -> tuple[Any, ...]:
    (row,) = ctx.saved_tensors
    shape = (row.shape[0], ctx.num_rows + 1, row.shape[2])  # the last for segments without rows
    return to_best.new_zeros(shape).scatter(1, row, to_best)[:, : ctx.num_rows], None, None, None, None


# --- CPU: threads go through all rows, each for segments of its own ---------------------------------------------------

_MAX_ROWS = 2**31 - 1


@_scatter_extremes.cpu_kernel
def _(values: Tensor, index: Tensor, num_segments: int, is_highest: bool, layout: str) -> tuple[Tensor, Tensor]:
    if values.shape[1] > _MAX_ROWS:
        return _scatter_extremes.plain(values, index, num_segments, is_highest, layout)
    array, shape = values.detach().contiguous().numpy(), (len(values), num_segments, values.shape[2])
    best, row = np.empty(shape, array.dtype), np.empty(shape, np.int64)  # in large pages, which torch does not ask for
    arrays = array, index.contiguous().numpy(), array.dtype.type(1 if is_highest else -1), best, row
    if layout == "bounds":
        run_parallel(_find_extremes_between, len(values) * num_segments, *arrays)
    elif best.size:
        run_parallel(_find_extremes, len(values) * num_segments, *arrays, np.empty(shape, np.int32))
    return torch.from_numpy(best), torch.from_numpy(row)


@numba_kernel
def _find_extremes(
    first: int,
    last: int,
    values: np.ndarray,
    index: np.ndarray,
    sign: float,
    best: np.ndarray,
    row_of: np.ndarray,
    narrow: np.ndarray,
) -> None:
    """Compute segments first to last, numbered through all samples. Rows are as wide as numbers until the end."""
    num_samples, num_segments, num_channels = best.shape
    none = np.int32(values.shape[1])
    for sample in range(first // num_segments, (last - 1) // num_segments + 1):
        lowest = max(first - sample * num_segments, 0)
        end = min(last - sample * num_segments, num_segments)
        for segment in range(lowest, end):
            narrow[sample, segment, 0] = none
        of_sample = sample * len(index) // num_samples
        for row in range(values.shape[1]):
            segment, narrow_row = index[of_sample, row], np.int32(row)
            if not lowest <= segment < end:
                continue
            if narrow[sample, segment, 0] == none:
                for channel in range(num_channels):
                    best[sample, segment, channel] = values[sample, row, channel]
                    narrow[sample, segment, channel] = narrow_row
                continue
            for channel in range(num_channels):
                value, of_best = values[sample, row, channel], narrow[sample, segment, channel]
                highest = best[sample, segment, channel]
                is_higher = (highest == highest) & (not (sign * value <= sign * highest))
                best[sample, segment, channel] = value if is_higher else highest
                narrow[sample, segment, channel] = narrow_row if is_higher else of_best
        for segment in range(lowest, end):
            has_rows = narrow[sample, segment, 0] != none
            for channel in range(num_channels):
                row_of[sample, segment, channel] = narrow[sample, segment, channel] if has_rows else none
                if not has_rows:
                    best[sample, segment, channel] = 0


@numba_kernel
def _find_extremes_between(
    first: int,
    last: int,
    values: np.ndarray,
    bounds: np.ndarray,
    sign: float,
    best: np.ndarray,
    row_of: np.ndarray,
) -> None:
    num_samples, num_segments, num_channels = best.shape
    for number in range(first, last):
        sample, segment = number // num_segments, number % num_segments
        of_sample = sample * len(bounds) // num_samples
        begin, end = bounds[of_sample, segment], bounds[of_sample, segment + 1]
        for channel in range(num_channels):
            best[sample, segment, channel] = values[sample, begin, channel] if begin < end else 0
            row_of[sample, segment, channel] = begin if begin < end else values.shape[1]
        for row in range(begin + 1, end):
            for channel in range(num_channels):
                value, highest = values[sample, row, channel], best[sample, segment, channel]
                is_higher = (highest == highest) & (not (sign * value <= sign * highest))
                best[sample, segment, channel] = value if is_higher else highest
                row_of[sample, segment, channel] = row if is_higher else row_of[sample, segment, channel]


# --- GPU: a program a segment -----------------------------------------------------------------------------------------

_TILE_BYTES = 1024
"""Numbers that a program of a segment holds, each with its row."""


@_scatter_extremes.gpu_kernel(lambda values, *_: values.is_floating_point())
def _(values: Tensor, index: Tensor, num_segments: int, is_highest: bool, layout: str) -> tuple[Tensor, Tensor]:
    num_samples, num_rows, num_channels = values.shape
    order, offsets = sort_rows(index, num_segments, layout, num_rows)
    best = values.new_empty((num_samples, num_segments, num_channels))
    row = torch.empty_like(best, dtype=torch.int64)
    channels, num_blocks = channels_of_program(num_channels)
    _find_extreme_tiles.launch(
        num_samples * num_segments * num_blocks,
        values.contiguous(),
        order,
        offsets,
        best,
        row,
        num_samples // max(1, len(index)),
        num_rows,
        num_segments,
        num_channels,
        num_blocks,
        SIGN=1 if is_highest else -1,
        CHANNELS=channels,
        ROWS=_TILE_BYTES // values.itemsize // channels,
        num_warps=1,
    )
    return best, row


@gpu_kernel
def _find_extreme_tiles(  # type: ignore[no-untyped-def]
    values,
    order,
    offsets,
    best,
    row_of,
    samples_of_index: tl.int64,
    num_rows: tl.int64,
    num_segments: tl.int64,
    num_channels: tl.int64,
    num_blocks: tl.int32,
    SIGN: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Find the highest of every ROWS-th row, then the highest of these, and read it anew."""
    number = (tl.program_id(0) // num_blocks).to(tl.int64)
    sample, index_sample = number // num_segments, number // num_segments // samples_of_index
    bounds = offsets + index_sample * (num_segments + 1) + number % num_segments
    begin, end = tl.maximum(tl.load(bounds), 0), tl.minimum(tl.load(bounds + 1), num_rows)
    channel = (tl.program_id(0) % num_blocks) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    is_channel = channel < num_channels
    numbers = values + sample * num_rows * num_channels + channel
    top = tl.full([ROWS, CHANNELS], -float("inf"), best.dtype.element_ty)
    row_of_top = tl.zeros([ROWS, CHANNELS], tl.int64) + num_rows
    while begin < end:
        position = begin + tl.arange(0, ROWS)[:, None]
        is_row = position < end
        row = position if order is None else tl.load(order + index_sample * num_rows + position, mask=is_row, other=0)
        value = SIGN * tl.load(numbers + row * num_channels, mask=is_row & is_channel, other=0.0)
        is_higher = (value > top) | ((value != value) & (top == top)) | (row_of_top == num_rows)
        is_higher = is_higher & is_row
        top = tl.where(is_higher, value, top)
        row_of_top = tl.where(is_higher, row + tl.zeros_like(row_of_top), row_of_top)
        begin += ROWS
    is_nan = top != top
    has_nan = tl.max(is_nan.to(tl.int32), axis=0)[None, :] > 0
    highest = tl.max(tl.where(is_nan, -float("inf"), top), axis=0)[None, :]
    is_best = tl.where(has_nan, is_nan, top == highest)
    row = tl.min(tl.where(is_best, row_of_top, num_rows), axis=0)[None, :]
    value = tl.load(numbers + row * num_channels, mask=is_channel & (row < num_rows), other=0.0)
    tl.store(best + number * num_channels + channel, value, mask=is_channel)
    tl.store(row_of + number * num_channels + channel, row, mask=is_channel)
