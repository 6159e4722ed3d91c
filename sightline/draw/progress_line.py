"""Progress of work that takes long: one line of a terminal that is overwritten, elsewhere a line now and then."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TextIO

from sightline.contract.errors import escape_to_one_line

QUIET_S, LIVE_PAUSE_S, PLAIN_PAUSE_S = 2.0, 0.5, 9.0
"""Seconds before progress is shown, and between its lines on a terminal and elsewhere: no silence is above ten."""
_CLEAR = "\r\x1b[K"


def wants_live(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Return True if `stream` is a terminal that can redraw lines, and neither NO_COLOR nor CI is set."""
    is_plain = environment.get("NO_COLOR") or environment.get("CI") or environment.get("TERM") == "dumb"
    return stream.isatty() and not is_plain


class ProgressLine:
    """Line on standard error that says what is going on, from two seconds on, by a thread that only reads."""

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._describe: Callable[[], str] = str
        self._thread: threading.Thread | None = None
        self._is_done = threading.Event()
        self._is_live = self._is_shown = False

    def show(self, describe: Callable[[], str]) -> None:
        """Say what `describe` returns, asked anew for each line."""
        self._describe = describe
        if self._thread is None:
            self._is_live, self._is_done = wants_live(sys.stderr, os.environ), threading.Event()
            self._thread = threading.Thread(target=self._report, args=(self._is_done,), daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Say no more, and remove the line of a terminal."""
        if self._thread is not None:
            self._is_done.set()
            self._thread.join()
            self._thread = None
            self.clear()

    def clear(self) -> None:
        """Remove the line of a terminal, for other lines to be written; it comes again."""
        if self._is_live and self._is_shown:
            self._is_shown = False
            sys.stderr.write(_CLEAR)

    def _report(self, is_done: threading.Event) -> None:
        started_s, pause_s = time.monotonic(), QUIET_S
        while not is_done.wait(pause_s):
            text = escape_to_one_line(f"{self._verb}: {self._describe()}; {time.monotonic() - started_s:.0f} s so far")
            sys.stderr.write(f"\r{text}\x1b[K" if self._is_live else f"{text}\n")
            sys.stderr.flush()
            self._is_shown = True
            pause_s = LIVE_PAUSE_S if self._is_live else PLAIN_PAUSE_S


@contextmanager
def show_progress(verb: str, describe: Callable[[], str]) -> Iterator[None]:
    """Say what is going on while the context is open, as `ProgressLine` does."""
    line = ProgressLine(verb)
    line.show(describe)
    try:
        yield
    finally:
        line.close()
