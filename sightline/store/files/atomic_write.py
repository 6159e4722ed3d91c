"""Atomic writes: files and folders that are complete or absent after any crash, and errors of a disk."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TypeGuard

from sightline.contract.errors import DataError, DiskError, RunError
from sightline.contract.regular_files import check_regular_file

logger = logging.getLogger(__name__)

MISSING_ERRORS = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE})
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP})
_NO_LINKS = frozenset({errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_CLOSED = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
REPEAT = "run the same command again"
"""What to do after the failed write of a command that begins anew."""
LINK_PROBE = ".link.probe"
"""Link by which it is tried whether a folder takes links; a killed process may leave it."""
_MARK = "unfinished"
"""Empty file in a partial folder; a folder without it is not ours."""


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that is renamed to `path` when all of it is on the disk, or discarded.

    A reader, or a crash, sees the old file or the new one. The temporary file has a fixed name in the same folder: a
    killed writer leaves at most one, and the next removes it. Raises OSError as the disk does.
    """
    temporary = path.with_name(f".{path.name}.partial")
    temporary.unlink(missing_ok=True)
    try:
        with create_synced(temporary) as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def replace_atomic(path: Path, data: bytes) -> None:
    """Replace the content of `path` atomically: a reader, or a crash, sees the old file or the new one."""
    with open_atomic(path) as file:
        file.write(data)


@contextlib.contextmanager
def create_synced(path: Path) -> Iterator[BinaryIO]:
    """Open a new file for writing that is on the disk in the end. Raises FileExistsError if it exists."""
    with open(path, "xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def whole_folder(target: Path, *, option: str = "--to") -> Iterator[Path]:
    """Make a folder for writing that is renamed to `target`, which an `option` names, when all of it is written.

    It is `<target>.partial/content` meanwhile; the partial folder is locked (flock) until the process ends, and what a
    failed or killed process left there is removed. Raises DataError for a target or a partial folder that contains
    something else, and for the current folder; RunError if another process writes it, if it is moved meanwhile, or if
    the disk fails.
    """
    target = target.resolve()
    work = target.with_name(f"{target.name}.partial")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target}: exists and is not empty; give another folder with {option}")
    if target == Path.cwd():
        raise DataError(f"{target}: is the current folder, which cannot be replaced; give another with {option}")
    with contextlib.ExitStack() as stack:
        try:
            descriptor = _claim(work, target, stack, option)
            try:
                yield work / "content"
            except (OSError, DataError):
                _assert_unmoved(work, descriptor)
                raise
            _assert_unmoved(work, descriptor)
            os.rename(work / "content", target)
            sync_folder(target.parent)
        except OSError as error:
            name = next((name for name in (error.filename2, error.filename) if name is not None), work)
            if not (Path(name).is_relative_to(work) or target.is_relative_to(name)):  # a file that is read
                raise
            raise disk_failure(error, Path(name), again=REPEAT, option=option) from error


def _claim(work: Path, target: Path, stack: contextlib.ExitStack, option: str) -> int:
    """Make and lock the partial folder, and return its descriptor; the exit stack removes it in the end."""
    work.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    stack.callback(os.close, descriptor)
    try:
        lock_descriptor(descriptor, work, waits=False)
    except BlockingIOError:
        raise RunError(f"{target}: another process writes this folder; wait for it") from None
    if not _is_unmoved(work, descriptor):
        raise RunError(f"{target}: another process wrote this folder meanwhile; look at it first")
    if any(work.iterdir()) and not (work / _MARK).is_file():
        raise DataError(f"{work}: is not unfinished work of sightline; delete it or give another folder with {option}")
    stack.callback(_remove_own, work, descriptor)
    (work / _MARK).touch()
    if (work / "content").is_dir():
        shutil.rmtree(work / "content")
    (work / "content").mkdir()
    return descriptor


def _is_unmoved(work: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(work))
    except OSError:
        return False


def _assert_unmoved(work: Path, descriptor: int) -> None:
    if not _is_unmoved(work, descriptor):
        raise RunError(f"{work}: was moved or deleted while it was written; run the command again")


def _remove_own(work: Path, descriptor: int) -> None:
    with contextlib.suppress(OSError):
        if _is_unmoved(work, descriptor):
            if (work / "content").is_dir():
                shutil.rmtree(work / "content")
            (work / _MARK).unlink()  # the last: a kill before leaves a folder that is known as ours
            work.rmdir()


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


def lock_descriptor(descriptor: int, path: Path, *, waits: bool = True) -> bool:
    """Take the kernel's lock (flock) on an open file or folder, which is lost with the process.

    Returns False, with a warning, where the file system has none, as some network folders. Raises BlockingIOError if
    another process has it and this one does not wait.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _warn_of_no_locks(path.parent, error.strerror or str(error))
        return False
    return True


@functools.cache
def _warn_of_no_locks(folder: Path, reason: str) -> None:
    """Warn once of a folder."""
    logger.warning(
        "no-locks: %s: its file system has no locks (%s): start one command at a time here; two that begin at the same "
        "moment may both write",
        *(folder, reason[:1].lower() + reason[1:]),
    )


def is_without_links(error: OSError) -> bool:
    """Return True for the error of a file system without symbolic links: FAT, exFAT, SMB, some cloud drives."""
    return error.errno in _NO_LINKS


def can_link(folder: Path) -> bool:
    """Try whether symbolic links can be made in a folder. Raises OSError as the disk does for any other reason."""
    probe = folder / LINK_PROBE
    probe.unlink(missing_ok=True)
    try:
        os.symlink("probe", probe)
    except OSError as error:
        if not is_without_links(error):
            raise
        return False
    probe.unlink()
    return True


def make_below(root: Path, folder: Path) -> None:
    """Create a folder and its parents below `root`, which must exist: a root that was moved is not created again."""
    for path in reversed((folder, *folder.parents)):
        if root in path.parents:
            path.mkdir(exist_ok=True)


def assert_appendable(path: Path) -> int:
    """Return the size of a regular file, 0 if it does not exist. Raises DataError for anything else, like a pipe."""
    try:
        return check_regular_file(path)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}; remove it") from error


def is_of_disk(error: BaseException) -> TypeGuard[OSError]:
    """Return True for an OSError of a disk that is full or read-only, or of a limit on the size of files."""
    return isinstance(error, OSError) and error.errno in {*_FULL, errno.EFBIG, errno.EROFS}


def disk_failure(
    error: OSError, path: Path, *, still_intact: str = "", again: str = "resume", option: str | None = "--out"
) -> DiskError:
    """Build the error of a failed write: path, reason and remedy, after which the user does `again`.

    `still_intact` names what was not damaged, `option` is the command's option for another folder, if it has one.
    """
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        advice = f"free some space there and {again}"
    elif error.errno == errno.EFBIG:
        advice = f"raise the limit on the size of a file (ulimit -f) and {again}"
    elif error.errno in _CLOSED:
        advice = f"make it writable, or choose another folder{f' with {option}' if option else ''}"
    else:
        advice = f"mend the cause and {again}"
    return DiskError(
        f"{path}: cannot write: {reason[:1].lower()}{reason[1:]}; "
        f"{advice}{f' ({still_intact})' if still_intact else ''}"
    )
