"""Reductions of rows in the order of their segments, by the names and with the calls of torch_scatter.

The functions `*_coo` take the segment of each row, which must rise; those of `*_csr` where each segment begins,
`indptr`, which rises from 0 to the number of rows. Both reduce along the last dimension of what they get: its other
dimensions are the first of `src`, or 1. Otherwise they are as in `scatter.py`, but that `*_csr` writes into `out`
without adding to it. In torch_scatter an `indptr` may leave out rows, and neither is checked.
Source: the documentation of torch_scatter 2.1.
"""

from __future__ import annotations

import math

from torch import Tensor

from sightline.ops.dtypes import widen_labels
from sightline.ops.segments.rows import SegmentedRows, assert_out, check_bounds, list_segments
from sightline.ops.segments.scatter import Reduction, add_up, average, find_extremes
from sightline.ops.segments.sums import gather_segments


def segment_coo(
    src: Tensor,
    index: Tensor,
    out: Tensor | None = None,
    dim_size: int | None = None,
    reduce: Reduction = "sum",
) -> Tensor:
    """Reduce rows of equal `index`, which rises along its last dimension: as `scatter`, without a sort on GPUs.

    `src` (X, E, ...), `index` (X, E), (1, E), or (E,) if there is no X. Raises ValueError for an index that falls.
    """
    return _reduce(_of_index(src, index, out, dim_size), out, reduce)


def segment_sum_coo(src: Tensor, index: Tensor, out: Tensor | None = None, dim_size: int | None = None) -> Tensor:
    """Add up rows of equal `index`, in rising order, as `segment_coo`."""
    return segment_coo(src, index, out, dim_size, "sum")


def segment_mean_coo(src: Tensor, index: Tensor, out: Tensor | None = None, dim_size: int | None = None) -> Tensor:
    """Average rows of equal `index`, in rising order, as `segment_coo`."""
    return segment_coo(src, index, out, dim_size, "mean")


def segment_max_coo(
    src: Tensor, index: Tensor, out: Tensor | None = None, dim_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Find the highest row of equal `index`, in rising order: values and places, as `scatter_max`."""
    return find_extremes(_of_index(src, index, out, dim_size), out, is_highest=True)


def segment_min_coo(
    src: Tensor, index: Tensor, out: Tensor | None = None, dim_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Find the lowest row of equal `index`, in rising order: values and places, as `scatter_min`."""
    return find_extremes(_of_index(src, index, out, dim_size), out, is_highest=False)


def segment_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None, reduce: Reduction = "sum") -> Tensor:
    """Reduce rows indptr[i] to indptr[i + 1] - 1 of `src` (X, E, ...): (X, S, ...), which `out` gets.

    `indptr` (X, S + 1), (1, S + 1), or (S + 1,) if there is no X. Raises ValueError for one that does not begin at 0,
    falls, or does not end at E.
    """
    return _write(_reduce(_of_bounds(src, indptr), None, reduce), out)


def segment_sum_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None) -> Tensor:
    """Add up the rows of each segment, as `segment_csr`."""
    return segment_csr(src, indptr, out, "sum")


def segment_mean_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None) -> Tensor:
    """Average the rows of each segment, as `segment_csr`."""
    return segment_csr(src, indptr, out, "mean")


def segment_max_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Find the highest row of each segment, as `segment_csr`: values and places, as `scatter_max`."""
    return _find_csr(src, indptr, out, is_highest=True)


def segment_min_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Find the lowest row of each segment, as `segment_csr`: values and places, as `scatter_min`."""
    return _find_csr(src, indptr, out, is_highest=False)


def gather_coo(src: Tensor, index: Tensor, out: Tensor | None = None) -> Tensor:
    """Repeat the numbers of segments for their rows: `src` (X, S, ...), `index` (X, E) -> (X, E, ...), into `out`.

    The index may be in any order. Gradients are summed in the order of the rows. Raises ValueError for one outside.
    """
    index = widen_labels(index, "index")
    _assert_leading(index, src, name="index")
    lead, num_rows = src.shape[: index.ndim - 1], index.shape[-1]
    own_lead = lead if any(size != 1 for size in index.shape[:-1]) else index.shape[:-1]
    rest = src.shape[index.ndim :]
    values = src.reshape(math.prod(lead), src.shape[index.ndim - 1], math.prod(rest))
    rows = gather_segments(values, index.expand(*own_lead, num_rows).reshape(math.prod(own_lead), num_rows))
    return _write(rows.reshape(*lead, num_rows, *rest), out)


def gather_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None) -> Tensor:
    """Repeat the numbers of segment i for rows indptr[i] to indptr[i + 1] - 1: `src` (X, S, ...) -> (X, E, ...).

    Without `out`, the last number of `indptr` is read, which waits for a GPU. Raises ValueError as `segment_csr`.
    """
    _assert_leading(indptr, src, name="indptr")
    dim = indptr.ndim - 1
    if src.shape[dim] != indptr.shape[-1] - 1:
        raise ValueError(
            f"indptr: {indptr.shape[-1]} bounds for {src.shape[dim]} segments of src {tuple(src.shape)}, expected "
            f"{src.shape[dim] + 1}"
        )
    num_rows = int(indptr[..., -1].max()) if out is None else out.shape[dim]
    bounds = widen_labels(indptr, "indptr").reshape(-1, indptr.shape[-1])
    check_bounds(bounds, num_rows)
    return gather_coo(src, list_segments(bounds, num_rows).reshape(*indptr.shape[:-1], num_rows), out)


# --- Arranged rows ----------------------------------------------------------------------------------------------------


def _of_index(src: Tensor, index: Tensor, out: Tensor | None, dim_size: int | None) -> SegmentedRows:
    _assert_leading(index, src, name="index")
    return SegmentedRows.from_tensors(src, index, index.ndim - 1, out, dim_size, "sorted")


def _of_bounds(src: Tensor, indptr: Tensor) -> SegmentedRows:
    _assert_leading(indptr, src, name="indptr")
    return SegmentedRows.from_bounds(src, indptr)


def _assert_leading(of_rows: Tensor, src: Tensor, *, name: str) -> None:
    lead = zip(of_rows.shape[:-1], src.shape, strict=False)
    if not 1 <= of_rows.ndim <= src.ndim or any(size not in (1, whole) for size, whole in lead):
        raise ValueError(
            f"{name}: found the shape {tuple(of_rows.shape)} for src {tuple(src.shape)}; give the first dimensions of "
            "src, or 1 in their place, and rows along the last one"
        )
    if name == "indptr" and of_rows.shape[-1] == 0:
        raise ValueError("indptr: found no bounds, expected one more than segments, from 0")


def _reduce(rows: SegmentedRows, out: Tensor | None, reduce: Reduction) -> Tensor:
    if reduce in ("min", "max"):
        return find_extremes(rows, out, is_highest=reduce == "max")[0]
    if reduce not in ("sum", "add", "mean"):
        raise ValueError(f"reduce: found {reduce!r}, expected 'sum', 'add', 'mean', 'min' or 'max'")
    return (average if reduce == "mean" else add_up)(rows, out)


def _find_csr(src: Tensor, indptr: Tensor, out: Tensor | None, *, is_highest: bool) -> tuple[Tensor, Tensor]:
    best, row = find_extremes(_of_bounds(src, indptr), is_highest=is_highest)
    return _write(best, out), row


def _write(result: Tensor, out: Tensor | None) -> Tensor:
    if out is None:
        return result
    assert_out(out, result.shape)
    return out.copy_(result)
