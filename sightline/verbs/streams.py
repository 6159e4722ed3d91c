"""Standard output and standard error that cannot end the work: what nobody can read any more is dropped."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import TextIO

__all__ = ["guard_streams", "stdout_failure"]

_READER_GONE = frozenset({errno.EPIPE, errno.EIO, errno.ECONNRESET})
"""A pipe that was closed, as `head` does, and a terminal that is gone."""


class _Guarded(io.FileIO):
    """Writes to a descriptor, which leads nowhere from the first write on that fails."""

    failure: OSError | None = None

    def write(self, data: object, /) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError as error:
            self.failure = error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # also for what libraries and child processes write
            os.close(nowhere)
            return memoryview(data).nbytes  # type: ignore[arg-type]


def guard_streams() -> None:
    """From now on neither a closed stream nor a failed write to one is an error; files never get a stream's number."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            assert opened == descriptor, "the system gives the lowest free number"
            os.set_inheritable(descriptor, True)
    sys.stdout = _guarded(sys.stdout, sys.__stdout__)
    sys.stderr = _guarded(sys.stderr, sys.__stderr__)


def stdout_failure() -> str | None:
    """Why standard output did not take all of the results; None where it did, or where its reader had enough."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", getattr(sys.stdout, "buffer", None))
    failure = raw.failure if isinstance(raw, _Guarded) else None
    return None if failure is None or failure.errno in _READER_GONE else failure.strerror


def _guarded(stream: TextIO | None, own: TextIO | None) -> TextIO:
    if stream is None:  # closed before we were started
        return open(os.devnull, "w", encoding="utf-8")
    if stream is not own or not isinstance(stream, io.TextIOWrapper):  # redirected inside of this process
        return stream
    stream.flush()
    raw = _Guarded(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
