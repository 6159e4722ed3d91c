"""Edge convolution's operators, and statistics from sums: by hand, torch's batch norm, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sightline import ops
from sightline.ops.operator import OPERATORS
from tests.cases import run_each


def test_two_points_with_three_edges_each() -> None:
    """u = 1, 5 and v = 10, 20; the edges of point 0 are 1 + 10, 5 + 10, 5 + 10, those of point 1 are 5, 1, 1 + 20.

    Less a shift of 15 they are -4, 0, 0, 10, 6, 6: a sum of 18, and 16 + 100 + 36 + 36 = 188 of squares.
    """
    pairs, index = torch.tensor([[[1.0, 10], [5, 20]]]), torch.tensor([[[0, 1, 1], [1, 0, 0]]])
    for sign, extreme, position in ((1.0, [5, 5], [1, 0]), (-1.0, [1, 1], [0, 1]), (0.0, [1, 5], [0, 0])):
        found = ops.edge_extremes(pairs, index, sign=torch.tensor([sign]), shift=torch.tensor([15.0]))
        assert (found.extreme.flatten().tolist(), found.position.flatten().tolist()) == (extreme, position)
        assert (found.total.tolist(), found.total_of_squares.tolist()) == ([18], [188])


@run_each("implementation", ["plain", "definition"])
def test_the_first_that_is_not_a_number_wins(implementation: str) -> None:
    pairs = torch.tensor([[[1.0, 0], [torch.nan, 0], [torch.nan, 0], [9, 0]]])
    index = torch.tensor([[0, 1, 2, 3], [2, 1, 3, 0], [3, 0, 0, 3], [0, 3, 3, 1]])[None]
    extremes = getattr(OPERATORS["edge_extremes"], implementation)
    extreme, position, _ = extremes(pairs, index, torch.ones(1), torch.zeros(1), None)
    assert position.flatten().tolist() == [1, 0, 0, 3]
    assert extreme.isnan().flatten().tolist() == [True, True, False, True]


@run_each(
    "changes, words",
    [
        ({"pairs": torch.zeros(2, 6, 7)}, r"pairs: found the shape \(2, 6, 7\), expected \(clouds, points, 8\)"),
        ({"pairs": torch.zeros(6, 8)}, r"pairs: found the shape \(6, 8\)"),
        ({"offset": torch.zeros(1, 1, 8)}, r"offset: found the shape \(1, 1, 8\), expected \(2, 1, 8\)"),
        ({"index": torch.zeros(2, 6, 3)}, r"index: found the shape \(2, 6, 3\) torch.float32, expected \(2, 6, K\)"),
        ({"index": torch.full((2, 6, 3), 6)}, r"rows 6\.\.6 named in clouds of 6 points"),
    ],
)
def test_other_shapes_are_refused_in_a_line(changes: dict[str, Any], words: str) -> None:
    given = {"pairs": torch.zeros(2, 6, 8), "index": torch.zeros(2, 6, 3, dtype=torch.int64)}
    with pytest.raises(ValueError, match=words):
        ops.edge_extremes(**(given | {"sign": torch.ones(4), "shift": torch.zeros(4)} | changes))


def test_statistics_are_those_of_torchs_batch_norm() -> None:
    """And the running values that it leaves: float64, over 50 values near 100."""
    values, norm = torch.randn(50, 3, dtype=torch.float64) + 100, nn.BatchNorm1d(3, affine=False).double()
    origin, running = values[0], {"running_mean": torch.zeros(3).double(), "running_var": torch.ones(3).double()}
    sums = (values - origin).sum(dim=0), (values - origin).square().sum(dim=0)
    mean, inverse_deviation, new_mean, new_var = ops.batch_statistics(
        origin, *sums, **running, num_values=50, momentum=0.1, eps=norm.eps, dtype=torch.float64
    )
    torch.testing.assert_close((values - mean) * inverse_deviation, norm(values), rtol=0, atol=1e-11)
    torch.testing.assert_close(new_mean, norm.running_mean, rtol=1e-13, atol=0)
    torch.testing.assert_close(new_var, norm.running_var, rtol=1e-12, atol=0)
