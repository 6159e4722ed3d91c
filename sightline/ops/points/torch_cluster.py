"""Functions of points with `batch` vectors by the names and arguments of torch-cluster.

Without a batch vector nothing is read but how many edges there are, where values decide that: of `radius` and
`radius_graph`. With one, the number of edges and the sizes of its segments are read, and without `batch_size` their
number. Rows of a batch vector rise, which is checked. What differs from torch-cluster: edges are in order of the row
that is asked for, then of distance in `knn` and of index in `radius`, on every device; where `radius` finds too many,
the first by index count; nothing is drawn unless asked for; and queries of `knn` and `nearest` in a segment without
points are refused.
Source: documentation of torch_cluster, version 1.6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from sightline.ops.points.ball_query import mark_found, packed_points_in_balls, points_in_balls
from sightline.ops.points.farthest_points import draw_starts, farthest_points, packed_farthest_points
from sightline.ops.points.grouping import edges_of_all, edges_of_rows, mark_first_others, take_first_others
from sightline.ops.points.neighbours import nearest_neighbours, packed_nearest_neighbours
from sightline.ops.segments.offsets import offsets_of_batches, read_sizes
from sightline.ops.waits import is_exporting, send_list

Flow = Literal["source_to_target", "target_to_source"]


def knn(
    x: Tensor,
    y: Tensor,
    k: int,
    batch_x: Tensor | None = None,
    batch_y: Tensor | None = None,
    cosine: bool = False,
    num_workers: int = 1,
    batch_size: int | None = None,
) -> Tensor:
    """Find the k nearest rows of `x` (N, C) to each of `y` (M, C): edges (2, E), rows of y above those of x.

    In order of y, then of (distance, index); only within a segment of the batch vectors (N,) and (M,), in rising order.
    With `cosine`, the nearest are those of the smallest angle. `num_workers` changes nothing. Without batch vectors no
    value is read: E is M * min(k, N). `row, column = knn(scan, centres, 8)`.
    Raises ValueError as `packed_nearest_neighbours`, and with `cosine` for a row of zeros, which has no angle.
    Source: torch_cluster.knn.
    """
    x, y = (_to_directions(_to_rows(rows)) if cosine else _to_rows(rows) for rows in (x, y))
    if batch_x is None and batch_y is None:
        return edges_of_all(_search(x, y, k))
    offsets, query_offsets = offsets_of_batches(x, batch_x, y, batch_y, batch_size)
    near = packed_nearest_neighbours(x, k, offsets=offsets, queries=y, query_offsets=query_offsets)
    return edges_of_rows(near.index, near.is_valid)


def knn_graph(
    x: Tensor,
    k: int,
    batch: Tensor | None = None,
    loop: bool = False,
    flow: Flow = "source_to_target",
    cosine: bool = False,
    num_workers: int = 1,
    batch_size: int | None = None,
) -> Tensor:
    """Connect the k nearest rows of `x` (N, C) to each: edges (2, E), neighbours above the rows they are next to.

    With `loop`, a row is its own neighbour, one of the k; with `flow="target_to_source"`, the rows are above. Otherwise
    as `knn`, which says what is read. `source, target = knn_graph(points, 6)`.
    Source: torch_cluster.knn_graph.
    """
    _assert_flow(flow)
    x = _to_directions(_to_rows(x)) if cosine else _to_rows(x)
    count = k if loop else k + 1
    if batch is None:
        index = _search(x, x, count)
        edges = edges_of_all(index if loop else take_first_others(index, min(k, max(x.shape[0] - 1, 0))))
    else:
        offsets, _ = offsets_of_batches(x, batch, x, batch, batch_size)
        near = packed_nearest_neighbours(x, count, offsets=offsets)
        is_taken = near.is_valid if loop else mark_first_others(near.index, near.is_valid, k)
        edges = edges_of_rows(near.index, is_taken)
    return edges.flip(0) if flow == "source_to_target" else edges


def radius(
    x: Tensor,
    y: Tensor,
    r: float,
    batch_x: Tensor | None = None,
    batch_y: Tensor | None = None,
    max_num_neighbors: int = 32,
    num_workers: int = 1,
    batch_size: int | None = None,
    ignore_same_index: bool = False,
) -> Tensor:
    """Find the first rows of `x` (N, C) nearer than `r` to each of `y` (M, C): edges (2, E), rows of y above those.

    At most `max_num_neighbors` of each, the first by index, with `ignore_same_index` without the row of the same index;
    only within a segment of the batch vectors (N,) and (M,), in rising order. `num_workers` changes nothing. The number
    of edges E is read. `row, column = radius(scan, centres, 0.2)`. Raises ValueError as `packed_points_in_balls`.
    Source: torch_cluster.radius.
    """
    x, y = _to_rows(x), _to_rows(y)
    count = max_num_neighbors + 1 if ignore_same_index else max_num_neighbors
    index = _find_in_balls(x, y, r, count, batch_x, batch_y, batch_size)
    is_found = mark_found(index)
    return edges_of_rows(
        index, mark_first_others(index, is_found, max_num_neighbors) if ignore_same_index else is_found
    )


def radius_graph(
    x: Tensor,
    r: float,
    batch: Tensor | None = None,
    loop: bool = False,
    max_num_neighbors: int = 32,
    flow: Flow = "source_to_target",
    num_workers: int = 1,
    batch_size: int | None = None,
) -> Tensor:
    """Connect the rows of `x` (N, C) nearer than `r` to each: edges (2, E), neighbours above the rows they are next to.

    With `loop`, a row is its own neighbour; with `flow="target_to_source"`, the rows are above. The number of edges is
    read. Otherwise as `radius`. `source, target = radius_graph(points, 0.1)`.
    Source: torch_cluster.radius_graph.
    """
    _assert_flow(flow)
    edges = radius(x, x, r, batch, batch, max_num_neighbors, num_workers, batch_size, ignore_same_index=not loop)
    return edges.flip(0) if flow == "source_to_target" else edges


def nearest(x: Tensor, y: Tensor, batch_x: Tensor | None = None, batch_y: Tensor | None = None) -> Tensor:
    """Find the nearest row of `y` (M, C) to each of `x` (N, C): rows (N,) int64, of equally near ones the first.

    Only within a segment of the batch vectors (N,) and (M,), in rising order, whose number of segments is read.
    `cluster = nearest(scan, centres)`.
    Raises ValueError as `packed_nearest_neighbours`.
    Source: torch_cluster.nearest.
    """
    x, y = _to_rows(x), _to_rows(y)
    if batch_x is None and batch_y is None:
        return nearest_neighbours(y[None], 1, queries=x[None])[0, :, 0]
    offsets, query_offsets = offsets_of_batches(y, batch_y, x, batch_x)
    return packed_nearest_neighbours(y, 1, offsets=offsets, queries=x, query_offsets=query_offsets).index[:, 0]


def fps(
    src: Tensor,
    batch: Tensor | None = None,
    ratio: float | Tensor | None = 0.5,
    random_start: bool = False,
    batch_size: int | None = None,
    ptr: Tensor | Sequence[int] | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample ceil(ratio * n) farthest rows of each of the segments of `src` (N, C): rows (M,) int64.

    `batch` (N,) is the segment of each row, in rising order, or `ptr` (S+1,) are the offsets of segments. The first
    sample is a segment's first row, or with `random_start` one drawn by `generator`: torch-cluster draws unless told
    not to. A ratio is one number (None: 0.5) or one for each segment, (S,); the product is rounded to float32 first, as
    there, but in an exported graph. Read are a batch vector's sizes and tensors of `ptr` and `ratio`, nothing where
    `ptr` is a list or there is one segment. `chosen = fps(points, batch, ratio=0.25)`. Raises ValueError for another
    ratio, and as `packed_farthest_points`.
    Source: torch_cluster.fps.
    """
    src = _to_rows(src)
    if batch is None and ptr is None:
        (count,) = _count_samples([src.shape[0]], ratio)
        if not src.shape[0]:
            return torch.zeros(0, dtype=torch.int64, device=src.device)
        size = torch.full((1,), src.shape[0], device=src.device)
        start = draw_starts(size, generator) if random_start else 0
        return farthest_points(src[None], count, start=start)[0]
    offsets = _find_offsets(src, batch, batch_size, ptr)
    sizes = read_sizes(src, offsets, name="ptr")
    counts = send_list(_count_samples(sizes, ratio), src.device)
    start = draw_starts(send_list(sizes, src.device), generator) if random_start else 0
    return packed_farthest_points(src, counts, offsets=offsets, start=start).index


# --- Arguments --------------------------------------------------------------------------------------------------------


def _to_rows(rows: Tensor) -> Tensor:
    """Give rows of one number a channel."""
    return rows[:, None] if rows.ndim == 1 else rows


def _to_directions(rows: Tensor) -> Tensor:
    """Scale rows (N, C) to length 1: the order of their distances is that of the angles."""
    wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return wide / torch.linalg.vector_norm(wide, dim=1, keepdim=True)


def _search(x: Tensor, y: Tensor, k: int) -> Tensor:
    """Find the neighbours (M, min(k, N)) in one segment."""
    if not x.shape[0]:
        return torch.zeros((y.shape[0], 0), dtype=torch.int64, device=y.device)
    return nearest_neighbours(x[None], min(k, x.shape[0]), queries=None if y is x else y[None])[0]


def _find_in_balls(
    x: Tensor, y: Tensor, r: float, count: int, batch_x: Tensor | None, batch_y: Tensor | None, batch_size: int | None
) -> Tensor:
    if batch_x is None and batch_y is None:
        return points_in_balls(x[None], centres=y[None], radius=r, num_neighbours=count, empty="mark", has_rim=False)[0]
    offsets, query_offsets = offsets_of_batches(x, batch_x, y, batch_y, batch_size)
    return packed_points_in_balls(
        x,
        offsets=offsets,
        centres=y,
        centre_offsets=query_offsets,
        radius=r,
        num_neighbours=count,
        empty="mark",
        has_rim=False,
    )


def _assert_flow(flow: str) -> None:
    if flow not in ("source_to_target", "target_to_source"):
        raise ValueError(f"flow: found {flow!r}, expected 'source_to_target' or 'target_to_source'")


def _find_offsets(
    src: Tensor, batch: Tensor | None, batch_size: int | None, ptr: Tensor | Sequence[int] | None
) -> Tensor:
    if ptr is None:
        return offsets_of_batches(src, batch, src, batch, batch_size)[0]
    if batch is not None:
        raise ValueError("batch and ptr both state the segments; give one of them")
    return ptr if isinstance(ptr, Tensor) else send_list(list(ptr), src.device)


def _count_samples(sizes: Sequence[int], ratio: float | Tensor | None) -> list[int]:
    stated = 0.5 if ratio is None else ratio.flatten().tolist() if isinstance(ratio, Tensor) else ratio
    ratios = stated * len(sizes) if isinstance(stated, list) and len(stated) == 1 else stated
    ratios = ratios if isinstance(ratios, list) else [ratios] * len(sizes)
    if len(ratios) != len(sizes):
        raise ValueError(f"ratio: found {len(ratios)} numbers for {len(sizes)} segments; give one, or one for each")
    for share in ratios:
        if not 0 <= share <= 1:
            raise ValueError(f"ratio: found {share:g}, expected a share of 0 to 1")
    return [_count_share(size, share) for size, share in zip(sizes, ratios, strict=True)]


def _count_share(size: int, share: float) -> int:
    if is_exporting():
        return math.ceil(size * share)
    return math.ceil(_to_single(_to_single(size) * _to_single(share)))


def _to_single(number: float) -> float:
    """Round to the nearest number of float32, in operations that a compiled graph knows."""
    fraction, exponent = math.frexp(number)
    return math.ldexp(round(fraction * 2**24), exponent - 24)
