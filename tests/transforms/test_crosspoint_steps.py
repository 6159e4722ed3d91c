"""Views of a cloud: CrossPoint's six steps as its authors drew them, and pairs from streams of their own."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.areas.clouds.sets.synthetic_shapes import SyntheticShapes
from sightline.contract import registry
from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError
from sightline.contract.types import ComponentConfig, SampleKey
from sightline.engine.batch_stream import read_batches
from sightline.parts.transforms.point_selection import choose_points, index_after_drop
from sightline.parts.transforms.points import Jitter, NormalizeUnitSphere, Rotate, Scale, Translate, TwoViews
from sightline.store.loading.batch_reader import BatchReader, NamedTransform
from tests.transforms.scenes import Given
from tests.transforms.test_points import Golden

STEPS = (
    {"name": "normalize_unit_sphere"},
    {"name": "scale", "low": 0.5, "high": 2.0, "isotropic": True},
    {"name": "rotate", "axis": "up"},
    {"name": "translate", "max_shift": 0.5, "relative": True},
    {"name": "jitter"},
    {"name": "drop_points", "max_ratio": 0.875},
)
"""As a config writes them, in the order of the paper's code."""
NUM_DRAWS = 10_000


def built(step: dict[str, object]) -> object:
    arguments = {key: value for key, value in step.items() if key != "name"}
    return registry.transforms.build(ComponentConfig(str(step["name"]), arguments), facts={"up_axis": "y"})


def views_of(points: Tensor, *steps: dict[str, object], seed: int = 5) -> Tensor:
    """The steps on clouds (B, N, 3), each with a stream of its own."""
    draws = Draws.for_samples([SampleKey(index, 0, seed) for index in range(len(points))])
    for place, step in enumerate(steps):
        points = built(step)(draws.stream(str(place)), points=points)["points"]
    return points


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


def lengths(points: Tensor) -> Tensor:
    return points.double().norm(dim=-1)


def test_scale_is_even_over_its_range_and_one_for_all_axes(cloud: Tensor) -> None:
    factors = views_of(cloud, STEPS[1]).double() / cloud.double()
    assert (factors.std(dim=(1, 2)) < 1e-6).all()
    factor = factors.mean(dim=(1, 2))
    assert 0.5 <= factor.min() < 0.501
    assert 1.999 < factor.max() <= 2.0 + 1e-6
    # The mean of 10,000 even draws from 0.5 to 2 is off by 1.5 / sqrt(12) / 100 = 0.0043: six of these.
    assert abs(factor.mean() - 1.25) < 6 * 0.0043


def test_rotation_keeps_y_and_the_distance_from_its_axis(cloud: Tensor) -> None:
    turned = views_of(cloud, STEPS[2])
    torch.testing.assert_close(turned[..., 1], cloud[..., 1], rtol=0, atol=0)
    torch.testing.assert_close(lengths(turned), lengths(cloud), rtol=0, atol=1e-6)
    angles = torch.atan2(turned[:, 0, 2], turned[:, 0, 0]).sort().values.double()
    even = torch.linspace(-math.pi, math.pi, NUM_DRAWS, dtype=torch.float64)
    # Kolmogorov: the largest gap between the two is above 2.0 / sqrt(n) once in 1,500 times.
    assert (angles - even).abs().max() / (2 * math.pi) < 2.0 / math.sqrt(NUM_DRAWS)


def test_translation_stays_within_half_of_the_extent(cloud: Tensor) -> None:
    shift = (views_of(cloud, STEPS[3]) - cloud).double()
    assert (shift.std(dim=1) < 1e-6).all()
    extent = (cloud.amax(dim=1) - cloud.amin(dim=1)).double()
    share = shift.mean(dim=1) / extent
    assert share.abs().max() <= 0.5 + 1e-6
    assert (share.amax(dim=0) > 0.499).all()
    assert (share.amin(dim=0) < -0.499).all()


def test_jitter_stays_within_five_hundredths(cloud: Tensor) -> None:
    noise = (views_of(cloud, STEPS[4]) - cloud).double()
    assert noise.abs().max() <= 0.05 + 1e-6
    # 960,000 draws: the spread of their standard deviation is 0.01 / sqrt(2 * 960,000).
    assert abs(noise.std() - 0.01) < 6 * 0.01 / math.sqrt(2 * noise.numel())


def test_dropped_points_become_the_first_and_their_share_has_the_mean_of_its_law(cloud: Tensor) -> None:
    kept = views_of(cloud, STEPS[5])
    is_moved = (kept != cloud).any(dim=-1)
    assert torch.equal(kept[is_moved], kept[:, :1].expand_as(kept)[is_moved])
    assert not is_moved[:, 0].any()
    share = is_moved[:, 1:].double().mean(dim=1)
    assert abs(share.mean() - 0.4375) < 0.01
    assert share.max() > 0.875  # the ratio is one of each point's chance, not of the count


def test_the_order_matters_as_in_the_paper(cloud: Tensor) -> None:
    """A view is scaled before it is moved: so its extent, and with it the shift, has the scale of the view."""
    views = views_of(cloud, *STEPS[:4])
    centre = (views.amax(dim=1) + views.amin(dim=1)) / 2
    extent = views.amax(dim=1) - views.amin(dim=1)
    assert (centre.abs() / extent).max() > 0.5  # beyond half of the extent only by the cloud's own place
    assert 1.0 < extent[:, 1].max() / extent[:, 1].median() < 2.0


# --- two views --------------------------------------------------------------------------------------------------------


def reader() -> BatchReader:
    two_views = registry.transforms.build(ComponentConfig("two_views", {"each": list(STEPS)}), facts={"up_axis": "z"})
    dataset = SyntheticShapes(split="train", train_size=24, test_size=12, num_points=64)
    return BatchReader(dataset, [NamedTransform("two_views", two_views)])


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")  # the test's machine may be small
def test_views_are_the_same_for_any_number_of_workers() -> None:
    keys = [[SampleKey(4 * batch + row, 1, 9) for row in range(4)] for batch in range(6)]
    alone, helped = (list(read_batches(reader(), iter(keys), workers)) for workers in (0, 4))
    for ours, theirs in zip(alone, helped, strict=True):
        assert torch.equal(ours["points"], theirs["points"])
        assert torch.equal(ours["other_points"], theirs["other_points"])


def test_two_views_differ_and_so_do_epochs_seeds_and_objects() -> None:
    batch = reader()([SampleKey(3, 0, 0), SampleKey(3, 1, 0), SampleKey(3, 0, 1), SampleKey(4, 0, 0)])
    clouds = torch.cat([batch["points"], batch["other_points"]])
    for one in range(len(clouds)):
        for other in range(one):
            assert not torch.equal(clouds[one], clouds[other])


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
