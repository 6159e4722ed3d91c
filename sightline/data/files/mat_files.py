"""MATLAB .mat files: the stated sizes are checked against the bytes before SciPy reads a variable.

SciPy trusts the sizes in a file: a wrong one allocates any amount of memory, or crashes the process.
Source: MathWorks, "MAT-File Format", level 5.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sightline.data.files.array_files import FREE_BYTES, READ_ERRORS, check_decompressed_size, summarise_error
from sightline.data.files.input_files import read_file
from sightline.errors import DataError, assert_installed

__all__ = ["read_mat"]

_HEADER_BYTES = 128
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
        raise DataError(
            f"{path}: {key} cannot be read ({summarise_error(error)}); the file is damaged or in another format"
        ) from error
    if key not in variables or variables[key].dtype.kind not in kinds:
        noun = "cells" if kinds == "O" else "numbers"
        raise DataError(f"{path}: has no array of {noun} '{key}'; the file is damaged or in another format")
    array: np.ndarray = variables[key]
    return array


def _check_file(content: bytes, key: str, path: Path) -> None:
    """Raise DataError or ValueError unless the variable `key` has the size that its elements state."""
    order = {b"IM": "<", b"MI": ">"}.get(content[_HEADER_BYTES - 2 : _HEADER_BYTES], "")
    if not order:
        raise ValueError("it has no header of MATLAB 5 to 7.2")
    file_part, position = _Part(memoryview(content), order), _HEADER_BYTES
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
