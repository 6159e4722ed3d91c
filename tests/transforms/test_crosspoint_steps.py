"""Views of a cloud: CrossPoint's six steps as its authors drew them, and pairs from streams of their own."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.contract import registry
from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError
from sightline.contract.types import ComponentConfig, SampleKey
from sightline.parts.transforms.point_selection import choose_points, index_after_drop
from sightline.parts.transforms.points import Jitter, NormalizeUnitSphere, Rotate, Scale, Translate, TwoViews
from tests.transforms.scenes import Given
from tests.transforms.test_points import Golden

NUM_DRAWS = 10_000


# --- as the authors drew it -------------------------------------------------------------------------------------------


def test_each_step_agrees_with_the_authors_on_their_own_draws(shared: Path) -> None:
    golden = Golden(shared, "cp_normalize")
    golden.assert_equal(NormalizeUnitSphere()(Given(), points=golden.input)["points"])

    golden = Golden(shared, "cp_scale")
    scale = Scale(low=0.5, high=2.0, isotropic=True)
    golden.assert_equal(scale(Given(golden["draw1"].reshape(1, 1, 1)), points=golden.input)["points"])

    golden = Golden(shared, "cp_rotate_y")
    turn = Rotate(up_axis="y")
    golden.assert_equal(turn(Given(2 * math.pi * golden["draw1"].reshape(1)), points=golden.input)["points"])

    golden = Golden(shared, "cp_translate")
    move = Translate(max_shift=0.5, relative=True)
    golden.assert_equal(move(Given(golden["draw1"].reshape(1, 1, 3)), points=golden.input)["points"])

    golden = Golden(shared, "cp_jitter")
    golden.assert_equal(Jitter()(Given(golden["noise"][None] / 0.01), points=golden.input)["points"])

    golden = Golden(shared, "cp_dropout")
    index = index_after_drop(golden["draw2"][None], 0.875 * golden["draw1"].reshape(1, 1))
    golden.assert_equal(choose_points(index, {"points": golden.input})["points"])


# --- the law of the draws ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cloud() -> Tensor:
    """One cloud in the unit sphere, for every one of the draws."""
    points = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 32, 3))).float()
    unit: Tensor = NormalizeUnitSphere()(Draws.for_samples([SampleKey(0, 0, 0)]), points=points)["points"]
    return unit.expand(NUM_DRAWS, -1, -1)


def varied(transform: Scale | Translate, points: Tensor) -> Tensor:
    changed: Tensor = transform(Draws.for_samples([SampleKey(i, 0, 5) for i in range(NUM_DRAWS)]), points=points)[
        "points"
    ]
    return changed.double()


def test_scale_is_even_over_its_range_and_one_for_all_axes(cloud: Tensor) -> None:
    factors = varied(Scale(low=0.5, high=2.0, isotropic=True), cloud) / cloud.double()
    assert (factors.std(dim=(1, 2)) < 1e-6).all()
    factor = factors.mean(dim=(1, 2))
    assert 0.5 <= factor.min() < 0.501
    assert 1.999 < factor.max() <= 2.0 + 1e-6
    # The mean of 10,000 even draws from 0.5 to 2 is off by 1.5 / sqrt(12) / 100 = 0.0043: six of these.
    assert abs(factor.mean() - 1.25) < 6 * 0.0043


def test_translation_stays_within_half_of_the_extent(cloud: Tensor) -> None:
    shift = varied(Translate(max_shift=0.5, relative=True), cloud) - cloud.double()
    assert (shift.std(dim=1) < 1e-6).all()
    extent = (cloud.amax(dim=1) - cloud.amin(dim=1)).double()
    share = shift.mean(dim=1) / extent
    assert share.abs().max() <= 0.5 + 1e-6
    assert (share.amax(dim=0) > 0.499).all()
    assert (share.amin(dim=0) < -0.499).all()


# --- Two views of a cloud: each drawn from streams of its own, the same alone and in any batch ---


JITTER = {"name": "jitter", "std": 0.01, "clip": 0.05}


def two_views(*each: dict) -> TwoViews:
    return registry.transforms.build(ComponentConfig("two_views", {"each": list(each)}), facts={"up_axis": "z"})


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
    class Labelled:
        def __call__(self, draws: Draws, *, points: torch.Tensor, label: torch.Tensor) -> dict:
            return {"points": points}

    with pytest.raises(ConfigError, match=r"two_views.each: transform 0 takes label, points; only those of points"):
        TwoViews(each=(Labelled(),))
