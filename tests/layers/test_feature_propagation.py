"""Feature propagation against SciPy and by hand, and its two forms against one another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn

from sightline.layers.set_abstraction import FeaturePropagation
from tests.cases import run_each
from tests.layers.passes import BOUND, assert_passes_agree, run, unsettle

FORMS = pytest.mark.parametrize("fused", [True, False])


def pair_of_layers(in_channels: int) -> tuple[FeaturePropagation, FeaturePropagation]:
    """One state, plain and fused, float64; half of the norms' weights are negative, and one is exactly 0."""
    plain, fused = (
        FeaturePropagation(in_channels=in_channels, widths=(6, 5), fused=fused).double() for fused in (False, True)
    )
    unsettle(plain)
    fused.load_state_dict(plain.state_dict())
    return plain, fused


@FORMS
def test_what_reaches_the_network_is_what_scipy_finds(fused: bool) -> None:
    """With unit weights and untouched norms the first layer passes on (own, interpolated) as they are."""
    layer = FeaturePropagation(in_channels=5, widths=(5,), fused=fused).double().eval()
    with torch.no_grad():
        layer.layers[0].linear.weight.copy_(torch.eye(5))
        layer.layers[0].linear.bias.zero_()
    points, coarse_points = torch.randn(2, 30, 3).double(), torch.randn(2, 9, 3).double()
    own, coarse = torch.rand(2, 30, 2).double(), torch.rand(2, 9, 3).double()
    found = layer(points, own, coarse_points, coarse).detach()
    for row in range(2):
        distance, index = cKDTree(coarse_points[row].numpy()).query(points[row].numpy(), k=3)
        weights = 1 / (distance**2 + 1e-8)
        carried = np.einsum("mk,mkc->mc", weights / weights.sum(1, keepdims=True), coarse[row].numpy()[index])
        expected = np.concatenate([own[row].numpy(), carried], axis=1) / np.sqrt(1 + 1e-5)  # the norm's epsilon
        np.testing.assert_allclose(found[row], expected, atol=1e-12)


@run_each("is_training", [True, False])
@run_each("num_own", [0, 4])
@run_each("num_coarse", [1, 2, 9])
def test_fused_form_agrees_with_the_plain_one(num_coarse: int, num_own: int, is_training: bool) -> None:
    plain, fused = (layer.train(is_training) for layer in pair_of_layers(num_own + 3))
    given = {
        "points": torch.randn(2, 20, 3).double(),
        "own": torch.randn(2, 20, num_own).double() if num_own else None,
        "coarse_points": torch.randn(2, num_coarse, 3).double(),
        "coarse": torch.randn(2, num_coarse, 3).double() + 10,
    }
    weight = torch.randn(2, 20, 5, dtype=torch.float64)
    # coordinates get no gradient: weights of an interpolation are not differentiated
    given_to = {key: value for key, value in given.items() if key in ("own", "coarse")}
    fixed = {key: given[key] for key in ("points", "coarse_points")}
    found, expected = (run(_With(layer, fixed), given_to, weight) for layer in (fused, plain))
    assert_passes_agree(found, expected, BOUND)


class _With(nn.Module):
    """A layer with its coordinates given beforehand."""

    def __init__(self, layer: nn.Module, fixed: dict[str, Tensor]) -> None:
        super().__init__()
        self.layer, self.fixed = layer, fixed

    def forward(self, own: Tensor | None, coarse: Tensor) -> Tensor:
        return self.layer(own=own, coarse=coarse, **self.fixed)


@FORMS
def test_one_coarse_point_is_what_all_receive(fused: bool) -> None:
    """Wherever it stands, and also where a fine point stands on it."""
    layer = FeaturePropagation(in_channels=3, widths=(4,), fused=fused).double().eval()
    points, coarse = torch.randn(1, 6, 3).double(), torch.randn(1, 1, 3).double()
    found = layer(points, None, points[:, :1], coarse)
    assert torch.equal(found, layer(points, None, points[:, :1] + 1e3, coarse))
    assert torch.equal(found, found[:, :1].expand_as(found))


@FORMS
def test_a_place_that_is_no_number_is_refused(fused: bool) -> None:
    layer, points = FeaturePropagation(in_channels=3, widths=(4,), fused=fused), torch.randn(2, 6, 3)
    points[1, 2, 0] = torch.inf
    with pytest.raises(ValueError, match=r"queries\[1\]: point 2 is \[inf"):
        layer(points, None, torch.randn(2, 4, 3), torch.randn(2, 4, 3))
