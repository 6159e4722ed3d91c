"""PCD files of the Point Cloud Library: text, binary and compressed, read with `pypcd4`."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import IO

import numpy as np

from sightline.data.files.array_files import READ_ERRORS, check_decompressed_size, summarise_error
from sightline.data.files.input_files import assert_regular, file_size
from sightline.errors import DataError, assert_installed

__all__ = ["read_pcd"]

_HEADER_LINES = 40
_HEADER_ENTRIES = 10
"""Maximum header lines; `pypcd4` takes further lines for points."""
_LINE_BYTES = 4096
_KINDS = ("ascii", "binary", "binary_compressed")
"""Values of DATA; `pypcd4` takes any other word for the last, and the next bytes for block sizes."""
_TEXT_BYTES = 2
"""Minimum bytes of a number in text: a digit and a blank."""


def read_pcd(path: Path, *, keeps_no_returns: bool = False) -> dict[str, np.ndarray]:
    """Read the fields of a file by name in lower case, (N,) float64 each; a field of several numbers as `name_0000`.

    Points without a return, whose x, y and z are all NaN by the format's definition, are dropped unless
    `keeps_no_returns`. Raises DataError for a damaged file or one shorter than its header states; MissingExtraError
    without `pypcd4`.
    """
    assert_regular(path)
    with path.open("rb") as file:
        num_points = _check_header(path, file)
    assert_installed("pypcd4", needed_by=f"{path}: reading .pcd files")
    from pypcd4 import PointCloud

    try:
        table = np.atleast_1d(PointCloud.from_path(path).pc_data)
    except MemoryError as error:
        raise DataError(f"{path}: does not fit into memory, or the file is damaged") from error
    except (*READ_ERRORS, LookupError, ArithmeticError, AssertionError) as error:
        raise DataError(
            f"{path}: does not read as PCD ({summarise_error(error)}); the file is damaged or in another format"
        ) from error
    if len(table) != num_points:
        raise DataError(
            f"{path}: promises {num_points} points and holds {len(table)}; the file is damaged or in another format"
        )
    names = [name for name in table.dtype.names or () if not name.startswith("_")]
    with np.errstate(invalid="ignore"):  # a signalling NaN is dropped or refused like any other NaN
        columns = {name.lower(): table[name].reshape(len(table)).astype(np.float64) for name in names}
    if keeps_no_returns or not {"x", "y", "z"} <= columns.keys():
        return columns
    is_return = ~np.all([np.isnan(columns[axis]) for axis in "xyz"], axis=0)
    return {name: values[is_return] for name, values in columns.items()}


def _check_header(path: Path, file: IO[bytes]) -> int:
    """Return the number of points. Raises DataError for a bad header, or points that cannot fit into the file."""
    entries: dict[str, list[str]] = {}
    num_entries = 0
    for _ in range(_HEADER_LINES):
        fields = file.readline(_LINE_BYTES).decode("latin-1").split()
        if fields and not fields[0].startswith("#"):
            entries[fields[0].upper()] = fields[1:]
            num_entries += 1
        if fields and fields[0].upper() == "DATA":
            break
    try:
        sizes = [int(token) for token in entries["SIZE"]]
        counts = [int(token) for token in entries.get("COUNT", ["1"] * len(sizes))]
        row_bytes = sum(size * count for size, count in zip(sizes, counts, strict=True))
        num_points, kind = int(entries["POINTS"][0]), entries["DATA"][0].lower()
        is_read = kind in _KINDS and num_entries <= _HEADER_ENTRIES
        minimum = min(*sizes, *counts, num_points + 1) if is_read else 0
    except (KeyError, IndexError, ValueError, TypeError):
        minimum = 0
    if minimum < 1:
        raise DataError(
            f"{path}: has no header of a PCD file (FIELDS, SIZE, POINTS, DATA); the file is damaged or in another "
            "format"
        )
    available = file_size(path) - file.tell()
    claimed = num_points * {"binary": row_bytes, "ascii": _TEXT_BYTES * sum(counts) - 1}.get(kind, 0)
    # The last line of text may end without a break; bytes after the binary points are an error.
    if claimed > available + 1 or (kind == "binary" and claimed != available):
        raise DataError(
            f"{path}: promises {num_points} points, at least {claimed} bytes, and {available} follow; it is cut short "
            "or its header is wrong: copy or download the file again"
        )
    if kind == "binary_compressed":
        stored, expanded = struct.unpack("<II", file.read(8).ljust(8, b"\0"))
        if available < 8 + stored or expanded != num_points * row_bytes:
            raise DataError(
                f"{path}: promises {num_points} points of {row_bytes} bytes, its compressed part states {stored} "
                f"bytes that become {expanded}, and {available} follow; the file is damaged or in another format"
            )
    check_decompressed_size(str(path), num_points * row_bytes, available)
    return num_points
