"""The table of cases, and the command that measures the doctor with it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import sightline
from sightline.doctor.finding import CAUSES
from tests.command import Outcome, run_here
from tests.doctor import __main__ as command
from tests.doctor import running
from tests.doctor.cases import BY_ID, EXAMS, ROWS, read_answers
from tests.doctor.observing import CRASHED, observe
from tests.doctor.row import FAMILY_BY_CAUSE, KINDS, Row
from tests.doctor.running import list_keys, make_line, read_lines, run_rows
from tests.doctor.scores import compare, is_good, summarise
from tests.limits import ENDLESS_S, HANG_S, limited
from tests.planted.trial import Alarm


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows have more time than a measurement gives them."""
    monkeypatch.setattr(running, "LIMIT_S", HANG_S)


NAMED = Alarm("check", "", "own", "error", ("loss.form", "loss.sign"))


def run_doctor(*words: object) -> Outcome:
    """Run `python -m tests.doctor <words>`."""
    return run_here(*words, main=command.main)


def make_row(name: str, run: Callable[[], tuple[Alarm, ...]] = lambda: (), **more: object) -> Row:
    return Row(**{"id": name, "kind": "loop", "family": "run", "run": lambda seed, known: run(), **more})  # type: ignore[arg-type]


# --- the table --------------------------------------------------------------------------------------------------------


def test_rows_have_ids_families_and_twins_of_their_own() -> None:
    assert len(BY_ID) == len(ROWS)
    assert set(FAMILY_BY_CAUSE) == CAUSES
    assert {row.kind for row in ROWS} >= {*KINDS} - {"healthy", "rare", "script"}  # drawn, and not everywhere
    for row in ROWS:
        assert set(row.causes) <= CAUSES, row.id
        assert not row.twin or (row.has_bug and not BY_ID[row.twin].has_bug), row.id
    assert sum(row.has_bug for row in ROWS if row.kind == "run" and "/" not in row.id) == 231


@pytest.mark.skipif(not EXAMS.is_dir(), reason=f"the scripts are not at {EXAMS}; set SIGHTLINE_SHARED")
def test_every_script_with_a_bug_has_causes() -> None:
    scripts = [row for row in ROWS if row.id.startswith("script/") and "/reports/" not in row.id]
    assert [row.id for row in scripts if row.has_bug and not row.causes] == []
    bugs, correct = 170 + 18 + 15 + 1 + 8 + 20, 328 + 17 + 15 + 2 + 8 + 20
    assert (sum(row.has_bug for row in scripts), len(scripts)) == (bugs, bugs + correct)
    assert len(read_answers()) == bugs
    assert all(row.words for row in scripts if row.has_bug and "/public2/" in row.id)


EXPECTED = {
    "module/M5/blocks_in_a_list": "unregistered",
    "loop/planted/zero_grad_is_missing": "gradients-kept",
    "oracle/sign_of_the_gradient": "layer-gradient",
    "oracle/sign_of_the_gradient:ok": "",
    "script/first/36_new_head_not_in_optimizer": "not-optimised",
    "script/first/36_new_head_not_in_optimizer:ok": "",
}


@pytest.mark.processes
def test_rows_of_each_kind_have_their_result() -> None:
    """Side by side, in processes of their own; one of a run: test_the_command_resumes."""
    chosen = command.choose(ROWS, [name for name in EXPECTED if name in BY_ID], [])
    lines = {line["id"]: line for line in run_rows(chosen, [0], {}, commit="x", jobs=3)}
    first = {name: (line["alarms"] or [{"code": ""}])[0]["code"] for name, line in lines.items()}
    assert {name: first[name] for name in EXPECTED if name in BY_ID} == {
        name: code for name, code in EXPECTED.items() if name in BY_ID
    }
    assert [name for name, line in lines.items() if line["has_bug"] and line["rank"] != 1] == []
    assert all(line["cpu_s"] > 0 and not line["crash"] for line in lines.values())


# --- runs of rows -----------------------------------------------------------------------------------------------------


@pytest.mark.processes
def test_crashes_and_endless_rows_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that end have all the time that they need; those that do not have half a second."""

    def fail() -> tuple[Alarm, ...]:
        raise IndexError("list\nindex")

    ends = {"fails": fail, "aborts": lambda: os._exit(3), "sleeps": lambda: time.sleep(ENDLESS_S)}
    rows = [make_row(name, run) for name, run in ends.items()]  # type: ignore[arg-type]
    lines = {}
    for limit_s, some in ((HANG_S, rows[:2]), (0.5, rows[2:])):
        monkeypatch.setattr(running, "LIMIT_S", limit_s)
        with limited():
            lines |= {line["id"]: line for line in run_rows(some, [0], {}, commit="x", jobs=3)}
    assert lines["fails"]["crash"] == "IndexError: list index"
    assert lines["aborts"]["crash"] == "the process ended early"
    assert lines["sleeps"]["crash"].startswith("over the limit")
    assert not is_good(lines.values())


def test_what_a_twin_raises_is_no_finding() -> None:
    twin = make_row("a:ok", lambda: (NAMED,))
    rows = [make_row("a", lambda: (NAMED,), has_bug=True, twin="a:ok"), twin]
    lines = {line["id"]: line for line in run_rows(rows, [0, 1], {}, commit="x", jobs=2)}
    assert list(lines) == ["a:ok", "a"]
    assert (lines["a"]["found"], len(lines["a"]["alarms"])) == (False, 1)


def test_a_crash_of_a_check_is_no_finding_and_a_false_alarm() -> None:
    row = make_row("a", has_bug=True, causes=("loss.sign",))
    crash = Alarm("check", "", CRASHED, "error")
    assert not make_line(row, 0, alarms=[crash])["found"]
    assert make_line(row, 0, alarms=[crash, NAMED])["rank"] == 2
    assert not is_good([make_line(make_row("b"), 0, alarms=[crash])])


@pytest.mark.parametrize(
    ("text", "severity", "known", "is_found"),
    [
        ("'body.fc_out' is random", "error", False, True),
        ("FC_OUT is random", "note", False, True),
        ("FC_OUT is random", "note", True, False),
        ("'fc_out2' is random", "error", False, False),
        ("fc_out", "failed", False, False),
    ],
)
def test_with_words_a_finding_counts_that_names_one(text: str, severity: str, known: bool, is_found: bool) -> None:
    row = make_row("a", has_bug=True, causes=("eval.mode",), words=("fc_out", "dropout"))
    alarm = Alarm("check", text, "own", severity, ("eval.mode",))
    twin = make_line(make_row("a:ok"), 0, alarms=[alarm] if known else [])
    line = make_line(row, 0, alarms=[alarm], known=list_keys(twin))
    assert (line["found"], line["rank"]) == (is_found, 1 if is_found else None)
    assert (len(line["alarms"]), len(line["notes"]), len(line["failed"])) == (
        *(severity == "error", severity == "note", severity == "failed"),
    )


def test_measurements_that_fail_are_recorded() -> None:
    class OwnLoss(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, outputs: torch.Tensor) -> torch.Tensor:
            return outputs.square().mean()

        @staticmethod
        def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
            raise KeyError("no such gradient")

    x = torch.randn(16, 3)
    alarms = observe(lambda: sightline.check(torch.nn.Linear(3, 2), lambda y, _: OwnLoss.apply(y), (x, x[:, 0])))
    failed = [alarm for alarm in alarms if alarm.severity == "failed"]
    assert failed != []
    assert all("no such gradient" in alarm.text for alarm in failed), failed


def test_what_was_found_before_a_subject_ends_badly_counts() -> None:
    def subject() -> None:
        sightline.check("no module", None, None)  # type: ignore[arg-type]
        raise KeyError("x")

    assert [each.code for each in observe(subject)][1:] == [CRASHED]


def test_scores_and_comparisons_by_hand() -> None:
    bug = {"has_bug": True, "causes": ("loss.sign",)}
    before = [make_line(make_row("a", **bug), 0, alarms=[NAMED]), make_line(make_row("b", **bug), 0)]
    after = [make_line(make_row("a", **bug), 0), make_line(make_row("b", **bug), 0, alarms=[NAMED])]
    before += [make_line(make_row("c"), 0, alarms=[NAMED])]
    failures = [Alarm("failed", f"{name}: KeyError", name, "failed") for name in ("first", "second")]
    after += [make_line(make_row("c"), 0, alarms=[Alarm("check", "", "other", "warning"), *failures])]
    for line in (*before, *after):
        line["wall_s"] = 1.0
    table = summarise(after)
    assert [row[:2] for row in table] == [("loop", "run"), ("loop", "all")]
    assert table[0][2:] == ("2", "1", "1", "1", "0", "1", "1", "0", "1", "2", "0", "1.0", "1.0")
    told = list(compare({(line["id"], line["seed"]): line for line in before}, after))
    assert [text.partition(" seed")[0] for text in told] == [
        "3 rows are in both",
        "found no more: a",
        "found now: b",
        "false alarm gained: c",
        "false alarm lost: c",
    ]
    assert list_keys(after[1]) == {("own", "loss.form")}


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_lists_rows_and_refuses_others() -> None:
    ran = run_doctor()
    assert ran.code == 0
    assert "is returned with a minus" in ran.out
    ran = run_doctor("O799")
    assert ran.code == 2
    assert "there is no row 'O799'; did you mean" in ran.err


@pytest.mark.skipif(not (running.ROOT / ".git").exists(), reason="without git's history no commit is known")
@pytest.mark.processes
def test_the_command_resumes(tmp_path: Path) -> None:
    """A line that was cut is run again, as are lines of another state of the package."""
    path = tmp_path / "lines.jsonl"
    words = ("O78", "--out", str(path), "--compare", str(path))
    ran = run_doctor(*words)
    assert "found the text 'False', allowed is true or false" in ran.err
    assert ran.code == 0
    first = path.read_text()
    assert [json.loads(line)["id"] for line in first.splitlines()] == ["CLS", "O78"]
    ran = run_doctor(*words)
    assert (path.read_text(), ran.err) == (first, "2 rows are in both\n")
    path.write_text(first.replace('"commit": "', '"commit": "0', 1)[:-9])
    assert len(read_lines(path)) == 1
