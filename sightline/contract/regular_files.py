"""Regular files and JSON, read safely: pipes, devices, links out of a folder and deep nesting are refused."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

MAX_BYTES = 1 << 30
"""Maximal size of a document: far above the longest that a run writes."""
MAX_DEPTH = 200
"""Maximal nesting of mappings and lists: functions that walk a document recurse once per level."""
_CONTAINERS = (dict, list)
"""A tuple: `dict | list` would be made anew for each value of a document."""
_ALWAYS_FITS_BYTES = 1 << 28
"""Size up to which the free memory is not measured."""
_MEMORY_SOURCES = (
    ("/proc/meminfo", r"MemAvailable: +(\d+)", 1024),
    ("/sys/fs/cgroup/memory.max", r"(\d+)", 1),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", r"(\d+)", 1),
)
"""Files of the machine and of its container, the number of bytes in them, and its unit."""
_TOO_DEEP = f"lists and mappings are nested more than {MAX_DEPTH} deep"
_SPACE = re.compile("[ \\t\\n\\r]*")
_HALF_CHARACTER = re.compile("[\ud800-\udc7f\udd00-\udfff]")
_HALF_IN_TEXT = re.compile("\\\\u[dD][89a-fA-F]|[\ud800-\udfff]")
_HALF_IN_BYTES = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")


def check_regular_file(path: Path, *, allow_link: bool = True) -> int:
    """Return the size of a regular file in bytes. Raises OSError with the reason for a pipe, a device, a folder."""
    status = os.stat(path, follow_symlinks=allow_link)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a plain file", str(path))
    return status.st_size


def read_regular_file(path: Path, *, max_bytes: int = MAX_BYTES, allow_link: bool = True) -> bytes:
    """Read a regular file.

    Raises OSError as `check_regular_file`, and for a file of more than `max_bytes`, or than memory holds, unread.
    """
    size = check_regular_file(path, allow_link=allow_link)
    if size > max_bytes:
        raise OSError(errno.EFBIG, f"it has {size:,} bytes, at most {max_bytes:,} are read", str(path))
    assert_fits_memory(path, size)
    try:
        return path.read_bytes()
    except MemoryError:  # the process has a limit of its own
        raise _make_memory_error(path, size) from None


def assert_fits_memory(path: Path, num_bytes: int) -> None:
    """Raise OSError if the memory that is free cannot hold so many bytes of a file: a sparse one takes no disk."""
    if num_bytes > _ALWAYS_FITS_BYTES and num_bytes > _measure_free_memory():
        raise _make_memory_error(path, num_bytes)


def _make_memory_error(path: Path, num_bytes: int) -> OSError:
    return OSError(errno.ENOMEM, f"its content takes {num_bytes:,} bytes, more than the memory that is free", str(path))


def _measure_free_memory() -> float:
    """Measure the bytes that the machine can still give, or its container as a whole; infinite if neither is known."""
    limits = [math.inf]
    for source, pattern, unit in _MEMORY_SOURCES:
        with contextlib.suppress(OSError):
            limits += [int(number) * unit for number in re.findall(pattern, Path(source).read_text())]
    return min(limits)


def parse_json(content: str | bytes, **hooks: Any) -> Any:
    r"""Parse a JSON text; `hooks` are those of `json.loads`.

    Raises ValueError for any other text, for lists and mappings more than `MAX_DEPTH` deep in each other, numbers of
    thousands of digits, and text with half a character (`\ud83d` alone), which no file can hold.
    """
    try:
        document = json.loads(content, **hooks)
    except (RecursionError, ValueError) as error:
        raise _explain(error) from None
    if _may_contain_halves(content):
        _assert_whole_characters(document)
    _assert_shallow(document)
    return document


class JsonEntries:
    """Entries of the object in a JSON text, one by one: key and value, of a list an iterator over its items.

    Values are checked as by `parse_json`, but the document is never in memory as a whole. Raises ValueError as it does,
    for a text that is not an object, and for a key that is there twice.
    """

    def __init__(self, content: str) -> None:
        self._content = content
        self._at = self._find_next(0)
        self._decode = json.JSONDecoder().raw_decode
        self._may_contain_halves = _may_contain_halves(content)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        keys: set[str] = set()
        self._expect("{")
        is_last = self._skip("}")
        while not is_last:
            key = self._read_value()
            if not isinstance(key, str) or key in keys:
                raise ValueError(f"{str(key)[:40]!r} is not a key, or is one twice")
            keys.add(key)
            self._expect(":")
            if self._skip("["):
                items = self._read_items()
                yield key, items
                deque(items, maxlen=0)  # what the caller left
            else:
                yield key, self._read_value()
            is_last = self._skip("}") or self._expect(",")
        if self._at < len(self._content):
            raise json.JSONDecodeError("Extra data", self._content, self._at)

    def _read_items(self) -> Iterator[Any]:
        is_last = self._skip("]")
        while not is_last:
            yield self._read_value()
            is_last = self._skip("]") or self._expect(",")

    def _read_value(self) -> Any:
        start = self._at
        try:
            value, end = self._decode(self._content, start)
        except (RecursionError, ValueError) as error:
            raise _explain(error) from None
        if self._may_contain_halves:
            _assert_whole_characters(value)
        if self._content.count("[", start, end) + self._content.count("{", start, end) >= MAX_DEPTH:
            _assert_shallow(value)
        self._at = self._find_next(end)
        return value

    def _skip(self, sign: str) -> bool:
        """Skip a sign and the space after it, if it is next; return True if it was."""
        is_next = self._content.startswith(sign, self._at)
        self._at = self._find_next(self._at + 1) if is_next else self._at
        return is_next

    def _expect(self, sign: str) -> bool:
        """Skip a sign and return False. Raises JSONDecodeError if it is not next."""
        if not self._skip(sign):
            raise json.JSONDecodeError(f"Expecting {sign!r}", self._content, self._at)
        return False

    def _find_next(self, start: int) -> int:
        return _SPACE.match(self._content, start).end()  # type: ignore[union-attr]  # it matches anywhere


def _explain(error: Exception) -> Exception:
    """Return the error of the JSON reader, in other words if a limit is its reason."""
    if isinstance(error, RecursionError):
        return ValueError(_TOO_DEEP)
    return ValueError("a number has thousands of digits") if "integer string conversion" in str(error) else error


def _assert_shallow(document: Any) -> None:
    level, depth = [document], 0
    while level := [item for parent in level for item in _list_values(parent) if isinstance(item, _CONTAINERS)]:
        depth += 1
        if depth >= MAX_DEPTH:
            raise ValueError(_TOO_DEEP)


def _may_contain_halves(content: str | bytes) -> bool:
    return bool(_HALF_IN_TEXT.search(content) if isinstance(content, str) else _HALF_IN_BYTES.search(content))


def _assert_whole_characters(document: Any) -> None:
    """Raise ValueError for half a character; those that encode odd bytes in file names are allowed."""
    waiting = [document]
    while waiting:
        value = waiting.pop()
        waiting += [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
        half = _HALF_CHARACTER.search(value) if isinstance(value, str) else None
        if half:
            raise ValueError(f"text holds half a character, U+{ord(half[0]):04X}")


def _list_values(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def find_outward_link(folder: Path, names: Iterable[str]) -> Path | None:
    """Return the first entry of a folder that is a link out of it, or None.

    The folder itself may be a link.
    """
    inside = os.path.realpath(folder)
    paths = (folder / name for name in names if (folder / name).is_symlink())
    return next((path for path in paths if not Path(os.path.realpath(path)).is_relative_to(inside)), None)
