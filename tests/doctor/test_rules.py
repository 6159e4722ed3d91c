"""Rules: subjects, faults, and causes that are ordered by evidence."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from sightline.doctor.finding import finding_from_dict
from sightline.engine.build import DataSubset
from sightline.engine.distributed import World
from sightline.workbench.check.context import CHECKS, Context, check, metrics
from sightline.workbench.check.core.finding import Fault, Hypothesis, explain, is_near, is_within_factor
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


UNITS = (
    Hypothesis("data.normalisation", "millimetres", partial(operator.mul, 1000.0)),
    Hypothesis("data.layout", "exchanged", 25.0, "exchange them"),
)


def test_only_what_fits_better_than_the_expectation_explains() -> None:
    assert [row.text for row in explain(2990.0, 3.0, UNITS, likeness=is_near(0.01))] == ["millimetres"]
    assert [row.text for row in explain(30.0, 3.0, UNITS, likeness=is_within_factor(2))] == ["exchanged"]
    assert explain(3.0, 3.0, [Hypothesis("loss.form", "the same", 3.0)], likeness=is_near(0.01)) == []


def test_the_best_prediction_comes_first_and_the_first_of_equals() -> None:
    def likeness(found: float, predicted: float) -> float:
        return -abs(found - predicted)

    rows = explain(26.0, math.inf, (*UNITS, Hypothesis("data.centre", "again", 25.0)), likeness=likeness)
    assert [row.text for row in rows] == ["exchanged", "again"]
    near = explain(2999.0, 3.0, UNITS, likeness=likeness, above=-2.0, otherwise=Hypothesis("loss.form", "unknown"))
    assert [row.text for row in near] == ["millimetres", "unknown"]
    assert near[0].likeness == -1.0
