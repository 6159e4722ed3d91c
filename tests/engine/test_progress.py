"""Progress: time left and rate by hand, plain lines and a live bar."""

from __future__ import annotations

import io
import logging
import math
import re

import pytest

from sightline.engine.observers import Pace, Progress, wants_live
from sightline.engine.step import format_rate
from tests.cases import run_each
from tests.engine.told import evaluation, step


def test_time_left_by_hand() -> None:
    pace = Pace()
    pace.add(step(1, wall_s=30.0))  # the first step is slow: compilation, caches
    assert math.isnan(pace.left_s)
    pace.add(step(2, wall_s=30.5))
    assert pace.left_s == 98 * 0.5
    pace.add(step(3, wall_s=34.0))  # 3 s of evaluation came before
    assert pace.left_s == 97 * 2.0
    for number in range(4, 101):
        pace.add(step(number, wall_s=34.0 + (number - 3)))
    assert pace.left_s == 0


def test_a_resumed_run_counts_its_own_steps_alone() -> None:
    pace = Pace()
    pace.add(step(60, wall_s=5.0))
    pace.add(step(61, wall_s=7.0))
    assert pace.left_s == 39 * 2.0


def test_rate_is_samples_over_time_in_steps() -> None:
    pace = Pace()
    for number in range(1, 4):
        pace.add(step(number, num_samples=5, seconds={"data": 0.5, "forward": 0.75}, wall_s=100.0 * number))
    assert pace.samples_per_s == 5 / 1.25
    pace.add(step(4, seconds={}))
    assert pace.samples_per_s == (15 + 8) / 3.75


def test_plain_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    progress = Progress(stream=stream)
    for number in range(1, 101):
        progress.on_step(step(number, steps_per_epoch=90))
        if number == 95:
            progress.on_evaluation(evaluation(95))
    progress.on_end("finished")
    lines = stream.getvalue().splitlines()
    assert "\x1b" not in stream.getvalue()
    assert "\r" not in stream.getvalue()
    shown = [int(match.group(1)) for line in lines if (match := re.search(r"  step (\d+)/100", line))]
    # The first; 5 s (50 steps of 0.1 s) later; the epoch's last; before the evaluation; the last. A line a step late
    # is allowed for the clock's sum: 0.1 * 51 - 0.1 may fall short of 5 by a rounding.
    assert shown in ([1, 51, 90, 95, 100], [1, 52, 90, 95, 100])
    assert lines[0] == "epoch 1/2  step 1/100  loss 2  lr 0.1  80 samples/s  ETA ?"
    assert lines[2] == "epoch 1/2  step 90/100  loss 0.02222  lr 0.00111  80 samples/s  ETA 0:00:01"
    assert lines[4].startswith("validation at step 95")


def test_a_live_bar_says_the_same_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    stream = io.StringIO()
    progress = Progress(stream=stream, is_live=True)
    for number in range(1, 101):
        progress.on_step(step(number))
    progress.on_evaluation(evaluation(100))
    progress.on_end("finished")
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert re.search(r"epoch 10/10 ━+ step 100/100 loss 0.02 lr 0.001 80 samples/s ETA 0:00:00", plain)
    assert "accuracy 0.75" in plain
    assert stream.getvalue().count("\x1b[?25l") == stream.getvalue().count("\x1b[?25h") == 1  # the cursor is back


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_when_a_bar_is_live() -> None:
    assert wants_live(Terminal(), {})
    assert wants_live(Terminal(), {"NO_COLOR": "", "TERM": "xterm"})
    assert not wants_live(io.StringIO(), {})
    for name, value in (("NO_COLOR", "1"), ("CI", "true"), ("TERM", "dumb")):
        assert not wants_live(Terminal(), {name: value})


def test_warnings_of_a_run_are_shown_between_the_lines() -> None:
    stream = io.StringIO()
    progress = Progress(stream=stream, is_live=False)
    logging.getLogger("sightline.engine.observers").warning("loader-bound: 87 % of the time")
    progress.on_end("done")
    logging.getLogger("sightline.engine").warning("after the end")
    assert stream.getvalue() == "warning: loader-bound: 87 % of the time\n"


@run_each(
    "rate, shown",
    [(12345.6, "12,346"), (10.4, "10"), (9.96, "10"), (9.4, "9.4"), (0.5, "0.5"), (0.0123, "0.012"), (math.nan, "?")],
)
def test_a_slow_rate_is_not_shown_as_none(rate: float, shown: str) -> None:
    assert format_rate(rate) == shown
