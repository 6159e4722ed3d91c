"""LiDAR point clouds in LAS and LAZ files, read with `laspy`."""

from __future__ import annotations

import logging
import struct
from pathlib import Path

import numpy as np

from sightline.data.files.array_files import READ_ERRORS, check_decompressed_size, summarise_error
from sightline.data.files.input_files import assert_regular, file_size
from sightline.errors import DataError, MissingExtraError, assert_installed

__all__ = ["read_las"]

_HEADER_BYTES = 227
_HEADER_BYTES_1_4 = 255
_VLR_BYTES = 54
_IS_COMPRESSED = 0x80


def read_las(path: Path) -> dict[str, np.ndarray]:
    """Read the columns of a file by name, (N,) float64 each: x, y, z in the file's unit, and every other dimension.

    Names are those of the specification in lower case, such as intensity, classification, return_number, gps_time, red;
    extra dimensions have their own names, `name_0000` and so on if they have several numbers per point.
    Raises DataError for a damaged file or one shorter than its header states; MissingExtraError without `laspy` or, for
    LAZ, without a decompressor. Source: LAS specification 1.4, table 3 (the header).
    """
    assert_regular(path)
    is_compressed = _check_header(path)
    assert_installed("laspy", needed_by=f"{path}: reading .las and .laz files")
    import laspy

    logging.getLogger("laspy").setLevel(logging.CRITICAL)  # it also logs the errors that it raises
    if is_compressed and not laspy.LazBackend.detect_available():
        raise MissingExtraError("lazrs", needed_by=f"{path}: reading .laz files")
    try:
        cloud = laspy.read(path)
        columns = {axis: np.asarray(getattr(cloud, axis), dtype=np.float64) for axis in "xyz"}
        for name in cloud.point_format.dimension_names:
            if name not in ("X", "Y", "Z"):
                columns |= _split_columns(name.lower(), np.asarray(cloud[name]))
    except MemoryError as error:
        raise DataError(f"{path}: does not fit into memory, or the file is damaged") from error
    except (
        *READ_ERRORS,
        LookupError,
        ArithmeticError,
        AssertionError,
        AttributeError,
        TypeError,
        RuntimeError,
    ) as error:
        raise DataError(
            f"{path}: does not read as LAS ({summarise_error(error)}); the file is damaged or in another format"
        ) from error
    except laspy.errors.LaspyException as error:
        raise DataError(
            f"{path}: does not read as LAS ({summarise_error(error)}); the file is damaged or in another format"
        ) from error
    return columns


def _split_columns(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """Split the values of a dimension into columns by name."""
    table = values.astype(np.float64)
    if table.ndim == 1:
        return {name: table}
    return {f"{name}_{index:04d}": column for index, column in enumerate(table.reshape(len(table), -1).T)}


def _check_header(path: Path) -> bool:
    """Return True if the points are compressed. Raises DataError for a bad header, or a file too short for it."""
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES_1_4)
    if len(head) < _HEADER_BYTES or head[:4] != b"LASF":
        raise DataError(
            f"{path}: does not begin with the header of a LAS file; the file is damaged or in another format"
        )
    start, num_records, kind, row_bytes, num_points = struct.unpack_from("<IIBHI", head, 96)
    if (head[24], head[25]) >= (1, 4) and len(head) == _HEADER_BYTES_1_4:
        num_points = max(num_points, *struct.unpack_from("<Q", head, 247))
    size, is_compressed = file_size(path), bool(kind & _IS_COMPRESSED)
    needed = start + (0 if is_compressed else num_points * row_bytes)
    if start < num_records * _VLR_BYTES or needed > size:
        raise DataError(
            f"{path}: its header promises {num_points} points of {row_bytes} bytes from byte {start} on, and "
            f"{num_records} records before; the file has {size} bytes; it is cut short or damaged: copy or download "
            "it again"
        )
    check_decompressed_size(str(path), num_points * row_bytes, size)
    return is_compressed
