"""NPY and NPZ files: sizes are checked against the file before memory is allocated; pickled objects are refused.

MATLAB .mat files: the stated sizes are checked against the bytes before SciPy reads a variable.

SciPy trusts the sizes in a file: a wrong one allocates any amount of memory, or crashes the process.
Source: MathWorks, "MAT-File Format", level 5.

HDF5 arrays: datasets that are incomplete, or stored outside the file, are refused.

HDF5 fills missing data with zeros, and follows links, virtual datasets and raw storage into other files.
Nothing else in the package opens HDF5 files.
"""

from __future__ import annotations

import io
import lzma
import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np

from sightline.contract.errors import DataError, assert_installed
from sightline.store.files.input_files import assert_regular, copy_again, damaged, file_size, read_file

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


def check_array(array: Any, *, where: str, kinds: str, shapes: Collection[tuple[int | None, ...]], needed: str) -> None:
    """Raise DataError, led by `where`, for an array that is empty, or not of these `kinds` and one of these `shapes`.

    None is any length; `needed` completes the message. The array may be one of NumPy or of an HDF5 file.
    """

    def fits(shape: tuple[int | None, ...]) -> bool:
        pairs = zip(shape, array.shape, strict=False)
        return len(shape) == len(array.shape) and all(side in (None, size) for side, size in pairs)

    if array.dtype.kind not in kinds or 0 in array.shape or not any(map(fits, shapes)):
        raise DataError(f"{where} is {array.dtype} {array.shape}, {needed}")


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
        raise damaged(f"{path}: {key} cannot be read ({summarise_error(error)})") from error
    except MemoryError as error:  # also raised by Python's parser for a header of ten thousand brackets
        raise DataError(f"{path}: {key} does not fit into memory, or the file is damaged") from error


@contextmanager
def convert_errors(path: Path, fault: str, *further: type[Exception]) -> Iterator[None]:
    """Convert the exceptions of a format's reader, and `further` ones, into a DataError with the path and the fault."""
    errors: tuple[type[Exception], ...] = (*READ_ERRORS, LookupError, ArithmeticError, AssertionError, AttributeError)
    try:
        yield
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"{path}: does not fit into memory, or the file is damaged") from error
    except errors + further as error:
        raise damaged(f"{path}: {fault} ({summarise_error(error)})") from error


def summarise_error(error: BaseException) -> str:
    """Return the message of an error, shortened to fit into one line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


_MAT_HEADER_BYTES = 128
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15
_ITEM_BYTES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8}
_TEXT_TYPES = (1, 2, 4, 16, 17, 18)
_CELL, _STRUCT, _CHAR, _NUMBERS = 1, 2, 4, range(6, 16)
_IS_COMPLEX = 0x800
_MAX_DEPTH = 20
_MAX_DIMENSIONS = 32


def read_mat(path: Path, key: str, *, kinds: str = "fiu") -> np.ndarray:
    """Read one array of a file of MATLAB 5 to 7.2, of numbers, or of NumPy's `kinds` ("O" for cells).

    Raises DataError for a file without it, and for a damaged file.
    """
    assert_installed("scipy", needed_by=f"{path}: reading .mat files")
    from scipy.io import loadmat  # here, because every verb that lists data sets imports the modules that use this
    from scipy.io.matlab import MatReadError

    content = read_file(path)
    try:
        _check_file(content, key, path)
        variables = loadmat(io.BytesIO(content), variable_names=[key])
    except DataError:
        raise
    except (*READ_ERRORS, LookupError, MatReadError, MemoryError) as error:
        raise damaged(f"{path}: {key} cannot be read ({summarise_error(error)})") from error
    if key not in variables or variables[key].dtype.kind not in kinds:
        noun = "cells" if kinds == "O" else "numbers"
        raise damaged(f"{path}: has no array of {noun} '{key}'")
    array: np.ndarray = variables[key]
    return array


def _check_file(content: bytes, key: str, path: Path) -> None:
    """Raise DataError or ValueError unless the variable `key` has the size that its elements state."""
    order = {b"IM": "<", b"MI": ">"}.get(content[_MAT_HEADER_BYTES - 2 : _MAT_HEADER_BYTES], "")
    if not order:
        raise ValueError("it has no header of MATLAB 5 to 7.2")
    file_part, position = _Part(memoryview(content), order), _MAT_HEADER_BYTES
    while position < len(content):
        element = file_part.element(position)
        position, part = element.stop, file_part
        if element.kind == _COMPRESSED:
            part = _Part(memoryview(_decompress(content[element.start : element.stop], path)), order)
            element = part.element(0)
        else:
            position = element.next
        if element.kind != _MATRIX:
            raise ValueError(f"an element at byte {element.start} is of type {element.kind}, not a variable")
        part.check_matrix(element, only=key.encode("latin-1", "replace"))


def _decompress(stored: bytes, path: Path) -> bytes:
    """Decompress bytes. Raises DataError for far more output than arrays compress to, before all is in memory."""
    stream = zlib.decompressobj()
    content = stream.decompress(stored, max(FREE_BYTES, 100 * len(stored)) + 1)
    check_decompressed_size(str(path), len(content), len(stored))
    return content


class _Element(NamedTuple):
    """Type of an element, the bytes of its content, and the start of the next element."""

    kind: int
    start: int
    stop: int
    next: int


class _Part(NamedTuple):
    """Bytes of a file, or of a decompressed element."""

    data: memoryview
    order: str

    def element(self, at: int, end: int | None = None) -> _Element:
        """Read the tag of the element at a byte. Raises ValueError if it is truncated."""
        end = len(self.data) if end is None else end
        if at + 8 > end:
            raise ValueError(f"it is cut short at byte {at}")
        kind, size = struct.unpack_from(f"{self.order}II", self.data, at)
        start, next_start = at + 8, at + 8 + -(-size // 8) * 8
        if kind >> 16:  # up to four bytes are stored in the tag itself
            kind, size, start, next_start = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        if start + size > end or (start == at + 4 and size > 4):
            raise ValueError(f"byte {at} states {size} bytes, {end - start} follow")
        return _Element(kind, start, start + size, min(next_start, end))

    def expect_element(self, at: int, end: int, kind: int, description: str) -> _Element:
        """Read the element at a byte. Raises ValueError unless it is of the expected type."""
        element = self.element(at, end)
        if element.kind != kind:
            raise ValueError(f"byte {at} holds an element of type {element.kind}, {description} was expected")
        return element

    def check_matrix(self, matrix: _Element, *, only: bytes | None = None, depth: int = 0) -> None:
        """Raise ValueError if an array's content does not match its shape; `only` checks the array of this name."""
        at, end = matrix.start, matrix.stop
        if at == end and only is None:
            return  # an empty cell is stored so
        flags = self.expect_element(at, end, _UINT32, "the kind of an array")
        shape = self.expect_element(flags.next, end, _INT32, "a shape")
        name = self.expect_element(shape.next, end, _INT8, "a name")
        if only is not None and bytes(self.data[name.start : name.stop]).rstrip(b"\0") != only:
            return
        sides = self.integers(shape)
        if not 0 < len(sides) <= _MAX_DIMENSIONS or min(sides) < 0 or flags.stop - flags.start != 8:
            raise ValueError(f"byte {at}: an array of shape {sides[:4]}")
        self._check_content(self.integers(flags)[0], math.prod(sides), name.next, end, depth)

    def integers(self, element: _Element) -> tuple[int, ...]:
        """Read the int32 values of an element."""
        count = (element.stop - element.start) // 4
        return struct.unpack_from(f"{self.order}{count}i", self.data, element.start)

    def _check_content(self, flags: int, count: int, at: int, end: int, depth: int) -> None:
        """Raise ValueError if the content of an array does not match its number of elements."""
        array_class = flags & 0xFF
        if array_class in (_CELL, _STRUCT):
            if array_class == _STRUCT:
                length = self.expect_element(at, end, _INT32, "the length of names")
                names = self.expect_element(length.next, end, _INT8, "names")
                characters = self.integers(length)
                if len(characters) != 1 or characters[0] < 1 or (names.stop - names.start) < characters[0]:
                    raise ValueError(f"byte {at}: a structure without fields")
                count, at = count * ((names.stop - names.start) // characters[0]), names.next
            self._check_children(count, at, end, depth)
        elif array_class == _CHAR:
            text = self.element(at, end)
            if text.kind not in _TEXT_TYPES or count > max(text.stop - text.start, 1):
                raise ValueError(f"byte {at}: text of {count} letters in {text.stop - text.start} bytes")
        elif array_class in _NUMBERS:
            for _ in range(2 if flags & _IS_COMPLEX else 1):
                numbers = self.element(at, end)
                size = numbers.stop - numbers.start
                if count * _ITEM_BYTES.get(numbers.kind, 0) != size or numbers.kind not in _ITEM_BYTES:
                    raise ValueError(f"byte {at}: {count} numbers of type {numbers.kind} in {size} bytes")
                at = numbers.next
        else:
            raise ValueError(f"byte {at}: an array of the kind {array_class}, which is not read")

    def _check_children(self, count: int, at: int, end: int, depth: int) -> None:
        """Raise ValueError unless `count` arrays (of a cell or structure) follow."""
        if count > (end - at) // 8:
            raise ValueError(f"byte {at}: {count} arrays in {end - at} bytes")
        if depth > _MAX_DEPTH:
            raise ValueError(f"byte {at}: arrays in arrays more than {_MAX_DEPTH} deep")
        for _ in range(count):
            child = self.expect_element(at, end, _MATRIX, "an array")
            self.check_matrix(child, depth=depth + 1)
            at = child.next


NUMBERS = "biuf"
TEXT = "SO"
"""Kinds of NumPy dtypes; of Python objects (O) only strings are read."""
_MASK_BYTES = 2**30
"""Size up to which integers are read regardless of compression: a mask may repeat one number a million times."""


@dataclass(frozen=True)
class Hdf5File:
    """Arrays at the root of an open file. `what` names the expected kind of file in errors; may be empty."""

    path: Path
    root: Any
    what: str = ""

    def names(self) -> list[str]:
        """List the names at the root except groups; `array` refuses those that lead out of the file."""
        return [name for name in self.root if _leads_out(self.root, name) or not _is_group(self.root.get(name))]

    def array(self, key: str, *, kinds: str = NUMBERS) -> Any:
        """Return a dataset with a dtype of these `kinds`, to be read whole or in parts.

        Raises DataError naming file and key if it is missing, not an array of the kind, not in this file, incomplete,
        larger than its stored bytes allow, or stored in a way that cannot be read here.
        """
        where = f"{self.path}: {key}"
        if key not in list(self.root):  # not `in self.root`, which would open the file that a link leads to
            available = ", ".join(self.root) or "none"
            advice = f"is it {self.what}?" if self.what else "the file is damaged or in another format"
            raise DataError(f"{self.path}: has no key '{key}', it has {available}; {advice}")
        if _leads_out(self.root, key):
            raise DataError(f"{where} is a link out of this file, or to nothing; store its numbers in this file")
        dataset = self.root[key]
        if not hasattr(dataset, "shape"):
            description = "a group" if _is_group(dataset) else "a type"
            raise damaged(f"{where} is {description}, an array is needed")
        _check_kind(where, dataset, kinds)
        _check_stored(where, dataset, self.path.stat().st_size)
        return dataset


@contextmanager
def open_hdf5(path: Path, *, what: str = "") -> Iterator[Hdf5File]:
    """Open a file for reading; `what` as in `Hdf5File`. Raises DataError if it is damaged, also during reading."""
    import h5py  # here, because every verb that lists data sets imports this module

    assert_regular(path)
    try:
        with h5py.File(path, "r") as file:
            yield Hdf5File(path, file, what)
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(
            f"{path}: does not fit into memory ({summarise_error(error)}); use a machine with more"
        ) from error
    except (*READ_ERRORS, KeyError) as error:
        raise DataError(
            f"{path}: is not a sound HDF5 file ({summarise_error(error)}); it is damaged or in another format"
        ) from error


def read_hdf5_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read every array at the root of a file, by name; groups are skipped. Raises DataError naming the key."""
    with open_hdf5(path) as file:
        arrays = {name: file.array(name) for name in file.names()}
        return {name: array[...] for name, array in arrays.items()}


def hdf5_names(path: Path) -> list[str]:
    """List the names of the arrays at the root of a file. Raises DataError if it is damaged."""
    with open_hdf5(path) as file:
        return file.names()


def _is_group(item: Any) -> bool:
    return hasattr(item, "keys")


def _leads_out(root: Any, name: str) -> bool:
    """Return True if a name is a link to another file, or to nothing. It is not opened: it may be any file."""
    import h5py

    link = root.get(name, getlink=True)
    if isinstance(link, h5py.HardLink):
        return False
    if not isinstance(link, h5py.SoftLink):
        return True
    group = root
    for part in link.path.strip("/").split("/"):
        if not _is_group(group) or part not in list(group):
            return True
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            return True  # a link to a link: not used in practice, and may lead out of the file
        group = group[part]
    return False


def _check_kind(where: str, dataset: Any, kinds: str) -> None:
    """Raise DataError unless a dataset is an array of these kinds."""
    import h5py

    is_known = dataset.dtype.kind in kinds and (dataset.dtype.kind != "O" or h5py.check_string_dtype(dataset.dtype))
    if dataset.shape is None or not is_known:
        wanted = "numbers" if kinds == NUMBERS else "text"
        raise DataError(
            f"{where} is {dataset.dtype}, not an array of {wanted}; store {wanted}, or leave it out of the file"
        )


def _check_stored(where: str, dataset: Any, num_bytes: int) -> None:
    """Raise DataError unless a dataset is complete and readable in its own file, of `num_bytes`."""
    if dataset.is_virtual or dataset.external:
        raise DataError(f"{where} is stored in other files; store its numbers in this one")
    missing = _missing_filter(dataset)
    if missing:
        raise DataError(f"{where} is compressed by {missing}, which is not installed; store it with gzip or plain")
    stored, element_bytes = dataset.id.get_storage_size(), dataset.id.get_type().get_size()
    claimed = memory_bytes = math.prod(dataset.shape) * element_bytes
    is_complete = claimed <= stored
    if dataset.chunks is not None:  # chunks may be compressed, so they are counted; each is read as a whole
        sides = zip(dataset.shape, dataset.chunks, strict=True)
        num_chunks = math.prod(-(-length // chunk) for length, chunk in sides)
        is_complete = dataset.id.get_num_chunks() >= num_chunks
        memory_bytes = num_chunks * math.prod(dataset.chunks) * element_bytes
    if stored > num_bytes or not is_complete:
        raise copy_again(
            f"{where} claims to be {dataset.dtype} {dataset.shape}, {claimed} bytes, and {stored} are stored in a "
            f"file of {num_bytes}; it was not written to the end"
        )
    check_decompressed_size(
        where, memory_bytes, stored, free_bytes=FREE_BYTES if dataset.dtype.kind == "f" else _MASK_BYTES
    )


def _missing_filter(dataset: Any) -> str:
    """Return the first filter of a dataset that is not installed with HDF5; empty if all are."""
    import h5py

    property_list = dataset.id.get_create_plist()
    filters = [property_list.get_filter(index) for index in range(property_list.get_nfilters())]
    missing = [(code, name) for code, _, _, name in filters if not h5py.h5z.filter_avail(code)]
    return f"the HDF5 filter {missing[0][0]} {missing[0][1].decode('latin-1')}".rstrip() if missing else ""
