"""Atomic writes: files and folders that are complete or absent after any crash."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sightline.contract.errors import RunError, UserError

_MARK = ".unfinished"
"""Marker file of an unfinished folder: a folder with it may be deleted and started again."""


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that is renamed to `path` when all of it is on the disk, or discarded.

    A reader, or a crash, sees the old file or the new one. The temporary file has a fixed name in the same folder: a
    killed writer leaves at most one, and the next removes it. Raises OSError as the disk does.
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
    """Make a folder for writing that is renamed to `target` when all of it is written, or discarded.

    It is called `<target>.partial` meanwhile and is locked (flock) until the process ends; the remains of a killed
    process are removed. Raises UserError for a target or a partial folder that contains something else, and RunError if
    another process writes it, or the disk fails.
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
                f"{target}: cannot be written ({error.strerror or error}: {where}); correct that, or give another "
                "folder with --to: the unfinished folder is removed"
            ) from error


def _claim(work: Path, target: Path, stack: contextlib.ExitStack) -> None:
    """Make the partial folder, empty and locked; the exit stack removes it if it still exists."""
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
        raise UserError(f"{work}: exists and is not unfinished work of sightline; delete it or give another --to")
    stack.callback(_remove, work, os.fstat(descriptor))
    for path in work.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (work / _MARK).touch()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: exists and is not empty; give another folder with --to")


def _remove(work: Path, status: os.stat_result) -> None:
    with contextlib.suppress(OSError):
        if os.path.samestat(status, os.stat(work)):
            shutil.rmtree(work)


def sync_folder(folder: Path) -> None:
    """Flush the names in this folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # the error of network file systems that cannot sync a folder
            raise
    finally:
        os.close(descriptor)
