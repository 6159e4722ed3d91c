"""Guarded standard output and error: a failed write is dropped instead of ending the work."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import TextIO

__all__ = ["guard_streams", "stdout_failure"]

_READER_GONE = frozenset({errno.EPIPE, errno.EIO, errno.ECONNRESET})
"""Errors of a pipe that was closed, as `head` does, or of a closed terminal."""


class _GuardedStream(io.FileIO):
    """Raw stream whose descriptor is redirected to /dev/null at the first write that fails."""

    failure: OSError | None = None

    def write(self, data: object, /) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError as error:
            self.failure = error
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())  # also for what libraries and child processes write
            os.close(null)
            return memoryview(data).nbytes  # type: ignore[arg-type]


def guard_streams() -> None:
    """Replace the standard streams so that closed ones raise no error, and reserve descriptors 0 to 2 for them."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            assert opened == descriptor, "the system gives the lowest free number"
            os.set_inheritable(descriptor, True)
    sys.stdout = _guard(sys.stdout, sys.__stdout__)
    sys.stderr = _guard(sys.stderr, sys.__stderr__)


def stdout_failure() -> str | None:
    """Return the reason why standard output lost results, or None if it did not or its reader closed the pipe."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", getattr(sys.stdout, "buffer", None))
    failure = raw.failure if isinstance(raw, _GuardedStream) else None
    return None if failure is None or failure.errno in _READER_GONE else failure.strerror


def _guard(stream: TextIO | None, original: TextIO | None) -> TextIO:
    if stream is None:  # closed before we were started
        return open(os.devnull, "w", encoding="utf-8")
    if stream is not original or not isinstance(stream, io.TextIOWrapper):  # redirected inside of this process
        return stream
    stream.flush()
    raw = _GuardedStream(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
