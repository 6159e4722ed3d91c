"""Objects with parts whose category is not told, is always the same, or is numbered otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sightline.engine.distributed import World
from sightline.workbench.check.checks.data.categories import missing_category
from sightline.workbench.check.context import Context
from tests.doctor.planting import Wrapped, assert_complete, assert_healthy, caught, make, with_data
from tests.doctor.segmenting import Edited, PerPoint, make_parts, make_rooms


def found(built: Any) -> list:
    findings = missing_category(Context(built, World()))
    for finding in findings:
        assert_complete(finding)
    return findings


def with_facts(built: Any, **facts: Any) -> Any:
    return with_data(built, lambda inner: Wrapped(inner, lambda batch, keys: batch, facts=facts))


def test_samples_without_a_category(tmp_path: Path) -> None:
    """The facts state categories; a set of scenes gives none."""
    facts = {"num_categories": 2, "category_names": ("one", "two"), "parts_of_category": ((0, 1), (2, 3))}
    built = make_rooms(tmp_path, lambda inner: Edited(inner, facts=facts))
    finding = caught(built, "missing-category", "cfg.contract")
    assert "samples have grey, label, points" in finding.measured
    assert "2 categories" in finding.summary


def test_one_category_for_every_sample(tmp_path: Path) -> None:
    """The labels agree with it, so it is a set of one category whose facts speak of twelve."""
    built = make_parts(tmp_path)
    own = built.data.train.dataset.strata

    def only(batch: dict, keys: Any) -> dict:
        chosen = [type(key)(int((own == 3).nonzero()[0][key.index % (own == 3).sum()]), 0, 0) for key in keys]
        return {**built.data.train.dataset.get_batch(chosen), "sample_index": batch["sample_index"]}

    finding = caught(
        with_data(built, lambda inner: Wrapped(inner, only)), "missing-category", "data.sampling", "warning"
    )
    assert f"3 ({built.data.facts['category_names'][3]})" in finding.summary


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"num_categories": 16}, "parts_of_category has 12 categories, num_categories 16"),
        ({"category_names": ("one",)}, "parts_of_category has 12 categories, category_names 1"),
        ({"parts_of_category": ((0, 1), (1, 2), *[(3,)] * 10)}, "part 1 belongs to the categories 0, 1"),
        ({"parts_of_category": ((0, 1), *[()] * 10, (2,))}, "part 3 belongs to none"),
        ({"parts_of_category": (tuple(range(31)), *[()] * 11)}, "part 30 is not one of the 30 classes"),
    ],
)
def test_facts_that_do_not_part_the_classes(tmp_path: Path, facts: dict[str, Any], told: str) -> None:
    finding, *others = found(with_facts(make_parts(tmp_path), **facts))
    assert others == []
    assert (finding.severity, finding.cause) == ("error", "cfg.class_count")
    assert told in finding.summary


def test_healthy_runs(tmp_path: Path) -> None:
    """Sets that merely know their parts, scenes, and models that are not told the category."""
    built = make_parts(tmp_path)
    assert found(built) == []
    assert_healthy(make_parts(tmp_path, model=PerPoint(in_channels=3, num_classes=30)))
    assert found(make_rooms(tmp_path)) == []
    assert found(make(tmp_path)) == []
