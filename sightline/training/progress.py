"""Progress of a run: a live bar on a terminal, a display with curves in a notebook, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import statistics
import sys
from collections import deque
from collections.abc import Callable, Mapping
from html import escape
from typing import TYPE_CHECKING, Any, TextIO

from sightline.contract.errors import escape_to_one_line
from sightline.draw.charts import ChartPanel, Series, render_svg
from sightline.draw.progress_line import wants_live
from sightline.engine.observers import describe_evaluation
from sightline.engine.records import EvaluationRecord, StepRecord, format_rate, samples_per_s
from sightline.instrument.random_state import preserve_random_state

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

_WINDOW_STEPS = 50
_REFRESH_S = 0.5  # a refresh costs milliseconds; twice a second keeps it well below 1 % of the run
_MAX_POINTS = 400
"""Points of a curve in a notebook."""
_STYLES = {"loss": "bold", "rate": "cyan", "left": "magenta"}


class Progress:
    """Progress display: epoch, step, loss, learning rate, samples per second and the time left.

    A live bar where `is_live` (left out: where `stream` is a terminal that wants one). In a notebook, where both are
    left out, one output that is updated in place, with curves of the loss and of `metric`. Else plain lines: the first
    step, then one every `every_s` seconds of the run, one for each epoch's last step, and one for each evaluation.
    `stream` is standard error if left out, in a notebook standard output, which it does not colour red.
    """

    def __init__(
        self,
        *,
        stream: TextIO | None = None,
        is_live: bool | None = None,
        every_s: float | None = None,
        metric: str | None = None,
    ) -> None:
        output = sys.modules.get("IPython.display") if stream is None and is_live is None and is_notebook() else None
        if stream is None:
            stream = sys.stdout if is_notebook() else sys.stderr
        is_live = wants_live(stream, os.environ) if is_live is None else is_live
        self._display: _LiveDisplay | _PlainDisplay = _LiveDisplay(stream) if is_live else _PlainDisplay(stream)
        if output is not None:
            self._display = _NotebookDisplay(stream, output, metric)
        self._every_s = (_REFRESH_S if is_live or output is not None else 5.0) if every_s is None else every_s
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
        self._display.show_evaluation(record)

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
    def loss(self) -> float:
        """Mean total loss of the last 50 steps."""
        return statistics.fmean(record.losses.get("total", math.nan) for record in self._recent)

    @property
    def left_s(self) -> float:
        """Seconds left if the rest goes like all steps after the first, evaluations included; NaN after one step."""
        if self._first is None or self._recent[-1].step == self._first.step:
            return math.nan
        last = self._recent[-1]
        return (last.num_steps - last.step) * (last.wall_s - self._first.wall_s) / (last.step - self._first.step)


def is_notebook() -> bool:
    """Return True if output goes to a notebook."""
    return type(sys.stdout).__module__.startswith("ipykernel")


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

    def show_evaluation(self, record: EvaluationRecord) -> None:
        self.write(describe_evaluation(record))

    def write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Do nothing: plain lines use no resources."""


class _NotebookDisplay(_PlainDisplay):
    """Output of a notebook's cell that is updated in place, by `IPython.display`; warnings are plain lines below it."""

    def __init__(self, stream: TextIO, output: Any, metric: str | None) -> None:
        super().__init__(stream)
        self._output, self._metric = output, metric
        self._handle: Any = None
        self._line, self._evaluation, self._share = "", "", 0.0
        self._losses: list[tuple[float, float]] = []
        self._metrics: list[tuple[float, float]] = []

    def show(self, record: StepRecord, pace: Pace) -> None:
        fields = _format_fields(record, pace)
        steps_per_s = format_rate(pace.samples_per_s / record.num_samples)
        self._line = "  ".join((fields | {"rate": f"{fields['rate']}  {steps_per_s} steps/s"}).values())
        self._share = record.step / record.num_steps
        self._losses = _add_point(self._losses, record.step, pace.loss)
        self._update()

    def show_evaluation(self, record: EvaluationRecord) -> None:
        self._evaluation = describe_evaluation(record)
        self._metrics = _add_point(self._metrics, record.step, record.metrics.get(self._metric or "", math.nan))
        self._update()

    @preserve_random_state()
    def _update(self) -> None:
        curves = {f"loss, mean of {_WINDOW_STEPS} steps": self._losses, self._metric or "": self._metrics}
        panels = [
            ChartPanel(name, "step", (Series(name, tuple(points)),), "linear", "linear")
            for name, points in curves.items()
            if points
        ]
        lines = [line for line in (self._line, self._evaluation) if line]
        bar = f'<progress value="{self._share:.4f}" max="1" style="width: 100%"></progress>'
        page = "".join([bar, *(f"<pre>{escape(line)}</pre>" for line in lines), render_svg([panels]) if panels else ""])
        shown = {"text/html": page, "text/plain": "\n".join(lines)}
        if self._handle is None:
            self._handle = self._output.display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)


def _add_point(points: list[tuple[float, float]], step: int, value: float) -> list[tuple[float, float]]:
    """Add a point to a curve; every second one goes where there are too many to see. NaN has none."""
    added = [*points, (step, value)] if math.isfinite(value) else points
    return added if len(added) <= _MAX_POINTS else added[1::2]


class _LiveDisplay:
    """Bar of rich, started by the first step and redrawn only on request: no thread runs during training.

    rich draws identifiers of its styles from Python's global generator, so its state is kept around every call.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: Bar | None = None

    @preserve_random_state()
    def show(self, record: StepRecord, pace: Pace) -> None:
        fields = _format_fields(record, pace)
        if self._bar is None:
            self._bar = _start_bar(self._stream, record, fields)
        self._bar.update(self._bar.task_ids[0], completed=record.step, refresh=True, **fields)

    def show_evaluation(self, record: EvaluationRecord) -> None:
        self.write(describe_evaluation(record))

    @preserve_random_state()
    def write(self, line: str) -> None:
        if self._bar is None:
            self._stream.write(line + "\n")
        else:
            self._bar.console.print(line, markup=False, highlight=False)

    @preserve_random_state()
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
