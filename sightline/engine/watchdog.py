"""Watchdog of collectives: ends a run whose processes wait for different things, and reports where each waits."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Protocol

from sightline.contract.errors import UserError
from sightline.engine.failures import report_failure
from sightline.runs.process_identity import ProcessIdentity

_PACKAGE = str(Path(__file__).resolve().parents[1])
_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_COLLECTIVE_FILES = tuple(
    str(Path(_PACKAGE) / name) for name in ("engine/watchdog.py", "engine/distributed.py", "instrument/__init__.py")
)
_GRACE_S = 2.0
"""Seconds for the main thread to end with its own message, once another process is known to have failed."""


class Store(Protocol):
    """Interface of torch's key-value store: it is hosted by one process and reachable from all."""

    def set(self, key: str, value: str, /) -> Any: ...

    def get(self, key: str, /) -> bytes: ...

    def add(self, key: str, amount: int, /) -> int: ...

    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes: ...

    def check(self, keys: list[str], /) -> bool: ...


class Watchdog:
    """Watchdog of two threads: a clock of the main thread's waiting, and a listener to the other watchdogs.

    When the main thread has waited `timeout_s` in a collective, the listener raises the alarm through the store: every
    process states what it waits for, or which line it runs; the first to raise it reports all states; processes on its
    machine that do not respond are killed; all end with exit code 1. A process that fails reports it here, and one that
    ends without a report is noticed on its machine: the others end within seconds, on all machines. The clock ends this
    process by itself if the store does not respond. Time in which this process was stopped does not count.
    """

    def __init__(self, *, store: Store, rank: int, size: int, timeout_s: float) -> None:
        self._store = store
        self._rank = rank
        self._timeout_s = timeout_s
        self._interval_s = min(1.0, timeout_s / 10)
        self._other_ranks = [other for other in range(size) if other != rank]
        self._peers: Mapping[int, ProcessIdentity] = {}
        self._waiting: _WaitState | None = None
        self._stopped = threading.Event()
        self._is_store_lost = False
        self._threads: list[threading.Thread] = []
        self._main = threading.main_thread().ident

    # --- in the main thread -------------------------------------------------------------------------------------------

    def register(self) -> None:
        """Register this process with the others. Raises UserError if another process has the same rank."""
        this = ProcessIdentity.current(socket.gethostname())
        first = ProcessIdentity(
            **json.loads(self._store.compare_set(f"process/{self._rank}", "", json.dumps(this.to_dict())))
        )
        if first != this:
            raise UserError(
                f"rank {self._rank} is process {first.pid} on {first.host} already; give every process its own RANK"
            )

    def missing_ranks(self) -> list[int]:
        """Return the ranks that have not registered."""
        return [other for other in self._other_ranks if not self._store.check([f"process/{other}"])]

    def start(self) -> None:
        """Start the threads, once every process has registered."""
        self._peers = {other: ProcessIdentity(**self._read(f"process/{other}")) for other in self._other_ranks}
        self._threads = [threading.Thread(target=watch, daemon=True) for watch in (self._listen, self._run_clock)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop the threads. A thread inside torch's store while the interpreter ends would abort the process."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(timeout=_GRACE_S)

    @contextlib.contextmanager
    def watch_collective(self, what: str) -> Iterator[None]:
        """Context in which the main thread waits for other processes."""
        outer, self._waiting = self._waiting, _WaitState(what)
        try:
            yield
        finally:
            self._waiting = outer

    def describe_failure(self, why: str) -> None:
        """Report to the others why this process ends; only the first report of all processes counts."""
        self.stop()
        with contextlib.suppress(RuntimeError):
            if self._store.add("failures", 1) == 1:
                self._store.set("failure", json.dumps({"rank": self._rank, "why": why}))

    def peer_failure_reason(self) -> str:
        """Describe why another process cut a connection; wait briefly for its message."""
        deadline = time.monotonic() + _GRACE_S
        while True:
            with contextlib.suppress(RuntimeError):
                if self._store.check(["failure"]):
                    return _describe_failure(self._read("failure"))
            ended = self._describe_ended()
            if ended:
                return ended
            if time.monotonic() > deadline:
                return "another process ended or became unreachable, without reporting the reason"
            time.sleep(0.05)

    # --- the clock ----------------------------------------------------------------------------------------------------

    def _run_clock(self) -> None:
        """Count the waiting time in ticks of this thread, so that a process stopped by the system is not blamed."""
        last_resort_s = self._timeout_s + 6 * self._interval_s + _GRACE_S
        while not self._stopped.wait(self._interval_s):
            wait = self._waiting
            if wait is None:
                continue
            wait.seconds += self._interval_s
            if wait.seconds > last_resort_s:
                lines = (
                    f"rank {self._rank} has waited {wait.seconds:.0f} s in {wait.what} at {self._format_main_line()}"
                )
                self._report_hang(
                    f"{lines}; the store that the processes meet in (MASTER_ADDR) does not respond either"
                )
                for peer in self._peers.values():
                    if peer.is_stopped:
                        self._kill(peer)
                os._exit(1)

    # --- the listener -------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        bad_news_since: float | None = None
        while not self._stopped.wait(self._interval_s):
            failure_text = self._check_store() or self._describe_ended()
            if failure_text is None or self._stopped.is_set():
                continue
            bad_news_since = bad_news_since or time.monotonic()
            if time.monotonic() - bad_news_since > _GRACE_S:
                report_failure(f"{failure_text}; this process ends with it", exit_code=1, is_consequence=True)
                os._exit(1)

    def _check_store(self) -> str | None:
        """Raise an alarm or respond to one, if needed; return the report of a failed process, or None."""
        wait = self._waiting
        if self._is_store_lost:
            return None
        try:
            if wait is not None and wait.seconds > self._timeout_s:
                self._raise_alarm(wait)
            elif self._store.check(["alarm"]):
                self._respond()
            return _describe_failure(self._read("failure")) if self._store.check(["failure"]) else None
        except RuntimeError:  # the process that holds it is gone, and torch would repeat it at each attempt
            self._is_store_lost = True
            return None

    def _describe_ended(self) -> str | None:
        ended = [f"rank {rank} (process {peer.pid})" for rank, peer in self._peers.items() if peer.is_gone]
        return f"{' and '.join(ended)} ended without a report" if ended else None

    def _raise_alarm(self, wait: _WaitState) -> NoReturn:
        if self._store.add("alarm", 1) > 1:
            self._respond()
        deadline = time.monotonic() + 3 * self._interval_s
        while time.monotonic() < deadline and not self._store.check([f"answer/{rank}" for rank in self._other_ranks]):
            time.sleep(0.05)
        lines = [f"rank {self._rank} has waited {wait.seconds:.0f} s in {wait.what} at {self._format_main_line()}"]
        silent = []
        for rank in self._other_ranks:
            if self._store.check([f"answer/{rank}"]):
                lines.append(f"rank {rank} {self._read(f'answer/{rank}')}")
            else:
                lines.append(f"rank {rank} does not respond (stopped, swapped out or dead)")
                silent.append(rank)
        self._report_hang("; ".join(lines))
        for rank in silent:
            self._kill(self._peers[rank])
        self._store.set("reported", "")
        os._exit(1)

    def _report_hang(self, lines: str) -> None:
        limit = f"distributed.timeout_s = {self._timeout_s:g}"
        report_failure(f"the processes no longer wait for the same thing ({limit}): {lines}", exit_code=1)

    def _respond(self) -> NoReturn:
        wait = self._waiting
        state = f"waits in {wait.what}" if wait else "is"
        deadline = time.monotonic() + 4 * self._interval_s  # the launcher should see nobody end before the report
        with contextlib.suppress(RuntimeError):
            self._store.set(f"answer/{self._rank}", json.dumps(f"{state} at {self._format_main_line()}"))
            while time.monotonic() < deadline and not self._store.check(["reported"]):
                time.sleep(0.05)
        os._exit(1)

    @staticmethod
    def _kill(peer: ProcessIdentity) -> None:
        """Kill a process that does not respond, if it is certainly the right one."""
        if peer.is_reachable and not peer.is_gone:
            with contextlib.suppress(OSError):
                os.kill(peer.pid, signal.SIGKILL)

    def _format_main_line(self) -> str:
        return format_user_frame(sys._current_frames().get(self._main or 0))

    def _read(self, key: str) -> Any:
        return json.loads(self._store.get(key))


class _WaitState:
    """Collective that the main thread waits in, and its duration in seconds of the clock."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.seconds = 0.0


def _describe_failure(failure: Mapping[str, Any]) -> str:
    return f"rank {failure['rank']} failed: {failure['why']}"


def format_user_frame(frame: FrameType | None) -> str:
    """Format the innermost line of code outside libraries and this package's collectives."""
    innermost, user_frame = frame, None
    while frame is not None and user_frame is None:
        name = frame.f_code.co_filename
        is_library = not name.startswith(_PACKAGE) and (name.startswith(_LIBRARIES) or name.startswith("<"))
        user_frame = None if is_library or name in _COLLECTIVE_FILES else frame
        frame = frame.f_back
    shown = user_frame or innermost
    return (
        "an unknown line" if shown is None else f"{shown.f_code.co_filename}:{shown.f_lineno} in {shown.f_code.co_name}"
    )
