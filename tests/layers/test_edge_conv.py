"""Edge features against a hand-worked case and the authors' code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sightline.geometry.neighbours import nearest_neighbours
from sightline.layers.edge_conv import EdgeConv, graph_features
from tests.golden_parity import load_golden


def test_four_points_on_a_line() -> None:
    """Points at 0, 1, 3, 7; two neighbours each, itself first. By hand: 1's other is 0 (1 < 2), 3's is 1, 7's is 3."""
    features = torch.tensor([[[0.0], [1.0], [3.0], [7.0]]])
    index = nearest_neighbours(features, num_neighbours=2)
    assert index.tolist() == [[[0, 1], [1, 0], [2, 1], [3, 2]]]
    expected = [[[0, 0], [1, 0]], [[0, 1], [-1, 1]], [[0, 3], [-2, 3]], [[0, 7], [-4, 7]]]
    assert graph_features(features, index).tolist() == [expected]


@pytest.mark.shared
@pytest.mark.parametrize("case", [f"case{number}" for number in range(6)])
def test_graph_features_agree_with_the_reference(shared: Path, case: str) -> None:
    golden = load_golden(shared, "fn_graph_feature")
    features = golden.tensor(f"{case}.x").mT.contiguous().requires_grad_()
    expected = golden.tensor(f"{case}.out")
    index = nearest_neighbours(features, num_neighbours=expected.shape[-1])
    assert torch.equal(index, golden.tensor(f"{case}.idx"))
    found = graph_features(features, index)
    assert torch.equal(found.permute(0, 3, 1, 2), expected)  # one subtraction: the same bits
    (found.permute(0, 3, 1, 2) * golden.tensor(f"{case}.w")).sum().backward()
    assert features.grad is not None
    # Each entry adds at most N*k = 200 terms of size about 1, in another order: 200 * 2e-16 * 3.
    torch.testing.assert_close(features.grad.mT, golden.tensor(f"{case}.grad_x"), rtol=0, atol=1e-13)


@pytest.mark.shared
def test_graph_may_come_from_some_channels_or_from_outside(shared: Path) -> None:
    golden = load_golden(shared, "fn_graph_feature")
    nine = golden.tensor("dim9.x").mT
    index = nearest_neighbours(nine[..., 6:], num_neighbours=5)
    assert torch.equal(graph_features(nine, index).permute(0, 3, 1, 2), golden.tensor("dim9.out"))
    given = graph_features(golden.tensor("given_idx.x").mT, golden.tensor("given_idx.idx_in"))
    assert torch.equal(given.permute(0, 3, 1, 2), golden.tensor("given_idx.out"))


def test_order_of_neighbours_does_not_matter() -> None:
    layer, features = EdgeConv(in_channels=3, out_channels=8).double().eval(), torch.randn(2, 9, 3).double()
    index = nearest_neighbours(features, num_neighbours=4)
    # A maximum has no rounding; the rows of the matrix product are the same rows.
    torch.testing.assert_close(layer(features, index), layer(features, index.flip(-1)), rtol=0, atol=1e-15)


def test_gradients_agree_with_finite_differences() -> None:
    layer, features = EdgeConv(in_channels=2, out_channels=3).double(), torch.randn(2, 6, 2).double()
    index = nearest_neighbours(features, num_neighbours=3)
    assert torch.autograd.gradcheck(lambda v: layer(v, index), (features.requires_grad_(),))
