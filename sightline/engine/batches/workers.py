"""Worker processes that read batches: each is known to have started, and ends with the training process."""

from __future__ import annotations

import functools
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence
from multiprocessing import popen_fork
from multiprocessing.context import ForkContext, ForkProcess
from multiprocessing.process import BaseProcess

from sightline.contract.errors import RunError
from sightline.engine.launcher import exit_with_parent

logger = logging.getLogger(__name__)

_GRACE_S = 300
"""Seconds that a worker outlives a SIGTERM, so that the step which needs its batches can be finished and saved."""
_START_LIMITS_S = (2.0, 5.0, 10.0, 20.0, 40.0)
"""Seconds that a forked process gets to reach its own code, try by try."""


class _SurePopen(popen_fork.Popen):
    """Start of a process; raises RunError if none of the tries comes to life."""

    def _launch(self, process_obj: _WorkerProcess) -> None:
        for limit_s in _START_LIMITS_S:
            parents, own = process_obj.ends = socket.socketpair()
            with parents:
                with own:
                    super()._launch(process_obj)  # type: ignore[misc]  # not in the stubs
                parents.settimeout(limit_s)
                if _meet_child(parents):
                    return
            self._end()
            logger.info("a worker process did not come to life within %.0f s, and is started again", limit_s)
        raise RunError(
            f"no worker process came to life in {len(_START_LIMITS_S)} tries, within {sum(_START_LIMITS_S):.0f} s: the "
            "machine is overloaded, or a library breaks a fork; set loader.workers lower, or to 0"
        )

    def _end(self) -> None:
        """End a process that has not begun, and holds no lock."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        if self.finalizer is not None:
            self.finalizer()


class _WorkerProcess(ForkProcess):
    """Forked process that says that it runs, and begins when its parent has heard so."""

    ends: tuple[socket.socket, socket.socket]

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> popen_fork.Popen:  # noqa: N802  multiprocessing's name
        return _SurePopen(process_obj)

    def run(self) -> None:
        parents, own = self.ends
        parents.close()
        with own:
            if not _meet_parent(own):  # it has given up this process, or is gone
                os._exit(1)
        super().run()


def _meet_child(parents: socket.socket) -> bool:
    """Hear that a process runs, and let it begin; False if it says nothing in time."""
    try:
        if parents.recv(1):
            parents.sendall(b"1")
    except TimeoutError:
        return False
    except OSError:  # it has ended, as torch's loader will see
        pass
    return True


def _meet_parent(own: socket.socket) -> bool:
    """Say that this process runs; True when the parent lets it begin."""
    try:
        own.sendall(b"1")
        return own.recv(1) == b"1"
    except OSError:
        return False


class WorkerContext(ForkContext):
    """Context of `multiprocessing` whose processes are forked, and forked again where a fork does not come to life.

    CPython 3.11 forks whoever holds its list of threads. Threads of torch enter that list by themselves: those of gloo
    do after each collective, to release Python objects. A process that is forked just then waits for ever for a thread
    that it does not have, before it has run a line of its own, and the training would wait for its batches.
    """

    Process = _WorkerProcess


def worker_setup() -> Callable[[int], None]:
    """Return what sets up a worker of this process: it ends with it or at SIGUSR1, and ignores the group's signals."""
    return functools.partial(_set_up, os.getpid())


def _set_up(parent: int, number: int) -> None:
    exit_with_parent(parent)
    signal.signal(signal.SIGUSR1, lambda *_: os._exit(0))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE_S))


class WorkerStopEvent:
    """Replacement of torch's event that ends workers: a lock can die with a worker, a signal cannot."""

    def __init__(self, workers: Sequence[BaseProcess]) -> None:
        self.workers = workers
        self.is_over = False

    def set(self) -> None:
        self.is_over = True
        for worker in self.workers:
            if worker.is_alive() and worker.pid is not None:
                os.kill(worker.pid, signal.SIGUSR1)

    def is_set(self) -> bool:
        return self.is_over
