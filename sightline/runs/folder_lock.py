"""Lock of a run's folder: one owner at a time, also over hosts, who renews it while it lives and writes only as owner.

A process of the same host holds its lock until it ends. One of another host is known by its renewals: a lock that it
has not renewed for `SILENT_S`, by the clock of the file system, is taken over. Whoever lost its lock in this way finds
that out at its next write, since it reads the lock before each.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sightline.contract.errors import LostFolderError, UserError
from sightline.contract.regular_files import parse_json, read_regular_file
from sightline.runs.process_identity import ProcessIdentity, process_start_time
from sightline.store.files.atomic_write import LINK_PROBE, MISSING_ERRORS, assert_appendable, lock_descriptor

logger = logging.getLogger(__name__)

LOCK = ".lock"
CLOCK = ".lock.clock"
"""File that is touched to read the clock of the file system, and removed."""
LOCK_FILES = frozenset({LOCK, CLOCK, LINK_PROBE})
"""What a process that was killed while it took the lock may leave."""
BEAT_S = 5.0
"""Time between two renewals of a lock."""
SILENT_S = 60.0
"""Time without a renewal after which the lock of a process of another host is taken over."""
_SETTLE_S = 1.0
"""Time after which a lock that was written where the kernel has none is read again."""
_POLL_S = 0.2
_MAX_LOCK_BYTES = 1 << 16


def describe_process(pid: int) -> bytes:
    """Describe a process as the lock file states it, with a token by which two locks of one process differ."""
    this = ProcessIdentity.current(socket.gethostname())
    stated = {"pid": pid, "host": this.host, "started": process_start_time(pid), "table": this.table}
    return json.dumps(stated | {"token": secrets.token_hex(8)}).encode()


@dataclass(frozen=True)
class _Holder:
    """Process of a lock file: it has ended, it runs, or neither is known, as it is on another host."""

    process: ProcessIdentity

    @classmethod
    def parse(cls, path: Path, data: bytes) -> _Holder:
        """Parse the content of a lock file. Raises UserError for another file."""
        try:
            stated = parse_json(data)
            pid, started = int(stated["pid"]), stated.get("started")
            return cls(ProcessIdentity(str(stated["host"]), stated.get("table"), pid, started))
        except (ValueError, OverflowError, TypeError, KeyError, AttributeError):
            raise UserError(f"{path}: is not a lock file of sightline; remove it if no run is active here") from None

    def __str__(self) -> str:
        return f"process {self.process.pid} on {self.process.host}"

    @property
    def is_gone(self) -> bool:
        """True if the process is known to have ended."""
        if self.process.table is None and self._is_here:
            return not _is_alive(self.process.pid, self.process.start)
        return self.process.is_gone

    @property
    def is_alive(self) -> bool:
        """True if the process is known to run, here."""
        return self._is_here and not self.is_gone and (self.process.table is None or self.process.is_reachable)

    @property
    def _is_here(self) -> bool:
        return self.process.host == socket.gethostname()


class LockedFolder:
    """Locked folder, held open, so that its inode is not reused for another folder; a thread renews the lock."""

    def __init__(self, path: Path, lock: bytes) -> None:
        self._path, self._lock = path, lock
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self._released = threading.Event()
        threading.Thread(target=self._renew, name="renews the lock of a run", daemon=True).start()

    def _renew(self) -> None:
        """Touch the lock file every few seconds, also while the run saves or compiles, until it is another's."""
        while not self._released.wait(BEAT_S):
            with contextlib.suppress(OSError):  # a folder on a network may be away for a moment
                if read_regular_file(self._path / LOCK, max_bytes=_MAX_LOCK_BYTES) != self._lock:
                    return
                os.utime(self._path / LOCK)

    def assert_own(self) -> None:
        """Raise LostFolderError if the folder is missing or another one, or the lock in it is another's."""
        path = self._path
        try:
            is_same = os.path.samestat(os.fstat(self._descriptor), os.stat(path))
        except OSError as error:
            if error.errno not in MISSING_ERRORS:
                raise
            raise LostFolderError(f"{path}: was moved or deleted while the run wrote to it; the run ends") from None
        if not is_same:
            raise LostFolderError(
                f"{path}: is no longer the folder of this run, which was moved or deleted; the run ends and leaves the "
                "new folder as it is"
            )
        try:
            lock = read_regular_file(path / LOCK, max_bytes=_MAX_LOCK_BYTES)
        except FileNotFoundError:
            raise LostFolderError(
                f"{path / LOCK}: was removed while the run wrote to the folder; the run ends; go on with --resume auto"
            ) from None
        if lock != self._lock:
            owner = _name_holder(path / LOCK, lock)
            raise LostFolderError(f"{path / LOCK}: was taken by {owner}; this run ends and leaves the folder to it")

    def release(self) -> None:
        """Remove the lock, unless it is another run's by now."""
        self._released.set()
        with contextlib.suppress(OSError, LostFolderError):
            self.assert_own()
            (self._path / LOCK).unlink()
        os.close(self._descriptor)


def _name_holder(path: Path, lock: bytes) -> str:
    with contextlib.suppress(UserError):
        return str(_Holder.parse(path, lock))
    return "another run"


class _Silence:
    """Renewals of another host's lock since it was first looked at; `age_s` is how long ago the last one was then."""

    def __init__(self, folder: Path, file: IO[bytes]) -> None:
        self._stamp = _read_stamp(file)
        self.age_s = max(0.0, read_clock(folder) - os.fstat(file.fileno()).st_mtime)
        self._end = time.monotonic() + SILENT_S - self.age_s

    def is_broken(self, file: IO[bytes]) -> bool:
        """Return True if the lock was renewed, or written, since then."""
        return _read_stamp(file) != self._stamp

    @property
    def is_over(self) -> bool:
        """True if the lock may be taken over, unless the silence was broken."""
        return time.monotonic() >= self._end


def _read_stamp(file: IO[bytes]) -> tuple[int, bytes]:
    file.seek(0)
    return os.fstat(file.fileno()).st_mtime_ns, file.read(_MAX_LOCK_BYTES)


def acquire_lock(
    folder: Path, lock: bytes, *, is_patient: bool = True, is_cancelled: Callable[[], bool] = lambda: False
) -> LockedFolder:
    """Write `lock` into the lock file of a folder, which is made if it is missing, unless its owner lives.

    Of an owner on another host it is awaited, if `is_patient`, whether it renews its lock within `SILENT_S` of the last
    time. The kernel's lock on the file is held only for moments: it settles races, and no orphan can keep it. Raises
    UserError, naming process and host, if the owner lives or may live, or if the wait `is_cancelled`.
    """
    silence: _Silence | None = None
    while True:
        with _open_locked(folder / LOCK) as (file, has_kernel_lock):
            _, data = _read_stamp(file)
            holder = _Holder.parse(folder / LOCK, data) if data else None  # without: its writer died before it wrote
            if holder is None or holder.is_gone:
                _write(folder / LOCK, file, lock)
                break
            if holder.is_alive:
                raise UserError(f"{folder}: in use by {holder}; wait for it, or choose another --out")
            is_new, silence = silence is None, silence or _Silence(folder, file)
            is_broken = silence.is_broken(file)
            if silence.is_over and not is_broken:
                logger.warning("%s: takes the lock of %s, not renewed for %.0f s", folder, holder, SILENT_S)
                _write(folder / LOCK, file, lock)
                break
        if is_broken or not is_patient:
            renewed = "renews its lock" if is_broken else f"renewed its lock {silence.age_s:.0f} s ago"
            raise UserError(f"{folder}: in use by {holder}, which {renewed}; wait for it, or choose another --out")
        if is_cancelled():
            raise UserError(f"{folder}: still in use by {holder}, or not yet silent for {SILENT_S:.0f} s")
        if is_new:
            words = "%s: in use by %s, which renewed its lock %.0f s ago; takes it after %.0f s of silence"
            logger.warning(words, folder, holder, silence.age_s, SILENT_S)
        time.sleep(_POLL_S)
    if not has_kernel_lock:
        time.sleep(_SETTLE_S)
    locked = LockedFolder(folder, lock)
    try:
        locked.assert_own()
    except LostFolderError as error:
        locked.release()
        raise UserError(f"{error}; wait for it, or choose another --out") from None
    return locked


@contextlib.contextmanager
def _open_locked(path: Path) -> Iterator[tuple[IO[bytes], bool]]:
    """Open a lock file, made if it is missing, under the kernel's lock; also yield whether there is such a lock."""
    while True:
        assert_appendable(path)
        with open(path, "a+b") as file:
            has_lock = lock_descriptor(file.fileno(), path)
            if _is_same_file(path, file.fileno()):  # else removed by the run that held it, before it was locked
                yield file, has_lock
                return


def _is_same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _write(path: Path, file: IO[bytes], lock: bytes) -> None:
    try:
        file.truncate(0)
        file.write(lock)
        file.flush()
        os.fsync(file.fileno())
    except OSError:
        path.unlink()  # an empty lock says nothing
        raise


def read_clock(folder: Path) -> float:
    """Read the clock of a folder's file system, which dates its files; those of two hosts may be hours apart."""
    path = folder / CLOCK
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        os.utime(descriptor)
        return os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)
        path.unlink(missing_ok=True)


def find_holder(run: Path) -> str | None:
    """Return the host of the process that locks a run's folder; None without a lock, or if the process has ended.

    A process of another host counts as active for `SILENT_S` after it renewed its lock, in a folder that cannot be
    written always. Raises UserError for a lock file that is not sightline's.
    """
    try:
        data = read_regular_file(run / LOCK, max_bytes=_MAX_LOCK_BYTES)
        if not data:
            return None
        holder = _Holder.parse(run / LOCK, data)
        if not holder.is_gone and not holder.is_alive:
            with contextlib.suppress(OSError):
                return holder.process.host if read_clock(run) - os.stat(run / LOCK).st_mtime < SILENT_S else None
    except OSError:
        return None
    return None if holder.is_gone else holder.process.host


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
