"""Networks over edges: by hand, the quick form against the plain one, and what both keep."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sightline import numba_kernels
from sightline.geometry.neighbours import nearest_neighbours
from sightline.layers.edge_conv import EdgeMLP, PlainEdgeMLP
from tests.layers.passes import BOUND, assert_passes_agree, run, unsettle

KINDS = pytest.mark.parametrize("kind", [PlainEdgeMLP, EdgeMLP])


def pair_of_layers(channels: int = 4, widths: tuple[int, ...] = (8, 7, 5)) -> tuple[PlainEdgeMLP, EdgeMLP]:
    """One state, both forms, float64; half of the norms' weights are negative, and one of each is exactly 0."""
    plain = PlainEdgeMLP(in_channels=channels, widths=widths).double()
    unsettle(plain)
    quick = EdgeMLP(in_channels=channels, widths=widths).double()
    quick.load_state_dict(plain.state_dict())
    return plain, quick


@KINDS
def test_four_points_on_a_line(kind: type[PlainEdgeMLP]) -> None:
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
    plain, quick = (layer.train(is_training) for layer in pair_of_layers())
    features, weight = torch.randn(3, 40, 4).double() + 30, torch.randn(3, 40, 5).double()
    given = {"features": features, "index": torch.randint(0, 40, (3, 40, 7))}
    assert_passes_agree(run(quick, given, weight), run(plain, given, weight), BOUND)


@KINDS
def test_gradients_agree_with_finite_differences(kind: type[PlainEdgeMLP]) -> None:
    layer, features = kind(in_channels=2, widths=(3, 3)).double(), torch.randn(2, 6, 2).double()
    index = nearest_neighbours(features, num_neighbours=3)
    assert torch.autograd.gradcheck(lambda v: layer(v, index), (features.requires_grad_(),))


@KINDS
def test_a_negative_response_leaks(kind: type[PlainEdgeMLP]) -> None:
    """As torch's LeakyReLU: with a last bias far below zero every response is a fifth of what it would be."""
    layer = kind(in_channels=2, widths=(3, 3)).double().eval()
    nn.init.constant_(layer.network.layers[-1].norm.bias, -100)
    features = torch.randn(1, 6, 2).double()
    found = layer(features, nearest_neighbours(features, num_neighbours=3))
    assert ((found < -19) & (found > -21)).all()


def test_half_precision_is_near() -> None:
    _, quick = pair_of_layers()
    quick = quick.float().eval()
    features, index = torch.randn(2, 20, 4), torch.randint(0, 20, (2, 20, 5))
    exact = quick(features, index)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = quick(features, index)
    assert (rounded.float() - exact).abs().mean() < 0.05 * exact.abs().mean()  # 8 bits in three layers
