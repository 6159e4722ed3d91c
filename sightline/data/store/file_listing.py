"""Files listed in place: a prepared set can list the files of its source instead of copying them.

The manifest names one absolute folder, the source that the user gave; `<split>.listed.json` lists the files of every
row below it, with their size, modification time and SHA-256. No entry leads out of that folder by its name; links that
the user keeps in it are followed, since large sets are spread over disks that way.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from sightline.data.files.input_files import read_file
from sightline.errors import DataError

__all__ = ["FileListing", "ListedFile", "list_file"]


class ListedFile(NamedTuple):
    """File below the listed folder as it was at preparation; `path` is relative to the folder."""

    path: str
    num_bytes: int
    mtime_ns: int
    sha256: str


def list_file(path: Path, root: Path) -> ListedFile:
    """Build the entry of a file below `root`. Raises DataError if it is unreadable, or changes meanwhile."""
    content, status = read_file(path), path.stat()
    if len(content) != status.st_size:
        raise DataError(f"{path}: changed while it was read; wait until it is written, and prepare the set again")
    digest = hashlib.sha256(content).hexdigest()
    return ListedFile(path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns, digest)


class FileListing:
    """Listed files of a split by row, below `root`; `where` is the document that lists them.

    Raises DataError for a document of another form, and for a path that leads out of the folder.
    """

    def __init__(self, root: Path, rows: Any, *, where: Path) -> None:
        self._root = root
        self._where = where
        try:
            self._rows = [[ListedFile(*entry) for entry in row] for row in rows]
            outside = next((entry.path for row in self._rows for entry in row if not _is_below(entry.path)), None)
        except TypeError as error:
            raise DataError(f"{where}: is not a list of files; prepare the set again") from error
        if outside is not None:
            raise DataError(f"{where}: lists '{outside}', which is not below {root}; prepare the set again")

    def __len__(self) -> int:
        return len(self._rows)

    def paths(self, row: int) -> tuple[Path, ...]:
        """Return the files of a row. Raises DataError naming the first that is missing or has changed."""
        return tuple(self._check_file(entry) for entry in self._rows[row])

    def verify(self) -> int:
        """Check the SHA-256 of every file; return the number of files. Raises DataError naming a wrong one."""
        entries = {entry.path: entry for row in self._rows for entry in row}
        for entry in entries.values():
            path = self._check_file(entry)
            if hashlib.sha256(read_file(path)).hexdigest() != entry.sha256:
                raise self._changed_error(path, "differs from what it held when the set was prepared (SHA-256)")
        return len(entries)

    def _check_file(self, entry: ListedFile) -> Path:
        path = self._root / entry.path
        try:
            status = path.stat()
        except OSError as error:
            raise self._changed_error(path, f"cannot be found ({error.strerror})") from error
        if status.st_size != entry.num_bytes:
            raise self._changed_error(path, f"has {status.st_size} bytes, {entry.num_bytes} when the set was prepared")
        if status.st_mtime_ns != entry.mtime_ns:
            times = " instead of ".join(_time_text(time_ns) for time_ns in (status.st_mtime_ns, entry.mtime_ns))
            raise self._changed_error(path, f"was written again after the set was prepared ({times})")
        return path

    def _changed_error(self, path: Path, fault: str) -> DataError:
        folder = self._where.parent
        return DataError(
            f"{path}: {fault}; {folder} lists it and has no copy: put the file back, or delete {folder} and prepare "
            "the set again"
        )


def _is_below(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\0" not in path


def _time_text(mtime_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(mtime_ns // 10**9)) + f".{mtime_ns % 10**9:09d} UTC"
