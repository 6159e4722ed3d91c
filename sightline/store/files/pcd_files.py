"""PCD files of the Point Cloud Library: text, binary and compressed, read with `pypcd4`."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sightline.contract.errors import DataError, assert_installed
from sightline.store.files.input_files import check_decompressed_size, convert_errors, damaged, read_file

_MAX_HEADER_LINES = 40
_MAX_HEADER_ENTRIES = 10
"""Maximum header lines besides comments; `pypcd4` takes further lines for points."""
_KINDS = ("ascii", "binary", "binary_compressed")
"""Values of DATA; `pypcd4` takes any other word for the last, and the next bytes for block sizes."""


class PcdFields(NamedTuple):
    """Fields of a PCD file by name in lower case, (N,) each in the file's dtype, and the bytes behind the points."""

    named: dict[str, np.ndarray]
    num_extra_bytes: int


def read_pcd(path: Path) -> PcdFields:
    """Read the fields of a file; a field of several numbers as `name_0000`. Points without a return are included.

    Numbers of text may be separated by several blanks or tabs. Raises DataError for a damaged file or one shorter than
    its header states; MissingExtraError without `pypcd4`.
    """
    content = read_file(path)
    num_points, kind, num_extra_bytes = _check_header(path, content)
    assert_installed("pypcd4", needed_by=f"{path}: reading .pcd files")
    from pypcd4 import PointCloud

    with convert_errors(path, "does not read as PCD"):
        if kind == "ascii":
            content = b"\n".join(b" ".join(line.split()) for line in content.splitlines())
        table = np.atleast_1d(PointCloud.from_fileobj(io.BufferedReader(io.BytesIO(content))).pc_data)
    if len(table) != num_points:
        raise damaged(f"{path}: promises {num_points} points and holds {len(table)}")
    names = [name for name in table.dtype.names or () if not name.startswith(("_", "#"))]
    return PcdFields({name.lower(): table[name] for name in names}, num_extra_bytes)


def _check_header(path: Path, content: bytes) -> tuple[int, str, int]:
    """Parse the header: number of points, value of DATA, and the number of bytes of a binary file behind its points.

    Raises DataError for a bad header, or points that cannot fit into the file.
    """
    file = io.BytesIO(content)
    entries: list[list[str]] = []
    for _ in range(_MAX_HEADER_LINES):
        fields = file.readline().decode("latin-1").split()
        entries += [fields] if fields and not fields[0].startswith("#") else []
        if fields and fields[0].upper() == "DATA":
            break
    header = {name.upper(): values for name, *values in entries}
    try:
        sizes = [int(token) for token in header["SIZE"]]
        counts = [int(token) for token in header.get("COUNT", ["1"] * len(sizes))]
        row_bytes = sum(size * count for size, count in zip(sizes, counts, strict=True))
        num_points, kind = int(header["POINTS"][0]), header["DATA"][0].lower()
        is_sound = min(*sizes, *counts, num_points + 1) > 0 and len(entries) <= _MAX_HEADER_ENTRIES
    except (KeyError, IndexError, ValueError, TypeError):
        is_sound = False
    if not is_sound:
        raise damaged(f"{path}: has no header of a PCD file (FIELDS, SIZE, POINTS, DATA)")
    if kind not in _KINDS:
        raise DataError(
            f"{path}: its points are DATA {kind[:40]}, which is not read; save them as {' or '.join(_KINDS)}"
        )
    available = len(content) - file.tell()
    stored, expanded = struct.unpack("<II", file.read(8).ljust(8, b"\0"))
    if kind == "ascii":
        claimed = num_points * 2 * sum(counts) - 1  # of each number a digit and a blank; the last may have none
    else:
        claimed = num_points * row_bytes if kind == "binary" else 8 + stored
    if claimed > available or (kind == "binary_compressed" and expanded != num_points * row_bytes):
        raise damaged(
            f"{path}: promises {num_points} points, at least {claimed} bytes, and {available} follow; it is cut short "
            "or its header is wrong"
        )
    check_decompressed_size(str(path), num_points * row_bytes, available)
    return num_points, kind, available - claimed if kind == "binary" else 0
