"""What was examined: verdict, reasons and gaps; findings that say the same are printed once."""

from __future__ import annotations

import random
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sightline.doctor.attempts import MissingError, attempt, series_of_attempts
from sightline.doctor.finding import Finding, FindingLocation
from sightline.engine.distributed import World
from sightline.instrument.random_state import seed_all
from sightline.workbench.check.examination import RunExamination, describe_examination, describe_findings
from sightline.workbench.check.suite import run_quick
from tests.doctor.planting import make


def test_what_was_judged_and_what_was_not_is_said_with_reasons(tmp_path: Path) -> None:
    """A rate that moves nothing is an `update-size`: what stands in its brackets is what `checks.skip` takes."""
    examination = RunExamination()
    words = ("data.train_size=600", "optimizer.lr=1e-9")
    (finding,) = run_quick(make(tmp_path, *words), World())
    assert str(finding).startswith("[update-size warning optim.lr]")
    words += ("checks.skip=[update-size, no-gradient]",)
    assert run_quick(make(tmp_path, *words), World(), examination=examination) == []
    document = examination.to_dict()
    judged, reasons = document["judged"], {name.partition(":")[0]: why for name, why in document["not_judged"].items()}
    assert {"label-range", "first-step", "loss-direction"} <= {name.partition(":")[0] for name in judged}
    assert reasons["update-size"] == "declared"
    assert reasons["box-protocol"] == "no boxes"
    assert document["not_judged"].keys().isdisjoint(document["judged"])
    (gap,) = [gap for gap in document["not_covered"] if "samples of the train part" in gap]
    unread, total = (int(word) for word in gap.split()[:3] if word.isdigit())
    assert 0 < unread < total <= 600
    assert document["seconds"] > 0
    lines = describe_examination(document)
    assert len(lines) == 3
    assert "the steps of the training" not in lines[1]  # which is about to watch them
    assert gap in lines[1]
    verbose = describe_examination(document, is_verbose=True)
    assert verbose[:3] == document["verdict"]
    assert f"  {gap}" in verbose
    assert any(re.fullmatch(r"  not judged: update-size: .+ \(declared\)", line) for line in verbose)


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


def test_attempts_begin_alike_and_leave_random_states_in_a_series_too() -> None:
    """An attempt inside of another leaves its numbers as they are, and so does one that fails."""

    def draw() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    def ask() -> list[list[float]]:
        first = draw()
        assert attempt("inner", lambda: [draw(), draw()], {})[0] == first
        return [first, draw()]

    for context in (nullcontext, series_of_attempts):
        seed_all(1)
        expected = [draw(), draw()]
        seed_all(1)
        assert draw() == expected[0]
        with context():
            alike = [attempt("one", ask, {})]
            assert isinstance(attempt("failing", lambda: draw()[3], {}), MissingError)
            alike.append(attempt("another", ask, {}))
        assert draw() == expected[1]
        seed_all(0)
        assert alike == [[draw(), draw()]] * 2
