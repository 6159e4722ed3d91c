"""Groups of neighbours, networks over groups, feature propagation: by hand, SciPy, quick forms against plain ones."""

from __future__ import annotations

import functools
from typing import Any, Literal

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn

from sightline.layers.group_kernels import extremes_and_sums, group_gradients, group_sums
from sightline.layers.grouped_mlp import GroupedMLP, PlainGroupedMLP
from sightline.layers.set_abstraction import (
    BallGroup,
    BallScale,
    FeaturePropagation,
    PlainBallGroup,
    PlainNeighbourGroup,
    SampleAndGroup,
    SetAbstraction,
)
from sightline.ops import numba_kernels
from tests.cases import run_each
from tests.layers.passes import BOUND, assert_passes_agree, assert_processes_agree, make_pair, run
from tests.ops.threads import with_one_and_three_threads

SCALE = BallScale(radius=0.8, num_neighbours=6, widths=(8, 7, 5))


@run_each("is_training", [True, False])
@run_each("first", ["position", "features"])
@run_each("in_channels", [0, 4])
def test_quick_ball_group_agrees_with_the_plain_one(
    in_channels: int, first: Literal["position", "features"], is_training: bool
) -> None:
    """Gradients of centres, points and features too. The clouds lie 100 units off the origin."""
    plain, quick = make_pair(PlainBallGroup, BallGroup, in_channels=in_channels, scale=SCALE, first=first)
    points = torch.randn(3, 20, 3, dtype=torch.float64) + 100
    given = {
        "points": points,
        "features": torch.randn(3, 20, in_channels, dtype=torch.float64) if in_channels else None,
        "centres": points[:, :9],
    }
    weight = torch.randn(3, 9, 5, dtype=torch.float64)
    expected = run(plain.train(is_training), given, weight)
    assert_passes_agree(run(quick.train(is_training), given, weight), expected, BOUND)


@pytest.mark.parametrize("is_training", [True, False])
def test_quick_neighbour_group_agrees_with_the_plain_one(is_training: bool) -> None:
    arguments: dict[str, Any] = {"channels": 4, "num_samples": 9, "num_neighbours": 6, "widths": (8, 5)}
    plain, quick = make_pair(PlainNeighbourGroup, SampleAndGroup, **arguments)
    given = {"points": torch.randn(3, 20, 3).double(), "features": torch.randn(3, 20, 4).double() + 10}
    weight = torch.randn(3, 9, 5, dtype=torch.float64)
    expected = run(plain.train(is_training), given, weight)
    assert_passes_agree(run(quick.train(is_training), given, weight), expected, BOUND)
    assert torch.equal(plain(**given)[0], quick(**given)[0])


def members_of(group: nn.Module, **given: Tensor | None) -> Tensor:
    """What reaches the first linear map of a plain group."""
    seen: list[Tensor] = []
    group.network.first_linear.register_forward_hook(lambda module, values, output: seen.append(values[0]))  # type: ignore[union-attr, operator]
    group(**given)
    return seen[0]


def test_ball_by_hand() -> None:
    """Points at 0, 1, 3 on a line, radius 1.5: about 1 are 0 and 1, and the first again; about 3 is 3 alone."""
    points = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [3, 0, 0]]])
    features = torch.tensor([[[10.0], [11], [13]]])
    group = PlainBallGroup(in_channels=1, scale=BallScale(1.5, 3, (2, 2)), first="features")
    members = members_of(group, points=points, features=features, centres=points[:, 1:])
    assert members[0, 0].tolist() == [[10, -1, 0, 0], [11, 0, 0, 0], [10, -1, 0, 0]]
    assert members[0, 1].tolist() == [[13, 0, 0, 0]] * 3


def test_neighbours_by_hand() -> None:
    """Points at 0, 1, 3: sampling takes 0, then 3; their nearest two are (0, 1) and (3, 1)."""
    points = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [3, 0, 0]]])
    features = torch.tensor([[[10.0], [11], [13]]])
    group = PlainNeighbourGroup(channels=1, num_samples=2, num_neighbours=2, widths=(2, 2))
    members = members_of(group, points=points, features=features)
    assert members[0].tolist() == [[[0, 10], [1, 10]], [[0, 13], [-2, 13]]]


def test_points_near_the_origin_may_be_passed_over() -> None:
    points = torch.tensor([[[2.0, 0, 0], [0.01, 0, 0], [1, 0, 0]]])
    group = SampleAndGroup(channels=1, num_samples=2, num_neighbours=1, widths=(2, 2), min_squared_norm=1e-3)
    centres, _ = group(points, torch.zeros(1, 3, 1))
    assert centres.tolist() == [[[2, 0, 0], [1, 0, 0]]]


def test_scales_stand_side_by_side() -> None:
    scales = [BallScale(0.5, 4, (3, 3)), BallScale(1.0, 8, (4, 5))]
    layer = SetAbstraction(in_channels=0, num_samples=7, scales=scales).eval()
    points = torch.randn(2, 20, 3)
    centres, features = layer(points, None)
    assert layer.out_channels == 8
    assert features.shape == (2, 7, 8)
    assert torch.equal(centres[:, 0], points[:, 0])
    assert torch.equal(features[..., 3:], layer.groups[1](points, None, centres))


def test_statistics_hold_in_float32_far_from_the_origin() -> None:
    """Coordinates of 1e4 m and balls of 1 m: the plain form's own error there is the yardstick, against float64."""
    points = (torch.rand(2, 60, 3, dtype=torch.float64) + 1e4).float()
    given, exact_given = ({"points": p, "features": None, "centres": p[:, :20]} for p in (points, points.double()))
    exact_layer, _ = make_pair(PlainBallGroup, BallGroup, in_channels=0, scale=SCALE, first="position")
    exact = exact_layer(**exact_given)
    errors = []
    for kind in (PlainBallGroup, BallGroup):
        layer = kind(in_channels=0, scale=SCALE, first="position")
        layer.load_state_dict(exact_layer.state_dict() | dict(layer.named_buffers()))
        errors.append((layer(**given).double() - exact).abs().max().item())
    # Differences of near float32 numbers are exact, so both see the same inputs; each then rounds in its own way.
    assert errors[1] <= 4 * errors[0]


def test_balls_far_from_the_middle_keep_their_digits_under_autocast() -> None:
    """Three clusters 20 apart and balls of 0.1: bfloat16 steps there are 0.1, so differences come before rounding."""
    points = torch.cat([0.1 * torch.randn(1, 40, 3) + place for place in (-20.0, 10.0, 20.0)], dim=1)
    scale = BallScale(radius=0.1, num_neighbours=6, widths=(8, 5))
    plain, quick = (kind(in_channels=0, scale=scale, first="position") for kind in (PlainBallGroup, BallGroup))
    quick.load_state_dict(plain.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quick(points, None, points[:, ::4]), plain(points, None, points[:, ::4]))


# --- Networks over groups: the quick form against the plain one ---


WIDTHS = (6, 7, 5)


def pair_of_networks(
    widths: tuple[int, ...] = WIDTHS, negative_slope: float = 0.0
) -> tuple[PlainGroupedMLP, GroupedMLP]:
    torch.manual_seed(0)
    more: Any = {"widths": widths, "has_bias": True, "negative_slope": negative_slope}
    return make_pair(PlainGroupedMLP, GroupedMLP, in_channels=3, **more)


def groups(num_clouds: int = 3, num_points: int = 30, num_groups: int = 11, num_members: int = 4) -> dict[str, Tensor]:
    """Maps of points and centres 30 deviations off the origin, and any members, some of them twice."""
    return {
        "point_terms": torch.randn(num_clouds, num_points, WIDTHS[0], dtype=torch.float64) + 30,
        "of_centres": torch.randn(num_clouds, num_groups, WIDTHS[0], dtype=torch.float64),
        "index": torch.randint(0, num_points, (num_clouds, num_groups, num_members)),
    }


@pytest.mark.parametrize("has_numba", [True, False])
@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("negative_slope", [0.0, 0.2])
@pytest.mark.parametrize("widths", [WIDTHS, (6, 5)])
def test_quick_form_agrees_with_the_plain_one(
    widths: tuple[int, ...],
    negative_slope: float,
    is_training: bool,
    has_numba: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(numba_kernels, "_has_numba", lambda: has_numba)
    plain, quick = (network.train(is_training) for network in pair_of_networks(widths, negative_slope))
    given, weight = groups(), torch.randn(3, 11, 5, dtype=torch.float64)
    assert_passes_agree(run(quick, given, weight), run(plain, given, weight), BOUND)


def test_float32_errs_no_more_than_the_plain_form() -> None:
    """Far from the origin the plain form's own error against float64 is the yardstick: both round the same inputs."""
    plain, _ = pair_of_networks()
    given, weight = groups(), torch.randn(3, 11, 5, dtype=torch.float64)
    given = {name: value.float() if value.is_floating_point() else value for name, value in given.items()}
    exact = run(plain, {name: v.double() if v.is_floating_point() else v for name, v in given.items()}, weight)
    errors = []
    for network in (network.float() for network in pair_of_networks()):
        found = run(network, given, weight.float())
        errors.append((found.output.double() - exact.output).abs().max().item())
    assert errors[1] <= 2 * errors[0]  # as good, give or take the luck of rounding


def test_half_precision_takes_the_plain_form() -> None:
    plain, quick = (network.bfloat16() for network in pair_of_networks())
    given = {name: v.bfloat16() if v.is_floating_point() else v for name, v in groups().items()}
    assert torch.equal(quick(**given), plain(**given))


@pytest.mark.parametrize("is_training", [True, False])
def test_nan_is_not_lost_in_the_maximum(is_training: bool) -> None:
    """One member's NaN is its group's answer in eval, as it is in the plain form; in training it is everyone's."""
    given = groups()
    given["point_terms"][1, 7] = torch.nan
    given["index"][1, 4, 2] = 7
    plain, quick = (network.train(is_training) for network in pair_of_networks())
    assert torch.equal(quick(**given).isnan(), plain(**given).isnan())
    assert quick(**given).isnan().any()


@pytest.mark.parametrize("sizes", [(2, 2), (3, 1), (0, 2)])
def test_statistics_of_all_processes(sizes: tuple[int, ...]) -> None:
    """Parts on several processes, uneven or empty, against the plain form of the whole batch.

    Without a layer between the first and the last: that one is torch's own, and threads cannot play its backward pass.
    """
    plain, quick = pair_of_networks((6, 5))
    given, weight = groups(num_clouds=sum(sizes)), torch.randn(sum(sizes), 11, 5, dtype=torch.float64)
    expected = run(plain, given, weight)
    assert_processes_agree(quick, given, weight, sizes, expected)


def test_the_same_bits_for_any_number_of_threads() -> None:
    given = {name: v.float() if v.is_floating_point() else v for name, v in groups(num_clouds=5).items()}
    values = torch.randn(5, 11, 4, 6)

    def compute() -> list[Tensor]:
        extremes = extremes_and_sums(values, sign=torch.ones(6), origin=torch.zeros(6))
        return [*group_sums(**given, origin=torch.ones(6)), *extremes, *group_gradients(values, values, **given)]

    found = with_one_and_three_threads(compute)
    assert all(torch.equal(one, three) for one, three in zip(*found, strict=True))


def test_members_that_leave_the_cloud_are_refused() -> None:
    _, quick = pair_of_networks()
    given = groups()
    with pytest.raises(ValueError, match=r"rows 0\.\.30 named in clouds of 30 points"):
        quick(**given | {"index": torch.tensor([0, 30]).expand(3, 11, 2)})
    with pytest.raises(ValueError, match=r"expected \(3, 11, K\)"):
        quick(**given | {"index": given["index"][:, :4]})
    with pytest.raises(ValueError, match=r"of_centres .* do not go with points"):
        quick(**given | {"of_centres": given["of_centres"][:1]})


def test_minus_infinity_is_rectified_to_zero() -> None:
    plain, quick = (network.eval() for network in pair_of_networks())
    given = groups()
    given["index"][0, 0] = 3
    given["point_terms"][0, 3, int(plain.layers[0].norm.weight.argmax())] = -torch.inf  # type: ignore[union-attr, operator]
    torch.testing.assert_close(quick(**given), plain(**given), rtol=BOUND, atol=BOUND)


# --- Feature propagation against SciPy and by hand, and its two forms against one another ---


FORMS = pytest.mark.parametrize("fused", [True, False])


def pair_of_layers(in_channels: int) -> tuple[FeaturePropagation, FeaturePropagation]:
    forms = (functools.partial(FeaturePropagation, fused=fused) for fused in (False, True))
    return make_pair(*forms, in_channels=in_channels, widths=(6, 5))


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
@run_each("num_skip", [0, 4])
@run_each("num_coarse", [1, 2, 9])
def test_fused_form_agrees_with_the_plain_one(num_coarse: int, num_skip: int, is_training: bool) -> None:
    plain, fused = (layer.train(is_training) for layer in pair_of_layers(num_skip + 3))
    inputs = {
        "points": torch.randn(2, 20, 3).double(),
        "features": torch.randn(2, 20, num_skip).double() if num_skip else None,
        "coarse_points": torch.randn(2, num_coarse, 3).double(),
        "coarse_features": torch.randn(2, num_coarse, 3).double() + 10,
    }
    weight = torch.randn(2, 20, 5, dtype=torch.float64)
    # coordinates get no gradient: weights of an interpolation are not differentiated
    features = {key: value for key, value in inputs.items() if key.endswith("features")}
    fixed = {key: inputs[key] for key in ("points", "coarse_points")}
    found, expected = (run(_With(layer, fixed), features, weight) for layer in (fused, plain))
    assert_passes_agree(found, expected, BOUND)


class _With(nn.Module):
    """A layer whose coordinates are fixed."""

    def __init__(self, layer: nn.Module, fixed: dict[str, Tensor]) -> None:
        super().__init__()
        self.layer, self.fixed = layer, fixed

    def forward(self, features: Tensor | None, coarse_features: Tensor) -> Tensor:
        return self.layer(features=features, coarse_features=coarse_features, **self.fixed)


@FORMS
def test_one_coarse_point_is_what_all_receive(fused: bool) -> None:
    """Wherever it stands, and also where a fine point stands on it."""
    layer = FeaturePropagation(in_channels=3, widths=(4,), fused=fused).double().eval()
    points, coarse = torch.randn(1, 6, 3).double(), torch.randn(1, 1, 3).double()
    found = layer(points, None, points[:, :1], coarse)
    assert torch.equal(found, layer(points, None, points[:, :1] + 1e3, coarse))
    assert torch.equal(found, found[:, :1].expand_as(found))
