"""Functions of points in a compiled graph without a break: the numbers of eager mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sightline import ops
from tests.ops.results import find_difference

OFFSETS = torch.tensor([0, 20, 20, 120])
QUERY_OFFSETS = torch.tensor([0, 3, 3, 18])


def search_packed(points: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    near = ops.packed_nearest_neighbours(
        points.flatten(0, 1),
        offsets=OFFSETS,
        num_neighbours=30,
        queries=queries.flatten(0, 1),
        query_offsets=QUERY_OFFSETS,
    )
    return near.index, near.is_valid


def interpolate_packed(points: Tensor, queries: Tensor) -> Tensor:
    rows = {"points": points.flatten(0, 1), "queries": queries.flatten(0, 1)}
    return ops.packed_interpolate(2 * rows["points"], **rows, offsets=OFFSETS, query_offsets=QUERY_OFFSETS)


CALLS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "nearest_neighbours": lambda points, queries: ops.nearest_neighbours(points, num_neighbours=4, queries=queries),
    "packed_nearest_neighbours": search_packed,
    "points_in_balls": lambda points, queries: ops.points_in_balls(
        points, centres=queries, radius=3.0, num_neighbours=4
    ),
    "interpolate": lambda points, queries: ops.interpolate(2 * points, points=points, queries=queries),
    "packed_interpolate": interpolate_packed,
    "estimate_normals": lambda points, queries: ops.estimate_normals(points, num_neighbours=9),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_compiled_graph_is_whole(name: str) -> None:
    points, queries = torch.rand(2, 60, 3), torch.rand(2, 9, 3)
    torch.compiler.reset()
    compiled = torch.compile(CALLS[name], fullgraph=True, backend="aot_eager")
    assert find_difference(compiled(points, queries), CALLS[name](points, queries), 0.0) is None
    points[1, 5, 0] = torch.nan
    with pytest.raises(ValueError, match=r"points\[\d\]: point \d+ is \[nan"):
        compiled(points, queries)
