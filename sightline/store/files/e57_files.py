"""Clouds of laser scanners in E57 files, read with `pye57`."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np

from sightline.contract.errors import DataError, assert_installed
from sightline.store.files.input_files import (
    check_decompressed_size,
    convert_errors,
    copy_again,
    damaged,
    file_size,
    get_again,
    open_regular,
)

_HEADER = struct.Struct("<8s2I4Q")
"""Magic word, version, length of the file, place and length of its XML section, and length of a page."""
_PAGE_BYTES, _CHECKSUM_BYTES = 1024, 4
_MAX_XML_BYTES = 2**26
_COLUMNS = {
    **{f"cartesian{axis.upper()}": axis for axis in "xyz"},
    "intensity": "intensity",
    **{f"color{name.title()}": name for name in ("red", "green", "blue")},
}


def read_e57(path: Path) -> dict[str, np.ndarray]:
    """Read the points of all scans of a file by column, (N,) float64 each, in the file's common frame.

    The columns are x, y and z, and intensity, red, green and blue if every scan has them; points that the file marks as
    invalid are left out. Raises DataError for a damaged file and for one without scans; MissingExtraError without
    `pye57`. Source: ASTM E2807, the header, the pages and the XML section.
    """
    _check_xml(path)
    assert_installed("pye57", needed_by=f"{path}: reading .e57 files")
    import pye57

    with convert_errors(path, "does not read as E57"):
        pye57.libe57.ImageFile(str(path), "r").close()  # its reader hides the reason of a file that does not open
        file = pye57.E57(str(path))
        scans = range(file.scan_count)
        num_points = sum(file.get_header(index).point_count for index in scans)
        check_decompressed_size(str(path), 8 * len(_COLUMNS) * num_points, file_size(path))
        options = {"intensity": True, "colors": True, "ignore_missing_fields": True}
        parts = [file.read_scan(index, **options) for index in scans]
        file.close()
    if not parts:
        raise DataError(f"{path}: holds no scan; leave the file out")
    names = [name for name in _COLUMNS if all(name in part for part in parts)]
    return {
        _COLUMNS[name]: np.concatenate([np.asarray(part[name], dtype=np.float64) for part in parts]) for name in names
    }


def _check_xml(path: Path) -> None:
    """Raise DataError for a header that does not fit the file, and for XML that declares a type or entities."""
    with open_regular(path) as file:
        head, size = file.read(_HEADER.size), file_size(path)
        if len(head) < _HEADER.size or head[:8] != b"ASTM-E57":
            raise damaged(f"{path}: does not begin as E57 files do")
        *_, length, start, num_bytes, page_bytes = _HEADER.unpack(head)
        if length > size or page_bytes != _PAGE_BYTES or start >= size or num_bytes > min(size, _MAX_XML_BYTES):
            raise copy_again(
                f"{path}: its header promises {length} bytes with {num_bytes} of XML from byte {start} on; there are "
                f"{size}; it is cut short or damaged"
            )
        file.seek(start - start % _PAGE_BYTES)
        pages = file.read(num_bytes + num_bytes // 64 + 2 * _PAGE_BYTES)
    content_bytes = _PAGE_BYTES - _CHECKSUM_BYTES
    xml = b"".join(pages[at : at + content_bytes] for at in range(0, len(pages), _PAGE_BYTES))[start % _PAGE_BYTES :][
        :num_bytes
    ]
    encoding = re.match(rb"<\?xml[^>]*encoding=.([\w-]*)", xml)
    is_utf8 = xml.startswith(b"<") and b"\0" not in xml and (encoding is None or encoding[1].lower() == b"utf-8")
    if not is_utf8 or re.search(rb"<!(doctype|entity)", xml, re.IGNORECASE):
        raise get_again(f"{path}: its XML section is no plain UTF-8 without DOCTYPE and ENTITY")
