"""What a run writes down and prints: exact numbers, time left, and observers of which a dead one stops nothing."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import random
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.contract.errors import RunError
from sightline.draw.progress_line import wants_live
from sightline.engine.loggers.tensorboard import TensorBoard
from sightline.engine.observers import EpochTimes, MetricsLog, TrainLog
from sightline.engine.records import EvaluationRecord, Observer, Observers, StepRecord, average_records, format_rate
from sightline.instrument.random_state import preserve_random_state
from sightline.training.progress import Pace, Progress
from tests.cases import run_each
from tests.engine.told import Lines, evaluation, random_states, step

# --- many observers as one: a dead one never stops a run, and none touches a random state ----------------------------


class Recorder:
    def __init__(self) -> None:
        self.heard: list[object] = []

    def on_step(self, record: StepRecord) -> None:
        self.heard.append(record.step)

    def on_evaluation(self, record: EvaluationRecord) -> None:
        self.heard.append(record.split)

    def on_end(self, reason: str) -> None:
        self.heard.append(reason)


class Failing(Recorder):
    """Dies at step 2 of `error`."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def on_step(self, record: StepRecord) -> None:
        super().on_step(record)
        if record.step == 2:
            raise self.error


def test_a_failing_observer_is_switched_off_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    first, failing, last = Recorder(), Failing(OSError("no space\nleft on device")), Recorder()
    observers = Observers([first, failing, last])
    for number in range(1, 5):
        observers.on_step(step(number))
    observers.on_evaluation(evaluation(4))
    observers.on_end("finished")
    assert first.heard == last.heard == [1, 2, 3, 4, "validation", "finished"]
    assert failing.heard == [1, 2, "failed"]
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert warning.code == "observer-failed"  # type: ignore[attr-defined]
    text = warning.getMessage()
    assert text.startswith("observer-failed: Failing ")
    assert "OSError: no space left on device" in text
    assert "training goes on" in text


def test_random_states_are_put_back() -> None:
    before = random_states()
    with contextlib.suppress(ZeroDivisionError), preserve_random_state():
        _ = random.random(), np.random.rand(), torch.rand(1)
        assert random_states() != before
        raise ZeroDivisionError
    assert random_states() == before


def test_random_states_of_gpus_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    states = [torch.tensor([number], dtype=torch.uint8) for number in range(2)]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [*states])
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda kept: states.__setitem__(slice(None), kept))
    with contextlib.suppress(ZeroDivisionError), preserve_random_state():
        states[:] = [torch.tensor([9], dtype=torch.uint8)] * 2  # as dropout on both would
        raise ZeroDivisionError
    assert [state.tolist() for state in states] == [[0], [1]]


@pytest.mark.parametrize("is_live", [False, True])
def test_the_default_set_leaves_random_states_alone_at_every_call(tmp_path: Path, is_live: bool) -> None:
    stream = io.StringIO()
    default: list[Observer] = [
        Progress(stream=stream, is_live=is_live),
        TrainLog(tmp_path / "train.log"),
        MetricsLog(Lines(), every=7),
        EpochTimes(),
        TensorBoard(tmp_path, every=7),
    ]
    before = random_states()
    for observer in default:  # one by one and not through `Observers`, which would put them back
        for number in range(1, 31):
            observer.on_step(step(number))
            assert random_states() == before, type(observer)
        observer.on_evaluation(evaluation(30))
        observer.on_end("finished")
        assert random_states() == before, type(observer)


def test_an_observer_that_the_run_needs_ends_it() -> None:
    class Needed:
        is_required = True

        def on_step(self, record: StepRecord) -> None:
            raise RunError("metrics.jsonl: no space left on the disk")

    other = Recorder()
    with pytest.raises(RunError, match="no space left"):
        Observers([Needed(), other]).on_step(step(1))
    assert other.heard == [1]


# --- what a run writes down: exact numbers, and the line that names a loader-bound run -------------------------------


EPS = 2.0**-52


def test_interval_means_are_exact() -> None:
    """Against rational arithmetic: products and the quotient each round once, so three roundings bound the error."""
    generator = np.random.default_rng(0)
    records = [
        step(n, num_samples=int(generator.integers(1, 100)), losses={"total": float(generator.lognormal(0, 4))})
        for n in range(1, 51)
    ]
    weighted = [Fraction(r.losses["total"]) * r.num_samples for r in records]
    exact = sum(weighted, Fraction(0)) / sum(r.num_samples for r in records)
    found = average_records(records)
    assert abs(Fraction(found["loss/total"]) - exact) <= Fraction(3 * EPS / 2) * exact
    assert average_records(records[::-1])["loss/total"] == found["loss/total"]
    assert found["num_samples"] == sum(r.num_samples for r in records)
    assert found["lr"] == records[-1].lr


def test_a_term_that_appears_late_is_averaged_over_the_steps_that_had_it() -> None:
    records = [step(1, losses={"total": 1.0}), step(2, losses={"total": 1.0, "late": 3.0}, num_samples=2)]
    assert average_records(records)["loss/late"] == 3.0


def test_lines_end_at_every_epochs_end_evaluation_and_end() -> None:
    lines = Lines()
    log = MetricsLog(lines, every=4)
    for number in range(1, 24):
        log.on_step(step(number))
        if number == 14:
            log.on_evaluation(evaluation(14))
    log.on_end("finished")
    places = [(line["step"], line["epoch"], line["split"]) for line in lines.parsed]
    train = [(4, 0), (8, 0), (10, 0), (12, 1), (14, 1), (16, 1), (20, 1), (23, 2)]
    assert [place[:2] for place in places if place[2] == "train"] == train
    assert places.index((14, 1, "train")) + 1 == places.index((14, 1, "validation"))
    assert sum(line["num_samples"] for line in lines.parsed if line["split"] == "train") == 23 * 8


def test_a_hand_worked_line() -> None:
    lines = Lines()
    log = MetricsLog(lines, every=2)
    log.on_step(step(1, num_samples=6, losses={"a": 1.0, "total": 2.0}, seconds={"data": 0.25}))
    log.on_step(step(2, num_samples=2, losses={"a": 5.0, "total": 4.0}, seconds={"data": 0.75}, lr=0.125))
    assert lines.parsed == [
        {
            "step": 2,
            "epoch": 0,
            "split": "train",
            "time_s": 0.2,
            "loss/a": 2.0,  # (6 * 1 + 2 * 5) / 8
            "loss/total": 2.5,  # (6 * 2 + 2 * 4) / 8
            "grad_norm": 0.5,
            "lr": 0.125,
            "num_samples": 8,
            "time_s/data": 0.5,
        }
    ]


def test_what_is_not_finite_is_null() -> None:
    lines = Lines()
    log = MetricsLog(lines, every=1)
    log.on_step(step(1, losses={"total": math.inf, "other": -math.inf, "third": math.nan}))
    log.on_evaluation(evaluation(1))
    assert lines.parsed[0]["loss/total"] is lines.parsed[0]["loss/other"] is lines.parsed[0]["loss/third"] is None
    assert lines.parsed[1]["recall_of_none"] is None
    assert lines.parsed[1]["accuracy"] == 0.75
    assert lines.parsed[1]["time_s"] == pytest.approx(2.1)  # 0.1 s of steps and 2 s of evaluation


def test_a_resumed_log_writes_the_lines_of_an_unbroken_one() -> None:
    whole, part = Lines(), Lines()
    unbroken, stopped = MetricsLog(whole, every=5), MetricsLog(part, every=5)
    for number in range(1, 12):
        unbroken.on_step(step(number))
    for number in range(1, 8):
        stopped.on_step(step(number))
    kept = json.loads(json.dumps(stopped.state()))
    resumed = MetricsLog(part, every=5)
    resumed.restore(kept)
    for number in range(8, 12):
        resumed.on_step(step(number))
    assert part.text == whole.text
    assert len(whole.text) == 2


# ---- train.log and the time of an epoch


def test_train_log_holds_evaluations_and_warnings_and_lets_the_logger_go(tmp_path: Path) -> None:
    root = logging.getLogger("sightline")
    before = (root.level, list(root.handlers))
    log = TrainLog(tmp_path / "train.log")
    logging.getLogger("sightline.anywhere").warning("something")
    log.on_step(step(10))
    log.on_evaluation(evaluation(10))
    log.on_end("finished")
    logging.getLogger("sightline.anywhere").warning("later")
    assert (root.level, list(root.handlers)) == before
    warning, line, end = (tmp_path / "train.log").read_text().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d WARNING something", warning)
    assert line.endswith(
        "INFO    validation at step 10 (epoch 1): accuracy 0.75, recall_of_none nan, loss 1; 40 samples in 2.0 s; "
        "the best so far"
    )
    assert end.endswith("end: finished")


def test_an_epochs_line_holds_loss_rate_and_shares(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="sightline")
    times = EpochTimes()
    seconds = {"data": 0.2, "forward": 0.3, "backward": 0.5}
    times.on_step(step(9, num_samples=6, losses={"total": 1.0}, seconds=seconds))
    times.on_step(step(10, num_samples=2, losses={"total": 5.0}, seconds=seconds))
    times.on_evaluation(evaluation(10))
    assert not caplog.records
    times.on_step(step(11))
    # 2 s of steps and 2 s of evaluation; 8 samples in 2 s; (6 * 1 + 2 * 5) / 8 = 2
    assert [record.getMessage() for record in caplog.records] == [
        "epoch 1/10: step 10, loss 2, learning rate 0.01, 4 samples/s; of 4.0 s: data 10%, forward 15%, backward 25%, "
        "evaluation 50%"
    ]
    times.on_end("finished")
    assert caplog.records[-1].getMessage().startswith("epoch 2/10: step 11, ")


def loader_warnings(
    caplog: pytest.LogCaptureFixture, data_s: Callable[[int], float], num_steps: int = 100
) -> list[str]:
    times = EpochTimes()
    for number in range(1, num_steps + 1):
        times.on_step(step(number, data_s=data_s(number)))
    times.on_end("finished")
    return [record.getMessage() for record in caplog.records if getattr(record, "code", "") == "loader-bound"]


def test_slow_data_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    (line,) = loader_warnings(caplog, lambda number: 0.04)
    assert line.startswith("loader-bound: 40 % of the time")
    assert "40.0 of 100.0 ms a step" in line
    assert "loader.workers" in line
    assert "memory" in line


@pytest.mark.parametrize(
    ("data_s", "num_steps"),
    [
        pytest.param(lambda number: 0.001, 100, id="fast"),
        pytest.param(lambda number: 0.029, 100, id="just below 30 %"),
        pytest.param(lambda number: 0.055 if number <= 20 else 0.001, 100, id="slow in the warm-up alone"),
        pytest.param(lambda number: 0.05, 30, id="too short to judge"),
    ],
)
def test_fast_data_is_not_named(
    caplog: pytest.LogCaptureFixture, data_s: Callable[[int], float], num_steps: int
) -> None:
    assert loader_warnings(caplog, data_s, num_steps) == []


def test_evaluations_do_not_hide_slow_data(caplog: pytest.LogCaptureFixture) -> None:
    """2 s of evaluation after every step of 0.1 s: data are 40 % of a step, though below 2 % of all the time."""
    times = EpochTimes()
    for number in range(1, 61):
        times.on_step(step(number, data_s=0.04, wall_s=2.1 * number - 2.0))
        times.on_evaluation(evaluation(number))
    times.on_end("finished")
    assert [record.getMessage()[:18] for record in caplog.records] == ["loader-bound: 40 %"]


# --- progress: time left and rate by hand, plain lines and a live bar ------------------------------------------------


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
