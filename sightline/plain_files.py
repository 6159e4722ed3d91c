"""Plain files and the JSON in them: pipes, devices, links that lead out of a folder and deep nesting are refused."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["assert_plain", "link_outward", "parse_json", "read_plain"]

MAX_BYTES = 1 << 30
"""Of a document: far above the longest that a run writes."""
MAX_DEPTH = 200
"""Of mappings and lists in each other: what walks a document calls itself once a level."""


def assert_plain(path: Path, *, allow_link: bool = True) -> int:
    """The size of a plain file in bytes. Raises OSError, its `strerror` the reason, for a pipe, a device, a folder."""
    status = os.stat(path, follow_symlinks=allow_link)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a plain file", str(path))
    return status.st_size


def read_plain(path: Path, *, max_bytes: int = MAX_BYTES, allow_link: bool = True) -> bytes:
    """The bytes of a plain file. Raises OSError as `assert_plain`, and for a file of more than `max_bytes`, unread."""
    size = assert_plain(path, allow_link=allow_link)
    if size > max_bytes:
        raise OSError(errno.EFBIG, f"it has {size:,} bytes, at most {max_bytes:,} are read", str(path))
    return path.read_bytes()


def parse_json(content: str | bytes, **hooks: Any) -> Any:
    """The value of a JSON text; `hooks` are those of `json.loads`.

    Raises ValueError for any other text, and for lists and mappings more than `MAX_DEPTH` deep in each other.
    """
    too_deep = f"lists and mappings are nested more than {MAX_DEPTH} deep"
    try:
        document = json.loads(content, **hooks)
    except RecursionError:
        raise ValueError(too_deep) from None
    level, depth = [document], 0
    while level := [item for each in level for item in _items(each) if isinstance(item, dict | list)]:
        depth += 1
        if depth >= MAX_DEPTH:
            raise ValueError(too_deep)
    return document


def _items(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def link_outward(folder: Path, names: Iterable[str]) -> Path | None:
    """The first of these entries of a folder that is a link out of it; None where all lie in it, or lead to themselves.

    The folder itself may be a link.
    """
    inside = os.path.realpath(folder)
    paths = (folder / name for name in names if (folder / name).is_symlink())
    return next((path for path in paths if not Path(os.path.realpath(path)).is_relative_to(inside)), None)
