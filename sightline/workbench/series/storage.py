"""Storage of Optuna's trials: in memory, or in a database or a journal that several machines may share."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage
from sqlalchemy.exc import SQLAlchemyError  # which optuna brings along

from sightline.contract.errors import UserError, summarise_error
from sightline.contract.regular_files import parse_json
from sightline.store.files.atomic_write import REPEAT, disk_failure, is_of_disk

STORAGE_ERRORS = (OSError, ValueError, ImportError, SQLAlchemyError, optuna.exceptions.OptunaError)
_START = b'{"op_code"'


def open_study(
    storage: str | None, *, name: str, directions: Sequence[Literal["minimize", "maximize"]], needed_by: str
) -> Any:
    """Open a study of Optuna, or create it: in memory, or in a database URL or a file that several machines may share.

    Raises UserError, beginning with `needed_by`, for a storage that cannot be used.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    is_file = storage is not None and "://" not in storage
    if storage == "" or (is_file and Path(str(storage)).is_dir()):
        raise UserError(
            f"{needed_by}: '{storage}' is not a file; give a file, as sweep.journal, or the URL of a database"
        )
    with explain_storage(storage, needed_by=needed_by):
        opened: Any = storage
        if storage is not None and is_file:
            path = Path(storage)
            if fault := _find_damage(path):  # Optuna would append to it before it read it
                raise UserError(f"{needed_by}: {storage}: {fault}give another file or URL")
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                opened = JournalStorage(Journal(path))  # reads every line
            except (AssertionError, LookupError, TypeError) as error:
                raise ValueError(f"a line is not one of Optuna ({summarise_error(error)})") from None
        return optuna.create_study(storage=opened, study_name=name, directions=directions, load_if_exists=True)


@contextlib.contextmanager
def explain_storage(storage: str | None, *, needed_by: str) -> Iterator[None]:
    """Convert errors of a storage of Optuna to UserError in one line, and those of a full disk to DiskError."""
    try:
        yield
    except UserError:
        raise
    except STORAGE_ERRORS as error:
        if is_of_disk(error):
            raise disk_failure(error, Path(str(storage)), again=REPEAT, option="--storage") from None
        driver = ", or install the driver of this database" if "://" in str(storage) else ""
        advice = f"give another file or URL{driver}"
        raise UserError(f"{needed_by}: {storage}: {summarise_error(error, max_length=200)}; {advice}") from None


class Journal(JournalFileBackend):
    """A journal in a file whose lines are whole: what a dead writer left of one is cut off before the next is written.

    A write that the disk refuses leaves the file as it was, and raises its OSError. A lock of a dead writer is broken
    after 30 s; Optuna's own lock, a relative link, would be waited for without end.
    """

    def __init__(self, path: Path) -> None:
        self._path, self.lock = path, JournalFileOpenLock(str(path))
        super().__init__(str(path), self.lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        data = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        self.lock.acquire()
        try:
            with open(self._path, "r+b", buffering=0) as file:
                start = _cut_unfinished(file)
                try:
                    while data:
                        data = data[file.write(data) :]
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(start)
                    raise
        finally:
            self.lock.release()


def _cut_unfinished(file: Any) -> int:
    """Cut off a last line without an end, and go to the end of the file; return where that is."""
    end: int = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - 1))
    if file.read(1) not in (b"", b"\n"):
        file.seek(0)
        end = file.read().rfind(b"\n") + 1
        file.truncate(end)
    return int(file.seek(end))


def _find_damage(path: Path) -> str:
    """Describe why a file is no journal, or its first damaged line; empty for a sound, an empty and a missing one.

    A last line that is cut is no damage: another worker writes it, or its writer has died.
    """
    content = path.read_bytes() if path.is_file() else b""
    if content[: len(_START)] != _START[: len(content)]:
        return "is not a journal of Optuna, which would write into it; "
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        with contextlib.suppress(ValueError):
            if isinstance(parse_json(line), dict):
                continue
        return f"line {number} is damaged; "
    return ""
