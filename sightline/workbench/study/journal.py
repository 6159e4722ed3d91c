"""A journal of Optuna that a killed writer or a full disk does not spoil."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from sightline.contract.regular_files import parse_json

_START = b'{"op_code"'


class Journal(JournalFileBackend):
    """A journal in a file whose lines are whole: what a dead writer left of one is cut off before the next is written.

    A write that the disk refuses leaves the file as it was, and raises its OSError. A lock of a dead writer is broken
    after 30 s; Optuna's own lock, a relative link, would be waited for without end.
    """

    def __init__(self, path: Path) -> None:
        self._path, self.lock = path, JournalFileOpenLock(str(path))
        super().__init__(str(path), self.lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        self.lock.acquire()
        try:
            with open(self._path, "r+b", buffering=0) as file:
                start = _cut_unfinished(file)
                try:
                    _write_all(file, lines.encode())
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(start)
                    raise
        finally:
            self.lock.release()


def _cut_unfinished(file: Any) -> int:
    """Cut off a last line without an end, and go to the end of the file; return where that is."""
    end: int = file.seek(0, os.SEEK_END)
    if end:
        file.seek(end - 1)
        if file.read(1) != b"\n":
            file.seek(0)
            end = _find_end(file.read())
            file.truncate(end)
    return int(file.seek(end))


def _find_end(content: bytes) -> int:
    """Return the length of the whole lines."""
    return content.rfind(b"\n") + 1


def _write_all(file: Any, data: bytes) -> None:
    while data:
        data = data[file.write(data) :]


def find_damage(path: Path) -> str:
    """Describe why a file is no journal, or its first damaged line; empty for a sound, an empty and a missing one.

    A last line that is cut is no damage: another worker writes it, or its writer has died.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    if content[: len(_START)] != _START[: len(content)]:
        return "is not a journal of Optuna, which would write into it; "
    lines = content[: _find_end(content)].splitlines(keepends=True)
    number = next((number for number, line in enumerate(lines, start=1) if not _is_record(line)), 0)
    return f"line {number} is damaged; " if number else ""


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(parse_json(line), dict)
    except ValueError:
        return False
