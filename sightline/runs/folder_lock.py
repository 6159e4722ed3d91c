"""Lock of a run's folder: held by one living process, and lost with the folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from sightline.contract.errors import LostFolderError, UserError
from sightline.contract.regular_files import parse_json, read_regular_file
from sightline.runs.process_identity import process_start_time
from sightline.store.files.atomic_write import assert_appendable

LOCK = ".lock"
_MAX_LOCK_BYTES = 1 << 16
_MISSING_ERRORS = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE})


@dataclass(frozen=True)
class LockedFolder:
    """Locked folder, held open, so that its inode is not reused for another folder."""

    descriptor: int
    lock: bytes

    def assert_own(self, path: Path) -> None:
        """Raise LostFolderError if `path` is missing or another folder, or the lock in it is another's."""
        try:
            is_same = os.path.samestat(os.fstat(self.descriptor), os.stat(path))
        except OSError as error:
            if error.errno not in _MISSING_ERRORS:
                raise
            raise LostFolderError(f"{path}: was moved or deleted while the run wrote to it; the run ends") from None
        if not is_same:
            raise LostFolderError(
                f"{path}: is no longer the folder of this run, which was moved or deleted; the run ends and leaves the "
                "new folder as it is"
            )
        try:
            lock = read_regular_file(path / LOCK)
        except FileNotFoundError:
            raise LostFolderError(
                f"{path / LOCK}: was removed while the run wrote to the folder; the run ends; go on with --resume auto"
            ) from None
        if lock != self.lock:
            raise LostFolderError(f"{path / LOCK}: was taken by another run; this run ends and leaves the folder to it")

    def release(self, path: Path) -> None:
        """Remove the lock, unless it is another run's by now."""
        with contextlib.suppress(OSError, LostFolderError):
            self.assert_own(path)
            (path / LOCK).unlink()
        os.close(self.descriptor)


def acquire_lock(path: Path, mine: bytes) -> LockedFolder:
    """Write this process into the lock file, unless a running process owns it; it is made if it is missing.

    The kernel's lock on the file is held only for this moment: it settles races, and no orphan can keep it.
    """
    while True:
        assert_appendable(path)
        with open(path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_same_file(path, file.fileno()):
                continue  # removed by the run that held it, between our open and our lock
            file.seek(0)
            _assert_free(path, file.read(_MAX_LOCK_BYTES))
            try:
                file.truncate(0)
                file.write(mine)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                path.unlink()  # an empty lock says nothing
                raise
            return LockedFolder(os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY), mine)


def _is_same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _assert_free(path: Path, data: bytes) -> None:
    if not data:  # its writer died before it wrote
        return
    pid, host, started = _parse_holder(path, data)
    if host != socket.gethostname():
        raise UserError(f"{path.parent}: in use by process {pid} on {host}; if that has ended, remove {path}")
    if _is_alive(pid, started):
        raise UserError(f"{path.parent}: in use by process {pid} on {host}; wait for it, or choose another --out")


def _parse_holder(path: Path, data: bytes) -> tuple[int, str, object]:
    """Parse pid, host and start of the process in a lock file. Raises UserError for another file."""
    try:
        holder = parse_json(data)
        return int(holder["pid"]), str(holder["host"]), holder.get("started")
    except (ValueError, OverflowError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path}: is not a lock file of sightline; remove it if no run is active here") from None


def find_holder(run: Path) -> str | None:
    """Return the host of the process that locks a run's folder; None without a lock, or if the process has ended.

    Processes of other hosts count as active. Raises UserError for a lock file that is not sightline's.
    """
    try:
        data = read_regular_file(run / LOCK, max_bytes=_MAX_LOCK_BYTES)
    except OSError:
        return None
    if not data:
        return None
    pid, host, started = _parse_holder(run / LOCK, data)
    return host if host != socket.gethostname() or _is_alive(pid, started) else None


def describe_holder(pid: int) -> dict[str, object]:
    """Describe a process as the lock file states it: pid, host and start."""
    return {"pid": pid, "host": socket.gethostname(), "started": process_start_time(pid)}


def _is_alive(pid: int, started: object) -> bool:
    """Return True if this very process runs; a later one with the same pid does not count, if the system shows it."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    now = process_start_time(pid)
    return now != "" and (started is None or now in (None, started))
