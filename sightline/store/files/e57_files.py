"""Clouds of laser scanners in E57 files, read with `pye57`."""

from __future__ import annotations

import re
import struct
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sightline.contract.errors import DataError, assert_installed
from sightline.store.files.column_names import COLOURS, NORMALS, POINTS, is_whole
from sightline.store.files.input_files import (
    check_decompressed_size,
    convert_errors,
    copy_again,
    damaged,
    file_size,
    get_again,
    open_regular,
)
from sightline.store.remarks import CountRemark

_HEADER = struct.Struct("<8s2I4Q")
"""Magic word, version, length of the file, place and length of its XML section, and length of a page."""
_PAGE_BYTES, _CHECKSUM_BYTES = 1024, 4
_MAX_XML_BYTES = 2**26
_CARTESIAN = ("cartesianX", "cartesianY", "cartesianZ")
_SPHERICAL = ("sphericalRange", "sphericalAzimuth", "sphericalElevation")
_NORMALS = ("nor:normalX", "nor:normalY", "nor:normalZ")
"""Normals of an extension of the format, in the frame of their scan."""
_COLOURS = ("colorRed", "colorGreen", "colorBlue")
_INVALID = ("cartesianInvalidState", "sphericalInvalidState")
_UNSURE = {"isIntensityInvalid": "an intensity", "isColorInvalid": "a colour"}
_NAMES = {"intensity": "intensity"} | dict(
    zip((*_COLOURS, *_NORMALS), (*COLOURS, *NORMALS), strict=True),
)
"""Further columns of a file, and the names by which they are read."""


class E57Content(NamedTuple):
    """Columns of a file, (N,) each, and notes on what was left out."""

    columns: dict[str, np.ndarray]
    notes: tuple[str, ...]


def read_e57(path: Path) -> E57Content:
    """Read the points of all scans of a file by column, (N,) each, in the file's common frame.

    The columns are x, y and z, and intensity, red, green, blue, nx, ny and nz if every scan has them; points that the
    file marks as invalid are left out. Notes count both, and what is marked invalid of a point that is read. Raises
    DataError for a damaged file and for one without scans; MissingExtraError without `pye57`. Source: ASTM E2807, the
    header, the pages and the XML section; the extension for surface normals of libE57.
    """
    _check_xml(path)
    assert_installed("pye57", needed_by=f"{path}: reading .e57 files")
    import pye57

    with convert_errors(path, "does not read as E57"):
        pye57.libe57.ImageFile(str(path), "r").close()  # its reader hides the reason of a file that does not open
        file = pye57.E57(str(path))
        headers = [file.get_header(index) for index in range(file.scan_count)]
        num_points = sum(header.point_count for header in headers)
        check_decompressed_size(str(path), 8 * (len(_NAMES) + 4) * num_points, file_size(path))
        parts = [_read_scan(file, header) for header in headers]
        file.close()
    if not parts:
        raise DataError(f"{path}: holds no scan; leave the file out")
    common = [name for name in (*_CARTESIAN, *_NAMES) if all(name in part for part in parts)]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in common}
    if set(_COLOURS) <= set(columns):
        columns |= _as_integers({name: columns[name] for name in _COLOURS})
    new_names = {**dict(zip(_CARTESIAN, POINTS, strict=True)), **_NAMES}
    notes = (*_note_missing(parts, common), *_note_invalid(parts, num_points))
    return E57Content({new_names[name]: values for name, values in columns.items()}, notes)


def _read_scan(file: Any, header: Any) -> dict[str, np.ndarray]:
    """Read the columns of a scan, float64 each, without its invalid points; points and normals in the common frame."""
    import pye57
    from pye57.utils import convert_spherical_to_cartesian

    positions = _CARTESIAN if set(_CARTESIAN) <= set(header.point_fields) else _SPHERICAL
    wanted = [name for name in (*positions, *_NAMES, *_INVALID, *_UNSURE) if name in header.point_fields]
    count, buffers, columns = header.point_count, pye57.libe57.VectorSourceDestBuffer(), dict[str, np.ndarray]()
    for name in wanted:
        columns[name] = np.empty(count)
        buffers.append(pye57.libe57.SourceDestBuffer(file.image_file, name, columns[name], count, True, True))
    header.points.reader(buffers).read()
    is_valid = np.ones(count, dtype=bool)
    for name in (name for name in _INVALID if name in columns):
        is_valid &= columns.pop(name) == 0
    columns = {name: values[is_valid] for name, values in columns.items()}
    points = np.stack([columns.pop(name) for name in positions], axis=1)
    points = points if positions is _CARTESIAN else convert_spherical_to_cartesian(points)
    normals = np.stack([columns[name] for name in _NORMALS], axis=1) if set(_NORMALS) <= set(columns) else None
    if header.has_pose():
        points = file.to_global(points, header.rotation, header.translation)
        normals = None if normals is None else file.to_global(normals, header.rotation, np.zeros(3))
    columns |= dict(zip(_CARTESIAN, points.T, strict=True))
    columns |= {} if normals is None else dict(zip(_NORMALS, normals.T, strict=True))
    return columns


def _as_integers(colours: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Return whole colours in the type of 8 or 16 bits that holds them; others as they are."""
    limit = next((limit for limit in (2**8 - 1, 2**16 - 1) if all(is_whole(c, 0, limit) for c in colours.values())), 0)
    kind = np.uint8 if limit < 2**8 else np.uint16
    return {name: values.astype(kind) for name, values in colours.items()} if limit else colours


def _note_missing(parts: Sequence[Mapping[str, np.ndarray]], common: Collection[str]) -> list[str]:
    """Return a note on the columns that some scans have and others lack, which are left out."""
    notes, sizes = [], [len(part["cartesianX"]) for part in parts]
    for names in (("intensity",), _COLOURS, _NORMALS):
        has = [set(names) <= set(part) for part in parts]
        if any(has) and not set(names) <= set(common):
            count = sum(size for size, is_there in zip(sizes, has, strict=True) if is_there)
            words = ", ".join(_NAMES[name] for name in names)
            what = f"have {words}, those of other scans of the file none: left out; give every scan a file to keep them"
            notes.append(CountRemark.make(count, sum(sizes), what))
    return [*notes]


def _note_invalid(parts: Sequence[Mapping[str, np.ndarray]], num_points: int) -> list[str]:
    """Return notes on the points that the file marks as invalid, and on those of which a value is so marked."""
    num_read = sum(len(part["cartesianX"]) for part in parts)
    notes = []
    if num_read < num_points:
        what = "are marked as invalid in the file, and are left out"
        notes.append(CountRemark.make(num_points - num_read, num_points, what))
    for name, words in _UNSURE.items():
        count = sum(int((part[name] != 0).sum()) for part in parts if name in part)
        if count:
            notes.append(CountRemark.make(count, num_read, f"have {words} that the file marks as invalid; it is used"))
    return [*notes]


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
