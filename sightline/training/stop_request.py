"""Request of a signal that a run stops: its state is saved after the step under way, and other work ends."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType


class StopRequestedError(BaseException):
    """Request by a signal to end work without steps; it must not be handled as an error."""


class StopRequest:
    """Stop request: true once SIGTERM or SIGINT came; a second signal ends the process at once.

    The same signal within a second is the same request: a scheduler signals all processes, and the launcher among them
    passes it on.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._since_s = 0.0
        self._is_acknowledged = False
        self._is_at_once = False
        self._then = "saving before the first step"

    def __bool__(self) -> bool:
        return self.signal is not None

    def request(self) -> None:
        """Request a stop as SIGTERM does."""
        self.signal = self.signal or signal.SIGTERM

    def begin_steps(self) -> None:
        """Acknowledge signals from now on as those of a run whose state is saved after the step under way."""
        self._then = "saving after this step"

    def install_handlers(self, *, is_acknowledged: bool) -> None:
        """Install signal handlers; with `is_acknowledged`, the first signal is acknowledged on standard error."""
        self._is_acknowledged = is_acknowledged
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    @contextlib.contextmanager
    def raise_on_signal(self, *, then: str) -> Iterator[None]:
        """Context in which the first signal, or an earlier one, raises StopRequestedError: its work is repeatable.

        `then` is what its acknowledgement says.
        """
        self._is_at_once, before, self._then = True, self._then, then
        try:
            if self:
                raise StopRequestedError
            yield
        finally:
            self._is_at_once, self._then = False, before

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now_s = time.monotonic()
        if self.signal is None:
            self.signal, self._since_s = number, now_s
            if self._is_acknowledged:
                name = signal.Signals(number).name
                sys.stderr.write(f"{name}: {self._then}; the same again ends at once\n")
            if self._is_at_once:
                raise StopRequestedError
        elif number != self.signal or now_s - self._since_s > 1.0:
            os._exit(128 + number)


@contextlib.contextmanager
def restore_signal_handlers() -> Iterator[None]:
    """Context that restores the signal handlers: between two runs a signal ends the program."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
