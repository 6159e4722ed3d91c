"""Base of the loggers of this folder: means over intervals of steps, and variables that their libraries read."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sightline.draw.pictures import Picture
from sightline.engine.records import (
    EvaluationRecord,
    StepAverager,
    StepRecord,
    average_records,
    evaluation_scalars,
    samples_per_s,
)


class IntervalLogger(ABC):
    """Base of observers that write means over intervals of `every` steps, and evaluations.

    `unwritten` are the steps of the open interval of a checkpoint, as `MetricsLog.state` returns them.
    """

    def __init__(self, every: int, unwritten: Iterable[Mapping[str, Any]] = ()) -> None:
        self._intervals = StepAverager(every, self._write_interval)
        self._intervals.restore(unwritten)

    def on_step(self, record: StepRecord) -> None:
        self._intervals.add(record)

    def on_evaluation(self, record: EvaluationRecord) -> None:
        self._intervals.flush()
        self._write(record.step, record.split, evaluation_scalars(record), record.pictures)

    def _write_interval(self, records: Sequence[StepRecord]) -> None:
        numbers = {**average_records(records), "samples_per_s": samples_per_s(records), "epoch": records[-1].epoch + 1}
        self._write(records[-1].step, "train", numbers)

    @abstractmethod
    def _write(self, step: int, split: str, numbers: Mapping[str, float], pictures: Sequence[Picture] = ()) -> None:
        """Write numbers by their names, and pictures, of a split after a step."""


@contextmanager
def environment_variables(values: Mapping[str, str]) -> Iterator[None]:
    """Context with these environment variables, which libraries read as they start."""
    previous = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
