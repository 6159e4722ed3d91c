"""Files that are whole or absent after any crash, and the message to the user when the disk refuses."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from sightline.data.files.whole_files import sync_folder, whole_file
from sightline.errors import DataError, RunError
from sightline.plain_files import assert_plain

__all__ = ["assert_appendable", "disk_failure", "make_below", "replace_durably", "sync_folder", "write_durably"]

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_CLOSED = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


def make_below(root: Path, folder: Path) -> None:
    """Make a folder and those between it and `root`, which has to be there: one that was moved is not made anew."""
    for each in reversed((folder, *folder.parents)):
        if root in each.parents:
            each.mkdir(exist_ok=True)


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file and wait until the disk holds it. Raises FileExistsError if there is one already."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_durably(path: Path, data: bytes) -> None:
    """Give `path` this content at one instant: a reader, or a crash, sees the old file or the new one, never a part."""
    with whole_file(path) as file:
        file.write(data)


def assert_appendable(path: Path) -> int:
    """The size of a plain file, 0 where there is none. Raises DataError for anything else, which may block a writer."""
    try:
        return assert_plain(path)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}; remove it") from error


def disk_failure(error: OSError, path: Path, *, kept: str = "") -> RunError:
    """One line for a write that failed: where, why, what to do; `kept` names what is still intact."""
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        advice = "free some space there and resume"
    elif error.errno == errno.EFBIG:
        advice = "raise the limit on the size of a file (ulimit -f) and resume"
    elif error.errno in _CLOSED:
        advice = "make it writable, or choose another folder with --out"
    else:
        advice = "mend the cause and resume"
    return RunError(f"{path}: cannot write: {reason[:1].lower()}{reason[1:]}; {advice}{f' ({kept})' if kept else ''}")
