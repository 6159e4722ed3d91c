"""Atomic file writes (whole or absent after any crash), and error messages for disks that refuse them."""

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
    """Create a folder and its parents below `root`, which must exist: a root that was moved is not created again."""
    for path in reversed((folder, *folder.parents)):
        if root in path.parents:
            path.mkdir(exist_ok=True)


def create_atomic(path: Path, data: bytes) -> None:
    """Write a new file and sync it to disk. Raises FileExistsError if it exists."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_atomic(path: Path, data: bytes) -> None:
    """Replace the content of `path` atomically: a reader, or a crash, sees the old file or the new one."""
    with open_atomic(path) as file:
        file.write(data)


def assert_appendable(path: Path) -> int:
    """Return the size of a regular file, 0 if it does not exist. Raises DataError for anything else, like a pipe."""
    try:
        return check_regular_file(path)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}; remove it") from error


def disk_failure(error: OSError, path: Path, *, still_intact: str = "") -> RunError:
    """Build the error of a failed write: path, reason and remedy; `still_intact` names what was not damaged."""
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
