"""Views of a cloud: CrossPoint's moves as its authors drew them, and pairs from streams of their own."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from sightline.contract import registry
from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError
from sightline.contract.transform import Transform
from sightline.contract.types import ComponentConfig, SampleKey
from sightline.parts.transforms.points import Rotate, Scale, Translate
from sightline.parts.transforms.two_views import TwoViews
from tests.transforms.scenes import Given
from tests.transforms.test_points import Golden

# --- as the authors drew it -------------------------------------------------------------------------------------------


def test_each_step_agrees_with_the_authors_on_their_own_draws(shared: Path) -> None:
    golden = Golden(shared, "cp_scale")
    scale = Scale(low=0.5, high=2.0, isotropic=True)
    golden.assert_equal(scale(Given(golden["draw1"].reshape(1, 1, 1)), points=golden.input)["points"])

    golden = Golden(shared, "cp_rotate_y")
    turn = Rotate(up_axis="y")
    golden.assert_equal(turn(Given(2 * math.pi * golden["draw1"].reshape(1)), points=golden.input)["points"])

    golden = Golden(shared, "cp_translate")
    move = Translate(max_shift=0.5, relative=True)
    golden.assert_equal(move(Given(golden["draw1"].reshape(1, 1, 3)), points=golden.input)["points"])


# --- Two views of a cloud: each drawn from streams of its own, the same alone and in any batch ---


JITTER = {"name": "jitter", "std": 0.01, "clip": 0.05}


def two_views(*transforms: dict) -> TwoViews:
    return registry.transforms.build(
        ComponentConfig("two_views", {"transforms": list(transforms)}), facts={"up_axis": "z"}
    )


def draws(*indices: int) -> Draws:
    return Draws.for_samples([SampleKey(index=index, epoch=2, seed=5) for index in indices])


def test_views_differ_and_come_back_the_same() -> None:
    points = torch.rand(3, 20, 3)
    before = points.clone()
    views = two_views({"name": "rotate", "axis": "up"}, JITTER)(draws(0, 1, 2), points=points)
    again = two_views({"name": "rotate", "axis": "up"}, JITTER)(draws(0, 1, 2), points=points)
    assert set(views) == {"points", "other_points"}
    assert not torch.allclose(views["points"], views["other_points"], atol=0.1)
    assert all(torch.equal(views[name], again[name]) for name in views)
    assert torch.equal(points, before)


def test_a_cloud_gets_the_same_bits_alone_and_in_a_batch() -> None:
    points = torch.rand(3, 20, 3)
    transform = two_views({"name": "rotate", "axis": "up"}, {"name": "scale", "low": 0.5, "high": 2.0}, JITTER)
    together, alone = transform(draws(0, 1, 2), points=points), transform(draws(1), points=points[1:2])
    assert all(torch.equal(together[name][1:2], alone[name]) for name in alone)


def test_the_same_transform_twice_draws_twice() -> None:
    points = torch.zeros(1, 50, 3)
    once, twice = (two_views(*[JITTER] * times)(draws(0), points=points)["points"].std().item() for times in (1, 2))
    assert twice == pytest.approx(once * 2**0.5, rel=0.2)  # not 2: the second noise is not the first


def test_without_transforms_both_are_the_cloud() -> None:
    points = torch.rand(2, 5, 3)
    views = two_views()(draws(0, 1), points=points)
    assert torch.equal(views["points"], points)
    assert torch.equal(views["other_points"], points)


def test_what_needs_more_than_points_is_refused() -> None:
    class Labelled(Transform):
        def __call__(self, draws: Draws, *, points: torch.Tensor, label: torch.Tensor) -> dict:
            return {"points": points}

    with pytest.raises(
        ConfigError, match=r"two_views.transforms: transform 0 takes label, points; only those of points"
    ):
        TwoViews(transforms=(Labelled(),))
