"""Ends a run whose processes no longer wait for the same thing, and says who waited where."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

from sightline.engine.failure import report_failure

__all__ = ["Watchdog"]

_ALARM = "sightline/alarm"


class Watchdog:
    """A thread that measures how long the main thread has waited in a collective.

    After `timeout_s` it raises the alarm through the store; every process then states what it waits for, or which line
    it runs, the one that raised the alarm reports all answers, and all end with exit code 1.
    """

    def __init__(self, *, store: Any, rank: int, size: int, timeout_s: float) -> None:
        self._store = store
        self._rank = rank
        self._size = size
        self._timeout_s = timeout_s
        self._waiting: tuple[str, float] | None = None
        self._stopped = threading.Event()
        self._main = threading.main_thread().ident
        self._interval_s = min(1.0, timeout_s / 10)

    def start(self) -> None:
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Inside this context the main thread waits for other processes."""
        outer = self._waiting
        self._waiting = (what, time.monotonic())
        try:
            yield
        finally:
            self._waiting = outer

    def _watch(self) -> None:
        while not self._stopped.wait(self._interval_s):
            waiting = self._waiting
            try:
                if waiting is not None and time.monotonic() - waiting[1] > self._timeout_s:
                    self._raise_alarm(*waiting)
                elif self._store.check([_ALARM]):
                    self._answer()
            except RuntimeError:  # the store's process is gone: the launcher ends this one
                return

    def _raise_alarm(self, what: str, since: float) -> None:
        is_first = self._store.add(_ALARM, 1) == 1
        if not is_first:
            self._answer()
        deadline = time.monotonic() + 3 * self._interval_s
        others = [rank for rank in range(self._size) if rank != self._rank]
        while time.monotonic() < deadline and not self._store.check([_answer_key(rank) for rank in others]):
            time.sleep(0.05)
        lines = [f"rank {self._rank} has waited {time.monotonic() - since:.0f} s in {what}"]
        for rank in others:
            answer = json.loads(self._store.get(_answer_key(rank))) if self._store.check([_answer_key(rank)]) else None
            lines.append(f"rank {rank} {answer or 'does not answer (stopped, swapped out or dead)'}")
        report_failure(
            "the processes no longer wait for the same thing (limit "
            f"distributed.timeout_s = {self._timeout_s:g} s): " + "; ".join(lines),
            exit_code=1,
        )
        os._exit(1)

    def _answer(self) -> None:
        waiting = self._waiting
        answer = f"waits in {waiting[0]}" if waiting else f"is at {self._main_line()}"
        self._store.set(_answer_key(self._rank), json.dumps(answer))
        time.sleep(4 * self._interval_s)  # time for the first to report before the launcher sees anyone end
        os._exit(1)

    def _main_line(self) -> str:
        frame = sys._current_frames().get(self._main or 0)
        if frame is None:
            return "an unknown line"
        last = traceback.extract_stack(frame)[-1]
        return f"{last.filename}:{last.lineno} in {last.name}"


def _answer_key(rank: int) -> str:
    return f"sightline/answer/{rank}"
