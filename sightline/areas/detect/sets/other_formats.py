"""Label files of each format, known by their first bytes: a refusal names the set that reads them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from sightline.contract.errors import DataError
from sightline.store.files.input_files import list_files, open_regular

_HEAD_BYTES = 2**16


class _Format(NamedTuple):
    """Format of label files: the set that reads them, their suffix, and what is in the first `_HEAD_BYTES` of one."""

    name: str
    suffix: str
    pattern: re.Pattern[bytes]


_FORMATS = (
    _Format("voc", ".xml", re.compile(rb"<annotation[\s>]")),
    _Format("cvat", ".xml", re.compile(rb"<annotations[\s>]")),
    _Format("labelme", ".json", re.compile(rb'"shapes"\s*:')),
    _Format(
        "label_studio",
        ".json",
        re.compile(rb'"(?:from_name|file_upload|(?:rectangle|polygon|brush|ellipse|keypoint)labels)"\s*:'),
    ),
    _Format(
        "via",
        ".json",
        re.compile(rb'"(?:_via_settings|_via_img_metadata|shape_attributes|region_attributes|vid_list)"\s*:'),
    ),
    _Format(
        "supervisely",
        ".json",
        re.compile(
            rb'"classTitle"\s*:|"size"\s*:\s*\{[^}]*\}\s*,\s*"objects"\s*:|"classes"\s*:\s*\[\s*\{[^}]*"title"\s*:'
        ),
    ),
    _Format("coco", ".json", re.compile(rb'"(?:images|annotations|categories)"\s*:\s*\[')),
    _Format("yolo_txt", ".yaml", re.compile(rb"^names\s*:", re.MULTILINE)),
    _Format(
        "via", ".csv", re.compile(rb"\A(?:\xef\xbb\xbf)?#?\s*filename,(?:file_size,file_attributes|.*region_shape)")
    ),
    _Format(
        "tensorflow_csv", ".csv", re.compile(rb"\A(?:\xef\xbb\xbf)?filename,width,height,class,xmin,ymin,xmax,ymax\s")
    ),
)
"""Formats, those first whose files hold the words of a later one, too."""


def name_other_set(root: Path, name: str) -> str:
    """Return the end of a refusal of the set `name`: the set that reads a label file below a folder, or it; else ""."""
    suffixes = {row.suffix for row in _FORMATS}
    files = [root] if root.is_file() else []
    if root.is_dir():
        files = [file for suffix in sorted(suffixes) for file in list_files(root, {suffix})[:1]]
    heads = {file: _read_head(file) for file in files if file.suffix.lower() in suffixes}
    for other, suffix, pattern in _FORMATS:
        for file, head in heads.items():
            if other != name and file.suffix.lower() == suffix and pattern.search(head):
                shown = file.relative_to(root) if file != root else file.name
                return f"; {shown} is a file of {other}: 'sightline data prepare {other}' reads it"
    return ""


def _read_head(file: Path) -> bytes:
    try:
        with open_regular(file) as stream:
            return stream.read(_HEAD_BYTES)
    except (DataError, OSError):
        return b""
