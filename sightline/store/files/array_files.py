"""NPY and NPZ files: sizes are checked against the file before memory is allocated; pickled objects are refused."""

from __future__ import annotations

import io
import math
import warnings
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np

from sightline.contract.errors import DataError
from sightline.store.files.input_files import (
    assert_regular,
    check_decompressed_size,
    convert_errors,
    file_size,
    read_file,
)

_HEADER_BYTES = 2**16


def read_npy(path: Path) -> np.ndarray:
    """Read the array of an NPY file. Objects are refused: reading them would run code (pickle).

    Raises DataError if the header claims another size than the file has, before anything of that size is allocated.
    """
    assert_regular(path)
    with convert_errors(path, "the array cannot be read"):
        return _parse_npy(read_file(path), f"{path}: the array")


def check_npy(path: Path) -> None:
    """Check the header of an NPY file that is about to be mapped into memory. Raises DataError as `read_npy`."""
    assert_regular(path)
    with convert_errors(path, "the array cannot be read"), path.open("rb") as file:
        head = io.BytesIO(file.read(_HEADER_BYTES))  # the stated length of a header may be arbitrarily large
        _read_npy_header(head, f"{path}: the array", file_size(path))


def npz_names(path: Path) -> list[str]:
    """List the names of the arrays of an NPZ archive. Raises DataError for a damaged one, and for one that expands."""
    assert_regular(path)
    with convert_errors(path, "the archive cannot be read"), zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if entry.filename.endswith(".npy")]
    check_decompressed_size(f"{path}: the archive", sum(entry.file_size for entry in entries), file_size(path))
    return [entry.filename.removesuffix(".npy") for entry in entries]


def read_npz_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read every array of an NPZ archive, by name. Raises DataError naming archive and entry."""
    names = npz_names(path)
    if not names:
        raise DataError(f"{path}: the archive holds no arrays; write one with numpy.savez")
    return {name: npz_array(path, name) for name in names}


def npz_header(path: Path, key: str, *, needed: str = "") -> tuple[tuple[int, ...], np.dtype]:
    """Read shape and dtype of an entry of an NPZ archive from its header. Raises DataError naming archive and entry.

    `needed` is added to the message if the archive has no such entry.
    """
    assert_regular(path)
    with convert_errors(path, f"{key} cannot be read"), zipfile.ZipFile(path) as archive:
        if f"{key}.npy" not in archive.namelist():
            raise DataError(f"{path}: has no entry '{key}'{needed and f'; needed are {needed}'}")
        entry = archive.getinfo(f"{key}.npy")
        # Before reading: a header can be a bomb, too.
        check_decompressed_size(f"{path}: {key}", entry.file_size, entry.compress_size)
        with archive.open(entry) as file:
            header = _read_npy_header(file, f"{path}: {key}", entry.file_size)
    return header.shape, header.dtype


def npz_array(path: Path, key: str, *, needed: str = "") -> np.ndarray:
    """Read one entry of an NPZ archive and check its checksum. Raises as `npz_header`."""
    npz_header(path, key, needed=needed)
    with convert_errors(path, f"{key} cannot be read"), zipfile.ZipFile(path) as archive:
        # Read whole first: only at the end of an entry does zipfile compare its checksum.
        return _parse_npy(archive.read(f"{key}.npy"), f"{path}: {key}")


class _Header(NamedTuple):
    """Content of an NPY header, and the byte at which the numbers begin."""

    shape: tuple[int, ...]
    order: Literal["C", "F"]
    dtype: np.dtype
    start: int


def _read_npy_header(file: IO[bytes], where: str, num_bytes: int) -> _Header:
    """Read the header of an NPY file of so many bytes. Raises DataError for Python objects, and for another size."""
    version = np.lib.format.read_magic(file)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about headers written by Python 2, which are valid
        shape, is_fortran, dtype = reader(file)
    if dtype.hasobject:
        raise DataError(f"{where} holds Python objects, which would run code when read; store plain numbers")
    claimed, available = math.prod(shape) * dtype.itemsize, num_bytes - file.tell()
    if claimed != available or any(length < 0 for length in shape):
        cause = "it is cut short" if available < claimed else "its header is wrong"
        raise DataError(
            f"{where} claims to be {dtype} {str(shape)[:80]}, {str(claimed)[:40]} bytes, and {available} follow; "
            f"{cause}: copy or download the file again"
        )
    return _Header(shape, "F" if is_fortran else "C", dtype, file.tell())


def _parse_npy(content: bytes, where: str) -> np.ndarray:
    """Parse the bytes of an NPY file to its array, read-only."""
    header = _read_npy_header(io.BytesIO(content), where, len(content))
    return np.frombuffer(content, header.dtype, offset=header.start).reshape(header.shape, order=header.order)


def check_array(array: Any, *, where: str, kinds: str, shapes: Collection[tuple[int | None, ...]], needed: str) -> None:
    """Raise DataError, led by `where`, for an array that is empty, or not of these `kinds` and one of these `shapes`.

    None is any length; `needed` completes the message. The array may be one of NumPy or of an HDF5 file.
    """

    def fits(shape: tuple[int | None, ...]) -> bool:
        pairs = zip(shape, array.shape, strict=False)
        return len(shape) == len(array.shape) and all(side in (None, size) for side, size in pairs)

    if array.dtype.kind not in kinds or 0 in array.shape or not any(map(fits, shapes)):
        raise DataError(f"{where} is {array.dtype} {array.shape}, {needed}")
