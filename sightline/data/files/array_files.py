"""NPY and NPZ files: sizes are checked against the file before memory is allocated; pickled objects are refused."""

from __future__ import annotations

import io
import lzma
import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np

from sightline.data.files.input_files import assert_regular, file_size, read_file
from sightline.errors import DataError

__all__ = [
    "FREE_BYTES",
    "READ_ERRORS",
    "check_decompressed_size",
    "check_npy",
    "npz_array",
    "npz_header",
    "read_npy",
    "read_npz_arrays",
    "summarise_error",
]

_MAX_EXPANSION = 100
"""Maximum ratio of memory to stored size of an entry. Clouds are compressed 2 to 10 times, bombs 1,000 times."""
_HEADER_BYTES = 2**16
FREE_BYTES = 2**24
"""Size up to which an entry is read regardless of its compression."""


def read_npy(path: Path) -> np.ndarray:
    """Read the array of an NPY file. Objects are refused: reading them would run code (pickle).

    Raises DataError if the header claims another size than the file has, before anything of that size is allocated.
    """
    with _convert_errors(path, "the array"):
        return _parse_npy(read_file(path), f"{path}: the array")


def check_npy(path: Path) -> None:
    """Check the header of an NPY file that is about to be mapped into memory. Raises DataError as `read_npy`."""
    with _convert_errors(path, "the array"), path.open("rb") as file:
        head = io.BytesIO(file.read(_HEADER_BYTES))  # the stated length of a header may be arbitrarily large
        _check_claim(f"{path}: the array", _read_npy_header(head, f"{path}: the array"), file_size(path))


def read_npz_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read every array of an NPZ archive, by name. Raises DataError naming archive and entry."""
    with _convert_errors(path, "the archive"), zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if entry.filename.endswith(".npy")]
        names = [entry.filename.removesuffix(".npy") for entry in entries]
    check_decompressed_size(f"{path}: the archive", sum(entry.file_size for entry in entries), file_size(path))
    if not names:
        raise DataError(f"{path}: the archive holds no arrays; write one with numpy.savez")
    return {name: npz_array(path, name) for name in names}


def npz_header(path: Path, key: str, *, needed: str = "") -> tuple[tuple[int, ...], np.dtype]:
    """Read shape and dtype of an entry of an NPZ archive from its header. Raises DataError naming archive and entry.

    `needed` is added to the message if the archive has no such entry.
    """
    with _convert_errors(path, key, needed), zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
        entry = archive.getinfo(f"{key}.npy")
        check_decompressed_size(
            f"{path}: {key}", entry.file_size, entry.compress_size
        )  # before reading: a header can be a bomb, too
        header = _read_npy_header(file, f"{path}: {key}")
        _check_claim(f"{path}: {key}", header, entry.file_size)
    return header.shape, header.dtype


def npz_array(path: Path, key: str, *, needed: str = "") -> np.ndarray:
    """Read one entry of an NPZ archive and check its checksum. Raises as `npz_header`."""
    npz_header(path, key, needed=needed)
    with _convert_errors(path, key, needed), zipfile.ZipFile(path) as archive:
        # Read whole first: only at the end of an entry does zipfile compare its checksum.
        return _parse_npy(archive.read(f"{key}.npy"), f"{path}: {key}")


class _Header(NamedTuple):
    """Content of an NPY header, and the byte at which the numbers begin."""

    shape: tuple[int, ...]
    order: Literal["C", "F"]
    dtype: np.dtype
    start: int


def _read_npy_header(file: IO[bytes], where: str) -> _Header:
    """Read the header of an NPY file. Raises DataError for Python objects."""
    version = np.lib.format.read_magic(file)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about headers written by Python 2, which are valid
        shape, is_fortran, dtype = reader(file)
    if dtype.hasobject:
        raise DataError(f"{where} holds Python objects, which would run code when read; store plain numbers")
    return _Header(shape, "F" if is_fortran else "C", dtype, file.tell())


def _parse_npy(content: bytes, where: str) -> np.ndarray:
    """Parse the bytes of an NPY file to its array, read-only."""
    header = _read_npy_header(io.BytesIO(content), where)
    _check_claim(where, header, len(content))
    return np.frombuffer(content, header.dtype, offset=header.start).reshape(header.shape, order=header.order)


def _check_claim(where: str, header: _Header, num_bytes: int) -> None:
    """Raise DataError if a header claims another number of bytes than the file has."""
    claimed, available = math.prod(header.shape) * header.dtype.itemsize, num_bytes - header.start
    if claimed != available or any(length < 0 for length in header.shape):
        cause = "it is cut short" if available < claimed else "its header is wrong"
        raise DataError(
            f"{where} claims to be {header.dtype} {str(header.shape)[:80]}, {str(claimed)[:40]} bytes, and "
            f"{available} follow; {cause}: copy or download the file again"
        )


def check_decompressed_size(where: str, claimed: int, stored: int, *, free_bytes: int = FREE_BYTES) -> None:
    """Raise DataError if more than `free_bytes` would be decompressed from far fewer bytes."""
    if claimed > free_bytes and claimed > _MAX_EXPANSION * stored:
        raise DataError(
            f"{where}: {stored} stored bytes would become {claimed} in memory, which no cloud or image does; if it is "
            "yours, store it uncompressed"
        )


READ_ERRORS = (
    *(OSError, ValueError, TypeError, RuntimeError, EOFError, NotImplementedError, SyntaxError),
    *(tokenize.TokenError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
)
"""Exceptions of NumPy's and ZIP readers for damaged bytes."""


@contextmanager
def _convert_errors(path: Path, key: str, needed: str = "") -> Iterator[None]:
    """Convert the exceptions of a damaged or foreign file into a DataError that names the entry."""
    assert_regular(path)
    try:
        yield
    except KeyError as error:
        raise DataError(f"{path}: has no entry '{key}'{needed and f'; needed are {needed}'}") from error
    except READ_ERRORS as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path}: {key} cannot be read ({summarise_error(error)}); the file is damaged or in another format"
        ) from error
    except MemoryError as error:  # also raised by Python's parser for a header of ten thousand brackets
        raise DataError(f"{path}: {key} does not fit into memory, or the file is damaged") from error


def summarise_error(error: Exception) -> str:
    """Return the message of an error, shortened to fit into one line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
