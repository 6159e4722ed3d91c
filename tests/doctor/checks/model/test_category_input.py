"""Models that do not hear the category, or count other categories than the data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.workbench.check.checks.model.outputs import category_input
from sightline.workbench.check.context import Context
from sightline.workbench.check.suite import run_quick
from tests.doctor.planting import assert_healthy, caught, make
from tests.doctor.segmenting import OfCategory, PerPoint, make_parts, make_rooms


def hearing(num_categories: int, hear: Callable[[Tensor], Tensor] = Tensor.long) -> OfCategory:
    torch.manual_seed(0)
    return OfCategory(in_channels=3, num_classes=30, num_categories=num_categories, hear=hear)


def run_of(folder: Path, model: OfCategory) -> TrainingSetup:
    return make_parts(folder, model=model)


def test_a_category_that_is_taken_and_not_used(tmp_path: Path) -> None:
    built = run_of(tmp_path, hearing(12, torch.zeros_like))
    finding = caught(built, "category-input", "cfg.contract", "warning")
    assert "do not depend on it" in finding.summary
    assert "category 0, 1, 2, 3" in finding.measured


def test_a_one_hot_that_is_too_short_and_clamped(tmp_path: Path) -> None:
    """Built for ten of twelve categories: the last three look alike."""
    finding = caught(run_of(tmp_path, hearing(10, lambda c: c.clamp(max=9))), "category-input", "cfg.class_count")
    assert "cannot distinguish category 9 from 10" in finding.summary
    assert "length 12" in finding.expected


def test_a_one_hot_that_wraps_round(tmp_path: Path) -> None:
    finding = caught(run_of(tmp_path, hearing(8, lambda c: c % 8)), "category-input", "cfg.class_count")
    assert "0 and 8" in finding.measured


def test_a_one_hot_that_is_too_short_and_fails(tmp_path: Path) -> None:
    """The categories of the first step pass, a later one would end the run."""
    built = run_of(tmp_path, hearing(12))
    first = built.job.stream.plan.step_keys(0)[0][0][:4]
    present = {int(built.data.train.dataset.strata[key.index]) for key in first}
    assert 11 not in present, "the check must look beyond the first step"
    finding = caught(run_of(tmp_path, hearing(11)), "category-input", "cfg.class_count")
    assert "fails on category 11" in finding.summary


@pytest.mark.parametrize("length", [13, 16])
def test_a_one_hot_that_is_too_long(tmp_path: Path, length: int) -> None:
    """Sixteen, as of ShapeNet's parts, written into a model of the user's own."""
    finding = caught(run_of(tmp_path, hearing(length)), "category-input", "cfg.class_count", "warning")
    assert "more categories than the 12" in finding.summary


def test_the_start_of_a_training_asks_for_the_ends_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no time at all the first two categories are still asked."""
    built = run_of(tmp_path, hearing(12, torch.zeros_like))
    monkeypatch.setattr("sightline.workbench.check.checks.model.outputs._MAX_SECONDS", 0.0)
    (finding,) = [each for each in run_quick(built, World()) if each.code == "category-input"]
    assert "category 0, 1" in finding.measured
    assert ", 2" not in finding.measured


def test_a_model_that_takes_no_cloud_alone_is_left_alone(tmp_path: Path) -> None:
    """It refuses whatever the category is."""

    def two_at_least(category: Tensor) -> Tensor:
        if len(category) < 2:
            raise ValueError("found one cloud, expected more")
        return category

    built = run_of(tmp_path, hearing(12, two_at_least))
    assert category_input(Context(built, World())) == []


def test_a_model_that_is_not_told_is_a_fact(tmp_path: Path) -> None:
    built = make_parts(tmp_path, model=PerPoint(in_channels=3, num_classes=30))
    (finding,) = category_input(Context(built, World()))
    assert finding.severity == "note"
    assert category_input(Context(built, World(), forward_s=1.5)) == []


@pytest.mark.parametrize("hear", [Tensor.long, lambda c: (c * 5) % 12], ids=["as it is", "in another order"])
def test_healthy_runs(tmp_path: Path, hear: Callable[[Tensor], Tensor]) -> None:
    assert_healthy(run_of(tmp_path, hearing(12, hear)))


def test_sets_without_parts_are_left_alone(tmp_path: Path) -> None:
    assert category_input(Context(make(tmp_path), World())) == []
    assert category_input(Context(make_rooms(tmp_path), World())) == []
