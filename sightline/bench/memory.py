"""The peak of the memory that a form takes, each in a process of its own that has done nothing else.

A server imports everything once and then forks a child for every question, so that no child inherits what another form
has freed. The child runs the form at the sizes of a smoke test (kernels are compiled or read, pools are made), makes
the inputs, gives freed memory back, notes its resident set, resets the kernel's high-water mark, and runs the form
once: the peak is the mark less what it noted. So imports, inputs and weights do not count; gradients, the state of an
optimiser and the answer do. torch keeps no memory of its own on the CPU, and malloc is left as it is by default.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from sightline.errors import RunError

__all__ = ["MemoryMeter", "peak_of_run"]

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class MemoryMeter:
    """Asks a server for peaks; on systems other than Linux there is no such mark to reset, and the answer is None."""

    def __init__(self, *, num_threads: int) -> None:
        self.is_possible = _CLEAR.exists()
        self._num_threads = num_threads
        self._server: subprocess.Popen[str] | None = None

    def __enter__(self) -> MemoryMeter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._server is not None:
            os.killpg(self._server.pid, signal.SIGKILL)  # with a child that may be at work
            self._server.communicate()

    def peak_bytes(self, case: str, variant: str, *, is_quick: bool) -> int | None:
        """The peak of one form of a case by name. Raises RunError where the form fails in its process."""
        if not self.is_possible:
            return None
        server = self._running()
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps([case, variant, is_quick]) + "\n")
        server.stdin.flush()
        answer = server.stdout.readline()
        if not answer:
            raise RunError(f"{case}/{variant}: the process that measures memory has ended; was it killed?")
        peak, fault = json.loads(answer)
        if fault is not None:
            raise RunError(f"{case}/{variant}: its memory could not be measured: {fault}")
        return peak

    def _running(self) -> subprocess.Popen[str]:
        if self._server is None:
            threads = dict.fromkeys(
                ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(self._num_threads)
            )
            self._server = subprocess.Popen(
                [sys.executable, "-m", "sightline.bench.memory"],
                env=os.environ | threads,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C is for us, and we end it
            )
        return self._server


def peak_of_run(run: Any) -> int:
    """Bytes by which the resident set rises, at most, while `run` is called once. Linux only."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _status("VmRSS")
    _CLEAR.write_text("5")
    answer = run()
    peak = _status("VmHWM") - before
    del answer
    return max(peak, 0)


def _status(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name + ":"))
    return 1024 * int(line.split()[1])


def _measure(case_name: str, variant_name: str, is_quick: bool) -> int:
    from sightline.bench.suites import find_case

    case = find_case(case_name)
    warm = case.smaller()
    form = next(form for form in case.forms if form.name == variant_name)
    with form.open(warm.inputs()) as run:
        run()
    with form.open((warm if is_quick else case).inputs()) as run:
        return peak_of_run(run)


def _serve() -> None:
    from sightline.bench import suites

    suites.all_cases()  # imports what cases need; nothing is computed, so no thread is lost in a fork
    for line in sys.stdin:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            _answer_and_leave(writing, json.loads(line))
        os.close(writing)
        with open(reading) as pipe:
            answer = pipe.read()
        _, status = os.waitpid(child, 0)
        if not answer:
            answer = json.dumps([None, f"killed by signal {os.WTERMSIG(status)}, most likely out of memory"])
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


def _answer_and_leave(writing: int, question: list[Any]) -> None:
    os.dup2(2, 1)  # a package that prints must not answer for us
    try:
        answer: list[Any] = [_measure(*question), None]
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent says it
        answer = [None, f"{type(error).__name__}: {error}"]
    os.write(writing, json.dumps(answer).encode())
    os._exit(0)


if __name__ == "__main__":
    _serve()
