"""Softmax of rows within their segments, and its logarithms, by the names and with the calls of torch_scatter.

The highest row of a segment is subtracted first. Index, `out` and `dim_size` as in `scatter.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sightline.ops.segments.extremes import scatter_extremes
from sightline.ops.segments.rows import SegmentedRows
from sightline.ops.segments.sums import gather_segments, scatter_rows


def scatter_softmax(src: Tensor, index: Tensor, dim: int = -1, dim_size: int | None = None) -> Tensor:
    """Compute the softmax over rows of equal `index` along `dim`, in the shape of `src`, of floating-point numbers.

    NaN in a segment that holds NaN, inf, or -inf alone, as `torch.softmax`. Raises ValueError for an index outside.
    """
    rows = _arrange(src, index, dim, None, dim_size, name="scatter_softmax")
    shares = (rows.values - gather_segments(_find_highest(rows)[0], rows.index)).exp()
    total, _ = scatter_rows(shares, rows.index, rows.num_segments)
    return rows.restore(shares / gather_segments(total, rows.index)).to(src.dtype)


def scatter_log_softmax(
    src: Tensor, index: Tensor, dim: int = -1, eps: float = 1e-12, dim_size: int | None = None
) -> Tensor:
    """Compute the logarithm of `scatter_softmax`; `eps` is added to the sum of exponentials, which is at least 1."""
    rows = _arrange(src, index, dim, None, dim_size, name="scatter_log_softmax")
    lower = rows.values - gather_segments(_find_highest(rows)[0], rows.index)
    total, _ = scatter_rows(lower.exp(), rows.index, rows.num_segments)
    return rows.restore(lower - gather_segments((total + eps).log(), rows.index)).to(src.dtype)


def scatter_logsumexp(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
    eps: float = 1e-12,
) -> Tensor:
    """Compute log(sum(exp(src))) over rows of equal `index` along `dim`: (..., dim_size, ...), and 0 without rows.

    `eps` is added to the sum of exp(src - highest), which is at least 1. `out`, if given, is one of the numbers of each
    sum, and gets the result. Raises ValueError for an index outside.
    """
    rows = _arrange(src, index, dim, out, dim_size, name="scatter_logsumexp")
    highest, row = _find_highest(rows)
    base = torch.where(highest.isinf(), 0, highest)  # inf - inf would be NaN
    total, _ = scatter_rows((rows.values - gather_segments(base, rows.index)).exp(), rows.index, rows.num_segments)
    result = rows.restore(torch.where(highest.isinf(), highest, (total + eps).log() + base))
    has_rows = rows.restore(row) < src.shape[rows.dim]
    if out is None:
        return torch.where(has_rows, result, 0).to(src.dtype)
    return out.copy_(torch.where(has_rows, torch.logaddexp(result, out.to(result.dtype)), out))


def _arrange(
    src: Tensor, index: Tensor, dim: int, out: Tensor | None, dim_size: int | None, *, name: str
) -> SegmentedRows:
    if not src.is_floating_point():
        raise ValueError(f"{name}: found {src.dtype}, expected floating-point numbers; give src.float()")
    return SegmentedRows.from_tensors(src, index, dim, out, dim_size)


def _find_highest(rows: SegmentedRows) -> tuple[Tensor, Tensor]:
    """Find the highest row of each segment (B, N, K), and its place, without gradients."""
    return scatter_extremes(rows.values.detach(), rows.index, rows.num_segments, is_highest=True)
