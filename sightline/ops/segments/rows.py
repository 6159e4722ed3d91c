"""Rows and the segments that they belong to: the form in which operators reduce them.

`values` (B, E, K) are E rows of K channels in each of B samples. `index` (I, E) int64 is the segment of each row, in
the layouts `any` and `sorted`. In the layout `bounds` it is (I, N + 1): where each segment begins, and the last one
ends. Each row of `index` holds for B / I samples, one after another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sightline.ops.dtypes import widen_labels
from sightline.ops.waits import is_on_host, is_recording, require

Layout = Literal["any", "sorted", "bounds"]


@dataclass(frozen=True, slots=True)
class SegmentedRows:
    """Rows of a tensor `src` along `dim`, and their segments; half precision is widened to float32."""

    src: Tensor
    dim: int
    values: Tensor
    index: Tensor
    num_segments: int
    layout: Layout = "any"
    is_moved: bool = False

    @classmethod
    def from_bounds(cls, src: Tensor, bounds: Tensor) -> SegmentedRows:
        """Arrange `src` (X, E, ...) by `bounds` (X, N + 1), or (1, N + 1), or (N + 1,) if there is no X."""
        dim, bounds = bounds.ndim - 1, widen_labels(bounds, "indptr")
        lead, own_lead, rest = src.shape[:dim], bounds.shape[:-1], src.shape[dim + 1 :]
        own_lead = lead if any(size != 1 for size in own_lead) else own_lead
        index = bounds.expand(*own_lead, -1).reshape(math.prod(own_lead), bounds.shape[-1])
        values = _widen(src).reshape(math.prod(lead), src.shape[dim], math.prod(rest))
        return cls(src, dim, values, index, bounds.shape[-1] - 1, "bounds")

    @classmethod
    def from_tensors(
        cls,
        src: Tensor,
        index: Tensor,
        dim: int,
        out: Tensor | None,
        dim_size: int | None,
        layout: Layout = "any",
    ) -> SegmentedRows:
        """Arrange `src` (...) by an `index` of any shape that torch_scatter spreads over it.

        Without `out` and `dim_size`, the largest index is read, which waits for a GPU.
        """
        index = widen_labels(index, "index")
        dim = _find_dim(src, dim)
        index = _align(index, src, dim)
        is_moved = index.ndim > dim + 1
        wide = _widen(src)
        if is_moved:
            wide, index = wide.movedim(dim, -1), index.expand(src.shape).movedim(dim, -1)
        lead, num_rows = wide.shape[: index.ndim - 1], src.shape[dim]
        own_lead = lead if any(size != 1 for size in index.shape[:-1]) else index.shape[:-1]
        index = index.expand(*own_lead, num_rows).reshape(math.prod(own_lead), num_rows)
        values = wide.reshape(math.prod(lead), num_rows, math.prod(wide.shape[len(lead) + 1 :]))
        return cls(src, dim, values, index, _count_segments(src, index, dim, out, dim_size), layout, is_moved)

    def restore(self, result: Tensor) -> Tensor:
        """Arrange (B, X, K) as `src`, with X in place of its dimension `dim`."""
        shape = [*self.src.shape]
        if self.is_moved:
            shape.append(shape.pop(self.dim))
        shape[-1 if self.is_moved else self.dim] = result.shape[1]
        result = result.reshape(shape)
        return result.movedim(-1, self.dim) if self.is_moved else result

    def spread(self, of_segments: Tensor) -> Tensor:
        """Repeat numbers of segments (I, N) for each sample and channel: (B, N, K)."""
        return repeat_index(of_segments, self.values.shape[0])[:, :, None].expand(-1, -1, self.values.shape[2])


def _widen(src: Tensor) -> Tensor:
    return src.float() if src.dtype in (torch.float16, torch.bfloat16) else src


def _find_dim(src: Tensor, dim: int) -> int:
    if not -src.ndim <= dim < src.ndim:
        raise ValueError(f"dim: found {dim}, expected one of the dimensions of src {tuple(src.shape)}")
    return dim % src.ndim


def _align(index: Tensor, src: Tensor, dim: int) -> Tensor:
    """Align an index with the first dimensions of `src`, and leave out the last ones along which it is the same.

    A vector is along `dim`. Raises ValueError if it cannot be spread over `src`.
    """
    if index.ndim == 1:
        index = index[(None,) * dim]
    sizes = zip(index.shape, src.shape, strict=False)
    if index.ndim > src.ndim or index.ndim <= dim or any(size not in (1, whole) for size, whole in sizes):
        raise ValueError(
            f"index: found the shape {tuple(index.shape)}, expected that of src {tuple(src.shape)}, its first "
            f"dimensions up to {dim}, or ({src.shape[dim]},); a dimension may be 1"
        )
    while index.ndim > dim + 1 and (index.shape[-1] == 1 or index.stride(-1) == 0):
        index = index.select(-1, 0) if index.shape[-1] else index.new_zeros(index.shape[:-1])
    return index


def _count_segments(src: Tensor, index: Tensor, dim: int, out: Tensor | None, dim_size: int | None) -> int:
    if out is not None:
        assert_out(out, (*src.shape[:dim], out.shape[dim] if dim < out.ndim else 0, *src.shape[dim + 1 :]))
        return out.shape[dim]
    if dim_size is not None:
        if dim_size < 0:
            raise ValueError(f"dim_size: found {dim_size}, expected a number of segments")
        return dim_size
    return max(0, int(index.max()) + 1) if index.numel() else 0


def assert_out(out: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `out` has the `shape` of the result, which torch would otherwise spread over it."""
    if out.shape != shape:
        raise ValueError(f"out: found the shape {tuple(out.shape)}, expected {tuple(shape)}")


def repeat_index(index: Tensor, num_samples: int) -> Tensor:
    """Repeat the rows of `index` (I, ...), one after another, for `num_samples` samples."""
    return index if len(index) == num_samples else index.repeat_interleave(num_samples // max(1, len(index)), dim=0)


def number_segments(index: Tensor, num_samples: int, num_segments: int) -> Tensor:
    """Give each row (num_samples * E,) the number of its segment among those of all samples; the last + 1 for none."""
    segment = repeat_index(index, num_samples)
    numbered = segment + torch.arange(num_samples, device=index.device)[:, None] * num_segments
    if not is_on_host(index):  # where a segment outside is refused later
        numbered = numbered.where((segment >= 0) & (segment < num_segments), num_samples * num_segments)
    return numbered.flatten()


def list_segments(bounds: Tensor, num_rows: int) -> Tensor:
    """List the segment of each row (I, E) by `bounds` (I, N + 1)."""
    if is_recording():  # ONNX has neither such a maximum nor repeats by values
        row = torch.arange(num_rows, device=bounds.device)
        return (bounds[:, 1:-1, None] <= row).sum(dim=1)
    inside = bounds.clamp(0, num_rows).cummax(dim=1).values  # bounds that do not fit may be refused later
    segment = torch.arange(bounds.shape[1] - 1, device=bounds.device).repeat(len(bounds))
    lengths, total = inside.diff().flatten(), len(bounds) * num_rows
    return segment.repeat_interleave(lengths, output_size=total).reshape(len(bounds), num_rows)


def check_bounds(bounds: Tensor, num_rows: int) -> None:
    """Raise ValueError, or defer it, unless `bounds` (I, N + 1) rise from 0 to the number of rows."""
    holds = (bounds[:, 0] == 0) & (bounds[:, -1] == num_rows) & (bounds[:, 1:] >= bounds[:, :-1]).all(dim=1)
    require(
        holds.all(),
        lambda: ValueError(
            f"indptr: found {bounds.flatten()[:8].tolist()} ... {int(bounds.flatten()[-1])} for {num_rows} rows; "
            "bounds start at 0, never fall, and end at the number of rows"
        ),
    )


def check_segments(index: Tensor, num_segments: int, layout: str = "any", num_rows: int = 0) -> None:
    """Raise ValueError, or defer it, for an `index` outside of the segments, or one that is not in the layout."""
    if layout == "bounds":
        check_bounds(index, num_rows)
    elif index.numel():
        _check_numbers(index, num_segments, layout)


def _check_numbers(index: Tensor, num_segments: int, layout: str) -> None:
    lowest, highest = index.aminmax()
    require(
        (lowest >= 0) & (highest < num_segments),
        lambda: ValueError(
            f"index: segments {int(lowest)}..{int(highest)} named, of {num_segments}; they are 0 to "
            f"{num_segments - 1}: raise dim_size, or leave out the rows of no segment"
        ),
    )
    if layout == "sorted":
        require((index[:, 1:] >= index[:, :-1]).all(), lambda: _make_falling_error(index))


def _make_falling_error(index: Tensor) -> ValueError:
    sample, row = (index.diff() < 0).nonzero()[0].tolist()
    pair = index[sample, row : row + 2].tolist()
    return ValueError(
        f"index: falls from {pair[0]} to {pair[1]} after row {row}, expected segments in rising order; sort the "
        "rows, or call scatter, which takes any order"
    )


def sort_rows(index: Tensor, num_segments: int, layout: str, num_rows: int) -> tuple[Tensor | None, Tensor]:
    """Sort rows by segment: rows (I, E), or None if they are sorted, and bounds (I, N + 1) inside of the rows."""
    if layout == "bounds":
        return None, index.clamp(0, num_rows).contiguous()
    rising, order = (index.contiguous(), None) if layout == "sorted" else index.sort(stable=True)
    bounds = torch.arange(num_segments + 1, device=index.device).expand(len(index), -1).contiguous()
    return order, torch.searchsorted(rising, bounds)
