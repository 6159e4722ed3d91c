"""LiDAR point clouds in LAS and LAZ files, read with `laspy`."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from sightline.contract.errors import DataError, MissingExtraError, assert_installed
from sightline.store.files.input_files import check_decompressed_size, convert_errors, copy_again, damaged, open_regular

_HEADER_BYTES, _HEADER_BYTES_1_4 = 227, 255
_VLR_BYTES = 54
_LASZIP_RECORD = 22204
_POINTWISE = 1
_MAX_CHUNK_BYTES = 2**30
"""Largest chunk in memory that a file of few points may state; a usual one has 50,000 points."""
_IS_COMPRESSED = 0x80
_CLASS_OVERLAP = 12


class LasContent(NamedTuple):
    """Columns of a file, (N,) each, the number of bytes behind its points that no record explains, and their step.

    `step` is the coarsest of the three steps of the coordinates, in the file's unit.
    """

    columns: Mapping[str, np.ndarray]
    num_extra_bytes: int
    step: float


def read_las(path: Path) -> LasContent:
    """Read the columns of a file by name, (N,) each: x, y, z float64 in the file's unit, and every other dimension.

    Names are those of the specification in lower case, such as intensity, classification, return_number, gps_time, red;
    extra dimensions have their own names, `name_0000` and so on if they have several numbers per point. Formats 0 to 5
    have no flag `overlap`: there it is made of class 12, which means it.
    Raises DataError for a damaged file or one shorter than its header states; MissingExtraError without `laspy` or, for
    LAZ, without a decompressor. Source: LAS specification 1.4, table 3 (the header).
    """
    with open_regular(path) as file:
        is_compressed = _check_header(path, file)
        num_extra_bytes = 0 if is_compressed else _count_extra_bytes(file)
    assert_installed("laspy", needed_by=f"{path}: reading .las and .laz files")
    import laspy

    if is_compressed and not laspy.LazBackend.detect_available():
        raise MissingExtraError("lazrs", needed_by=f"{path}: reading .laz files")
    logging.getLogger("laspy").setLevel(logging.CRITICAL)  # it also logs the errors that it raises
    with convert_errors(path, "does not read as LAS"):
        cloud = laspy.read(path)
        return LasContent(LasColumns(cloud), num_extra_bytes, float(np.max(cloud.header.scales)))


class LasColumns(Mapping[str, np.ndarray]):
    """Columns (N,) of a file that `laspy` has read, by name; each is unpacked when it is looked up."""

    def __init__(self, cloud: Any) -> None:
        self._cloud = cloud
        self._places: dict[str, tuple[str, int | None]] = {axis: (axis, None) for axis in "xyz"}
        for dimension in cloud.point_format.dimensions:
            name, count = dimension.name.lower(), dimension.num_elements
            if count > 1:
                self._places |= {f"{name}_{index:04d}": (dimension.name, index) for index in range(count)}
            elif dimension.name not in ("X", "Y", "Z"):
                self._places[name] = (dimension.name, None)
        self._places.setdefault("overlap", ("", None))

    def __getitem__(self, name: str) -> np.ndarray:
        dimension, index = self._places[name]
        if not dimension:
            return (self["classification"] == _CLASS_OVERLAP).astype(np.uint8)
        values = np.asarray(getattr(self._cloud, dimension) if dimension in "xyz" else self._cloud[dimension])
        return values if index is None else values[:, index]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _check_header(path: Path, file: IO[bytes]) -> bool:
    """Return True if the points are compressed. Raises DataError for a bad header, or a file too short for it."""
    head, size = file.read(_HEADER_BYTES_1_4), file.seek(0, 2)
    if len(head) < _HEADER_BYTES or head[:4] != b"LASF":
        raise damaged(f"{path}: does not begin with the header of a LAS file")
    start, num_records, kind, row_bytes, num_points = struct.unpack_from("<IIBHI", head, 96)
    if (head[24], head[25]) >= (1, 4) and len(head) == _HEADER_BYTES_1_4:
        num_points = max(num_points, *struct.unpack_from("<Q", head, 247))
    is_compressed = bool(kind & _IS_COMPRESSED)
    needed = start + (0 if is_compressed else num_points * row_bytes)
    if start < num_records * _VLR_BYTES or needed > size:
        raise copy_again(
            f"{path}: its header promises {num_points} points of {row_bytes} bytes from byte {start} on, and "
            f"{num_records} records before; the file has {size} bytes; it is cut short or damaged"
        )
    check_decompressed_size(str(path), num_points * row_bytes, size)
    if is_compressed:
        _check_chunks(path, file, head, num_points)
    return is_compressed


def _count_extra_bytes(file: IO[bytes]) -> int:
    """Count the bytes behind the points, of a file without extended records and waveforms there; less than a point: 0.

    Source: LAS specification 1.4, table 3 (227: start of waveforms; 235, 243: start and number of extended records).
    """
    file.seek(0)
    head, size = file.read(_HEADER_BYTES_1_4).ljust(_HEADER_BYTES_1_4, b"\0"), file.seek(0, 2)
    start, _, _, row_bytes, num_points = struct.unpack_from("<IIBHI", head, 96)
    version, header_bytes = (head[24], head[25]), struct.unpack_from("<H", head, 94)[0]
    if version >= (1, 4):
        num_points = max(num_points, *struct.unpack_from("<Q", head, 247))
    has_waveforms = version >= (1, 3) and header_bytes >= 235 and struct.unpack_from("<Q", head, 227)[0] > 0
    has_records = version >= (1, 4) and struct.unpack_from("<I", head, 243)[0] > 0
    extra = size - start - num_points * row_bytes
    return 0 if has_waveforms or has_records or extra < max(row_bytes, 1) else extra


def _check_chunks(path: Path, file: IO[bytes], head: bytes, num_points: int) -> None:
    """Raise DataError for a LAZ file without chunks, or whose chunks are more, larger or hold fewer than its points.

    The decompressor allocates what the file states, and ends the process if there is no such memory.
    Source: Isenburg 2013, LASzip; its record has the size of a chunk in points (2^32 - 1: it varies).
    """
    at, start, num_records, _, row_bytes = struct.unpack_from("<HIIBH", head, 94)
    size, chunk_points = file.seek(0, 2), 0
    (table,) = _unpack_at(file, start, "<q")
    if table == -1:
        (table,) = _unpack_at(file, size - 8, "<q")
    (num_chunks,) = _unpack_at(file, table + 4, "<I") if start < table <= size - 8 else (0,)
    for _ in range(num_records):
        user, number, length = _unpack_at(file, at, "<2x16sHH")
        if (user.rstrip(b"\0"), number) == (b"laszip encoded", _LASZIP_RECORD):
            compressor, chunk_points = _unpack_at(file, at + _VLR_BYTES, "<H10xI")
            if compressor == _POINTWISE:
                raise DataError(
                    f"{path}: is compressed point by point, without chunks, which is not read; write the file anew "
                    "with LAStools or PDAL"
                )
        at += _VLR_BYTES + length
    most = max(_MAX_CHUNK_BYTES, num_points * row_bytes)
    is_fixed = chunk_points != 2**32 - 1
    is_short = is_fixed and 0 < num_chunks * chunk_points < num_points  # decompressed past their end
    if num_chunks > num_points + 1 or is_short or (is_fixed and chunk_points * row_bytes > most):
        raise copy_again(
            f"{path}: states {num_chunks} chunks of {chunk_points} points, and has {num_points} points; the file is "
            "damaged"
        )


def _unpack_at(file: IO[bytes], at: int, kinds: str) -> tuple[Any, ...]:
    """Unpack numbers at a byte of a file; beyond its end there are zeros."""
    file.seek(at)
    return struct.unpack(kinds, file.read(struct.calcsize(kinds)).ljust(struct.calcsize(kinds), b"\0"))
