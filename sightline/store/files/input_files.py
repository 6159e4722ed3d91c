"""Reading of user-given files: regular files only, limits of size, and errors of one line that name the file."""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from sightline.config.faults import ConfigFaults
from sightline.config.yaml_tree import read_tables
from sightline.contract.errors import ConfigError, DataError, UserError, summarise_error
from sightline.contract.regular_files import check_regular_file, parse_json, read_regular_file

_MAX_EXPANSION = 100
"""Maximum ratio of memory to stored size of an entry. Clouds are compressed 2 to 10 times, bombs 1,000 times."""
FREE_BYTES = 2**24
"""Size up to which an entry is read regardless of its compression."""


def _with_advice(advice: str) -> Callable[[str], DataError]:
    return lambda fault: DataError(f"{fault}{advice}")


damaged = _with_advice("; the file is damaged or in another format")
copy_again = _with_advice(": copy or download it again")
get_again = _with_advice("; get the file again")
download_again = _with_advice("; download the file again")
unpack_again = _with_advice("; unpack the release again")
prepare_again = _with_advice("; prepare the set again")
"""Makers of the DataError of a file by its location and fault, with the advice that most faults need."""


@contextmanager
def convert_errors(where: Path | str, fault: str = "cannot be read") -> Iterator[None]:
    """Convert whatever the reader of a format raises for damaged bytes into a DataError that says where."""
    try:
        yield
    except UserError:
        raise
    except MemoryError as error:  # also raised by Python's parser for a header of ten thousand brackets
        raise DataError(f"{where}: does not fit into memory, or the file is damaged") from error
    except BaseException as error:
        is_panic = type(error).__module__ == "pyo3_runtime"  # of a library that is written in Rust
        if not isinstance(error, Exception) and not is_panic:
            raise
        reason = summarise_error(error, max_length=200).partition(" <_")[0]
        raise damaged(f"{where}: {fault} ({reason})") from error


def check_decompressed_size(where: str, claimed: int, stored: int, *, free_bytes: int = FREE_BYTES) -> None:
    """Raise DataError if more than `free_bytes` would be decompressed from far fewer bytes."""
    if claimed > free_bytes and claimed > _MAX_EXPANSION * stored:
        raise DataError(
            f"{where}: {stored} stored bytes would become {claimed} in memory, which no cloud or image does; if it is "
            "yours, store it uncompressed"
        )


def expand_home(path: str | Path) -> Path:
    """Replace `~` and `~USER` at the start of a path. Raises DataError for a user that this machine does not know."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"{path}: the home of {Path(path).parts[0]} is not known here; give the path itself") from error


def assert_regular(path: Path) -> None:
    """Raise DataError unless the path is a regular file, which opening and reading cannot block."""
    try:
        check_regular_file(path)
    except OSError as error:
        if error.errno == errno.ENOENT and not os.path.lexists(path):
            raise DataError(f"{path}: there is no such file; check the path") from error
        if error.errno not in (errno.ENOENT, errno.EINVAL, errno.EISDIR, errno.ELOOP):
            raise unreadable(path, error) from error
        kinds = "a broken link, a folder, a pipe or a device"
        raise DataError(f"{path}: is not a regular file ({kinds}); take it out") from error


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises DataError if it does not exist or cannot be opened."""
    assert_regular(path)
    try:
        return path.open("rb")
    except OSError as error:
        raise unreadable(path, error) from error


def read_file(path: Path) -> bytes:
    """Read the bytes of a regular file. Raises DataError if it cannot be read, or does not fit into memory."""
    mode = file_status(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # for a folder the system raises a clear error
        assert_regular(path)
    try:
        return read_regular_file(path, max_bytes=sys.maxsize)
    except OSError as error:
        raise unreadable(path, error) from error


def parse_json_content(content: bytes, *, where: str, advice: str) -> Any:
    """Parse JSON in UTF-8. Raises DataError with the location and the advice for anything else."""
    try:
        return parse_json(content.decode("utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{where}: does not read as JSON ({error}); {advice}") from error


def file_size(path: Path) -> int:
    """Return the size of a file in bytes. Raises DataError if it does not exist."""
    return file_status(path).st_size


def file_status(path: Path) -> os.stat_result:
    """Return what the system says of a file. Raises DataError if it does not exist."""
    try:
        return path.stat()
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> DataError:
    """Return the error of a file that the system does not open or read."""
    return DataError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions")


MAX_BYTES = 2_000_000
MAX_NODES = 100_000


def parsed_yaml(content: bytes, path: Path, *, name: str) -> Any:
    """Parse a YAML (or JSON) document to plain values; its keys are text, integers too.

    A mark of a document's end in the last lines, as `rostopic echo` writes it, begins no other document. `name` is its
    name in errors. Raises DataError with the line for anything but plain YAML: repeated keys, tags, merge
    keys, anchors that contain themselves or expand to more than `MAX_NODES` values, numbers beyond 64 bits.
    """
    if len(content) > MAX_BYTES:
        raise DataError(f"{path}: has {len(content):,} bytes; {name} has at most {MAX_BYTES:,}")
    faults = ConfigFaults()
    try:
        text = content.decode("utf-8-sig")
        tree = read_tables(_strip_end(text), str(path), faults, name=name, max_nodes=MAX_NODES)
        faults.raise_any()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except ConfigError as error:
        more = f" (and {len(error.faults) - 1} more)" if len(error.faults) > 1 else ""
        raise DataError(f"{error.faults[0]}{more}") from None
    return tree.plain()


_MARKS = ("---", "...")


def _strip_end(text: str) -> str:
    """Return a YAML text without the lines at its end that mark the end of its document, and have nothing behind."""
    lines = text.split("\n")
    stop = len(lines)
    while stop > 1 and lines[stop - 1].rstrip() in ("", *_MARKS):
        stop -= 1
    has_mark = any(line.rstrip() in _MARKS for line in lines[stop:])
    return "\n".join((*lines[:stop], "")) if has_mark else text


def natural_sort_key(name: str) -> list[tuple[int, str]]:
    """Return a sort key for names in which `a2` comes before `a10`; no two names have the same (`a1` and `a01`)."""
    pieces = re.split(r"(\d+)", name)
    return [*((int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces), (-1, name)]


def list_folders(root: Path) -> list[Path]:
    """List the folders in a folder that are not hidden, sorted."""
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def list_files(root: Path, suffixes: Collection[str] | None = None) -> list[Path]:
    """List all files below a folder, those with one of the suffixes (lower case); links are followed, sorted by path.

    Hidden files, and files in hidden folders, are ignored; of links to the same folder only the first is followed.
    """
    paths: list[str] = []
    visited: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:  # a link back: the same files once more, or without end
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = (name for name in files if not name.startswith("."))
        paths.extend(
            os.path.join(folder, name)
            for name in names
            if suffixes is None or os.path.splitext(name)[1].lower() in suffixes
        )
    paths.sort(key=lambda path: path.replace(os.sep, "\0"))  # as paths are, by their parts, but much sooner
    return [*map(Path, paths)]


def list_named_files(root: Path, suffixes: Mapping[str, str]) -> dict[str, dict[str, Path]]:
    """List the files of each name in folders of `root`, by folder: those with the suffix that each folder has."""
    files: defaultdict[str, dict[str, Path]] = defaultdict(dict)
    for folder, suffix in suffixes.items():
        for path in (root / folder).glob(f"*{suffix}"):
            files[path.stem][folder] = path
    return dict(sorted(files.items()))
