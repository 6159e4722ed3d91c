"""Functions by the names of other libraries: their documented examples by hand, SciPy, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from sightline import ops
from tests.cases import run_each

CORNERS = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
SIDES = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
ONE = torch.zeros(4, dtype=torch.int64)
RING = [[1, 2, 0, 3, 0, 3, 1, 2], [0, 0, 1, 1, 2, 2, 3, 3]]


def test_the_square_of_torch_cluster_by_hand() -> None:
    """Corners of a square of side 2, and the middles of two sides: 1 from two corners, 2.24 from the others."""
    pairs = [[0, 0, 1, 1], [0, 1, 2, 3]]
    assert ops.knn(CORNERS, SIDES, 2, ONE, ONE[:2]).tolist() == pairs
    assert ops.radius(CORNERS, SIDES, 1.0, ONE, ONE[:2]).tolist() == pairs, "the rim counts"
    assert ops.radius(CORNERS, SIDES, 2.5, max_num_neighbors=3).tolist() == [[0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]]
    assert ops.radius(CORNERS, 9 + SIDES, 2.5).shape == (2, 0)
    assert ops.knn_graph(CORNERS, 2, ONE).tolist() == RING
    assert ops.radius_graph(CORNERS, 2.5, ONE).tolist() == RING
    assert ops.fps(CORNERS, ONE, 0.5).tolist() == [0, 3]
    assert ops.fps(CORNERS, ratio=0.6).tolist() == [0, 3, 1], "ceil(2.4)"


def test_segments_of_batch_vectors_do_not_meet() -> None:
    x, batch = torch.cat([CORNERS, CORNERS[:3]]), torch.tensor([0, 0, 0, 0, 2, 2, 2])
    assert ops.knn_graph(x, 1, batch).tolist() == [[1, 0, 0, 1, 5, 4, 4], list(range(7))]
    found = ops.knn(x, SIDES, 3, batch, torch.tensor([0, 2]))
    assert found.tolist() == [[0, 0, 0, 1, 1, 1], [0, 1, 2, 6, 4, 5]]
    assert ops.knn_graph(x, 9, batch, loop=True).shape == (2, 4 * 4 + 3 * 3)
    assert ops.fps(x, batch, 0.5).tolist() == [0, 3, 4, 5]


def test_a_row_is_not_its_own_neighbour_among_equal_ones() -> None:
    """Of three equal rows, the nearest of the last are the others: it is not among its own two nearest."""
    assert ops.knn_graph(torch.zeros(3, 2), 1).tolist() == [[1, 0, 0], [0, 1, 2]]
    assert ops.radius_graph(torch.zeros(3, 2), 1.0, max_num_neighbors=1).tolist() == [[1, 0, 0], [0, 1, 2]]


def test_a_random_start_is_drawn_within_each_segment() -> None:
    x, batch = torch.randn(30, 3), torch.tensor([0] * 25 + [1] * 5)
    first = ops.fps(x, batch, 0.04, random_start=True, generator=torch.Generator().manual_seed(3))
    assert len(first) == 2
    assert first[0] < 25 <= first[1]
    assert torch.equal(first, ops.fps(x, batch, 0.04, random_start=True, generator=torch.Generator().manual_seed(3)))


def test_distances_agree_with_scipy_and_padding_is_0() -> None:
    p1, p2 = torch.randn(2, 9, 3, dtype=torch.float64), torch.randn(2, 7, 3, dtype=torch.float64)
    lengths1, lengths2 = torch.tensor([9, 4]), torch.tensor([2, 7])
    found = ops.knn_points(p1, p2, lengths1, lengths2, K=3, return_nn=True)
    for cloud, (rows, others) in enumerate(zip(lengths1.tolist(), lengths2.tolist(), strict=True)):
        count = min(3, others)
        distance, index = cKDTree(p2[cloud, :others].numpy()).query(p1[cloud, :rows].numpy(), k=count)
        torch.testing.assert_close(found.dists[cloud, :rows, :count], torch.from_numpy(distance).square())
        assert torch.equal(found.idx[cloud, :rows, :count], torch.from_numpy(index))
        assert torch.equal(found.knn[cloud, :rows, :count], p2[cloud, torch.from_numpy(index)])
        for padded in found:
            assert not padded[cloud, rows:].any()
            assert not padded[cloud, :rows, count:].any()
    whole = ops.knn_points(p1, p2, K=2)
    assert torch.equal(whole.idx, ops.nearest_neighbours(p2, num_neighbours=2, queries=p1))
    assert whole.knn is None


def test_distances_have_gradients_on_both_sides() -> None:
    p1, p2 = (torch.randn(2, count, 3, dtype=torch.float64, requires_grad=True) for count in (5, 4))
    lengths = torch.tensor([3, 5]), torch.tensor([4, 1])
    assert torch.autograd.gradcheck(lambda a, b: ops.knn_points(a, b, *lengths, K=2).dists, (p1, p2))


def test_the_chamfer_distance_by_hand() -> None:
    """{0, 2} and {1, 4} on a line: 1 and 1, mean 1; back 1 and 4, mean 2.5. The second cloud: 1 point each, 9 and 9."""
    x, y = torch.tensor([[[0.0], [2.0]], [[0.0], [7.0]]]), torch.tensor([[[1.0], [4.0]], [[3.0], [8.0]]])
    assert ops.chamfer_distance(x[:1], y[:1]).item() == 3.5
    one = torch.tensor([2, 1])
    assert ops.chamfer_distance(x, y, one, one).item() == (3.5 + 18) / 2


def test_samples_of_padded_clouds() -> None:
    points, lengths = torch.randn(2, 8, 3), torch.tensor([8, 3])
    chosen, index = ops.sample_farthest_points(points, lengths, K=5)
    assert torch.equal(index[0], ops.farthest_points(points[:1], 5)[0])
    assert torch.equal(index[1], torch.cat([ops.farthest_points(points[1:, :3], 3)[0], torch.tensor([-1, -1])]))
    assert torch.equal(chosen[0], points[0, index[0]])
    assert torch.equal(chosen[1], torch.cat([points[1, index[1, :3]], torch.zeros(2, 3)]))
    assert torch.equal(ops.sample_farthest_points(points, K=5)[1][0], index[0])


@run_each(
    "batch, message",
    [
        (torch.tensor([0, 1, 0, 1]), r"batch \(4,\) of 4 rows; give the segment of each, in rising order"),
        (torch.tensor([0, 1]), r"batch \(2,\) of 4 rows"),
    ],
)
def test_batch_vectors_that_do_not_fit(batch: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.knn_graph(CORNERS, 1, batch)
