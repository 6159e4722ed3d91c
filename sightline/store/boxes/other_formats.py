"""Label files of other formats, known by their first bytes: a refusal names the set that reads them."""

from __future__ import annotations

import re
from pathlib import Path

from sightline.contract import registry
from sightline.contract.errors import DataError
from sightline.store.files.input_files import list_files, open_regular

_HEAD_BYTES = 2**16
_UNREAD = {
    "CreateML": (
        ".json",
        rb'"coordinates"\s*:\s*\{\s*"(x|y|width|height)"',
        "supervision.DetectionDataset.from_createml(...) and .as_coco(...) in Python write it for 'data prepare coco'",
    )
}
"""Formats that no set reads: suffix, a pattern of the first bytes, and what to do."""


def name_other_set(root: Path, name: str) -> str:
    """Return the end of a refusal of the set `name`: the set that reads a label file below a folder, or it; else ""."""
    builders = {other: registry.data.get_entry(other).builder for other in registry.data.names() if other != name}
    rows = [
        (other, suffix, pattern)
        for other, builder in builders.items()
        if hasattr(builder, "label_format")
        for suffix, pattern in builder.label_format.known_by.items()
    ]
    suffixes = {suffix for _, suffix, _ in rows} | {suffix for suffix, _, _ in _UNREAD.values()}
    files = [root] if root.is_file() else []
    if root.is_dir():
        files = [file for suffix in sorted(suffixes) for file in list_files(root, {suffix})[:1]]
    heads = {file: _read_head(file) for file in files if file.suffix.lower() in suffixes}
    for other, suffix, pattern in rows:
        for file, head in heads.items():
            if file.suffix.lower() == suffix and re.search(pattern, head):
                shown = file.relative_to(root) if file != root else file.name
                return f"; {shown} is a file of {other}: 'sightline data prepare {other}' reads it"
    for other, (suffix, pattern, advice) in _UNREAD.items():
        for file, head in heads.items():
            if file.suffix.lower() == suffix and re.search(pattern, head):
                return f"; {file.name} is of {other}, which is not read: {advice}"
    return ""


def _read_head(file: Path) -> bytes:
    try:
        with open_regular(file) as stream:
            return stream.read(_HEAD_BYTES)
    except (DataError, OSError):
        return b""
