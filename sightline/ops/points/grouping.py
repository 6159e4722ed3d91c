"""Groups of points by index: rows of their neighbours, and checks of such an index."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from sightline.contract.errors import ConfigError
from sightline.ops.waits import is_on_host, is_recording, is_transformed, require_between


def scale_num_neighbours(count: int, *, reference_num_points: int | None, num_points: int) -> int:
    """Scale a number of neighbours from clouds of `reference_num_points` points to clouds of `num_points`.

    A denser sampling has proportionally more points within the same distance. A half is rounded up, and the result is
    at least one; `count` itself if the reference is None (any cloud).
    """
    return (
        count
        if reference_num_points is None
        else max(1, (2 * count * num_points + reference_num_points) // (2 * reference_num_points))
    )


def assert_meant_for(neighbours_at: int | None, *, num_neighbours: int) -> None:
    """Raise ConfigError if `num_neighbours` exceeds the number of points of the clouds it refers to."""
    if neighbours_at is not None and neighbours_at < num_neighbours:
        raise ConfigError(f"neighbours_at: found {neighbours_at}, expected at least num_neighbours={num_neighbours}")


def gather_points(values: Tensor, index: Tensor) -> Tensor:
    """Gather rows by index: `values` (B, N, C), `index` (B, M, K) int64 -> (B, M, K, C).

    Raises ValueError for an index of no row, such as the -1 of an empty ball. It is checked where that takes no wait:
    on the CPU, not in compiled graphs. On a GPU, -1 would be the last row, and a higher index stops the program.
    """
    if is_on_host(index) and not (torch.compiler.is_compiling() or is_recording() or is_transformed()):
        _assert_inside(index, values.shape[1])
    return take_points(values, index)


def take_points(values: Tensor, index: Tensor) -> Tensor:
    """Gather rows as `gather_points`, by an index (B, M, K) that an operator has made: nothing is checked or read."""
    sample_index = torch.arange(values.shape[0], device=values.device)[:, None, None]
    return values[sample_index, index]


class SortedIndex(NamedTuple):
    """An index of rows (E,) int64 as it is, its `rows` in rising order, and the `order` (E,) that sorts it stably."""

    original: Tensor
    rows: Tensor
    order: Tensor

    @classmethod
    def from_index(cls, index: Tensor) -> SortedIndex:
        """Sort an `index` (E,)."""
        return cls(index, *index.sort(stable=True))


def can_add_up(*values: Tensor) -> bool:
    """Return True if a gradient of `values` is wanted that no graph, export or transform of torch.func takes apart."""
    wants_gradient = torch.is_grad_enabled() and any(rows.requires_grad for rows in values)
    return wants_gradient and not (torch.compiler.is_compiling() or is_recording() or is_transformed())


def gather_rows(index: SortedIndex, *values: Tensor) -> list[Tensor]:
    """Gather rows of several tensors (N, C) by one index -> (E, C) each, where `can_add_up` is True.

    The gradient of a row is added up in the order of `index`, without sorting it again for each tensor, as a GPU does
    for `values[index]`.
    """
    first = torch.searchsorted(index.rows, torch.arange(len(values[0]) + 1, device=index.rows.device))
    return [_GatherRows.apply(rows, index, first) for rows in values]


class _GatherRows(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, index: SortedIndex, first: Tensor) -> Tensor:
        ctx.index, ctx.first = index, first
        return values[index.original]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return _AddUpRows.apply(gradients[0].contiguous(), ctx.index, ctx.first), None, None


class _AddUpRows(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, index: SortedIndex, first: Tensor) -> Tensor:
        ctx.index, ctx.first = index, first
        return functional.embedding_bag(index.order, values, first, mode="sum", include_last_offset=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return _GatherRows.apply(gradients[0], ctx.index, ctx.first), None, None


def assert_rows(index: Tensor, values: Tensor, *, num_queries: int) -> None:
    """Raise ValueError unless `index` (B, num_queries, K) contains rows of `values` (B, N, C).

    For compiled loops, which read and write wherever an index points.
    """
    num_samples, num_points = values.shape[:2]
    if index.shape[:-1] != (num_samples, num_queries) or index.shape[-1] == 0 or index.dtype != torch.int64:
        raise ValueError(
            f"index: found the shape {tuple(index.shape)} {index.dtype}, expected ({num_samples}, {num_queries}, K) "
            "torch.int64 with K >= 1; give the neighbours of every query in every sample"
        )
    _assert_inside(index, num_points)


def _assert_inside(index: Tensor, num_points: int) -> None:
    def make_error() -> ValueError:
        lowest, highest = index.aminmax()
        return ValueError(
            f"index: rows {int(lowest)}..{int(highest)} named in clouds of {num_points} points; give rows of these "
            "clouds"
        )

    require_between(index, 0, num_points - 1, make_error)


def edges_of_all(index: Tensor) -> Tensor:
    """List the neighbours `index` (M, K) as edges (2, M * K): rows 0 .. M - 1 above their neighbours."""
    row = torch.arange(index.shape[0], device=index.device)[:, None].expand_as(index)
    return torch.stack([row, index]).flatten(1)


def edges_of_rows(index: Tensor, is_valid: Tensor) -> Tensor:
    """List the valid neighbours `index` (M, K) as edges (2, E), as above; their number E is read."""
    row, slot = is_valid.nonzero(as_tuple=True)
    return torch.stack([row, index[row, slot]])


def mark_first_others(index: Tensor, is_valid: Tensor, count: int) -> Tensor:
    """Mark (M, K) the first `count` valid neighbours `index` of each row that are not the row itself."""
    is_other = is_valid & (index != torch.arange(index.shape[0], device=index.device)[:, None])
    return is_other & (is_other.cumsum(dim=1) <= count)


def take_first_others(index: Tensor, count: int) -> Tensor:
    """Take (M, count) the first neighbours `index` (M, K) of each row that are not the row itself; at most one is."""
    row, slot = torch.arange(index.shape[0], device=index.device), torch.arange(count, device=index.device)
    is_at_or_before = (index == row[:, None]).cumsum(dim=1)[:, :count] > 0
    return index.gather(1, slot + is_at_or_before.long())
