"""Studies of Optuna: in memory, or in a file or a database that several machines may share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from sightline.contract.errors import UserError, summarise_error
from sightline.store.files.atomic_write import REPEAT, disk_failure, is_of_disk


def open_study(
    storage: str | None, *, name: str, directions: Sequence[Literal["minimize", "maximize"]], needed_by: str
) -> Any:
    """Open a study of Optuna, or create it: in memory, or in a database URL or a file that several machines may share.

    Raises UserError, beginning with `needed_by`, for a storage that cannot be used.
    """
    import optuna
    from optuna.storages.journal import JournalStorage

    from sightline.workbench.study.journal import Journal, find_damage  # needs optuna

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
            if fault := find_damage(path):  # Optuna would append to it before it read it
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
    import optuna
    from sqlalchemy.exc import SQLAlchemyError  # which optuna brings along

    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, ImportError, SQLAlchemyError, optuna.exceptions.OptunaError) as error:
        if is_of_disk(error):
            raise disk_failure(error, Path(str(storage)), again=REPEAT, option="--storage") from None
        driver = ", or install the driver of this database" if "://" in str(storage) else ""
        advice = f"give another file or URL{driver}"
        raise UserError(f"{needed_by}: {storage}: {summarise_error(error, max_length=200)}; {advice}") from None
