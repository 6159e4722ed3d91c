"""Arrays of MATLAB .mat files of version 5 to 7.2; no size in a file is believed before its bytes are there.

SciPy believes them: a wrong one allocates any amount of memory, or crashes the process.
Source: MathWorks, "MAT-File Format", level 5.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sightline.store.files.input_files import FREE_BYTES, check_decompressed_size, convert_errors, damaged, read_file

_HEADER_BYTES = 128
_MATRIX, _COMPRESSED = 14, 15
_ITEMS = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
    16: "u1",
    17: "u2",
    18: "u4",
}
"""NumPy's names of the types of stored numbers, and of the letters of UTF-8, 16 and 32."""
_CELL, _STRUCT, _TEXT = 1, 2, 4
_CLASSES = dict(enumerate(("f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"), start=6))
"""NumPy's names of the classes of arrays, whose numbers may be stored in a smaller type."""
_IS_COMPLEX = 0x800
_MAX_DEPTH = 20
_MAX_DIMENSIONS = 32


def read_mat(path: Path, key: str, *, kinds: str = "fiu") -> np.ndarray:
    """Read an array of a file, of numbers, or of NumPy's `kinds` ("O" for cells).

    A cell holds arrays, text as `str`, cells, and structures as dicts of their fields. Raises DataError for a file
    without the array, and for a damaged file.
    """
    content = read_file(path)
    with convert_errors(path, f"{key} cannot be read"):
        value = _find_variable(content, key, path)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds:
        raise damaged(f"{path}: has no array of {'cells' if kinds == 'O' else 'numbers'} '{key}'")
    return value


def _find_variable(content: bytes, key: str, path: Path) -> Any:
    """Read the value of a variable; None if the file has none of that name."""
    order = {b"IM": "<", b"MI": ">"}.get(content[_HEADER_BYTES - 2 : _HEADER_BYTES])
    if order is None:
        raise ValueError("it has no header of MATLAB 5 to 7.2")
    at = _HEADER_BYTES
    while at < len(content):
        part = _Part(content, order)
        kind, start, stop, at = part.element(at, len(content))
        if kind == _COMPRESSED:
            part, at = _Part(_decompress(content[start:stop], path), order), stop
            kind, start, stop, _ = part.element(0, len(part.data))
        if kind != _MATRIX:
            raise ValueError(f"an element at byte {start} is of type {kind}, not a variable")
        name, value = part.array(start, stop, only=key)
        if name == key:
            return value
    return None


def _decompress(stored: bytes, path: Path) -> bytes:
    """Decompress bytes. Raises DataError for far more output than arrays compress to, before all is in memory."""
    content = zlib.decompressobj().decompress(stored, max(FREE_BYTES, 100 * len(stored)) + 1)
    check_decompressed_size(str(path), len(content), len(stored))
    return content


class _Part(NamedTuple):
    """Bytes of a file, or of a decompressed variable, and their order. Methods raise ValueError for damaged ones."""

    data: bytes
    order: str

    def element(self, at: int, end: int) -> tuple[int, int, int, int]:
        """Read the element at a byte: its type, the bytes of its content, and the start of the next element."""
        if at + 8 > end:
            raise ValueError(f"it is cut short at byte {at}")
        kind, size = struct.unpack_from(f"{self.order}II", self.data, at)
        start, next_start = at + 8, at + 8 + -(-size // 8) * 8
        if kind >> 16:  # up to four bytes are stored in the tag itself
            kind, size, start, next_start = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        if start + size > end or (start == at + 4 and size > 4):
            raise ValueError(f"byte {at} states {size} bytes, {end - start} follow")
        return kind, start, start + size, min(next_start, end)

    def numbers(self, at: int, end: int, kinds: str = "iuf") -> tuple[np.ndarray, int]:
        """Read the numbers of the element at a byte, and return the start of the next one."""
        kind, start, stop, next_start = self.element(at, end)
        dtype = np.dtype(self.order + _ITEMS.get(kind, "V1"))
        if dtype.kind not in kinds or (stop - start) % dtype.itemsize:
            raise ValueError(f"byte {at}: numbers of type {kind} in {stop - start} bytes")
        return np.frombuffer(self.data, dtype, (stop - start) // dtype.itemsize, start), next_start

    def array(self, at: int, end: int, *, only: str | None = None, depth: int = 0) -> tuple[str, Any]:
        """Read the name and value of an array; of a name other than `only` the value is None."""
        if at == end and only is None:
            return "", np.empty((0, 0))  # an empty cell is stored so
        flags, at = self.numbers(at, end, "u")
        shape, at = self.numbers(at, end, "i")
        letters, at = self.numbers(at, end)
        name, sides = letters.tobytes().decode("latin-1").rstrip("\0"), shape.tolist()
        if only not in (None, name):
            return name, None
        if len(flags) != 2 or not 0 < len(sides) <= _MAX_DIMENSIONS or min(sides) < 0 or depth > _MAX_DEPTH:
            raise ValueError(f"byte {at}: an array of shape {sides[:4]}, {depth} deep in others")
        return name, self._value(int(flags[0]), sides, at, end, depth)

    def _value(self, flags: int, sides: list[int], at: int, end: int, depth: int) -> Any:
        """Read the content of an array. Raises ValueError if it does not match its number of elements."""
        array_class, count = flags & 0xFF, math.prod(sides)
        if array_class == _TEXT:
            letters, _ = self.numbers(at, end)
            text = letters.tobytes().decode() if letters.itemsize == 1 else "".join(map(chr, letters.tolist()))
            return text[:count]
        if array_class == _CELL:
            cells = np.empty(count, dtype=object)
            for index, value in enumerate(self._children(count, at, end, depth)):
                cells[index] = value
            return cells.reshape(sides, order="F")
        if array_class == _STRUCT and count == 1:
            length, at = self.numbers(at, end, "i")
            letters, at = self.numbers(at, end)
            names = [name.rstrip(b"\0").decode("latin-1") for name in letters.view(f"S{int(length[0])}")]
            return dict(zip(names, self._children(len(names), at, end, depth), strict=True))
        if array_class not in _CLASSES or flags & _IS_COMPLEX:
            raise ValueError(f"byte {at}: an array of the kind {flags:#x}, which is not read")
        numbers, _ = self.numbers(at, end)
        if len(numbers) != count:
            raise ValueError(f"byte {at}: {count} numbers are announced, {len(numbers)} are there")
        return numbers.astype(_CLASSES[array_class]).reshape(sides, order="F")

    def _children(self, count: int, at: int, end: int, depth: int) -> list[Any]:
        """Read the values of `count` arrays, of a cell or structure."""
        if count > (end - at) // 8:
            raise ValueError(f"byte {at}: {count} arrays in {end - at} bytes")
        values = []
        for _ in range(count):
            kind, start, stop, at = self.element(at, end)
            if kind != _MATRIX:
                raise ValueError(f"byte {start} holds an element of type {kind}, an array was expected")
            values.append(self.array(start, stop, depth=depth + 1)[1])
        return values
