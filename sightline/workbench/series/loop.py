"""The loop of a series: what is proposed is trained in its own folder, and what fails ends itself alone."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from sightline.contract.errors import DiskError, RunError, UserError, summarise_error
from sightline.store.files.atomic_write import is_of_disk
from sightline.training.train_run import Reporter
from sightline.workbench.check.dry_run import error_location

SIGNALS = 128
"""Exit codes above this belong to trainings that a signal stopped."""
_MAX_REASON = 2000
"""Characters of the reason of a failure: a finding of the checks is printed in full."""

Key = TypeVar("Key")
Document = TypeVar("Document")


class Entry(NamedTuple, Generic[Key]):
    """Entry of a series, known by its `key` to whoever proposes it: `work` trains in `path`, or reads what is there."""

    key: Key
    title: str
    path: Path
    work: Callable[[], Any]


@dataclass
class Results(Generic[Key]):
    """Results of the entries so far: what the work of the finished ones returned, and why the others failed."""

    finished: dict[Key, Any] = field(default_factory=dict)
    failed: dict[Key, Exception] = field(default_factory=dict)


class StoppedError(Exception):
    """Raised when a training was stopped and its state saved; `code` is the exit code of the signal."""

    def __init__(self, code: int) -> None:
        super().__init__(f"stopped by signal {code - SIGNALS}")
        self.code = code


def run_series(
    entries: Iterable[Entry[Key]], write: Callable[[Results[Key]], Document], reporter: Reporter
) -> tuple[Document, int]:
    """Work through the entries as they are proposed, and write the results after each; return the last document.

    The code is 0, or 1 if an entry failed. A signal ends the series with its exit code, and a full disk with its error;
    the same command then goes on. `--traceback` prints the traceback of what fails.
    """
    results: Results[Key] = Results()
    for entry in entries:
        reporter.note(entry.title)
        try:
            results.finished[entry.key] = entry.work()
        except Exception as error:  # one of a model or a plugin, too, ends its own training alone
            if is_left(error):
                reporter.note(f"{len(results.finished)} are finished; the same command goes on with {entry.path}")
                if isinstance(error, StoppedError):
                    return write(results), error.code
                raise
            if "--traceback" in sys.argv:
                traceback.print_exception(error)
            results.failed[entry.key] = error
        write(results)
        if entry.key in results.failed:
            reporter.note(f"error: {entry.path}: {describe_failure(results.failed[entry.key])}; the others go on")
    if results.failed:
        reporter.note(f"{len(results.failed)} of {len(results.failed) + len(results.finished)} failed")
    return write(results), 1 if results.failed else 0


def is_left(error: Exception) -> bool:
    """Return True if an entry did not fail by an error, but is left: after a signal, or where no other finds room."""
    return isinstance(error, StoppedError | DiskError) or is_of_disk(error)


def describe_failure(error: Exception) -> str:
    """Describe in one line why a training failed, a bug with its file and line."""
    file, line = (None, None) if isinstance(error, UserError | RunError) else error_location(error)
    return summarise_error(error, max_length=_MAX_REASON) + ("" if file is None else f" ({file}:{line})")
