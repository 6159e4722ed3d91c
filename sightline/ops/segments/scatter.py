"""Reductions of rows by segment, in any order, by the names and with the calls of torch_scatter.

Half precision is computed in float32. Sums have the same bits for any number of threads, and on a GPU from run to run.
Others than in torch_scatter: an index outside is refused, on a GPU within a training step of sightline at its end; NaN
wins over numbers in extremes, -inf alone is -inf, not 0, and of equal rows the first counts.
Source: the documentation of torch_scatter 2.1.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sightline.ops.segments.extremes import scatter_extremes
from sightline.ops.segments.rows import SegmentedRows
from sightline.ops.segments.sums import gather_segments, scatter_rows

Reduction = Literal["sum", "add", "mean", "min", "max"]


def scatter(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
    reduce: Reduction = "sum",
) -> Tensor:
    """Reduce rows of equal `index` along `dim`: the function `scatter_<reduce>`, of extremes the values alone."""
    if reduce in ("min", "max"):
        return _scatter_extremes(src, index, dim, out, dim_size, is_highest=reduce == "max")[0]
    if reduce not in ("sum", "add", "mean"):
        raise ValueError(f"reduce: found {reduce!r}, expected 'sum', 'add', 'mean', 'min' or 'max'")
    return (scatter_mean if reduce == "mean" else scatter_sum)(src, index, dim, out, dim_size)


def scatter_sum(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> Tensor:
    """Add up rows of equal `index` along `dim`: `src` (..., E, ...) -> (..., dim_size, ...).

    The index has the shape of `src`, or its first dimensions, each of which may be 1; a vector lies along `dim`.
    Without `dim_size`, it is the largest index + 1, which is read: the host waits for a GPU, and no graph can hold it.
    Places without rows are 0. `out` is added to, and returned. A CPU adds rows in their order. Raises ValueError for an
    index outside.
    """
    return add_up(SegmentedRows.from_tensors(src, index, dim, out, dim_size), out)


def scatter_add(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> Tensor:
    """Add up rows of equal `index` along `dim`: another name of `scatter_sum`."""
    return scatter_sum(src, index, dim, out, dim_size)


def scatter_mean(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> Tensor:
    """Average rows of equal `index` along `dim`; means of whole numbers are rounded down. As `scatter_sum`.

    `out` is added to the sums before they are divided by the numbers of rows, and gets the result.
    """
    return average(SegmentedRows.from_tensors(src, index, dim, out, dim_size), out)


def scatter_max(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Find the highest row of equal `index` along `dim`: values, and their places along `dim`, int64.

    Of equal ones the first; NaN is higher than any number. Without rows, the value is 0 and the place `src.size(dim)`.
    `out`, which gets the values, counts as a row before the others, with that place. Gradients reach the places. As
    `scatter_sum`.
    """
    return _scatter_extremes(src, index, dim, out, dim_size, is_highest=True)


def scatter_min(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Find the lowest row of equal `index` along `dim`: values and places, as `scatter_max`; NaN is lowest."""
    return _scatter_extremes(src, index, dim, out, dim_size, is_highest=False)


def scatter_std(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
    unbiased: bool = True,
) -> Tensor:
    """Compute the standard deviation of rows of equal `index` along `dim`: over n - 1 if `unbiased`, else over n.

    0 for a single row, with the gradient 0. `out` is added to the sum of squares. As `scatter_sum`.
    """
    rows = SegmentedRows.from_tensors(src, index, dim, out, dim_size)
    if not src.is_floating_point():
        raise ValueError(f"scatter_std: found {src.dtype}, expected floating-point numbers; give src.float()")
    sums, counts = scatter_rows(rows.values, rows.index, rows.num_segments)
    mean = sums / rows.spread(counts).clamp(min=1)
    squares = (rows.values - gather_segments(mean, rows.index)).square()
    total = rows.restore(scatter_rows(squares, rows.index, rows.num_segments)[0])
    total = total if out is None else out.add_(total)
    variance = total / rows.restore(rows.spread(counts - 1 if unbiased else counts).clamp(min=1))
    is_positive = variance > 0  # the root has no slope at 0
    deviation = torch.where(is_positive, variance.where(is_positive, 1).sqrt(), variance).to(src.dtype)
    return deviation if out is None else out.copy_(deviation)


# --- Reductions of rows that are arranged -----------------------------------------------------------------------------


def add_up(rows: SegmentedRows, out: Tensor | None = None) -> Tensor:
    """Add up rows by segment; `out` is added to."""
    sums, _ = scatter_rows(rows.values, rows.index, rows.num_segments, layout=rows.layout)
    total = rows.restore(sums).to(rows.src.dtype)
    return total if out is None else out.add_(total)


def average(rows: SegmentedRows, out: Tensor | None = None) -> Tensor:
    """Average rows by segment; `out` is added to the sums."""
    sums, counts = scatter_rows(rows.values, rows.index, rows.num_segments, layout=rows.layout)
    count = rows.restore(rows.spread(counts)).clamp(min=1)
    total = rows.restore(sums) if out is None else out.add_(rows.restore(sums))
    mean = total / count if total.is_floating_point() else total.div(count, rounding_mode="floor")
    return mean.to(rows.src.dtype) if out is None else out.copy_(mean)


def find_extremes(rows: SegmentedRows, out: Tensor | None = None, *, is_highest: bool) -> tuple[Tensor, Tensor]:
    """Find the highest or lowest row of each segment, and of `out`, which gets it."""
    extremes = scatter_extremes(rows.values, rows.index, rows.num_segments, is_highest=is_highest, layout=rows.layout)
    best, row = (rows.restore(values) for values in extremes)
    best = best.to(rows.src.dtype)
    if out is None:
        return best, row
    num_rows = rows.src.shape[rows.dim]
    is_farther = (best > out if is_highest else best < out) | ((best != best) & (out == out))
    is_better = is_farther & (row < num_rows)
    return out.copy_(torch.where(is_better, best, out)), row.where(is_better, num_rows)


def _scatter_extremes(
    src: Tensor, index: Tensor, dim: int, out: Tensor | None, dim_size: int | None, *, is_highest: bool
) -> tuple[Tensor, Tensor]:
    return find_extremes(SegmentedRows.from_tensors(src, index, dim, out, dim_size), out, is_highest=is_highest)
