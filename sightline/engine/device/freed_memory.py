"""Setting of glibc's malloc that keeps freed memory in the process, so that temporaries are not paged in each step."""

from __future__ import annotations

import ctypes
import sys

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Make glibc's malloc reuse large blocks instead of mapping new ones; return True if it accepted the settings.

    Results do not change. A PointNet step at 32 x 256 points on two cores spent a third of its time in the kernel
    before, under 1 % after; the peak grows by about a quarter
    (docs/inside/decisions/runs.md#freed-memory-stays-in-the-process-cpu). Elsewhere than under glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    agreed = [mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, 2**31 - 1), mallopt(_TOP_PAD, 2**28)]
    return all(agreed)
