"""Training numbers over an interval of steps, averaged once from the steps' own records."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from sightline.engine.records import EvaluationRecord, StepRecord

__all__ = ["StepAverager", "average_records", "evaluation_scalars", "format_rate", "samples_per_s"]


_KEYS = {"extra_scalars": "gauges"}
"""Fields of a record that a checkpoint keeps under another key."""


class StepAverager:
    """Hands on the records of each interval: up to every step that `every` divides, an epoch's end, or `flush`.

    An epoch's end shows itself in the next record, so its interval is handed on then, unless `flush` came before
    (call it at each evaluation and at the end). No step is left out or handed on twice.
    """

    def __init__(self, every: int, write: Callable[[Sequence[StepRecord]], None]) -> None:
        self._every = every
        self._write = write
        self._records: list[StepRecord] = []

    def add(self, record: StepRecord) -> None:
        if self._records and record.epoch != self._records[-1].epoch:
            self.flush()
        self._records.append(record)
        if record.step % self._every == 0:
            self.flush()

    def flush(self) -> None:
        """Hand on what has not been handed on yet, if anything."""
        if self._records:
            self._write(self._records)
            self._records = []

    def state(self) -> list[dict[str, Any]]:
        """The open interval in plain values; kept in a checkpoint, a resumed run writes the unbroken run's lines."""
        return [
            {_KEYS.get(field.name, field.name): getattr(record, field.name) for field in fields(record)}
            | {"losses": dict(record.losses), "seconds": dict(record.seconds), "gauges": dict(record.extra_scalars)}
            for record in self._records
        ]

    def restore(self, state: Iterable[Mapping[str, Any]]) -> None:
        names = {key: name for name, key in _KEYS.items()}
        records = [{names.get(key, key): value for key, value in record.items()} for record in state]
        self._records = [StepRecord(**record) for record in records]


def average_records(records: Sequence[StepRecord]) -> dict[str, float]:
    """Means over some steps, each step weighted by its number of samples; rounded once, whatever the order.

    `loss/<term>`, `grad_norm` and the task's gauges are such means; `lr` is the last one's; `num_samples` is a sum;
    `time_s/<part>` are plain means over steps.
    """
    terms = dict.fromkeys(name for record in records for name in record.losses)
    parts = dict.fromkeys(name for record in records for name in record.seconds)
    numbers: dict[str, float] = {
        f"loss/{term}": _mean((record.losses[term], record.num_samples) for record in records if term in record.losses)
        for term in terms
    }
    for name in dict.fromkeys(name for record in records for name in record.extra_scalars):
        numbers[name] = _mean(
            (record.extra_scalars[name], record.num_samples) for record in records if name in record.extra_scalars
        )
    numbers["grad_norm"] = _mean((record.grad_norm, record.num_samples) for record in records)
    numbers["lr"] = records[-1].lr
    numbers["num_samples"] = sum(record.num_samples for record in records)
    numbers |= {f"time_s/{part}": _mean((record.seconds.get(part, 0.0), 1) for record in records) for part in parts}
    return numbers


def evaluation_scalars(record: EvaluationRecord) -> dict[str, float]:
    """Metrics under their own names, `loss/<term>`, `num_samples`, `time_s/evaluation` and, of it, `time_s/<part>`."""
    losses = {f"loss/{term}": value for term, value in record.losses.items()}
    times = {
        f"time_s/{part}": seconds for part, seconds in {"evaluation": record.seconds, **record.phase_seconds}.items()
    }
    return {**record.metrics, **losses, "num_samples": record.num_samples, **times}


def samples_per_s(records: Iterable[StepRecord]) -> float:
    """Samples per second of time spent in steps (evaluations and checkpoints between them do not count)."""
    num_samples, seconds = 0, 0.0
    for record in records:
        num_samples += record.num_samples
        seconds += sum(record.seconds.values())
    return num_samples / seconds if seconds > 0 else math.nan


def _mean(weighted: Iterable[tuple[float, int]]) -> float:
    """The weighted mean; NaN if a value is not finite or all weights are 0."""
    values = list(weighted)
    weight = sum(count for _, count in values)
    if weight == 0 or not all(math.isfinite(value) for value, _ in values):
        return math.nan
    return math.fsum(value * count for value, count in values) / weight


def format_rate(samples_per_s: float) -> str:
    """Samples per second: whole, below ten with a digit more, below one with three; `?` where nothing was timed."""
    if math.isnan(samples_per_s):
        return "?"
    return f"{samples_per_s:,.0f}" if samples_per_s >= 9.95 else f"{samples_per_s:.2g}"
