"""Run directory: created once, locked while in use, with atomic writes."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sightline.contract.errors import DataError, RunError, UserError
from sightline.runs.folder_lock import LOCK, LockedFolder, acquire_lock, describe_process
from sightline.runs.run_documents import parse_lines, read_raw_lines
from sightline.store.files.atomic_write import (
    REPEAT,
    assert_appendable,
    can_link,
    disk_failure,
    make_below,
    replace_atomic,
)

logger = logging.getLogger(__name__)

_WITHOUT_LINKS = "no-links: %s: its file system has no links: checkpoints/last and best are small files with a name"


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
        self._held: LockedFolder | None = None

    @contextlib.contextmanager
    def lock(self, *, is_patient: bool = True, is_cancelled: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Lock the folder while a run is active.

        The lock of a dead process is taken over, and one of another host that it no longer renews: that is awaited if
        `is_patient`, until the wait `is_cancelled`. Raises UserError, naming process and host, if another run holds the
        lock.
        """
        if not self.is_writer:
            yield
            return
        with self._writing(LOCK):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = describe_process(os.getpid())
            self._held = acquire_lock(self.path, lock, is_patient=is_patient, is_cancelled=is_cancelled)
            if not can_link(self.path):
                logger.warning(_WITHOUT_LINKS, self.path)
        try:
            yield
        finally:
            locked_folder, self._held = self._held, None
            locked_folder.release()

    def assert_lock_held(self) -> None:
        """Raise LostFolderError if the folder, or the lock in it, is not the one that `lock` took."""
        if self._held is not None:
            self._held.assert_own()

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
            lines = read_raw_lines(path)
            steps = [(line, _get_step(path, entry), entry.get("split")) for line, entry in parse_lines(path, lines)]
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


def remove_dead_lock(run: Path) -> None:
    """Remove the lock that a killed process left; one that may be in use stays, as one in a read-only folder."""
    if (run / LOCK).exists():
        with contextlib.suppress(UserError, RunError), RunDirectory(run, is_writer=True).lock(is_patient=False):
            pass
