"""Labels of points that are no part of the object's category."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sightline.contract.types import SampleKey
from sightline.engine.distributed import World
from sightline.workbench.check.checks.data.categories import label_outside_parts
from sightline.workbench.check.context import Context
from sightline.workbench.check.core.sample_statistics import collect_statistics
from sightline.workbench.check.suite import run_all
from tests.doctor.planting import Wrapped, caught, with_data
from tests.doctor.segmenting import make_parts


def relabelled(change: Callable[[dict[str, Any]], dict[str, Tensor]]) -> Callable[[Any], Any]:
    """Wraps a set so that `change` replaces fields of its batches."""
    return lambda inner: Wrapped(inner, lambda batch, keys: {**batch, **change(batch)})


def test_one_point_of_one_sample(tmp_path: Path) -> None:
    """A stray point is named with its sample, its category and its part."""

    def change(batch: dict[str, Any]) -> dict[str, Tensor]:
        label = batch["label"].clone()
        label[batch["sample_index"] == 7, 5] = 30 - 1
        return {"label": label}

    built = make_parts(tmp_path)
    category = int(built.data.train.dataset.strata[7])
    assert category != 11, "the last category owns the last part"
    finding = caught(with_data(built, relabelled(change)), "label-outside-parts", "data.corrupt_sample")
    names = built.data.facts["category_names"], built.data.facts["class_names"]
    assert finding.where.sample == 7
    assert f"{category} ({names[0][category]})" in finding.summary
    assert f"29 ({names[1][29]})" in finding.summary
    assert "label[5]" in finding.measured
    assert finding.evidence["samples"] == [7]


def test_check_reads_on_where_a_training_starts_with_some_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bad sample among many, which the few that are read first do not show."""
    monkeypatch.setattr(
        "sightline.workbench.check.context.collect_statistics", partial(collect_statistics, most_samples=4)
    )
    built = make_parts(tmp_path)
    bad = int(built.data.train.indices[100])

    def change(batch: dict[str, Any]) -> dict[str, Tensor]:
        is_bad = (batch["sample_index"] == bad)[:, None]
        return {"label": torch.where(is_bad, (batch["label"] + 15) % 30, batch["label"])}

    built = with_data(built, relabelled(change))
    assert label_outside_parts(Context(built, World(), forward_s=1.5)) == []
    (finding,) = label_outside_parts(Context(built, World()))
    assert finding.where.sample == bad
    assert "216 of 216 samples" in finding.evidence["looked_at"]


def test_labels_of_one_category_shifted_by_one(tmp_path: Path) -> None:
    """The parts of a category that leave its range are off as a whole, not here and there."""

    def change(batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"label": batch["label"] + (batch["category"] == 1).long()[:, None]}

    finding = caught(with_data(make_parts(tmp_path), relabelled(change)), "label-outside-parts", "data.label_mapping")
    assert finding.evidence["category"] == 1
    assert "18 of 18 samples of this category and 18 of 216" in finding.measured


def test_the_labels_of_another_object(tmp_path: Path) -> None:
    """All of one sample's labels fit another category: they belong to another object."""
    built = make_parts(tmp_path)
    inner = built.data.train.dataset
    mine = next(i for i in built.data.train.indices if inner.strata[i] == 0)
    other = next(i for i in built.data.train.indices if inner.strata[i] == 4)
    foreign = inner.get_batch([SampleKey(int(other), 0, 0)])["label"][0]

    def change(batch: dict[str, Any]) -> dict[str, Tensor]:
        label = batch["label"].clone()
        label[batch["sample_index"] == int(mine)] = foreign
        return {"label": label}

    finding = caught(with_data(built, relabelled(change)), "label-outside-parts", "data.pairing")
    assert finding.where.sample == mine
    assert f"those of 4 ({built.data.facts['category_names'][4]})" in finding.summary


@pytest.mark.parametrize("steps", [1, 3])
def test_the_labels_of_other_clouds_of_the_batch(tmp_path: Path, steps: int) -> None:
    """Clouds of one category have parts of several: no numbering does that."""

    def change(batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"label": batch["label"].roll(steps, 0)}

    finding, *_ = label_outside_parts(Context(with_data(make_parts(tmp_path), relabelled(change)), World()))
    assert finding.cause == "data.pairing"
    assert "pair the sample" in finding.action


def test_categories_in_another_order(tmp_path: Path) -> None:
    def change(batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"category": 11 - batch["category"]}

    caught(with_data(make_parts(tmp_path), relabelled(change)), "label-outside-parts", "data.label_mapping")


def test_a_category_that_is_always_the_first_is_told_by_the_labels(tmp_path: Path) -> None:
    """What the constant category alone would show is told under this cause."""

    def change(batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"category": torch.zeros_like(batch["category"])}

    finding = caught(with_data(make_parts(tmp_path), relabelled(change)), "label-outside-parts", "data.label_mapping")
    assert any("missing-category" in line for line in finding.evidence["explains"])


def test_ignored_points_are_of_any_category(tmp_path: Path) -> None:
    def edit(batch: dict[str, Any], keys: Any) -> dict[str, Any]:
        return {**batch, "label": torch.where(batch["points"][..., 2] > 0.9, -1, batch["label"])}

    built = with_data(make_parts(tmp_path), lambda inner: Wrapped(inner, edit, facts={"ignore_index": -1}))
    assert [f for f in run_all(built, World()) if f.code == "label-outside-parts"] == []
