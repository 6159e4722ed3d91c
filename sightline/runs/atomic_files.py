"""Atomic file writes (whole or absent after any crash), and error messages for disks that refuse them.

Identity of processes: pids are reused after a process ends, so the start time is part of the identity.
"""

from __future__ import annotations

import errno
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sightline.contract.errors import DataError, RunError
from sightline.contract.regular_files import check_regular_file
from sightline.store.files.atomic_write import open_atomic

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_CLOSED = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


def make_below(root: Path, folder: Path) -> None:
    """Create a folder and its parents below `root`, which must exist: a root that was moved is not created again."""
    for path in reversed((folder, *folder.parents)):
        if root in path.parents:
            path.mkdir(exist_ok=True)


def create_atomic(path: Path, data: bytes) -> None:
    """Write a new file and sync it to disk. Raises FileExistsError if it exists."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_atomic(path: Path, data: bytes) -> None:
    """Replace the content of `path` atomically: a reader, or a crash, sees the old file or the new one."""
    with open_atomic(path) as file:
        file.write(data)


def assert_appendable(path: Path) -> int:
    """Return the size of a regular file, 0 if it does not exist. Raises DataError for anything else, like a pipe."""
    try:
        return check_regular_file(path)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}; remove it") from error


def disk_failure(error: OSError, path: Path, *, still_intact: str = "") -> RunError:
    """Build the error of a failed write: path, reason and remedy; `still_intact` names what was not damaged."""
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        advice = "free some space there and resume"
    elif error.errno == errno.EFBIG:
        advice = "raise the limit on the size of a file (ulimit -f) and resume"
    elif error.errno in _CLOSED:
        advice = "make it writable, or choose another folder with --out"
    else:
        advice = "mend the cause and resume"
    return RunError(
        f"{path}: cannot write: {reason[:1].lower()}{reason[1:]}; "
        f"{advice}{f' ({still_intact})' if still_intact else ''}"
    )


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
        return cls(host, _process_table(), os.getpid(), process_start_time(os.getpid()))

    def to_dict(self) -> dict[str, Any]:
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
