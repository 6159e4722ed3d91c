"""Segments of packed rows: clouds of any sizes one after another, with `offsets` (S+1,) int64 from 0 to all rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sightline.ops.waits import read_list


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
    """Read the sizes of the segments of `rows` (P, ...); raise ValueError for offsets that do not fit."""
    bounds = read_list(offsets)
    if bounds[:1] != [0] or bounds[-1] != rows.shape[0] or not _never_fall(bounds):
        raise ValueError(
            f"{name} {bounds[:8]} of {rows.shape[0]} rows; they start at 0, never fall, and end at the number of rows "
            "(cumulative counts without the leading 0 are another convention)"
        )
    return [last - first for first, last in itertools.pairwise(bounds)]


def _never_fall(bounds: list[int]) -> bool:
    return all(first <= last for first, last in itertools.pairwise(bounds))


def read_both_sizes(
    points: Tensor, offsets: Tensor, queries: Tensor | None, query_offsets: Tensor | None, *, name: str = "query"
) -> tuple[list[int], list[int]]:
    """Read the sizes of the segments of points, and of others beside them, by default the points themselves.

    Raises ValueError if they do not go together.
    """
    sizes = read_sizes(points, offsets, name="offsets")
    if queries is None or query_offsets is None:
        return sizes, sizes
    counts = read_sizes(queries, query_offsets, name=f"{name} offsets")
    if len(sizes) != len(counts):
        raise ValueError(f"{len(sizes)} segments of points, {len(counts)} of queries; give both the same segments")
    for segment, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        if count and not size:
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
    """Pack the rows of `padded` (B, N, ...) selected by `mask` (B, N), in order; returns rows and offsets (B+1,)."""
    offsets = torch.nn.functional.pad(mask.sum(dim=1).cumsum(0), (1, 0))
    return padded[mask], offsets


def unpack(rows: Tensor, *, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Pad the segments of `rows` (P, ...) with zeros to the longest.

    (S, N, ...), and the mask (S, N) of actual rows. Raises ValueError for offsets that do not fit.
    """
    longest = max(read_sizes(rows, offsets, name="offsets"), default=0)
    mask = torch.arange(longest, device=rows.device) < offsets.diff()[:, None]
    padded = rows.new_zeros((*mask.shape, *rows.shape[1:]))
    padded[mask] = rows
    return padded, mask


def batch_to_offsets(batch: Tensor, num_segments: int) -> Tensor:
    """Convert a batch vector (P,), the segment of each row in rising order, to offsets (num_segments + 1,)."""
    return torch.searchsorted(batch, torch.arange(num_segments + 1, device=batch.device, dtype=batch.dtype))


def offsets_to_batch(offsets: Tensor, num_rows: int) -> Tensor:
    """Convert offsets (S+1,) to a batch vector (num_rows,), the segment of each row, int64."""
    return torch.searchsorted(offsets, torch.arange(num_rows, device=offsets.device), right=True) - 1


def offsets_of_batches(
    points: Tensor, batch: Tensor | None, queries: Tensor, query_batch: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Convert the batch vectors of points and of queries, None for one segment, to offsets (S+1,) of the same segments.

    Raises ValueError for a vector of other rows, or one that falls. Waits for the device.
    """
    batches = [
        torch.zeros(len(rows), dtype=torch.int64, device=points.device) if segments is None else segments
        for rows, segments in ((points, batch), (queries, query_batch))
    ]
    for rows, segments in zip((points, queries), batches, strict=True):
        if segments.shape != rows.shape[:1] or bool((segments.diff() < 0).any()):
            raise ValueError(
                f"batch {tuple(segments.shape)} of {len(rows)} rows; give the segment of each, in rising order"
            )
    num_segments = max((int(segments[-1]) + 1 for segments in batches if len(segments)), default=0)
    return batch_to_offsets(batches[0], num_segments), batch_to_offsets(batches[1], num_segments)
