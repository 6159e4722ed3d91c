"""Observers that write train.log, metrics.jsonl, and the shares of time of each epoch."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sightline.engine.records import (
    EvaluationRecord,
    StepAverager,
    StepRecord,
    average_records,
    evaluation_scalars,
    format_rate,
)
from sightline.store.files.atomic_write import assert_appendable, disk_failure

logger = logging.getLogger(__name__)

LOADER_BOUND_SHARE = 0.30
"""Share of the time spent waiting for data above which a run is called loader-bound."""
_WARM_UP_STEPS = 20  # workers start, files enter the page cache, kernels are chosen
_MIN_JUDGED_STEPS = 20
_JUDGE_EVERY = 100
_RESERVED_KEYS = frozenset({"step", "epoch", "split", "time_s"})


class LineWriter(Protocol):
    """Interface of `MetricsLog` to its file: a run directory."""

    def append_line(self, name: str, line: Mapping[str, Any], /) -> None:
        """Append a line of JSON to a file of the run."""


class MetricsLog:
    """Lines of `metrics.jsonl`: training numbers of each interval, and each evaluation.

    A line is `{"step", "epoch", "split", "time_s", <name>: <number or null>}`; what is not finite is null. An interval
    ends at every step that `every` divides, at an epoch's end, at an evaluation and at the end of the run. Keys that
    begin with `time_s` come from clocks; all others are the same in equal runs. A run that cannot write them ends.
    """

    is_required = True

    def __init__(self, lines: LineWriter, *, every: int = 50) -> None:
        self._lines = lines
        self._intervals = StepAverager(every, self._write_interval)
        self._time_s = 0.0

    def on_step(self, record: StepRecord) -> None:
        self._intervals.add(record)
        self._time_s = record.wall_s

    def on_evaluation(self, record: EvaluationRecord) -> None:
        self._intervals.flush()
        self._time_s += record.seconds
        self._append_metrics(record.step, record.epoch, record.split, self._time_s, evaluation_scalars(record))

    def on_end(self, reason: str) -> None:
        self._intervals.flush()

    def state(self) -> list[dict[str, Any]]:
        """Return the steps without a line so far, in plain values, for a checkpoint."""
        return self._intervals.state()

    def restore(self, state: Sequence[Mapping[str, Any]]) -> None:
        self._intervals.restore(state)

    def _write_interval(self, records: Sequence[StepRecord]) -> None:
        last = records[-1]
        self._append_metrics(last.step, last.epoch, "train", last.wall_s, average_records(records))

    def _append_metrics(self, step: int, epoch: int, split: str, time_s: float, numbers: Mapping[str, float]) -> None:
        assert not _RESERVED_KEYS & numbers.keys(), (
            f"a metric may not be called {sorted(_RESERVED_KEYS & numbers.keys())}"
        )
        values = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        line = {"step": step, "epoch": epoch, "split": split, "time_s": round(time_s, 3), **values}
        self._lines.append_line("metrics.jsonl", line)


class TrainLog:
    """`train.log`: all that `sightline` logs from INFO up, with the time of day, and a line for each evaluation.

    The file is appended to from construction to `on_end`, when the logger is as it was before.
    """

    def __init__(self, path: Path) -> None:
        assert_appendable(path)
        try:
            self._handler = logging.FileHandler(path, encoding="utf-8")
        except OSError as error:
            raise disk_failure(error, path) from error
        self._root = logging.getLogger("sightline")
        self._level_before = self._root.level
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S"))
        self._handler.setLevel(logging.INFO)
        self._root.addHandler(self._handler)
        if self._root.getEffectiveLevel() > logging.INFO:
            self._root.setLevel(logging.INFO)

    def on_step(self, record: StepRecord) -> None:
        """Do nothing: steps are reported by the progress display and metrics.jsonl."""

    def on_evaluation(self, record: EvaluationRecord) -> None:
        logger.info("%s", describe_evaluation(record))

    def on_end(self, reason: str) -> None:
        logger.info("end: %s", reason)
        self._root.removeHandler(self._handler)
        self._root.setLevel(self._level_before)
        self._handler.close()


class EpochTimes:
    """Log of one line per epoch: mean loss, samples per second, and each part's share of the time.

    Warns once (`loader-bound`) when, after 20 warm-up steps, waiting for data takes more than 30 % of the wall time
    between evaluations.
    """

    def __init__(self) -> None:
        self._last: StepRecord | None = None
        self._num_steps_seen = 0
        self._judged_from_s: float | None = None
        self._judged_data_s = 0.0
        self._evaluated_since_s = 0.0  # since the last step, whose wall time does not include it yet
        self._is_warned = False
        self._start_epoch()

    def on_step(self, record: StepRecord) -> None:
        if self._last is not None and record.epoch != self._last.epoch:
            self._end_epoch()
        self._last = record
        if self._judged_from_s is not None:
            self._judged_from_s += self._evaluated_since_s
        self._evaluated_since_s = 0.0
        for part, seconds in record.seconds.items():
            self._seconds[part] = self._seconds.get(part, 0.0) + seconds
        self._num_samples += record.num_samples
        self._total_loss += record.losses.get("total", math.nan) * record.num_samples
        self._num_steps_seen += 1
        if self._num_steps_seen > _WARM_UP_STEPS:
            self._judged_data_s += record.seconds.get("data", 0.0)
            if (self._num_steps_seen - _WARM_UP_STEPS) % _JUDGE_EVERY == 0:
                self._check_loader_bound()
        elif self._num_steps_seen == _WARM_UP_STEPS:
            self._judged_from_s = record.wall_s

    def on_evaluation(self, record: EvaluationRecord) -> None:
        self._evaluation_s += record.seconds
        self._evaluated_since_s += record.seconds

    def on_end(self, reason: str) -> None:
        if self._last is not None:
            self._end_epoch()

    def _start_epoch(self) -> None:
        self._seconds: dict[str, float] = {}
        self._evaluation_s = 0.0
        self._num_samples = 0
        self._total_loss = 0.0

    def _end_epoch(self) -> None:
        last = self._last
        assert last is not None
        step_s = sum(self._seconds.values())
        whole_s = step_s + self._evaluation_s
        parts = {**self._seconds, "evaluation": self._evaluation_s}
        logger.info(
            "epoch %d/%d: step %d, loss %.4g, learning rate %.3g, %s samples/s; of %.1f s: %s",
            last.epoch + 1,
            last.num_epochs,
            last.step,
            self._total_loss / max(self._num_samples, 1),
            last.lr,
            format_rate(self._num_samples / step_s if step_s else math.nan),
            whole_s,
            describe_shares(parts),
        )
        self._check_loader_bound()
        self._start_epoch()

    def _check_loader_bound(self) -> None:
        num_steps = self._num_steps_seen - _WARM_UP_STEPS
        if self._is_warned or num_steps < _MIN_JUDGED_STEPS or self._last is None or self._judged_from_s is None:
            return
        wall_s = self._last.wall_s - self._judged_from_s
        if self._judged_data_s <= LOADER_BOUND_SHARE * wall_s:
            return
        self._is_warned = True
        logger.warning(
            "loader-bound: %.0f %% of the time goes into waiting for data (%.1f of %.1f ms a step, %d steps); raise "
            "loader.workers, or keep the data in memory",
            100 * self._judged_data_s / wall_s,
            1000 * self._judged_data_s / num_steps,
            1000 * wall_s / num_steps,
            num_steps,
            extra={"code": "loader-bound"},
        )


def describe_evaluation(record: EvaluationRecord) -> str:
    """Format an evaluation: `val at step 500 (epoch 5): accuracy 0.9123; 2,468 samples in 1.2 s; the best so far`."""
    numbers = {**record.metrics, **({"loss": record.losses["total"]} if "total" in record.losses else {})}
    values = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
    best = "; the best so far" if record.is_best else ""
    times = f" ({describe_shares(record.phase_seconds)})" if record.phase_seconds else ""
    return (
        f"{record.split} at step {record.step} (epoch {record.epoch + 1}): {values}; "
        f"{record.num_samples:,} samples in {record.seconds:.1f} s{times}{best}"
    )


def describe_shares(parts: Mapping[str, float]) -> str:
    """Format the share of each of `parts`, in seconds, of their sum."""
    whole_s = sum(parts.values())
    return ", ".join(f"{part} {seconds / whole_s if whole_s else 0:.0%}" for part, seconds in parts.items())
