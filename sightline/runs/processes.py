"""Which process is which: numbers are used again after a process ends, so its start belongs to its identity."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["ProcessIdentity", "process_start_time"]


def process_start_time(pid: int) -> str | None:
    """Boot and clock tick at which a process started; empty if it is over, None where the system does not report it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        state, start = _stat(pid)
    except OSError:
        return "" if Path("/proc/self/stat").exists() else None
    return "" if state in "ZX" else f"{boot}:{start}"


@dataclass(frozen=True)
class ProcessIdentity:
    """A process as others can find it: its host, the table its number belongs to, its number and its start."""

    host: str
    table: str | None
    pid: int
    start: str | None

    @classmethod
    def current(cls, host: str) -> ProcessIdentity:
        return cls(host, _table(), os.getpid(), process_start_time(os.getpid()))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def is_reachable(self) -> bool:
        """Whether this process can find out about that one: the same boot and the same table of processes."""
        return self.table is not None and bool(self.start) and self.table == _table()

    @property
    def is_gone(self) -> bool:
        """Whether it is known to be over."""
        return self.is_reachable and process_start_time(self.pid) != self.start

    @property
    def is_stopped(self) -> bool:
        """Whether it is known to stand still, stopped by a signal."""
        try:
            return self.is_reachable and not self.is_gone and _stat(self.pid)[0] in "Tt"
        except OSError:
            return False


def _stat(pid: int) -> tuple[str, str]:
    """State and start of a process: fields 3 and 22 of its line; the name, field 2, may hold blanks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], fields[19]


def _table() -> str | None:
    """Boot and process namespace: containers of one host count apart."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None
