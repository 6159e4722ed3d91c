"""Many observers as one: a dead one never stops a run, and none touches a random state."""

from __future__ import annotations

import contextlib
import io
import logging
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.engine.loggers import TensorBoard
from sightline.engine.observers import EpochTimes, MetricsLog, Progress, TrainLog
from sightline.engine.records import EvaluationRecord, Observer, Observers, StepRecord, StopRun, preserve_rng_state
from sightline.errors import RunError
from tests.engine.told import Lines, evaluation, random_states, step


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


class Guard(Failing):
    may_stop = True


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


def test_only_an_observer_that_may_stop_the_run_stops_it(caplog: pytest.LogCaptureFixture) -> None:
    last = Recorder()
    observers = Observers([Failing(StopRun("I want to")), last])
    observers.on_step(step(2))
    assert [record.code for record in caplog.records] == ["observer-failed"]  # type: ignore[attr-defined]
    with pytest.raises(StopRun, match="labels out of range"):
        Observers([Guard(StopRun("labels out of range")), last]).on_step(step(2))
    assert last.heard == [2, 2]  # the others had the record first


def test_a_fault_of_an_observer_that_may_stop_is_still_only_a_fault(caplog: pytest.LogCaptureFixture) -> None:
    observers = Observers([Guard(KeyError("x"))])
    observers.on_step(step(2))
    assert len(observers) == 0
    assert len(caplog.records) == 1


def test_random_states_are_put_back() -> None:
    before = random_states()
    with contextlib.suppress(ZeroDivisionError), preserve_rng_state():
        _ = random.random(), np.random.rand(), torch.rand(1)
        assert random_states() != before
        raise ZeroDivisionError
    assert random_states() == before


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
