"""Label files of other formats, known by their first bytes: a refusal names the set that reads them, or a way out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from sightline.contract.errors import DataError
from sightline.store.files.input_files import list_files, open_regular

_HEAD_BYTES = 2**16


class _Format(NamedTuple):
    """Format of label files: their suffix, what is in the first `_HEAD_BYTES` of one, and what makes them readable.

    Without a way, the data set of this name reads them.
    """

    name: str
    suffix: str
    pattern: re.Pattern[bytes]
    way: str = ""


_VIA_WAY = "globox (AnnotationSet.from_via_json with label_key and image_folder, then save_coco) writes it as COCO"
_FORMATS = (
    _Format("voc", ".xml", re.compile(rb"<annotation[\s>]")),
    _Format("cvat", ".xml", re.compile(rb"<annotations[\s>]")),
    _Format("labelme", ".json", re.compile(rb'"shapes"\s*:')),
    _Format(
        "Label Studio",
        ".json",
        re.compile(rb'"(?:from_name|file_upload|(?:rectangle|polygon|brush|ellipse|keypoint)labels)"\s*:'),
        "export the project from Label Studio as COCO",
    ),
    _Format(
        "VIA",
        ".json",
        re.compile(rb'"(?:_via_settings|_via_img_metadata|shape_attributes|region_attributes)"\s*:'),
        _VIA_WAY,
    ),
    _Format(
        "Supervisely",
        ".json",
        re.compile(
            rb'"classTitle"\s*:|"size"\s*:\s*\{[^}]*\}\s*,\s*"objects"\s*:|"classes"\s*:\s*\[\s*\{[^}]*"title"\s*:'
        ),
        "export the project from Supervisely as COCO",
    ),
    _Format("coco", ".json", re.compile(rb'"(?:images|annotations|categories)"\s*:\s*\[')),
    _Format("yolo_txt", ".yaml", re.compile(rb"^names\s*:", re.MULTILINE)),
    _Format(
        "VIA",
        ".csv",
        re.compile(rb"\A(?:\xef\xbb\xbf)?#?\s*filename,file_size,file_attributes,"),
        f"export the project from VIA as JSON, and {_VIA_WAY}",
    ),
    _Format(
        "TensorFlow's tables of boxes",
        ".csv",
        re.compile(rb"\A(?:\xef\xbb\xbf)?filename,width,height,class,xmin,ymin,xmax,ymax\s"),
        "a row is a box in pixels: write the rows as the boxes of COCO, [xmin, ymin, xmax - xmin, ymax - ymin], or "
        "take the VOC files that such tables are made from",
    ),
)
"""Formats, those first whose files hold the words of a later one, too."""


def name_other_set(root: Path, name: str) -> str:
    """Return the end of a refusal of the set `name`: what the first label file below a folder, or a file, is; else "".

    It names the set that reads the file, or for the format of another tool a way to a file that is read.
    """
    suffixes = {row.suffix for row in _FORMATS}
    files = [root] if root.is_file() else []
    if root.is_dir():
        files = [file for suffix in sorted(suffixes) for file in list_files(root, {suffix})[:1]]
    heads = {file: _read_head(file) for file in files if file.suffix.lower() in suffixes}
    for other, suffix, pattern, way in _FORMATS:
        for file, head in heads.items():
            if other != name and file.suffix.lower() == suffix and pattern.search(head):
                shown = file.relative_to(root) if file != root else file.name
                advice = f"no set reads it, {way}" if way else f"'sightline data prepare {other}' reads it"
                return f"; {shown} is a file of {other}: {advice}"
    return ""


def _read_head(file: Path) -> bytes:
    try:
        with open_regular(file) as stream:
            return stream.read(_HEAD_BYTES)
    except (DataError, OSError):
        return b""
