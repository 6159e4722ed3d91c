"""What a test asks in place of seconds: calls that something takes, bytes that it reads; a limit for what hangs."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

__all__ = ["ENDLESS_S", "HANG_S", "count_bytes", "count_calls", "limited"]

HANG_S = 280.0
"""Many times what anything here takes on a slow machine that is busy, and below the five minutes after which a worker
of a run ends by itself."""
ENDLESS_S = 10_000.0
"""What is waited for in vain: nothing that takes so long ends within `HANG_S`."""


@contextlib.contextmanager
def limited(seconds: float = HANG_S) -> Iterator[None]:
    """Raise TimeoutError in the main thread after some seconds."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"takes more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def count_calls(run: Callable[[], object]) -> int:
    """Count the calls of functions, of Python's and of C's, in this thread: the same on every machine."""
    num_calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal num_calls
        num_calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(before)
    return num_calls


def count_bytes(run: Callable[[], object]) -> int:
    """Count the bytes that this process reads from files, or maps of them, while it computes something."""
    before = _count_read()
    kept = run()  # what it maps is there as long as it is
    num_bytes = _count_read() - before
    del kept
    return num_bytes


def _count_read() -> int:
    read = re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())
    mapped = re.search(r"RssFile:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert read is not None
    assert mapped is not None
    return int(read[1]) + 1024 * int(mapped[1])
