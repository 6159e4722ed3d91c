"""Files that are whole or absent after any crash, and the message to the user when the disk refuses."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from sightline.data.files.atomic_write import open_atomic, sync_folder
from sightline.errors import DataError, RunError
from sightline.regular_files import check_regular_file

__all__ = ["assert_appendable", "create_atomic", "disk_failure", "make_below", "replace_atomic", "sync_folder"]

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_CLOSED = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


def make_below(root: Path, folder: Path) -> None:
    """Make a folder and those between it and `root`, which has to be there: one that was moved is not made anew."""
    for each in reversed((folder, *folder.parents)):
        if root in each.parents:
            each.mkdir(exist_ok=True)


def create_atomic(path: Path, data: bytes) -> None:
    """Write a new file and wait until the disk holds it. Raises FileExistsError if there is one already."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_atomic(path: Path, data: bytes) -> None:
    """Give `path` this content at one instant: a reader, or a crash, sees the old file or the new one, never a part."""
    with open_atomic(path) as file:
        file.write(data)


def assert_appendable(path: Path) -> int:
    """The size of a plain file, 0 where there is none. Raises DataError for anything else, which may block a writer."""
    try:
        return check_regular_file(path)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}; remove it") from error


def disk_failure(error: OSError, path: Path, *, still_intact: str = "") -> RunError:
    """One line for a write that failed: where, why, what to do; `still_intact` names what is still intact."""
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        advice = "free some space there and resume"
    elif error.errno == errno.EFBIG:
        advice = "raise the limit on the size of a file (ulimit -f) and resume"
    elif error.errno in _CLOSED:
        advice = "make it writable, or choose another folder with --out"
    else:
        advice = "mend the cause and resume"
    return RunError(
        f"{path}: cannot write: {reason[:1].lower()}{reason[1:]}; "
        f"{advice}{f' ({still_intact})' if still_intact else ''}"
    )
