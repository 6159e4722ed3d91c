"""Records of a training, their averages over intervals of steps, and observers, which only read: records are frozen."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from pydantic import TypeAdapter

from sightline.contract.errors import LostFolderError
from sightline.draw.pictures import Picture
from sightline.instrument.random_state import preserve_random_state

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One finished optimiser step, in numbers of all processes together.

    `step` counts finished steps from 1, `epoch` from 0. `losses` holds each term's mean and "total", their weighted
    sum. `seconds` holds data, transfer, prepare, forward, loss, backward and optimise; `wall_s` runs since the start.
    `extra_scalars` are further figures of the task for its step, such as the number of negatives of a contrast; the
    weights of losses that change from step to step; and `gradient/<layer>`, each layer's norm, with `log.gradients`.
    """

    step: int
    num_steps: int
    epoch: int
    num_epochs: int
    num_samples: int
    losses: Mapping[str, float]
    grad_norm: float
    lr: float
    seconds: Mapping[str, float]
    wall_s: float
    extra_scalars: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EvaluationRecord:
    """One evaluation of a split after `step` finished steps; a metric that counted nothing is NaN.

    `phase_seconds` are those of the first process, for data, transfer, prepare, forward, loss, interpret, votes and
    metrics.
    """

    step: int
    epoch: int
    split: str
    metrics: Mapping[str, float]
    losses: Mapping[str, float]
    seconds: float
    num_samples: int
    is_best: bool
    pictures: tuple[Picture, ...] = ()
    phase_seconds: Mapping[str, float] = field(default_factory=dict)


class Observer(Protocol):
    """Interface of what reads the records of a training, and changes nothing of it.

    `on_step` must leave the global random states alone; around the two others they are put back.
    """

    def on_step(self, record: StepRecord) -> None:
        """Receive the record of a finished step."""

    def on_evaluation(self, record: EvaluationRecord) -> None:
        """Receive the record of an evaluation."""

    def on_end(self, reason: str) -> None:
        """Receive the reason why the training ended: `done`, `failed`, or the signal that stopped it."""


class Observers:
    """Several observers as one. One that fails is switched off with one warning, and the run and the others go on.

    A required observer (`is_required = True`) ends the run instead, and so does any that finds the run's folder moved
    or taken. A failed observer gets `on_end("failed")` once, to release a terminal, a file or a process.
    An error that ends the run is raised after all observers have received the record. The end is reported in reverse
    order, so that the first, a log, still receives the messages of the later ones.
    """

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._active = list(observers)

    def __len__(self) -> int:
        return len(self._active)

    def on_step(self, record: StepRecord) -> None:
        self._notify(lambda observer: observer.on_step(record))

    def on_evaluation(self, record: EvaluationRecord) -> None:
        with preserve_random_state():
            self._notify(lambda observer: observer.on_evaluation(record))

    def on_end(self, reason: str) -> None:
        with preserve_random_state():
            self._active.reverse()
            self._notify(lambda observer: observer.on_end(reason))

    def _notify(self, call: Callable[[Observer], None]) -> None:
        stop: Exception | None = None
        for observer in tuple(self._active):
            try:
                call(observer)
            except Exception as error:  # noqa: BLE001 - a logger's error must not end the run
                if isinstance(error, LostFolderError) or getattr(observer, "is_required", False):
                    stop = stop or error
                else:
                    self._switch_off(observer, error)
        if stop is not None:
            raise stop

    def _switch_off(self, observer: Observer, error: Exception) -> None:
        self._active = [other for other in self._active if other is not observer]
        logger.warning(
            "observer-failed: %s is switched off, training goes on; it failed with %s: %s",
            type(observer).__name__,
            type(error).__name__,
            " ".join(str(error).split()),
            extra={"code": "observer-failed"},
        )
        with suppress(Exception), preserve_random_state():  # it failed already: only a chance to release resources
            observer.on_end("failed")


_KEYS = {"extra_scalars": "gauges"}
"""Fields of a record that a checkpoint keeps under another key."""


class StepAverager:
    """Collector of step records, which writes each interval: at multiples of `every`, an epoch's end, or `flush`.

    An epoch's end is known from the next record only, so its interval is written then, unless `flush` came before
    (call it at each evaluation and at the end). Every step is written exactly once.
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
        """Write the records of the open interval, if any."""
        if self._records:
            self._write(self._records)
            self._records = []

    def state(self) -> list[dict[str, Any]]:
        """Return the open interval in plain values, for a checkpoint: a resumed run writes the same lines."""
        return [
            {_KEYS.get(field.name, field.name): getattr(record, field.name) for field in fields(record)}
            | {"losses": dict(record.losses), "seconds": dict(record.seconds), "gauges": dict(record.extra_scalars)}
            for record in self._records
        ]

    def restore(self, state: Iterable[Mapping[str, Any]]) -> None:
        """Restore the open interval of a checkpoint. Raises ValueError for records of another form."""
        names = {key: name for name, key in _KEYS.items()}
        records = [{names.get(key, key): value for key, value in record.items()} for record in state]
        TypeAdapter(list[StepRecord]).validate_json(json.dumps(records), strict=True)
        self._records = [StepRecord(**record) for record in records]


def average_records(records: Sequence[StepRecord]) -> dict[str, float]:
    """Average the records of some steps, weighted by numbers of samples; rounded once, regardless of the order.

    `loss/<term>`, `grad_norm` and extra scalars are such means; `lr` is the last one's; `num_samples` is a sum;
    `time_s/<part>` are plain means over steps.
    """
    terms = dict.fromkeys(name for record in records for name in record.losses)
    parts = dict.fromkeys(name for record in records for name in record.seconds)
    numbers: dict[str, float] = {
        f"loss/{term}": _weighted_mean(
            (record.losses[term], record.num_samples) for record in records if term in record.losses
        )
        for term in terms
    }
    for name in dict.fromkeys(name for record in records for name in record.extra_scalars):
        numbers[name] = _weighted_mean(
            (record.extra_scalars[name], record.num_samples) for record in records if name in record.extra_scalars
        )
    numbers["grad_norm"] = _weighted_mean((record.grad_norm, record.num_samples) for record in records)
    numbers["lr"] = records[-1].lr
    numbers["num_samples"] = sum(record.num_samples for record in records)
    numbers |= {
        f"time_s/{part}": _weighted_mean((record.seconds.get(part, 0.0), 1) for record in records) for part in parts
    }
    return numbers


def evaluation_scalars(record: EvaluationRecord) -> dict[str, float]:
    """Flatten an evaluation to scalars: metrics, `loss/<term>`, `num_samples`, `time_s/<phase>`."""
    losses = {f"loss/{term}": value for term, value in record.losses.items()}
    times = {
        f"time_s/{part}": seconds for part, seconds in {"evaluation": record.seconds, **record.phase_seconds}.items()
    }
    return {**record.metrics, **losses, "num_samples": record.num_samples, **times}


def samples_per_s(records: Iterable[StepRecord]) -> float:
    """Compute samples per second of time spent in steps (without evaluations and checkpoints between them)."""
    num_samples, seconds = 0, 0.0
    for record in records:
        num_samples += record.num_samples
        seconds += sum(record.seconds.values())
    return num_samples / seconds if seconds > 0 else math.nan


def _weighted_mean(weighted: Iterable[tuple[float, int]]) -> float:
    """Compute the weighted mean; NaN if a value is not finite or all weights are 0."""
    values = list(weighted)
    weight = sum(count for _, count in values)
    if weight == 0 or not all(math.isfinite(value) for value, _ in values):
        return math.nan
    return math.fsum(value * count for value, count in values) / weight


def format_rate(samples_per_s: float) -> str:
    """Format samples per second: whole numbers, below ten two significant digits; `?` if nothing was timed."""
    if math.isnan(samples_per_s):
        return "?"
    return f"{samples_per_s:,.0f}" if samples_per_s >= 9.95 else f"{samples_per_s:.2g}"
