"""Plain files are read; pipes, devices, folders and giants are refused at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sightline.plain_files import assert_plain, read_plain


def test_a_plain_file_is_read_also_through_a_link(tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_bytes(b"abc")
    link.symlink_to(path)
    assert [read_plain(path), read_plain(link)] == [b"abc", b"abc"]
    assert read_plain(path, max_bytes=3) == b"abc"
    assert assert_plain(path) == 3


@pytest.mark.parametrize("kind", ["pipe", "device", "link to a device", "folder", "too large", "giant", "link"])
def test_anything_else_is_refused_unread(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    options: dict[str, object] = {}
    reason = "it is not a plain file"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
        reason = "Is a directory"
    elif kind == "too large":
        path.write_bytes(b"abcd")
        options, reason = {"max_bytes": 3}, "it has 4 bytes, at most 3 are read"
    elif kind == "giant":
        with path.open("wb") as file:
            file.truncate(5 << 30)
        reason = "it has 5,368,709,120 bytes, at most 1,073,741,824 are read"
    else:
        path.symlink_to(tmp_path)
        options = {"allow_link": False}
    with pytest.raises(OSError, match=reason):
        read_plain(path, **options)  # type: ignore[arg-type]


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_plain(tmp_path / "file")
