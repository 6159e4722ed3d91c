"""Label files that another set reads, known by their first bytes: a refusal names that set."""

from __future__ import annotations

import re
from pathlib import Path

from sightline.contract.errors import DataError
from sightline.store.files.input_files import list_files, open_regular

_HEAD_BYTES = 2**16
_SETS = (
    ("voc", ".xml", re.compile(rb"<annotation[\s>]")),
    ("cvat", ".xml", re.compile(rb"<annotations[\s>]")),
    ("labelme", ".json", re.compile(rb'"shapes"\s*:')),
    ("coco", ".json", re.compile(rb'"(?:images|annotations|categories)"\s*:\s*\[')),
)
"""Data set, suffix of its files, and what is in the first `_HEAD_BYTES` of one."""


def name_other_set(root: Path, name: str) -> str:
    """Return the end of a refusal of the set `name`: which set reads the first label file below a folder; else ""."""
    if not root.is_dir():
        return ""
    files = {suffix: list_files(root, {suffix})[:1] for suffix in {suffix for _, suffix, _ in _SETS}}
    for other, suffix, pattern in _SETS:
        for file in files[suffix]:
            if other != name and pattern.search(_read_head(file)):
                return f"; {file.relative_to(root)} is a file of {other}: 'sightline data prepare {other}' reads it"
    return ""


def _read_head(file: Path) -> bytes:
    try:
        with open_regular(file) as stream:
            return stream.read(_HEAD_BYTES)
    except (DataError, OSError):
        return b""
