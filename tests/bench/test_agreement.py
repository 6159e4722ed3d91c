"""What counts as the same numbers, and what does not."""

from __future__ import annotations

import torch

from benchmarks.geometry import farthest_each_time, same_neighbours
from sightline.bench.case import allclose, equal

# Distances from point 0: 0, 1, 1, 4, 9. Points 1 and 2 tie.
CLOUD = {"points": torch.tensor([[[0.0], [1.0], [-1.0], [2.0], [3.0]]])}


def neighbours(*first_row: int) -> torch.Tensor:
    """Rows of 3 neighbours; all but the first row are right: the nearest two sides and the point."""
    return torch.tensor([[list(first_row), [1, 0, 3], [2, 0, 1], [3, 1, 4], [4, 3, 1]]])


def test_equal_names_the_first_difference() -> None:
    fault = equal(None, torch.tensor([[1, 2, 3]]), torch.tensor([[1, 5, 4]]))
    assert fault == "2 of 3 entries differ, first (0, 1): 5, not 2"
    assert equal(None, torch.arange(3), torch.arange(3)) is None
    assert "shape" in str(equal(None, torch.arange(3), torch.arange(4)))


def test_neighbours_may_differ_among_equal_distances_alone() -> None:
    assert same_neighbours(CLOUD, neighbours(0, 1, 2), neighbours(0, 2, 1)) is None
    fault = same_neighbours(CLOUD, neighbours(0, 1, 2), neighbours(0, 1, 3))
    assert fault == "1 of 5 points have other neighbours, first cloud 0, point 0"
    assert same_neighbours(CLOUD, neighbours(0, 1, 2), neighbours(1, 0, 2)) is not None, "nearest first"


def test_a_neighbour_named_twice_is_not_one_of_equal_distance() -> None:
    """Points 1 and 2 are equally far, but 1 and 1 is no answer."""
    assert same_neighbours(CLOUD, neighbours(0, 1, 2), neighbours(0, 1, 1)) == "it names a neighbour twice"
    assert same_neighbours(CLOUD, neighbours(0, 1, 1), neighbours(0, 1, 2)) == "the baseline names a neighbour twice"


def test_a_tolerance_is_relative_to_the_largest_number() -> None:
    before, after = torch.tensor([100.0, 1.0]), torch.tensor([100.0, 1.05])
    assert allclose(1e-3)(None, before, after) is None  # 0.05 of 100 is half of what is allowed
    assert "allowed is 0.0001" in str(allclose(1e-4)(None, before, after))
    assert allclose(1.0)(None, before, torch.tensor([float("nan"), 1.0])) is not None
    assert "it gives ['b']" in str(allclose(1.0)(None, {"a": before}, {"b": before}))


def test_farthest_points_are_judged_along_their_own_way() -> None:
    """On 0 1 -1 2 3: from 0 the farthest is 3 (place 4), then -1 (1 away from 0, place 2), 1 and 2 tie with 1."""
    expected = torch.tensor([[0, 4, 2, 1, 3]])
    for right in ([0, 4, 2, 1, 3], [0, 4, 1, 2, 3], [0, 4, 3, 1, 2], [2, 4, 1, 0, 3]):
        assert farthest_each_time(CLOUD, expected, torch.tensor([right])) is None, right
    fault = farthest_each_time(CLOUD, expected, torch.tensor([[0, 3, 4, 2, 1]]))
    assert fault == "cloud 0, place 1: point 3 is not the farthest from those before it"
    assert farthest_each_time(CLOUD, expected, torch.tensor([[0, 4, 4, 2, 1]])) is not None
