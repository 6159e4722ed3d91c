"""Voxels of a grid: the documented cases of torch-cluster, NumPy's count of voxels, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sightline import ops
from tests.cases import run_each

PLANE = torch.tensor([[0.0, 0], [11, 9], [2, 8], [2, 2], [8, 3]])
FIVE = torch.tensor([5.0, 5.0])


def test_documented_cases_of_torch_cluster() -> None:
    line, side = torch.tensor([2.0, 6]), torch.tensor([5.0])
    assert ops.grid_cluster(line, side).tolist() == [0, 0]
    assert ops.grid_cluster(line, side, start=torch.tensor([0.0])).tolist() == [0, 1]
    assert ops.grid_cluster(PLANE, FIVE).tolist() == [0, 5, 3, 0, 1]
    assert ops.grid_cluster(PLANE, FIVE, end=torch.tensor([19.0, 19])).tolist() == [0, 6, 4, 0, 1]
    assert ops.grid_cluster(PLANE.long(), FIVE.long()).tolist() == [0, 5, 3, 0, 1]
    assert ops.grid_cluster(PLANE.half(), FIVE.half()).tolist() == [0, 5, 3, 0, 1]


def test_points_of_a_voxel_are_those_of_numpy_in_each_sample() -> None:
    pos, batch = torch.randn(500, 3) * 3, torch.arange(500) // 200
    found = ops.voxel_grid(pos, [0.9, 1.5, 2], batch, start=-20, end=[20, 20, 20.0])
    cell = np.floor((pos.numpy() + np.float32(20)) / np.array([0.9, 1.5, 2], np.float32))
    expected, first, inverse = np.unique(
        np.column_stack([batch.numpy(), cell[:, ::-1]]), axis=0, return_index=True, return_inverse=True
    )
    cluster, rows = ops.consecutive_cluster(found)
    assert np.array_equal(cluster.numpy(), inverse.reshape(-1)), "voxels in order: sample, then z, y, x"
    assert np.array_equal(rows.numpy(), first), "the first point of each"
    centres = ops.scatter_mean(pos.double(), cluster, dim=0)
    assert len(centres) == len(expected)
    np.testing.assert_allclose(centres[3].numpy(), pos.double().numpy()[inverse.reshape(-1) == 3].mean(axis=0))


def test_no_points_have_no_voxels() -> None:
    empty = ops.voxel_grid(torch.empty(0, 3), 0.5, torch.empty(0, dtype=torch.int64))
    assert empty.shape == (0,)
    assert [each.shape for each in ops.consecutive_cluster(empty)] == [(0,), (0,)]


@run_each(
    "call, message",
    [
        (lambda: ops.grid_cluster(PLANE, FIVE, end=FIVE), r"pos: 1 of 5 points are outside of the grid, such as row 1"),
        (lambda: ops.grid_cluster(PLANE, FIVE, start=FIVE), r"pos: 4 of 5 points are outside .* such as row 0"),
        (lambda: ops.voxel_grid(PLANE / 0, 5), r"pos: . of 5 points are outside of the grid, .*nan"),
        (lambda: ops.voxel_grid(PLANE, 0.0), r"size: found \[0.0, 0.0\], expected sides above 0"),
        (lambda: ops.voxel_grid(PLANE, 1e-12), r"size: voxels of .* are \S+, more than 2\^62; raise it"),
        (lambda: ops.voxel_grid(PLANE, [1.0, 2, 3]), r"size: 3 numbers for points of 2 coordinates; give one or all"),
        (lambda: ops.voxel_grid(PLANE, 5, torch.tensor([0, 1])), r"batch: found the shape \(2,\), expected \(5,\)"),
        (lambda: ops.voxel_grid(PLANE, 5, torch.full((5,), -1)), "batch: found -1, expected samples from 0"),
    ],
)
def test_what_is_refused_in_one_line(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        call()
    assert "\n" not in str(refused.value)


def test_a_compiled_graph_is_whole_and_checks() -> None:
    torch.compiler.reset()
    compiled = torch.compile(lambda pos: ops.voxel_grid(pos, 5.0, None, 0.0), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(PLANE), ops.voxel_grid(PLANE, 5.0, None, 0.0))
    with pytest.raises(ValueError, match="pos: 1 of 5 points are outside"):
        compiled(torch.tensor([[0.0, 0], [11, 9], [2, 8], [2, -2], [8, 3]]))
