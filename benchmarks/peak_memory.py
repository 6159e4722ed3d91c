"""Peak memory of a call on the CPU: the kernel's high-water mark of the resident set, after a reset. Linux only."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def peak_of_run(run: Callable[[], object]) -> int:
    """Measure the largest increase of the resident set, in bytes, during one call of `run`."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    initial = _read_status("VmRSS")
    _CLEAR.write_text("5")
    answer = run()
    peak = _read_status("VmHWM") - initial
    del answer
    return max(peak, 0)


def _read_status(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name + ":"))
    return 1024 * int(line.split()[1])
