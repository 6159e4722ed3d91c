"""The peak of the memory that a form takes, each in a process of its own that has done nothing else.

A server (`memory_server.py`) imports everything once and forks a child for every question, so that no child inherits
what another form has freed. The child runs the form at the sizes of a smoke test (kernels are compiled or read, pools
are made), makes the inputs, gives freed memory back, notes its resident set, resets the kernel's high-water mark, and
runs the form once: the peak is the mark less what it noted. So imports, inputs and weights do not count; gradients, the
state of an optimiser and the answer do. torch keeps no memory of its own on the CPU, and malloc is left as it is by
default.
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
                [sys.executable, "-m", "sightline.bench.memory_server"],
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
