"""Rules: subjects, faults, and causes that are ordered by evidence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sightline.doctor.finding import finding_from_dict
from sightline.engine.build import DataSubset
from sightline.engine.distributed import World
from sightline.workbench.check.context import CHECKS, Context, check, metrics
from sightline.workbench.check.core.finding import Fault
from sightline.workbench.check.core.sample_statistics import distinct_parts
from tests.doctor.planting import make


def splits(context: Context) -> list[DataSubset]:
    return distinct_parts(context.built.data)


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setattr("sightline.workbench.check.context.CHECKS", dict(CHECKS))
    return Context(make(tmp_path), World())


def test_a_rule_of_numbers_needs_no_texts(context: Context) -> None:
    @check("small-split", "static", each=splits, causes=("data.split", "data.path"), config_path="data", action="do")
    def small_split(context: Context, part: DataSubset) -> Fault | None:
        size = len(part.indices)
        return Fault("a split is small", value=size, bound=10_000, sureness=0.9) if size < 10_000 else None

    findings = small_split(context)
    first = findings[0]
    assert [finding.where.dataset for finding in findings] == [
        f"synthetic_shapes/{part.split}" for part in splits(context)
    ]
    assert (first.code, first.cause, first.alternatives, first.action) == (
        "small-split",
        "data.split",
        ("data.path",),
        "do",
    )
    assert (first.measured, first.expected) == (f"{first.value:.4g}", "at least 1e+04")
    assert first.to_dict()["sureness"] == 0.9
    assert finding_from_dict(first.to_dict()) == first


def test_a_rule_without_subjects_does_not_apply(context: Context) -> None:
    @check("nothing", "static", each=lambda context: [])
    def nothing(context: Context, subject: object) -> Fault:
        raise AssertionError("there is no subject")

    assert nothing(context) == []


def test_a_rule_may_break_in_several_ways_and_takes_the_path_of_its_subject(context: Context) -> None:
    @check("metric-names", "static", each=metrics, causes=("eval.protocol",))
    def metric_names(context: Context, metric: object) -> Iterator[Fault]:
        yield Fault("one", measured="1", expected="2")
        yield Fault("two", measured="1", expected="2", at="model", severity="note", causes=("cfg.contract",))

    one, two = metric_names(context)[:2]
    assert (one.where.config_path, one.severity, one.cause) == ("metrics.0", "error", "eval.protocol")
    assert (two.where.config_path, two.severity, two.cause) == ("model", "note", "cfg.contract")
    assert "value" not in one.to_dict()
