"""Labels that are no class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.doctor.planting import Wrapped, caught, make, with_data


def relabelled(change: Any, **info: Any) -> Any:
    """Wraps a data set so that its labels pass through `change(label, sample_index)`."""

    def edit(batch: dict, keys: Any) -> dict:
        return {**batch, "label": change(batch["label"], batch["sample_index"])}

    return lambda inner: Wrapped(inner, edit, **info)


def test_a_class_beyond_the_last(tmp_path: Path) -> None:
    built = with_data(make(tmp_path), relabelled(lambda label, index: label + (label == 11)))
    finding = caught(built, "label-range", "data.label_mapping")
    assert "12" in finding.measured
    assert "0 .. 11" in finding.expected
    index = finding.where.sample
    assert built.data.train.dataset.inner.strata[index] == 11
    assert finding.evidence["field"] == "label"
    assert finding.where.line == 1


def test_raw_ids(tmp_path: Path) -> None:
    built = with_data(make(tmp_path), relabelled(lambda label, index: label * 10))
    finding = caught(built, "label-range", "data.label_mapping")
    assert finding.evidence["outside"] == [20, 30, 40, 50, 60, 70, 80, 90, 100, 110]
    assert any("first-step" in line for line in finding.evidence["explains"])


def test_an_undeclared_ignore_value(tmp_path: Path) -> None:
    built = with_data(make(tmp_path), relabelled(lambda label, index: torch.where(label == 3, 255, label)))
    finding = caught(built, "label-range", "data.ignore_handling")
    assert "ignore_index: 255" in finding.action


def test_one_bad_label_among_many_is_found_where_strata_tell(tmp_path: Path) -> None:
    """Of 1,200 samples 256 are read; the strata hold the labels of all."""
    built = make(tmp_path, "data.train_size=1200")
    surveyed = relabelled(lambda label, index: torch.where(index == 1001, 77, label))

    def wrap(inner: Any) -> Any:
        dataset = surveyed(inner)
        dataset.strata = inner.strata.copy()
        dataset.strata[1001] = 77
        return dataset

    part = built.data.train if 1001 in built.data.train.indices else built.data.selection
    finding = caught(with_data(built, wrap), "label-range", "data.label_mapping")
    assert finding.where.sample == 1001
    assert part.split in (finding.where.dataset or "")


def test_labels_that_are_not_whole_numbers(tmp_path: Path) -> None:
    built = with_data(make(tmp_path), relabelled(lambda label, index: label.float()))
    finding = caught(built, "label-range", "data.target_encoding")
    assert "float32" in finding.measured


def test_a_position_within_dense_labels(tmp_path: Path) -> None:
    def edit(batch: dict, keys: Any) -> dict:
        part = batch["part"].clone()
        part[batch["sample_index"] == 7, 5] = 30
        return {**batch, "part": part}

    finding = caught(with_data(make(tmp_path), lambda inner: Wrapped(inner, edit)), "label-range", "data.label_mapping")
    assert finding.where.sample == 7
    assert "part[5]" in finding.measured


def test_declared_ignore_index_is_no_fault(tmp_path: Path) -> None:
    wrap = relabelled(lambda label, index: torch.where(label == 3, -1, label), facts={"ignore_index": -1})
    built = with_data(make(tmp_path), wrap)
    findings = [f for f in _all(built) if f.code == "label-range"]
    assert findings == []


def test_everything_ignored(tmp_path: Path) -> None:
    wrap = relabelled(lambda label, index: torch.full_like(label, -1), facts={"ignore_index": -1})
    findings = [f for f in _all(with_data(make(tmp_path), wrap)) if f.code == "label-range"]
    assert {(f.severity, f.cause) for f in findings} == {("warning", "data.ignore_handling")}


def _all(built: Any) -> list:
    from sightline.engine.distributed import World
    from sightline.workbench.check.suite import run_all

    return run_all(built, World())
