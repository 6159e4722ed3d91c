"""Peak memory of an implementation, measured in a separate process that has done nothing else.

A server (this module as a program) imports all cases once and forks a child for every measurement, so that no
child inherits memory that another implementation has freed. The child runs the implementation at the sizes of a smoke
test (kernels are compiled or read, pools are made), makes the inputs, returns freed memory to the system, reads its
resident set, resets the kernel's high-water mark, and runs the implementation once: the peak is the mark minus the
resident set. So imports, inputs and weights do not count; gradients, the state of an optimiser and the result do. Torch
caches no memory on the CPU, and malloc keeps its default settings.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from types import TracebackType
from typing import Any

from benchmarks.peak_memory import peak_of_run
from benchmarks.suites import find_case, list_cases
from sightline.contract.errors import RunError


class MemoryMeter:
    """Client of the server that measures peaks; a peak is None on systems other than Linux, which have no such mark."""

    def __init__(self, *, num_threads: int) -> None:
        self.is_possible = sys.platform.startswith("linux")
        self._num_threads = num_threads
        self._server: subprocess.Popen[str] | None = None

    def __enter__(self) -> MemoryMeter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._server is not None:
            os.killpg(self._server.pid, signal.SIGKILL)  # with a child that may be at work
            self._server.communicate()

    def peak_bytes(self, case: str, variant: str, *, is_quick: bool) -> int | None:
        """Return the peak of one implementation of a case. Raises RunError if it fails in its process."""
        if not self.is_possible:
            return None
        server = self._get_server()
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

    def _get_server(self) -> subprocess.Popen[str]:
        if self._server is None:
            threads = dict.fromkeys(
                ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(self._num_threads)
            )
            self._server = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.memory"],
                env=os.environ | threads,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C is for us, and we end it
            )
        return self._server


# --- server ----------------------------------------------------------------------------------------------------------


def _measure(case_name: str, variant_name: str, is_quick: bool) -> int:
    case = find_case(case_name)
    warm = case.smaller()
    form = next(form for form in case.forms if form.name == variant_name)
    with form.open(warm.inputs()) as run:
        run()
    with form.open((warm if is_quick else case).inputs()) as run:
        return peak_of_run(run)


def _serve() -> None:
    """Read JSON lines (case, implementation, is_quick) and write JSON lines (peak, fault)."""
    list_cases()  # imports what cases need; nothing is computed, so no thread is lost in a fork
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
    os.dup2(2, 1)  # the output of a package must not mix with the answer
    try:
        answer: list[Any] = [_measure(*question), None]
    except Exception as error:  # noqa: BLE001 - the parent reports any error
        answer = [None, f"{type(error).__name__}: {error}"]
    os.write(writing, json.dumps(answer).encode())
    os._exit(0)


if __name__ == "__main__":
    _serve()
