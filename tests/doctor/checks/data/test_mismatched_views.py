"""Views of one row that are of different objects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from sightline.contract.types import Field, SampleKey
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.store.loading.batch_reader import NamedTransform
from sightline.workbench.check.checks.data.images import mismatched_views, shape_statistics
from sightline.workbench.check.context import Context
from tests.doctor.pairing import STRONG, make_pairs, transforms_of
from tests.doctor.planting import Wrapped, assert_complete, caught, with_data


def found(built: TrainingSetup) -> list[Any]:
    return mismatched_views(Context(built, World()))


class _Roll:
    """A transform that hands every second view to the row before."""

    def __call__(self, draws: Any, *, other_points: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"other_points": other_points.roll(-1, 0)}


class _Shared:
    """The second view from a generator of its own that goes on from call to call."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, draws: Any, *, other_points: torch.Tensor) -> dict[str, torch.Tensor]:
        noise = torch.randn(other_points.shape, generator=self.generator)
        return {"other_points": other_points + 0.01 * noise}


class _Turned:
    """Both views from the fields of the data set, each turned."""

    def __init__(self, built: TrainingSetup) -> None:
        (two_views,) = transforms_of(built)
        self.apply = two_views.apply

    def __call__(self, draws: Any, *, points: torch.Tensor, partner: torch.Tensor) -> dict[str, torch.Tensor]:
        first = self.apply(draws, points=points)["points"]
        return {"points": first, "other_points": self.apply(draws.stream("partner"), points=partner)["points"]}

    adds = {"other_points": Field("points 3", "float32")}  # noqa: RUF012


def with_partners(built: TrainingSetup, partner_of: Any) -> TrainingSetup:
    """The run on a set that gives each object another cloud beside it: that of `partner_of(index, size)`."""

    def wrap(inner: Any) -> Wrapped:
        def edit(batch: dict[str, Any], keys: Sequence[SampleKey]) -> dict[str, Any]:
            others = [SampleKey(partner_of(key.index, len(inner)), key.epoch, key.seed) for key in keys]
            return {**batch, "partner": inner.get_batch(others)["points"]}

        fields = {**inner.info.fields, "partner": Field("points 3", "float32")}
        return Wrapped(inner, edit, fields=fields)

    return with_data(built, wrap, [NamedTransform("turned", _Turned(built))])


def test_what_is_compared_does_not_see_rotation_place_and_size() -> None:
    cloud = np.random.default_rng(1).normal(size=(40, 3)) * [3, 2, 1]
    turned = 7 * Rotation.from_rotvec([0.3, -1.1, 2.0]).apply(cloud) + [5, 6, 7]
    np.testing.assert_allclose(shape_statistics(turned), shape_statistics(cloud), atol=1e-12)
    assert not np.allclose(shape_statistics(cloud * [1, 1, 2]), shape_statistics(cloud), atol=0.05)
    assert (shape_statistics(np.ones((5, 3))) == 0).all()


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("overrides", [(), (STRONG,)], ids=["mild", "as the paper"])
def test_healthy_runs(tmp_path: Path, seed: int, overrides: tuple[str, ...]) -> None:
    assert found(make_pairs(tmp_path, f"seed={seed}", *overrides)) == []


def test_healthy_partners(tmp_path: Path) -> None:
    assert found(with_partners(make_pairs(tmp_path), lambda index, size: index)) == []


def test_rows_that_are_shuffled_in_the_batch(tmp_path: Path) -> None:
    built = make_pairs(tmp_path)
    transforms = [*transforms_of(built), NamedTransform("roll", _Roll())]
    finding = caught(with_data(built, lambda inner: inner, transforms), "exchanged-rows", "data.pairing")
    assert "'other_points' of a sample depends on what else is in its batch" in finding.summary
    # the second object's cloud stands in the first of the four rows that are read
    assert "row 0 of a batch of 4 has the values of row 1 read alone" in finding.measured


def test_a_generator_that_is_shared(tmp_path: Path) -> None:
    built = make_pairs(tmp_path)
    transforms = [*transforms_of(built), NamedTransform("noise", _Shared())]
    finding = caught(with_data(built, lambda inner: inner, transforms), "own-generator", "data.duplicate_randomness")
    assert "'other_points'" in finding.measured
    assert finding.evidence["generators"] == ["generator"]


def test_the_next_object_as_a_partner(tmp_path: Path) -> None:
    (finding,) = found(with_partners(make_pairs(tmp_path), lambda index, size: (index + 1) % size))
    assert (finding.severity, finding.cause) == ("warning", "data.pairing")
    assert "'other_points' does not show the objects" in finding.summary
    assert finding.evidence["field"] == "other_points"
    assert_complete(finding)


def test_any_object_as_a_partner(tmp_path: Path) -> None:
    (finding,) = found(with_partners(make_pairs(tmp_path), lambda index, size: (37 * index + 11) % size))
    assert finding.evidence["shift"] is None


def test_objects_that_all_look_alike_say_nothing(tmp_path: Path) -> None:
    """Where no view is like its own object more than like others, none can be told to be wrong."""
    built = make_pairs(tmp_path)

    def wrap(inner: Any) -> Wrapped:
        cloud = inner.get_batch([SampleKey(0, 0, 0)])["points"]
        return Wrapped(inner, lambda batch, keys: {**batch, "points": cloud.expand(len(keys), -1, -1).clone()})

    assert found(with_data(built, wrap, transforms_of(built))) == []
