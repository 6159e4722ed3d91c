"""Arrays in NPY, NPZ and HDF5 files: sizes are checked against the file before any memory is taken; never unpickled."""

from __future__ import annotations

import io
import math
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np

from sightline.errors import DataError

__all__ = ["hdf5_array", "npz_array", "npz_header", "open_hdf5", "read_hdf5_arrays", "read_npy", "read_npz_arrays"]

_MAX_EXPANSION = 100
"""How often its stored size an entry may have in memory. Clouds are compressed 2 to 10 times, bombs 1,000 times."""
_FREE_BYTES = 2**24
"""Below this an entry is read however well it was compressed."""


def read_npy(path: Path) -> np.ndarray:
    """The array of an NPY file. Objects are refused: reading them would run code (pickle).

    Raises DataError if the header claims another size than the file has, before anything of that size is allocated.
    """
    with _faults(path, "the array"):
        return _array_of(path.read_bytes(), f"{path}: the array")


def read_npz_arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array of an NPZ archive by its name. Raises DataError naming archive and entry."""
    with _faults(path, "the archive"), zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if entry.filename.endswith(".npy")]
        names = [entry.filename.removesuffix(".npy") for entry in entries]
    _check_expansion(f"{path}: the archive", sum(entry.file_size for entry in entries), path.stat().st_size)
    if not names:
        raise DataError(f"{path}: the archive holds no arrays; write one with numpy.savez")
    return {name: npz_array(path, name) for name in names}


def npz_header(path: Path, key: str, *, needed: str = "") -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an entry of an NPZ archive, from its header alone. Raises DataError naming archive and entry.

    `needed` is told to a user whose archive has no such entry.
    """
    with _faults(path, key, needed), zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
        entry = archive.getinfo(f"{key}.npy")
        _check_expansion(f"{path}: {key}", entry.file_size, entry.compress_size)  # first: a header too can be a bomb
        header = _npy_header(file, f"{path}: {key}")
        _check_claim(f"{path}: {key}", header, entry.file_size)
    return header.shape, header.dtype


def npz_array(path: Path, key: str, *, needed: str = "") -> np.ndarray:
    """One entry of an NPZ archive, its checksum compared. Raises as `npz_header`."""
    npz_header(path, key, needed=needed)
    with _faults(path, key, needed), zipfile.ZipFile(path) as archive:
        # Read whole first: only at the end of an entry does zipfile compare its checksum.
        return _array_of(archive.read(f"{key}.npy"), f"{path}: {key}")


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """An HDF5 file, open for reading. Raises DataError for one that is damaged, also while it is read."""
    import h5py  # here, because every verb that lists data sets imports this module

    try:
        with h5py.File(path, "r") as file:
            yield file
    except DataError:
        raise
    except (*_DAMAGE, KeyError) as error:
        raise DataError(f"{path}: is no sound HDF5 file ({_first_line(error)}); get it again") from error


def read_hdf5_arrays(path: Path) -> dict[str, np.ndarray]:
    """Every data set at the root of an HDF5 file by its name; groups are left out. Raises DataError naming the key."""
    with open_hdf5(path) as file:
        num_bytes = path.stat().st_size
        names = [name for name in file if _is_own(file, name) and hasattr(file.get(name), "shape")]
        for name in names:
            _check_hdf5(f"{path}: {name}", file[name], num_bytes)
        return {name: file[name][...] for name in names}


def hdf5_array(file: Any, key: str, *, path: Path) -> Any:
    """A data set of an open HDF5 file, to be read in parts. Raises DataError naming the key if it is not sound."""
    if key not in file or not _is_own(file, key) or not hasattr(file.get(key), "shape"):
        held = ", ".join(sorted(file)) or "nothing"
        raise DataError(f"{path}: has no array '{key}', it holds {held}; get the file again")
    _check_hdf5(f"{path}: {key}", file[key], path.stat().st_size)
    return file[key]


def _is_own(file: Any, name: str) -> bool:
    """Whether a name leads nowhere but into this file."""
    import h5py

    return not isinstance(file.get(name, getlink=True), h5py.ExternalLink)


def _check_hdf5(where: str, dataset: Any, num_bytes: int) -> None:
    """An HDF5 data set can claim any size and hold nothing: what is not stored would be made up from its fill value."""
    if dataset.shape is None or dataset.dtype.hasobject:
        raise DataError(f"{where} is {dataset.dtype}, no array of numbers; store numbers, or leave it out of the file")
    if dataset.is_virtual or dataset.external:
        raise DataError(f"{where} lies in other files; store its numbers in this one")
    stored = dataset.id.get_storage_size()
    claimed = math.prod(dataset.shape) * dataset.dtype.itemsize
    if stored > num_bytes or _lacks_parts(dataset, stored, claimed):
        raise DataError(
            f"{where} claims to be {dataset.dtype} {dataset.shape}, {claimed} bytes, and {stored} are stored in a "
            f"file of {num_bytes}; it was not written to the end: get it again"
        )
    _check_expansion(where, claimed, stored)


class _Header(NamedTuple):
    """What an NPY header says, and the byte at which the numbers begin."""

    shape: tuple[int, ...]
    order: Literal["C", "F"]
    dtype: np.dtype
    start: int


def _npy_header(file: IO[bytes], where: str) -> _Header:
    version = np.lib.format.read_magic(file)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a header that Python 2 wrote: it is understood
        shape, is_fortran, dtype = reader(file)
    if dtype.hasobject:
        raise DataError(f"{where} holds Python objects, which would run code when read; store plain numbers")
    return _Header(shape, "F" if is_fortran else "C", dtype, file.tell())


def _array_of(content: bytes, where: str) -> np.ndarray:
    """The array of the bytes of an NPY file, read-only."""
    header = _npy_header(io.BytesIO(content), where)
    _check_claim(where, header, len(content))
    return np.frombuffer(content, header.dtype, offset=header.start).reshape(header.shape, order=header.order)


def _check_claim(where: str, header: _Header, num_bytes: int) -> None:
    claimed, there = math.prod(header.shape) * header.dtype.itemsize, num_bytes - header.start
    if claimed != there or any(length < 0 for length in header.shape):
        likely = "it is cut short" if there < claimed else "its header is wrong"
        raise DataError(
            f"{where} claims to be {header.dtype} {header.shape}, {claimed} bytes, and {there} follow; {likely}: "
            "get the file again"
        )


def _check_expansion(where: str, claimed: int, stored: int) -> None:
    if claimed > _FREE_BYTES and claimed > _MAX_EXPANSION * stored:
        raise DataError(
            f"{where}: {stored} stored bytes would become {claimed} in memory, which no cloud does; if it is yours, "
            "store it uncompressed"
        )


def _lacks_parts(dataset: Any, stored: int, claimed: int) -> bool:
    """Chunks may be compressed, so they are counted; what has no chunks is stored as it is."""
    if dataset.chunks is None:
        return stored < claimed
    wanted = math.prod(-(-length // chunk) for length, chunk in zip(dataset.shape, dataset.chunks, strict=True))
    return dataset.id.get_num_chunks() < wanted


_DAMAGE = (
    *(OSError, ValueError, TypeError, RuntimeError, EOFError, NotImplementedError, SyntaxError),
    *(tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
"""What the readers of NumPy, and of ZIP archives, raise for bytes that they do not understand."""


@contextmanager
def _faults(path: Path, key: str, needed: str = "") -> Iterator[None]:
    """Turn what a damaged or foreign file raises into a DataError that names the entry."""
    try:
        yield
    except KeyError as error:
        raise DataError(f"{path}: has no entry '{key}'{needed and f'; needed are {needed}'}") from error
    except _DAMAGE as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: {key} cannot be read ({_first_line(error)}); get the file again") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
