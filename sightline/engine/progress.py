"""Progress of a run: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TextIO

from sightline.engine.observers import describe_evaluation
from sightline.engine.records import EvaluationRecord, StepRecord, preserve_rng_state
from sightline.engine.step_averages import format_rate, samples_per_s
from sightline.errors import escape_to_one_line

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

__all__ = ["Pace", "Progress", "wants_live"]

_WINDOW_STEPS = 50
_REFRESH_S = 0.5  # a refresh costs milliseconds; twice a second keeps it well below 1 % of the run
_STYLES = {"loss": "bold", "rate": "cyan", "left": "magenta"}


class Progress:
    """Progress display: epoch, step, loss, learning rate, samples per second and the time left.

    A live bar where `is_live` (left out: where `stream` is a terminal that wants one). Else plain lines: the first
    step, then one every `every_s` seconds of the run, one for each epoch's last step, and one for each evaluation.
    `stream` is standard error if left out.
    """

    def __init__(
        self, *, stream: TextIO | None = None, is_live: bool | None = None, every_s: float | None = None
    ) -> None:
        stream = sys.stderr if stream is None else stream
        is_live = wants_live(stream, os.environ) if is_live is None else is_live
        self._display: _LiveDisplay | _PlainDisplay = _LiveDisplay(stream) if is_live else _PlainDisplay(stream)
        self._every_s = (_REFRESH_S if is_live else 5.0) if every_s is None else every_s
        self._pace = Pace()
        self._shown: StepRecord | None = None
        self._last: StepRecord | None = None
        self._warnings = _WarningHandler(self._display.write)
        logging.getLogger("sightline").addHandler(self._warnings)

    def on_step(self, record: StepRecord) -> None:
        if self._last is not None and self._last.epoch != record.epoch:
            self._show_last()
        self._pace.add(record)
        self._last = record
        if self._shown is None or record.wall_s - self._shown.wall_s >= self._every_s:
            self._show_last()

    def on_evaluation(self, record: EvaluationRecord) -> None:
        self._show_last()
        self._display.write(describe_evaluation(record))

    def on_end(self, reason: str) -> None:
        self._show_last()
        logging.getLogger("sightline").removeHandler(self._warnings)
        self._display.close()

    def _show_last(self) -> None:
        if self._last is not None and self._last is not self._shown:
            self._shown = self._last
            self._display.show(self._last, self._pace)


class _WarningHandler(logging.Handler):
    """Log handler that shows sightline's warnings between the lines of progress."""

    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # the stream is gone, as the warning may report; logs have it too
            self._write("\n".join(map(escape_to_one_line, f"warning: {record.getMessage()}".split("\n"))))


class Pace:
    """Speed of a run, from the clock in its records."""

    def __init__(self) -> None:
        self._first: StepRecord | None = None
        self._recent: deque[StepRecord] = deque(maxlen=_WINDOW_STEPS)

    def add(self, record: StepRecord) -> None:
        if self._first is None:
            self._first = record
        self._recent.append(record)

    @property
    def samples_per_s(self) -> float:
        """Samples per second over the last 50 steps, without the time between steps; NaN if nothing was timed."""
        return samples_per_s(self._recent)

    @property
    def left_s(self) -> float:
        """Seconds left if the rest goes like all steps after the first, evaluations included; NaN after one step."""
        if self._first is None or self._recent[-1].step == self._first.step:
            return math.nan
        last = self._recent[-1]
        return (last.num_steps - last.step) * (last.wall_s - self._first.wall_s) / (last.step - self._first.step)


def wants_live(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Return True if `stream` is a terminal that can redraw lines, and neither NO_COLOR nor CI is set."""
    is_plain = environment.get("NO_COLOR") or environment.get("CI") or environment.get("TERM") == "dumb"
    return stream.isatty() and not is_plain


def _format_fields(record: StepRecord, pace: Pace) -> dict[str, Any]:
    """Format the fields of both displays."""
    rate, left_s = pace.samples_per_s, pace.left_s
    minutes, seconds = divmod(0 if math.isnan(left_s) else round(left_s), 60)
    return {
        "epoch": f"epoch {record.epoch + 1}/{record.num_epochs}",
        "step": f"step {record.step}/{record.num_steps}",
        "loss": f"loss {record.losses.get('total', math.nan):.4g}",
        "lr": f"lr {record.lr:.3g}",
        "rate": f"{format_rate(rate)} samples/s",
        "left": "ETA ?" if math.isnan(left_s) else f"ETA {minutes // 60}:{minutes % 60:02d}:{seconds:02d}",
    }


class _PlainDisplay:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def show(self, record: StepRecord, pace: Pace) -> None:
        self.write("  ".join(_format_fields(record, pace).values()))

    def write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Do nothing: plain lines use no resources."""


class _LiveDisplay:
    """Bar of rich, started by the first step and redrawn only on request: no thread runs during training.

    rich draws identifiers of its styles from Python's global generator, so its state is kept around every call.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: Bar | None = None

    @preserve_rng_state()
    def show(self, record: StepRecord, pace: Pace) -> None:
        fields = _format_fields(record, pace)
        if self._bar is None:
            self._bar = _start_bar(self._stream, record, fields)
        self._bar.update(self._bar.task_ids[0], completed=record.step, refresh=True, **fields)

    @preserve_rng_state()
    def write(self, line: str) -> None:
        if self._bar is None:
            self._stream.write(line + "\n")
        else:
            self._bar.console.print(line, markup=False, highlight=False)

    @preserve_rng_state()
    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def _start_bar(stream: TextIO, record: StepRecord, fields: Mapping[str, Any]) -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    texts = [TextColumn(f"{{task.fields[{name}]}}", style=_STYLES.get(name, "none"), markup=False) for name in fields]
    console = Console(file=stream, force_terminal=True)
    bar = Bar(texts[0], BarColumn(bar_width=None), *texts[1:], console=console, auto_refresh=False, expand=True)
    bar.add_task("", total=record.num_steps, completed=record.step, **fields)
    bar.start()
    return bar
