"""Plain files: pipes and devices, on which a reader or a writer would wait without end, are refused unopened."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

__all__ = ["assert_plain", "read_plain"]

MAX_BYTES = 1 << 30
"""Of a document: far above the longest that a run writes."""


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
