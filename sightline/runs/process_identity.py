"""Identity of a process: pids are reused after a process ends, so the start time is part of it."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


def process_start_time(pid: int) -> str | None:
    """Return boot id and clock tick of a process's start; empty if it ended, None if the system does not report it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        state, start = _read_stat(pid)
    except OSError:
        return "" if Path("/proc/self/stat").exists() else None
    return "" if state in "ZX" else f"{boot}:{start}"


@dataclass(frozen=True)
class ProcessIdentity:
    """Identity of a process: host, process table (boot and pid namespace), pid and start."""

    host: str
    table: str | None
    pid: int
    start: str | None

    @classmethod
    def current(cls, host: str) -> ProcessIdentity:
        """Return the identity of this process."""
        return cls(host, _process_table(), os.getpid(), process_start_time(os.getpid()))

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return asdict(self)

    @property
    def is_reachable(self) -> bool:
        """True if this process can observe the other one: same boot and same process table."""
        return self.table is not None and bool(self.start) and self.table == _process_table()

    @property
    def is_gone(self) -> bool:
        """True if the process is known to have ended."""
        return self.is_reachable and process_start_time(self.pid) != self.start

    @property
    def is_stopped(self) -> bool:
        """True if the process is known to be stopped by a signal."""
        try:
            return self.is_reachable and not self.is_gone and _read_stat(self.pid)[0] in "Tt"
        except OSError:
            return False


def _read_stat(pid: int) -> tuple[str, str]:
    """Read state and start of a process: fields 3 and 22 of its line; the name, field 2, may contain blanks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], fields[19]


def _process_table() -> str | None:
    """Return boot id and pid namespace, which differ between containers of one host."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None
