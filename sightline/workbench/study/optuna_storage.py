"""Studies of Optuna: in memory, or in a file or a database that several machines may share."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from sightline.contract.errors import UserError, summarise_error
from sightline.contract.regular_files import parse_json

_NUM_LOOKS, _PAUSE_S = 10, 0.1
"""Looks at a journal whose last line is cut, and the time between them."""


def open_study(
    storage: str | None, *, name: str, directions: Sequence[Literal["minimize", "maximize"]], needed_by: str
) -> Any:
    """Open a study of Optuna, or create it: in memory, or in a database URL or a file that several machines may share.

    Raises UserError, beginning with `needed_by`, for a storage that cannot be used.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    is_file = storage is not None and "://" not in storage
    if storage == "" or (is_file and Path(str(storage)).is_dir()):
        raise UserError(
            f"{needed_by}: '{storage}' is not a file; give a file, as sweep.journal, or the URL of a database"
        )
    if is_file and not _is_journal(Path(str(storage))):
        raise UserError(
            f"{needed_by}: {storage}: is not a journal of Optuna, which would write into it; give another file or URL"
        )
    if is_file and (fault := _find_damage(Path(str(storage)))):  # Optuna would append to it before it read it
        raise UserError(f"{needed_by}: {storage}: {fault}give another file or URL")
    with explain_storage(storage, needed_by=needed_by):
        opened: Any = storage
        if storage is not None and is_file:
            Path(storage).parent.mkdir(parents=True, exist_ok=True)
            try:
                opened = JournalStorage(JournalFileBackend(storage))  # reads every line
            except (AssertionError, LookupError, TypeError) as error:
                raise ValueError(f"a line is not one of Optuna ({summarise_error(error)})") from None
        return optuna.create_study(storage=opened, study_name=name, directions=directions, load_if_exists=True)


def _is_journal(path: Path) -> bool:
    """Return True for a missing or empty file, and for one that begins as a journal of Optuna does."""
    try:
        with open(path, "rb") as file:
            start = file.read(12)
    except (FileNotFoundError, NotADirectoryError):
        return True
    return not start or start.startswith(b'{"op_code"')


def _find_damage(path: Path) -> str:
    """Describe the first line of a journal that is not whole, also after the time in which another worker writes it.

    Empty for a sound journal, and without one.
    """
    for _ in range(_NUM_LOOKS):
        try:
            lines = path.read_bytes().splitlines(keepends=True)
        except (FileNotFoundError, NotADirectoryError):
            return ""
        number = next((number for number, line in enumerate(lines, start=1) if not _is_record(line)), 0)
        if number == 0:
            return ""
        if number < len(lines):
            return f"line {number} is damaged; "
        time.sleep(_PAUSE_S)
    return "its last line is cut, as by a full disk; delete that line, then go on, or "


def _is_record(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and isinstance(parse_json(line), dict)
    except ValueError:
        return False


@contextlib.contextmanager
def explain_storage(storage: str | None, *, needed_by: str) -> Iterator[None]:
    """Convert errors of a storage of Optuna to UserError, in one line."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError  # which optuna brings along

    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, ImportError, SQLAlchemyError, optuna.exceptions.OptunaError) as error:
        driver = ", or install the driver of this database" if "://" in str(storage) else ""
        advice = f"give another file or URL{driver}"
        raise UserError(f"{needed_by}: {storage}: {summarise_error(error, max_length=200)}; {advice}") from None
