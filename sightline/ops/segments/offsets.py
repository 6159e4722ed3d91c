"""Segments of packed rows: clouds of any sizes one after another, with `offsets` (S+1,) int64 from 0 to all rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sightline.ops.waits import has_values, is_on_host, is_recording, knows_list, read_list, require


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive segments of one size: `rows` of theirs, and `other_rows` of what belongs to them."""

    segments: slice
    rows: slice
    other_rows: slice
    count: int
    size: int
    other_size: int


def list_runs(sizes: Sequence[int], other_sizes: Sequence[int]) -> Iterator[Run]:
    """Iterate over runs of segments of equal sizes, both of rows and of others; those without others are left out.

    Equal clouds, such as a stacked batch, go through dense functions at once.
    """
    segment = row = other = 0
    for (size, other_size), group in itertools.groupby(zip(sizes, other_sizes, strict=True)):
        count = len(list(group))
        ends = segment + count, row + count * size, other + count * other_size
        if other_size:
            slices = slice(segment, ends[0]), slice(row, ends[1]), slice(other, ends[2])
            yield Run(*slices, count, size, other_size)
        segment, row, other = ends


def first_rows(run: Run, device: torch.device) -> Tensor:
    """Return the first row (count,) of each segment of a run."""
    return run.rows.start + run.size * torch.arange(run.count, device=device)


def read_sizes(rows: Tensor, offsets: Tensor, *, name: str) -> list[int]:
    """Read the sizes of the segments of `rows` (P, ...); raise ValueError for offsets that do not fit.

    A graph knows those that the host sent, of `send_list`.
    """
    if isinstance(offsets, Tensor) and not knows_list(offsets):
        _leave_graph(f"{name}: a graph cannot read the sizes of segments; {_KNOWN_SIZES}")
    bounds = read_list(offsets)
    if bounds[:1] != [0] or bounds[-1] != rows.shape[0] or not _never_fall(bounds):
        raise ValueError(
            f"{name} {bounds[:8]} of {rows.shape[0]} rows; they start at 0, never fall, and end at the number of rows "
            "(cumulative counts without the leading 0 are another convention)"
        )
    return [last - first for first, last in itertools.pairwise(bounds)]


_KNOWN_SIZES = "give numbers (`ptr` as a list, `max_size`), or leave this call out: torch.compiler.disable"


def _leave_graph(message: str) -> None:
    """Break a compiled graph, which torch refuses with `fullgraph`, and refuse an exported one."""
    if is_recording():
        raise ValueError(message)
    if torch.compiler.is_compiling():
        torch._dynamo.graph_break(msg=message)


def _never_fall(bounds: list[int]) -> bool:
    return all(first <= last for first, last in itertools.pairwise(bounds))


def read_both_sizes(
    points: Tensor,
    offsets: Tensor,
    queries: Tensor | None,
    query_offsets: Tensor | None,
    *,
    name: str = "query",
    may_lack_points: bool = False,
) -> tuple[list[int], list[int]]:
    """Read the sizes of the segments of points, and of others beside them, by default the points themselves.

    Raises ValueError if they do not go together: for queries of a segment without points, unless it `may_lack_points`.
    """
    sizes = read_sizes(points, offsets, name="offsets")
    if queries is None or query_offsets is None:
        return sizes, sizes
    counts = read_sizes(queries, query_offsets, name=f"{name} offsets")
    if len(sizes) != len(counts):
        raise ValueError(f"{len(sizes)} segments of points, {len(counts)} of queries; give both the same segments")
    for segment, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        if count and not size and not may_lack_points:
            raise ValueError(f"segment {segment}: {count} queries and no points; drop the segment")
    return sizes, counts


def assert_packed(rows: Tensor, offsets: Tensor, *, name: str) -> None:
    """Raise ValueError unless `rows` are (rows, channels) and their offsets a tensor (segments + 1,) of int64."""
    if rows.ndim != 2:
        raise ValueError(f"{name}: found the shape {tuple(rows.shape)}, expected (rows, channels) of all clouds")
    if not isinstance(offsets, Tensor):
        raise ValueError(f"found a {type(offsets).__name__} of offsets or numbers; give a tensor: torch.tensor(...)")
    if offsets.ndim != 1:
        raise ValueError(f"offsets of {name}: found the shape {tuple(offsets.shape)}, expected (clouds + 1,)")


def locate_row(row: int, offsets: Tensor) -> tuple[int, int]:
    """Return the segment of a row, and its place there."""
    segment = int((offsets <= row).sum()) - 1
    return segment, row - int(offsets[segment])


def pack(padded: Tensor, *, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Pack the rows of `padded` (B, N, ...) selected by `mask` (B, N), in order; returns rows and offsets (B+1,).

    The number of rows is read from the mask: a GPU waits for it, and a graph has a size that only values decide.
    """
    offsets = torch.nn.functional.pad(mask.sum(dim=1).cumsum(0), (1, 0))
    return padded[mask], offsets


def unpack(rows: Tensor, *, offsets: Tensor, max_size: int | None = None) -> tuple[Tensor, Tensor]:
    """Pad the segments of `rows` (P, ...) with zeros to `max_size` rows, by default those of the longest.

    (S, max_size, ...), and the mask (S, max_size) of actual rows. Without `max_size` the offsets are read, unless the
    host has sent them; a graph needs it. Raises ValueError for offsets that do not fit and for a longer segment: of
    offsets on a GPU with `max_size`, torch stops the program.
    """
    can_read = not isinstance(offsets, Tensor) or (is_on_host(offsets) and has_values(offsets))
    if max_size is None or can_read:
        longest = max(read_sizes(rows, offsets, name="offsets"), default=0)
        max_size = longest if max_size is None else max_size
        if longest > max_size:
            raise ValueError(
                f"max_size: found {max_size}, expected at least {longest}, the size of the longest segment"
            )
    num_rows, num_segments = rows.shape[0], offsets.shape[0] - 1
    segment = offsets_to_batch(offsets, num_rows)
    position = torch.arange(num_rows, device=rows.device) - offsets[segment]
    slot = torch.where(position < max_size, segment * max_size + position, num_segments * max_size)  # no slot: refused
    padded = rows.new_zeros((num_segments * max_size, *rows.shape[1:])).index_copy(0, slot, rows)
    mask = torch.arange(max_size, device=rows.device) < offsets.diff()[:, None]
    return padded.unflatten(0, (num_segments, max_size)), mask


def batch_to_offsets(batch: Tensor, num_segments: int) -> Tensor:
    """Convert a batch vector (P,), the segment of each row in rising order, to offsets (num_segments + 1,)."""
    segment = torch.arange(num_segments + 1, device=batch.device, dtype=batch.dtype)
    if is_recording():  # ONNX has no search
        return (batch < segment[:, None]).sum(dim=1)
    return torch.searchsorted(batch, segment)


def offsets_to_batch(offsets: Tensor, num_rows: int) -> Tensor:
    """Convert offsets (S+1,) to a batch vector (num_rows,), the segment of each row, int64."""
    row = torch.arange(num_rows, device=offsets.device)
    if is_recording():
        return (offsets[:, None] <= row).sum(dim=0) - 1
    return torch.searchsorted(offsets.contiguous(), row, right=True) - 1


def offsets_of_batches(
    points: Tensor, batch: Tensor | None, queries: Tensor, query_batch: Tensor | None, num_segments: int | None = None
) -> tuple[Tensor, Tensor]:
    """Convert the batch vectors of points and of queries, None for one segment, to offsets (S+1,) of the same segments.

    Raises ValueError for a vector of other rows, and one that falls or names a segment beyond `num_segments`. These
    are read if they are not given.
    """
    batches = [
        torch.zeros(rows.shape[0], dtype=torch.int64, device=rows.device) if segments is None else segments
        for rows, segments in ((points, batch), (queries, query_batch))
    ]
    last = [segments[-1:].long() for segments in batches]
    _require_rising((points, queries), batches, last, num_segments)
    if num_segments is None:
        highest: Any = torch.cat([*last, last[0].new_full((1,), -1)]).max().item()  # `int` would end an export
        num_segments = highest + 1
        torch._check(num_segments >= 0)
    assert num_segments is not None
    return batch_to_offsets(batches[0], num_segments), batch_to_offsets(batches[1], num_segments)


def _require_rising(
    rows: Sequence[Tensor], batches: Sequence[Tensor], last: Sequence[Tensor], num_segments: int | None
) -> None:
    limit = "" if num_segments is None else f", below batch_size={num_segments}"

    def make_error(number: int) -> ValueError:
        return ValueError(
            f"batch {tuple(batches[number].shape)} of {rows[number].shape[0]} rows; give the segment of each, in "
            f"rising order{limit}"
        )

    for number, (values, segments) in enumerate(zip(rows, batches, strict=True)):
        if segments.shape != values.shape[:1]:
            raise make_error(number)
    holds = torch.stack([(segments.diff() >= 0).all() for segments in batches])
    if num_segments is not None:
        holds = holds & torch.stack([(end < num_segments).all() for end in last])
    require(holds, lambda: make_error(int(holds[0])))
