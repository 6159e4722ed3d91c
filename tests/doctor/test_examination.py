"""What the checks examined: numbers, time and reasons by subject; findings that say the same are printed once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from sightline.doctor.finding import Finding, FindingLocation
from sightline.engine.distributed import World
from sightline.workbench.check import suite
from sightline.workbench.check.context import CHECKS, Context, check
from sightline.workbench.check.core.examination import (
    SUBJECTS,
    Examination,
    describe_examination,
    describe_findings,
    find_subject,
)
from sightline.workbench.check.core.finding import Fault
from sightline.workbench.check.needs import NEEDS
from tests.doctor.planting import make


def _burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def _examine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> dict[str, Any]:
    """Examine a run by two checks of a plugin's own, of which one has no subject."""
    monkeypatch.setattr("sightline.workbench.check.context.CHECKS", {})

    @check("slow", "static", causes=("data.split",))
    def slow(context: Context) -> Fault:
        assert len(context.statistics)  # measured here, in the time of the data
        _burn(0.05)
        return Fault("it is slow", at="data", measured="1", expected="0", action="do")

    @check("absent", "static", each=lambda context: [])
    def absent(context: Context, subject: object) -> None:
        raise AssertionError("there is no subject")

    monkeypatch.setattr(suite, "all_checks", lambda: [slow, absent])
    monkeypatch.setattr(suite, "assert_known", lambda config: None)
    examination = Examination()
    suite.run_all(make(tmp_path, *overrides), World(), examination=examination)
    return examination.to_dict()


def test_checks_are_counted_with_their_time_and_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = _examine(tmp_path, monkeypatch)
    (row,) = document["subjects"]
    assert (row["subject"], row["ran"]) == ("plugin", ["slow"])
    assert row["not_applicable"].keys() == {"absent"}
    assert 0.05 <= row["seconds"] <= document["seconds"]
    assert document["seconds"] > row["seconds"]  # the statistics are in the total, and not in the plugin's time


def test_a_skipped_check_is_named_as_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = _examine(tmp_path, monkeypatch, "checks.skip=[slow]")["subjects"]
    assert row["ran"] == []
    assert row["not_applicable"]["slow"] == "checks.skip"


def test_every_check_of_ours_has_a_subject_and_every_need_a_check() -> None:
    rules = suite.all_checks()
    assert {find_subject(rule.run.__module__) for rule in rules} == {*SUBJECTS} - {"plugin", "compression"}
    assert find_subject("mine.checks") == "plugin"
    assert NEEDS.keys() <= CHECKS.keys()


def test_of_nested_times_each_counts_once() -> None:
    examination = Examination()
    with examination.count_time("model"):
        with examination.count_time("data"):
            _burn(0.03)
        _burn(0.01)
    assert 0.03 <= examination.seconds["data"] < 0.04
    assert 0.01 <= examination.seconds["model"] < 0.02


def test_samples_that_were_not_read_are_not_covered(tmp_path: Path) -> None:
    examination = Examination()
    suite.run_quick(
        make(tmp_path, "data.train_size=600", "checks.skip=[update-size, no-gradient]"),
        World(),
        examination=examination,
    )
    document = examination.to_dict()
    (gap,) = [gap for gap in document["not_covered"] if "samples of the train part" in gap]
    unread, total = (int(word) for word in gap.split()[:3] if word.isdigit())
    assert 0 < unread < total <= 600
    lines = describe_examination(document)
    assert f"  {gap}" in lines
    assert sum("do not apply" in line for line in lines) >= 3


def _finding(summary: str, place: str, severity: Any = "warning", measured: str = "1") -> Finding:
    where, cause = FindingLocation(layer=place), "model.init"
    return Finding("odd", severity, summary, cause, where, measured, "less", "repair it")


def test_findings_that_say_the_same_are_printed_once_and_notes_last() -> None:
    note, other = _finding("fact", "a", "note"), _finding("another", "d")
    texts = describe_findings([note, _finding("odd", "b"), _finding("odd", "c", measured="2"), other])
    assert [text.split("\n")[0] for text in texts] == [
        "[odd warning model.init] odd",
        "[odd warning model.init] another",
        "[odd note model.init] fact (layer a)",
    ]
    assert texts[0].split("\n")[1:] == [
        "  where: layer b",
        "  measured: 1",
        "  also: layer c, measured 2",
        "  expected: less",
        "  do: repair it",
    ]
    assert texts[1].split("\n")[-1] == "  do: as above"
    assert describe_findings([other])[0] == str(other)
