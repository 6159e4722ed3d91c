"""Run directory: created once, locked while in use, with atomic writes; and the record of its environment.

Readers of a run's JSON files.

Output files that a user requests, checked before any work is done for them and written atomically.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import functools
import importlib.metadata
import json
import math
import os
import platform
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.contract.errors import DataError, LostFolderError, RunError, UserError
from sightline.contract.regular_files import check_regular_file, find_outward_link, parse_json, read_regular_file
from sightline.runs.process_identity import process_start_time
from sightline.store.files.atomic_write import REPEAT, assert_appendable, disk_failure, make_below, replace_atomic

LOCK = ".lock"
_MAX_LINE_BYTES = 1 << 24
_MAX_LOCK_BYTES = 1 << 16
_GET_AGAIN = "get it again, or repeat the command that wrote it"
_MISSING_ERRORS = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE})
_PACKAGES = (
    "sightline",
    "torch",
    "numpy",
    "scipy",
    "numba",
    "pydantic",
    "PyYAML",
    "h5py",
    "pillow",
    "safetensors",
    "scikit-learn",
)


def create_numbered_folder(base: Path) -> Path:
    """Create the folder `base/<number>` with the next free number; no other process can get the same one.

    Raises RunError if the disk refuses it.
    """
    try:
        base.mkdir(parents=True, exist_ok=True)
        number = max((int(path.name) for path in base.iterdir() if path.name.isdecimal()), default=0)
        while True:
            number += 1
            with contextlib.suppress(FileExistsError):
                (base / str(number)).mkdir()
                return base / str(number)
    except OSError as error:
        raise disk_failure(error, base) from error


class RunDirectory:
    """Files of a run; with `is_writer` False, nothing that writes touches the disk.

    Every write is whole or absent, and a disk that refuses one raises RunError in one line. Numbers that are not finite
    become null. Names are relative to the folder; `predictions/a.json` makes the folder in between. While it is locked,
    nothing is written to a folder that is no longer the locked one.
    """

    def __init__(self, path: Path, *, is_writer: bool) -> None:
        self.path = path
        self.is_writer = is_writer
        self._held: _LockedFolder | None = None

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder while a run is active.

        Raises UserError, naming process and host, if another run holds the lock. The lock of a dead process of this
        host is taken over.
        """
        if not self.is_writer:
            yield
            return
        holder = json.dumps(_describe_holder(os.getpid())).encode()
        with self._writing(LOCK):
            self.path.mkdir(parents=True, exist_ok=True)
            self._held = _acquire_lock(self.path / LOCK, holder)
        try:
            yield
        finally:
            locked_folder, self._held = self._held, None
            locked_folder.release(self.path)

    def assert_lock_held(self) -> None:
        """Raise LostFolderError if the folder, or the lock in it, is not the one that `lock` took."""
        if self._held is not None:
            self._held.assert_own(self.path)

    def write_text(self, name: str, text: str) -> None:
        r"""Write or replace a text file, as UTF-8; bytes of file names that are not become `\udcff`, as in JSON."""
        self.write_bytes(name, _encode(text))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write or replace a file."""
        if not self.is_writer:
            return
        with self._writing(name) as path:
            self._make_parents(path)
            replace_atomic(path, data)

    def write_json(self, name: str, value: object) -> None:
        """Write or replace a JSON file."""
        self.write_text(
            name, json.dumps(_replace_non_finite(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        )

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        if self.is_writer:
            with self._writing(name) as path:
                path.unlink(missing_ok=True)

    def append_line(self, name: str, mapping: Mapping[str, Any]) -> None:
        """Append one JSON object as a line; if that fails, the file is as long as before."""
        if not self.is_writer:
            return
        line = json.dumps(_replace_non_finite(mapping), allow_nan=False, ensure_ascii=False) + "\n"
        with self._writing(name) as path:
            self._make_parents(path)
            size = assert_appendable(path)
            try:
                with open(path, "ab") as file:
                    file.write(_encode(line))
            except OSError:
                with contextlib.suppress(OSError):
                    os.truncate(path, size)
                raise

    def truncate_lines(self, name: str, *, after_step: int, last_split: str | None = None) -> int:
        """Remove lines of later steps and a torn last one, atomically; return their number. Others keep their bytes.

        With `last_split`, only lines of this split are kept of the step `after_step` itself.
        Raises DataError for any other line that is not an object with a whole number `step`.
        """
        path = self._resolve(name)
        if not self.is_writer or not path.exists():
            return 0
        with self._writing(name):
            assert_appendable(path)
            lines = _read_raw_lines(path)
            steps = [(line, _get_step(path, entry), entry.get("split")) for line, entry in _parse_lines(path, lines)]
            remaining = [
                line
                for line, step, split in steps
                if step < after_step or (step == after_step and last_split in (None, split))
            ]
            num_dropped = len(lines) - len(remaining)
            if num_dropped:
                replace_atomic(path, b"".join(remaining))
        return num_dropped

    def _make_parents(self, path: Path) -> None:
        """Create the parent folders of a file; not the run's folder while it is locked, as it may have been moved."""
        if self._held is None:
            self.path.mkdir(parents=True, exist_ok=True)
        make_below(self.path, path.parent)

    def _resolve(self, name: str) -> Path:
        assert Path(name).root == "", f"'{name}' is not relative to the run directory"
        assert ".." not in Path(name).parts, f"'{name}' leaves the run directory"
        return self.path / name

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[Path]:
        path = self._resolve(name)
        try:
            self.assert_lock_held()
            yield path
        except OSError as error:
            with contextlib.suppress(OSError):
                self.assert_lock_held()
            is_trained = self._held is not None or name == LOCK
            raise disk_failure(error, path, again="resume" if is_trained else REPEAT) from error


def _encode(text: str) -> bytes:
    return text.encode(errors="backslashreplace")


def collect_environment() -> dict[str, Any]:
    """Collect the environment of a run (versions, machine, git commit), in plain values."""
    import torch  # readers of run directories do without

    packages = {package: read_version(package) for package in _PACKAGES}
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command_line": list(sys.argv),
        "directory": os.getcwd(),
        "versions": {"python": platform.python_version(), **packages, "cuda": torch.version.cuda},
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpu": read_processor(),
        "num_cores": os.cpu_count(),
        "num_usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "gpus": _list_gpus(),
        "git": _read_git_state(Path(__file__).resolve().parents[2]),
    }


# --- lines -----------------------------------------------------------------------------------------------------------


def _read_raw_lines(path: Path) -> list[bytes]:
    """Read lines with their line ends; a torn last one has none. Raises DataError for one longer than a run writes."""
    lines: list[bytes] = []
    with open(path, "rb") as file:
        while line := file.readline(_MAX_LINE_BYTES):
            lines.append(line)
            if len(line) == _MAX_LINE_BYTES:
                raise DataError(f"{path}:{len(lines)}: has {_MAX_LINE_BYTES} bytes or more; remove the line")
    return lines


def _parse_lines(path: Path, lines: Sequence[bytes]) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield the lines with their entries. A torn last one, which has no line end, is left out."""
    whole = lines[:-1] if lines and not lines[-1].endswith(b"\n") else lines
    for number, line in enumerate(whole, start=1):
        try:
            entry = parse_json(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: is not JSON: {error}; remove the line") from error
        if not isinstance(entry, dict):
            raise DataError(f"{path}:{number}: is not a JSON object; remove the line")
        yield line, entry


def _get_step(path: Path, entry: Mapping[str, Any]) -> int:
    step = entry.get("step")
    if type(step) is not int:
        raise DataError(f"{path}: a line has the step {step!r}, not a whole number; remove the line")
    return step


def _replace_non_finite(value: object) -> object:
    """Replace numbers that are not finite by None, recursively."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _replace_non_finite(item) for key, item in value.items()}
    return [_replace_non_finite(item) for item in value] if isinstance(value, list | tuple) else value


# --- lock ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _LockedFolder:
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


def _acquire_lock(path: Path, mine: bytes) -> _LockedFolder:
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
            return _LockedFolder(os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY), mine)


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


def remove_dead_lock(run: Path) -> None:
    """Remove the lock that a killed process of this host left; another lock stays, as one in a read-only folder."""
    if (run / LOCK).exists():
        with contextlib.suppress(UserError, RunError), RunDirectory(run, is_writer=True).lock():
            pass


def _describe_holder(pid: int) -> dict[str, object]:
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


# --- machine ---------------------------------------------------------------------------------------------------------


@functools.cache
def read_version(package: str) -> str | None:
    """Read the version of an installed package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def read_processor() -> str:
    """Read the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _list_gpus() -> list[dict[str, Any]]:
    import torch

    if not torch.cuda.is_available():
        return []
    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in properties]


def _read_git_state(root: Path) -> dict[str, Any] | None:
    """Return the commit of the project's repository and whether tracked files differ; None if `root` is not one."""
    top = _run_git(root, "rev-parse", "--show-toplevel")
    commit = _run_git(root, "rev-parse", "HEAD")
    if top is None or commit is None or Path(top).resolve() != root:
        return None
    return {"commit": commit, "is_dirty": bool(_run_git(root, "status", "--porcelain", "--untracked-files=no"))}


def _run_git(root: Path, *arguments: str) -> str | None:
    """Run git and return its output, None if it fails; it takes no locks, so it never disturbs the user's git."""
    try:
        result = subprocess.run(
            ["git", "-C", str(root), *arguments],
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


_MAX_COUNT = 2**20
"""Maximal number of channels, classes or joints that models are built for."""


def assert_own_files(run: Path) -> None:
    """Raise UserError if a link inside a run's folder leads out of it; the folder itself may be a link."""
    checkpoints = run / "checkpoints"
    for folder in (run, run / "predictions", checkpoints, *sorted(checkpoints.glob("step_*"))):
        names = sorted(os.listdir(folder)) if folder.is_dir() else ()
        if (path := find_outward_link(folder, names)) is not None:
            raise UserError(
                f"{path}: is a link to {os.readlink(path)}, out of the run directory; put the file itself there"
            )


def read_facts(run: Path) -> dict[str, Any]:
    """Read the facts of a run's data set, with tuples for JSON lists.

    Raises UserError for counts and lists of names that are none.
    """
    facts = {name: _lists_to_tuples(value) for name, value in load_document(run / "facts.json").items()}
    for name, value in facts.items():
        expected = ""
        if name.startswith(("num_", "in_")) and not (type(value) is int and 0 <= value <= _MAX_COUNT):
            expected = "a count"
        if name.endswith("_names") and not (isinstance(value, tuple) and all(isinstance(text, str) for text in value)):
            expected = "a list of names"
        if expected:
            raise UserError(f"{run / 'facts.json'}: {name} is {value!r:.40}, {expected} is needed; get the run again")
    return facts


def load_document(path: Path) -> dict[str, Any]:
    """Read a JSON file of a run. Raises UserError if it is missing or does not contain a mapping."""
    try:
        document = parse_json(read_regular_file(path))
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; the run directory is incomplete: {_GET_AGAIN}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {_format_reason(error)}; {_GET_AGAIN}") from None
    if not isinstance(document, dict):
        raise UserError(f"{path}: does not hold a mapping; {_GET_AGAIN}")
    return document


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's `metrics.jsonl`; a torn last one is left out.

    Raises UserError if the file is missing, DataError for any other line that is not a mapping.
    """
    try:
        check_regular_file(path)
        lines = _read_raw_lines(path)
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; training writes it; give a run directory") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {_format_reason(error)}") from None
    return [entry for _, entry in _parse_lines(path, lines)]


def _format_reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _lists_to_tuples(value: Any) -> Any:
    return tuple(_lists_to_tuples(item) for item in value) if isinstance(value, list) else value


def assert_writable(path: Path, *, option: str = "--json") -> None:
    """Raise UserError if `option FILE` could not be written; the attempt leaves no file."""
    try:
        if path.is_dir():
            raise UserError(f"{option} {path}: is a folder; give a file in it")
        if path.exists() and not path.is_file():
            raise UserError(f"{option} {path}: is not a regular file; give another")
        folder = next(above for above in path.absolute().parents if os.path.lexists(above))
        if not folder.is_dir():
            raise UserError(f"{option} {path}: {folder} is not a folder; give another place")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be written: {error.strerror or error}; give another place") from error


def write_document(path: Path | None, document: object) -> None:
    """Write a JSON file unless `path` is None; numbers that are not finite become null."""
    if path is not None:
        _make_folder(path).write_json(path.name, document)


def write_file(path: Path | None, content: str | bytes) -> None:
    """Write a file unless `path` is None; text as UTF-8."""
    if path is None:
        return
    if isinstance(content, str):
        _make_folder(path).write_text(path.name, content)
    else:
        _make_folder(path).write_bytes(path.name, content)


def _make_folder(path: Path) -> RunDirectory:
    path.parent.mkdir(parents=True, exist_ok=True)
    return RunDirectory(path.parent, is_writer=True)
