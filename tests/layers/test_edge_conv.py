"""Edge features and networks over edges: by hand, the authors' code, the quick forms against the plain ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sightline.layers.edge_conv import (
    EdgeConv,
    EdgeMLP,
    PlainEdgeConv,
    PlainEdgeMLP,
    graph_features,
)
from sightline.ops import numba_kernels
from sightline.ops.points.edge_convolution import EdgeSums, edge_extremes, edge_gradients
from sightline.ops.points.neighbours import nearest_neighbours
from tests.golden_parity import load_golden
from tests.layers.passes import BOUND, assert_passes_agree, assert_processes_agree, make_pair, run
from tests.ops.threads import with_one_and_three_threads


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


def pair_of_layers(*, channels: int = 5, width: int = 24, seed: int = 0) -> tuple[PlainEdgeConv, EdgeConv]:
    torch.manual_seed(seed)
    return make_pair(PlainEdgeConv, EdgeConv, in_channels=channels, out_channels=width)


@pytest.mark.parametrize("has_numba", [True, False])
@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("num_points", [1, 40, 1500])
def test_fused_form_agrees_with_the_plain_one(
    num_points: int, is_training: bool, has_numba: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,500 points are more than one block of partial sums; their features lie 30 deviations off the origin."""
    monkeypatch.setattr(numba_kernels, "_has_numba", lambda: has_numba)
    plain, fused = (layer.train(is_training) for layer in pair_of_layers())
    features = torch.randn(3, num_points, 5, dtype=torch.float64) + 30
    index = torch.randint(0, num_points, (3, num_points, 7))
    weight = torch.randn(3, num_points, 24, dtype=torch.float64)
    given = {"features": features, "index": index}
    expected = run(plain, given, weight)
    assert_passes_agree(run(fused, given, weight), expected, BOUND)


def test_statistics_hold_in_float32_far_from_the_origin() -> None:
    """Coordinates of 1e4 m and edges of 1 m: the plain form's own error there is the yardstick, against float64."""
    plain, _ = pair_of_layers(channels=3)
    features = (torch.randn(2, 60, 3, dtype=torch.float64) + 1e4).float().double()
    index, weight = torch.randint(0, 60, (2, 60, 6)), torch.randn(2, 60, 24, dtype=torch.float64)
    given = {"features": features, "index": index}
    exact = run(plain, given, weight)
    errors = []
    for layer in (PlainEdgeConv(in_channels=3, out_channels=24), EdgeConv(in_channels=3, out_channels=24)):
        layer.load_state_dict(pair_of_layers(channels=3)[0].state_dict())
        found = run(layer, given | {"features": features.float()}, weight.float())
        errors.append((found.output.double() - exact.output).abs().max().item())
    assert errors[1] <= errors[0]


def test_equal_neighbours_share_no_gradient() -> None:
    """Every point stands twice: of two equal responses the first in `index` takes the gradient, in both forms."""
    plain, fused = pair_of_layers()
    half = torch.randn(2, 10, 5, dtype=torch.float64)
    features = torch.cat([half, half], dim=1)
    index = nearest_neighbours(features, num_neighbours=6)
    weight = torch.randn(2, 20, 24, dtype=torch.float64)
    given = {"features": features, "index": index}
    assert_passes_agree(run(fused, given, weight), run(plain, given, weight), BOUND)


def test_more_than_256_neighbours_have_a_place() -> None:
    plain, fused = pair_of_layers(channels=2, width=4)
    features = torch.randn(1, 300, 2, dtype=torch.float64)
    index = torch.arange(300).expand(1, 300, 300)
    weight = torch.randn(1, 300, 4, dtype=torch.float64)
    given = {"features": features, "index": index}
    assert_passes_agree(run(fused, given, weight), run(plain, given, weight), BOUND)


@pytest.mark.parametrize("sizes", [(2, 2), (3, 1), (0, 2)])
def test_statistics_of_all_processes(sizes: tuple[int, ...]) -> None:
    """Parts on several processes, uneven or empty, against the plain form of the whole batch."""
    plain, fused = pair_of_layers()
    features = torch.randn(sum(sizes), 30, 5, dtype=torch.float64)
    index = torch.randint(0, 30, (sum(sizes), 30, 4))
    weight = torch.randn(sum(sizes), 30, 24, dtype=torch.float64)
    given = {"features": features, "index": index}
    expected = run(plain, given, weight)
    assert_processes_agree(fused, given, weight, sizes, expected)


@pytest.mark.parametrize("has_numba", [True, False])
def test_kernels_read_bfloat16_as_if_it_were_widened(has_numba: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample by sample, or two at a time: the bits of one cast, one sum, and one cast of the gradient."""
    monkeypatch.setattr(numba_kernels, "_has_numba", lambda: has_numba)
    monkeypatch.setattr(numba_kernels, "_ENTRIES_AT_ONCE", 2 * 70 * 8)
    pairs, index = torch.randn(5, 8, 70).bfloat16().mT, torch.randint(0, 70, (5, 70, 6))
    offset, shift, sign = torch.randn(5, 1, 8), torch.randn(4), torch.tensor([1.0, -1.0, 0.0, 1.0])
    given = {"chosen": torch.randn(5, 70, 4), "constant": torch.randn(4), "slope": torch.randn(4), "shift": shift}
    wide = pairs.float() + offset
    expected = edge_extremes(wide, index, sign=sign, shift=shift)
    to_pairs = edge_gradients(wide, index, expected.position, **given).bfloat16()

    def compute() -> tuple[EdgeSums, Tensor]:
        found = edge_extremes(pairs, index, sign=sign, shift=shift, offset=offset)
        return found, edge_gradients(pairs, index, found.position, offset=offset, **given)

    for found, gradient in with_one_and_three_threads(compute):
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        assert torch.equal(gradient, to_pairs)


@pytest.mark.parametrize("is_training", [True, False])
def test_bfloat16_errs_no_more_than_the_plain_edges(is_training: bool) -> None:
    """Against float64, by the mean square of the output's errors.

    The gradients of the norm have up to 4.4 times the plain form's: an edge's is rounded before the edges are added.
    """
    plain, fused = (layer.float().train(is_training) for layer in pair_of_layers(channels=16))
    features, weight = torch.randn(4, 60, 16) + 3, torch.randn(4, 60, 24)
    index = torch.randint(0, 60, (4, 60, 6))
    exact = PlainEdgeConv(in_channels=16, out_channels=24).double().train(is_training)
    exact.load_state_dict(plain.state_dict())
    expected = run(exact, {"features": features.double(), "index": index}, weight.double())
    errors = []
    for layer in (fused, plain):
        with torch.autocast("cpu", torch.bfloat16):
            found = run(layer, {"features": features, "index": index}, weight)
        errors.append((found.output.double() - expected.output).square().mean().item())
    assert errors[0] <= errors[1]


def test_no_samples_of_edges_in_bfloat16() -> None:
    layer = EdgeConv(in_channels=3, out_channels=4).eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.zeros(0, 6, 3), torch.zeros(0, 6, 2, dtype=torch.int64)).shape == (0, 6, 4)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (torch.full((2, 6, 3), 6), r"rows 6\.\.6 named in clouds of 6 points"),
        (torch.full((2, 6, 3), -1), r"rows -1\.\.-1 named in clouds of 6 points"),
        (torch.zeros(1, 6, 3, dtype=torch.int64), r"found the shape \(1, 6, 3\).*expected \(2, 6, K\)"),
        (torch.zeros(2, 5, 3, dtype=torch.int64), r"found the shape \(2, 5, 3\).*expected \(2, 6, K\)"),
        (torch.zeros(2, 6, 0, dtype=torch.int64), r"found the shape \(2, 6, 0\).*K >= 1"),
    ],
)
def test_edges_that_leave_the_cloud_are_refused(index: Tensor, words: str) -> None:
    """Compiled loops would read and write outside their arrays."""
    with pytest.raises(ValueError, match=words):
        EdgeConv(in_channels=3, out_channels=4)(torch.randn(2, 6, 3), index)


# --- Networks over edges: by hand, the quick form against the plain one ---


NETWORKS = pytest.mark.parametrize("kind", [PlainEdgeMLP, EdgeMLP])


def pair_of_networks(channels: int = 4, widths: tuple[int, ...] = (8, 7, 5)) -> tuple[PlainEdgeMLP, EdgeMLP]:
    return make_pair(PlainEdgeMLP, EdgeMLP, in_channels=channels, widths=widths)


@NETWORKS
def test_networks_over_four_points_on_a_line(kind: type[PlainEdgeMLP]) -> None:
    """Points at 0, 1, 3, 7, two neighbours each. The first layer gives x_j - x_i + 2 x_i = x_j + x_i and x_i - x_j; the
    second the difference of the two, after the leak. By hand for 3 (edges to 3 and 1): (6, 0) -> 6, (4, 2) -> 2: 6.
    For 0 (edges to 0 and 1): (0, 0) -> 0, (1, -1) -> 1 + 0.2: 1.2, its own activation leaves it. For 7: 14 and 6."""
    layer = kind(in_channels=1, widths=(2, 1)).double().eval()
    first, second = layer.network.layers
    with torch.no_grad():
        first.linear.weight.copy_(torch.tensor([[1.0, 2.0], [-1.0, 0.0]]))
        second.linear.weight.copy_(torch.tensor([[1.0, -1.0]]))
    for norm in (first.norm, second.norm):
        norm.eps = 0.0
    features = torch.tensor([[[0.0], [1.0], [3.0], [7.0]]]).double()
    index = nearest_neighbours(features, num_neighbours=2)
    torch.testing.assert_close(layer(features, index)[0, [0, 2, 3], 0], torch.tensor([1.2, 6, 14]).double())


@pytest.mark.parametrize("has_numba", [True, False])
@pytest.mark.parametrize("is_training", [True, False])
def test_quick_form_agrees_with_the_plain_one(
    is_training: bool, has_numba: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features lie 30 deviations off the origin."""
    monkeypatch.setattr(numba_kernels, "_has_numba", lambda: has_numba)
    plain, quick = (layer.train(is_training) for layer in pair_of_networks())
    features, weight = torch.randn(3, 40, 4).double() + 30, torch.randn(3, 40, 5).double()
    given = {"features": features, "index": torch.randint(0, 40, (3, 40, 7))}
    assert_passes_agree(run(quick, given, weight), run(plain, given, weight), BOUND)
