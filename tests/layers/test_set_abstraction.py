"""Groups of neighbours: a hand-worked one, the quick forms against the plain ones, and what is refused."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from sightline.layers.set_abstraction import (
    BallGroup,
    BallScale,
    PlainBallGroup,
    PlainNeighbourGroup,
    SampleAndGroup,
    SetAbstraction,
    gather_rows,
)
from tests.cases import run_each
from tests.layers.passes import BOUND, assert_passes_agree, run

SCALE = BallScale(radius=0.8, num_neighbours=6, widths=(8, 7, 5))


def spread(layer: nn.Module) -> None:
    """Weights of batch norms off their start, negative ones among them."""
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)


def alike(plain: nn.Module, quick: nn.Module) -> tuple[nn.Module, nn.Module]:
    plain, quick = plain.double(), quick.double()
    spread(plain)
    quick.load_state_dict(plain.state_dict())
    return plain, quick


@run_each("is_training", [True, False])
@run_each("first", ["place", "features"])
@run_each("in_channels", [0, 4])
def test_quick_ball_group_agrees_with_the_plain_one(
    in_channels: int, first: Literal["place", "features"], is_training: bool
) -> None:
    """Gradients of centres, points and features too. The clouds lie 100 units off the origin."""
    plain, quick = alike(
        *(kind(in_channels=in_channels, scale=SCALE, first=first) for kind in (PlainBallGroup, BallGroup))
    )
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
    plain, quick = alike(*(kind(**arguments) for kind in (PlainNeighbourGroup, SampleAndGroup)))
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


def test_rows_are_chosen_per_sample() -> None:
    values = torch.arange(12.0).view(2, 3, 2)
    assert gather_rows(values, torch.tensor([[2, 0], [1, 1]])).tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]


def test_statistics_hold_in_float32_far_from_the_origin() -> None:
    """Coordinates of 1e4 m and balls of 1 m: the plain form's own error there is the yardstick, against float64."""
    points = (torch.rand(2, 60, 3, dtype=torch.float64) + 1e4).float()
    given, exact_given = ({"points": p, "features": None, "centres": p[:, :20]} for p in (points, points.double()))
    exact_layer, _ = alike(*(kind(in_channels=0, scale=SCALE, first="place") for kind in (PlainBallGroup, BallGroup)))
    exact = exact_layer(**exact_given)
    errors = []
    for kind in (PlainBallGroup, BallGroup):
        layer = kind(in_channels=0, scale=SCALE, first="place")
        layer.load_state_dict(exact_layer.state_dict() | dict(layer.named_buffers()))
        errors.append((layer(**given).double() - exact).abs().max().item())
    # Differences of near float32 numbers are exact, so both see the same inputs; each then rounds in its own way.
    assert errors[1] <= 4 * errors[0]


def test_balls_far_from_the_middle_keep_their_digits_under_autocast() -> None:
    """Three clusters 20 apart and balls of 0.1: bfloat16 steps there are 0.1, so differences come before rounding."""
    points = torch.cat([0.1 * torch.randn(1, 40, 3) + place for place in (-20.0, 10.0, 20.0)], dim=1)
    scale = BallScale(radius=0.1, num_neighbours=6, widths=(8, 5))
    plain, quick = (kind(in_channels=0, scale=scale, first="place") for kind in (PlainBallGroup, BallGroup))
    quick.load_state_dict(plain.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quick(points, None, points[:, ::4]), plain(points, None, points[:, ::4]))
