"""What the end of a whole run judges: seconds of rooms by their lines, and which runs are whole."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.cases import run_each
from tests.processes import ROOT
from tests.whole_run import Budget, Calibration, WholeRun, read_budget, room_of

BUDGET = Budget(0.01, {"doctor": 100.0, "others": 50.0})


def test_rooms_without_a_line_are_others() -> None:
    spent = {"doctor": 150.0, "draw": 30.0, "view": 30.0}
    assert BUDGET.find_dear(spent) == {"doctor": (150.0, 100.0), "others": (60.0, 50.0)}
    assert BUDGET.find_dear(spent, 1.25) == {"doctor": (150.0, 100.0)}


def test_seconds_are_scaled_by_the_machine_of_their_time() -> None:
    """A test of two seconds while the small work takes twice as long is one of one second."""
    run = WholeRun(make_config(str(ROOT / "tests")))
    run.calibration, run.budget = Calibration(), BUDGET
    run.calibration._next = float("inf")
    for seconds in (0.01, 0.02):
        run.calibration.seconds = [9.0] + [seconds] * 20
        report = SimpleNamespace(nodeid="tests/doctor/test_a.py::test", duration=2.0)
        run.pytest_runtest_logreport(report)  # type: ignore[arg-type]
    assert run.seconds == {"doctor": pytest.approx(2.0 + 1.0)}
    assert run.plain_seconds == {"doctor": 4.0}
    assert run.total_s == 4.0
    run.calibration.seconds = [9.0, *[5.0] * 20, *[1.0] * 12]
    assert run.calibration.recent_s == 1.0


def test_every_room_has_a_line_or_is_among_the_others() -> None:
    folders = {path.name for path in (ROOT / "tests").iterdir()}
    assert read_budget().rooms.keys() - {"others"} <= folders
    assert "others" in read_budget().rooms
    assert room_of("tests/doctor/checks/test_a.py::test[1/2]") == "doctor"
    assert room_of("tests/test_docs.py::test_a") == "test_docs.py"


def test_a_calibration_is_the_mean_of_what_was_measured_after_the_first() -> None:
    calibration = Calibration()
    calibration.measure()
    calibration.measure()  # less than five seconds later
    assert len(calibration.seconds) == 1
    calibration.seconds = [9.0, 1.0, 3.0]
    assert calibration.mean_s == 2.0


def make_config(*words: str, **options: object) -> pytest.Config:
    usual = {"keyword": "", "collectonly": False, "markexpr": "not long", "third": False, "lf": False}
    return SimpleNamespace(args=list(words), option=SimpleNamespace(**usual | options))  # type: ignore[return-value]


@run_each(
    "words, options, kind",
    [
        ((str(ROOT / "tests"),), {}, "daily"),
        ((str(ROOT / "tests"),), {"markexpr": "long"}, "long"),
        ((str(ROOT / "tests/doctor"),), {}, None),
        ((str(ROOT / "tests"),), {"keyword": "mission"}, None),
        ((str(ROOT / "tests"),), {"third": True}, None),
        ((str(ROOT / "tests"),), {"markexpr": "processes"}, None),
    ],
)
def test_single_files_and_parts_are_not_judged(words: tuple[str, ...], options: dict, kind: str | None) -> None:
    assert WholeRun(make_config(*words, **options)).kind == kind


@run_each(
    "load, later, plain, is_red",
    [
        (0.5, [3.2, 3.4, 9.0], 1.3, True),
        (3.0, [3.2], 1.3, False),
        (0.5, [3.2, 6.0, 7.0], 1.3, False),
        (0.5, [], 1.3, True),
        (0.5, [], 1.2, False),
    ],
)
def test_a_room_above_its_line_fails_the_run_of_a_quiet_machine(
    load: float, later: list[float], plain: float, is_red: bool
) -> None:
    """Three workers are no load of others; a burst is no busy machine; a line that was kept as it is taken is kept."""
    run = WholeRun(make_config(str(ROOT / "tests"), numprocesses=3))
    run.calibration, run.load = Calibration(), load
    run.calibration.seconds, run.calibration.loads = [read_budget().calibration_s] * 2, later
    room, line = next(iter(read_budget().rooms.items()))
    run.seconds[room], run.plain_seconds[room] = 1.3 * line, plain * line
    run._judge_seconds()
    assert [text.partition(":")[0] for text in run.dear] == [room]
    assert [text.partition(":")[0] for text in run.faults] == [room] * is_red
