"""Files and folders that are written piece by piece and are whole or absent after any crash."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sightline.errors import RunError, UserError

__all__ = ["open_atomic", "sync_folder", "whole_folder"]

_MARK = ".unfinished"
"""A file that stands in a folder until the folder is whole: what has it may be begun anew."""


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """A file to write into that takes the name `path` at one instant, when all of it is on the disk, or never.

    A reader, or a crash, sees the old file or the new one. What is written stands in a temporary file of a fixed name
    beside it: a killed writer leaves at most one behind, and the next removes it. Raises OSError as the disk does.
    """
    temporary = path.with_name(f".{path.name}.partial")
    temporary.unlink(missing_ok=True)
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to write into that takes the name `target` at one instant, when all of it is written, or never.

    It is called `<target>.partial` meanwhile, and held by a lock of the kernel's, which ends with the process; what a
    killed process left there is removed. Raises UserError for a target or a partial folder that holds something else,
    and RunError where another process writes it, and where the disk fails.
    """
    target = target.resolve()
    work = target.with_name(f"{target.name}.partial")
    with contextlib.ExitStack() as stack:
        try:
            _claim(work, target, stack)
            yield work
            (work / _MARK).unlink()
            os.rename(work, target)
            sync_folder(target.parent)
        except OSError as error:
            where = next((name for name in (error.filename2, error.filename) if name is not None), work)
            raise RunError(
                f"{target}: cannot be written ({error.strerror or error}: {where}); mend that, or give another folder "
                "by --to: nothing is left of it"
            ) from error


def _claim(work: Path, target: Path, stack: contextlib.ExitStack) -> None:
    """Make the partial folder, empty and locked; leaving the stack removes what is still there of it."""
    work.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    stack.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunError(f"{target}: another process writes this folder; wait for it") from None
    if not work.exists() or not os.path.samestat(os.fstat(descriptor), os.stat(work)):
        raise RunError(f"{target}: another process wrote this folder meanwhile; look at it first")
    if any(work.iterdir()) and not (work / _MARK).is_file():
        raise UserError(f"{work}: is there, and no unfinished work of sightline; delete it or give another --to")
    stack.callback(_remove, work, os.fstat(descriptor))
    for path in work.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (work / _MARK).touch()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: is there and not empty; give another folder by --to")


def _remove(work: Path, held: os.stat_result) -> None:
    with contextlib.suppress(OSError):
        if os.path.samestat(held, os.stat(work)):
            shutil.rmtree(work)


def sync_folder(folder: Path) -> None:
    """Wait until the disk holds the names in this folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder and say so with this
            raise
    finally:
        os.close(descriptor)
