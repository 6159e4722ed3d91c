"""PLY files, ASCII and binary of either byte order: vertex properties, and faces as triangles.

Source: Turk 1994, "The PLY Polygon File Format".

PLY writer for coloured point clouds: binary, little endian.

Source: Turk 1994, "The PLY Polygon File Format".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sightline.contract.errors import DataError
from sightline.store.files.atomic_write import open_atomic
from sightline.store.files.input_files import copy_again, damaged
from sightline.store.files.text_tables import parse_count, parse_rows, read_text, split_lines

_TYPES = {
    "char": "i1",
    "uchar": "u1",
    "short": "i2",
    "ushort": "u2",
    "int": "i4",
    "uint": "u4",
    "float": "f4",
    "double": "f8",
    "float32": "f4",
    "float64": "f8",
    **{f"{kind}{bits}": f"{kind[0]}{bits // 8}" for kind in ("int", "uint") for bits in (8, 16, 32)},
}
_FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_CORNERS = ("vertex_indices", "vertex_index")
_MAX_HEADER_LINES = 1000


class Ply(NamedTuple):
    """Scalar properties of the vertices, (V,) by name in lower case, in the file's dtype or, from text, float64.

    `faces` are triangles (F, 3) int64, or None.
    """

    vertex: dict[str, np.ndarray]
    faces: np.ndarray | None


class _Property(NamedTuple):
    """Property of an element: `kind` is a dtype without byte order, `counter` that of a list's length or empty."""

    name: str
    kind: str
    counter: str = ""


class _Element(NamedTuple):
    name: str
    size: int
    properties: list[_Property]

    @property
    def is_plain(self) -> bool:
        return not any(item.counter for item in self.properties)

    @property
    def row_bytes(self) -> int:
        """Minimum bytes of a row: those of a row with empty lists."""
        return sum(np.dtype(item.counter or item.kind).itemsize for item in self.properties)


class _Header(NamedTuple):
    order: str
    elements: list[_Element]
    num_bytes: int
    num_lines: int


class _Values(NamedTuple):
    """Values of an element: scalars (rows,) by name, and every list property as one array per row."""

    scalars: dict[str, np.ndarray]
    lists: Mapping[str, np.ndarray | Sequence[np.ndarray]]


def read_ply(path: Path) -> Ply:
    """Read the vertices and faces of a PLY file; polygons are split into triangle fans around their first corner.

    Elements other than `vertex` and `face`, and lists other than a face's corners, are read and ignored.
    Raises DataError with file and line, or byte: for a header that claims more or less than the file contains, before
    anything of that size is allocated, and for anything else that the format does not allow.
    """
    content = read_text(path)
    header = _read_header(path, content)
    if header.order:
        elements = _read_binary(path, content.encode("latin-1"), header)
    else:
        elements = _read_ascii(path, content[header.num_bytes :], header)
    polygons = elements["face"].lists if "face" in elements else {}
    corners = next((polygons[name] for name in _CORNERS if name in polygons), ())
    num_points = next(element.size for element in header.elements if element.name == "vertex")
    return Ply(elements["vertex"].scalars, _split_into_triangles(path, corners, num_points) if len(corners) else None)


def _read_header(path: Path, content: str) -> _Header:
    """Parse the header up to `end_header`. Raises DataError with the line."""
    lines: list[str] = []
    start = 0
    newline = "\r" if content.startswith("ply\r") and not content.startswith("ply\r\n") else "\n"
    while not lines or lines[-1] != "end_header":
        stop = content.find(newline, start)
        if stop < 0 or len(lines) == _MAX_HEADER_LINES or (not lines and stop > 10):
            fault = (
                "has no end_header" if content.startswith("ply") else f"starts with {content[:10]!r}, not with 'ply'"
            )
            raise copy_again(f"{path}:{len(lines) + 1}: {fault}; it is cut short or not a PLY file")
        lines.append(content[start:stop].strip())
        start = stop + 1
    if lines[0] != "ply":
        raise damaged(f"{path}:1: starts with {lines[0][:10]!r}, not with 'ply'")
    order = _parse_byte_order(path, lines[1])
    elements: list[_Element] = []
    for number, line in enumerate(lines[2:-1], start=3):
        _add_header_line(elements, line, f"{path}:{number}")
    bare = next((element.name for element in elements if not element.properties), None)
    if bare is not None:
        raise damaged(f"{path}: the header gives '{bare}' no properties")
    vertex = next((element for element in elements if element.name == "vertex"), None)
    if vertex is None or not vertex.size:
        raise DataError(f"{path}: the header names no vertices; there is no cloud in it: leave the file out")
    return _Header(order, elements, start, len(lines))


def _parse_byte_order(path: Path, line: str) -> str:
    """Parse the `format` line to NumPy's byte order, empty for ASCII."""
    fields = line.split()
    if len(fields) != 3 or fields[0] != "format" or fields[1] not in _FORMATS or fields[2] != "1.0":
        raise damaged(f"{path}:2: {line[:60]!r} is not a known format ({', '.join(_FORMATS)}, 1.0)")
    return _FORMATS[fields[1]]


def _add_header_line(elements: list[_Element], line: str, where: str) -> None:
    """Parse one line of the header into `elements`. Raises DataError for an unknown line."""
    fields = line.split()
    match fields:
        case ["comment" | "obj_info", *_]:
            return
        case ["element", name, size] if (count := parse_count(size)) is not None and name not in {
            item.name for item in elements
        }:
            elements.append(_Element(name, count, []))
            return
        case ["property", kind, name] if elements and kind in _TYPES:
            new_property = _Property(name.lower(), _TYPES[kind])
        case ["property", "list", counter, kind, name] if elements and kind in _TYPES and counter in _TYPES:
            new_property = _Property(name.lower(), _TYPES[kind], _TYPES[counter])
        case _:
            raise damaged(f"{where}: {line[:60]!r} is not a line of a PLY header")
    if new_property.counter.startswith("f") or new_property.name in {item.name for item in elements[-1].properties}:
        fault = (
            "counts a list with fractions"
            if new_property.counter.startswith("f")
            else f"names '{new_property.name}' twice"
        )
        raise damaged(f"{where}: {line[:60]!r} {fault}")
    elements[-1].properties.append(new_property)


def _read_binary(path: Path, content: bytes, header: _Header) -> dict[str, _Values]:
    position = header.num_bytes
    values_by_element = {}
    for element in header.elements:
        needed = element.size * element.row_bytes
        if needed > len(content) - position:
            raise copy_again(
                f"{path}: byte {position}: {element.size} x {element.name} need {needed} bytes, "
                f"{len(content) - position} are left; the file is cut short or its header is wrong"
            )
        values, position = _read_uniform_rows(content, position, element, header.order) or _read_ragged_rows(
            path, content, position, element, header.order
        )
        values_by_element[element.name] = values
    if position != len(content):
        raise copy_again(
            f"{path}: byte {position}: {len(content) - position} bytes more than the header announces; the file or "
            "its header is damaged"
        )
    return values_by_element


def _read_uniform_rows(content: bytes, position: int, element: _Element, order: str) -> tuple[_Values, int] | None:
    """Read rows without lists, or whose lists all have the length in the first row (triangles), at once; else None."""
    lengths = _read_first_lengths(content, position, element, order) if element.size else None
    if lengths is None:
        return None
    fields: list[tuple[str, str] | tuple[str, str, tuple[int]]] = []
    for item in element.properties:
        if item.counter:
            fields.append((f"number of {item.name}", order + item.counter))
            fields.append((item.name, order + item.kind, (lengths[item.name],)))
        else:
            fields.append((item.name, order + item.kind))
    dtype = np.dtype(fields)
    stop = position + element.size * dtype.itemsize
    if stop > len(content):
        return None
    table = np.frombuffer(content, dtype=dtype, count=element.size, offset=position)
    if any((table[f"number of {name}"] != length).any() for name, length in lengths.items()):
        return None
    scalars = {item.name: table[item.name] for item in element.properties if not item.counter}
    return _Values(scalars, {name: table[name] for name in lengths}), stop


def _read_first_lengths(content: bytes, position: int, element: _Element, order: str) -> dict[str, int] | None:
    """Read the lengths of the lists of the row at `position`, by name; None if the file ends in it."""
    lengths = {}
    for item in element.properties:
        length = 1
        if item.counter:
            count = np.dtype(order + item.counter)
            if position + count.itemsize > len(content):
                return None
            length = int(np.frombuffer(content, dtype=count, count=1, offset=position)[0])
            position += count.itemsize
            lengths[item.name] = length
        position += length * np.dtype(item.kind).itemsize
        if length < 0 or position > len(content):
            return None
    return lengths


def _read_ragged_rows(path: Path, content: bytes, position: int, element: _Element, order: str) -> tuple[_Values, int]:
    """Read rows with lists of any lengths, one by one. Raises DataError with the byte if the file is truncated."""
    scalars = {item.name: np.empty(element.size, order + item.kind) for item in element.properties if not item.counter}
    lists: dict[str, list[np.ndarray]] = {item.name: [] for item in element.properties if item.counter}
    for row in range(element.size):
        for item in element.properties:
            length = 1
            if item.counter:
                length = int(
                    _read_numbers(path, content, position, order + item.counter, 1, f"{element.name} {row}")[0]
                )
                position += np.dtype(item.counter).itemsize
            values = _read_numbers(path, content, position, order + item.kind, length, f"{element.name} {row}")
            position += values.nbytes
            if item.counter:
                lists[item.name].append(values)
            else:
                scalars[item.name][row] = values[0]
    return _Values(scalars, dict(lists)), position


def _read_numbers(path: Path, content: bytes, position: int, kind: str, count: int, subject: str) -> np.ndarray:
    """Read `count` numbers at a byte. Raises DataError if the file is truncated."""
    needed = count * np.dtype(kind).itemsize
    if not 0 <= needed <= len(content) - position:
        raise copy_again(
            f"{path}: byte {position}: {subject} needs {needed} bytes more, {len(content) - position} are left; the "
            "file is cut short or damaged"
        )
    return np.frombuffer(content, dtype=kind, count=count, offset=position)


def _read_ascii(path: Path, text: str, header: _Header) -> dict[str, _Values]:
    lines = split_lines(text)
    while lines and not lines[-1].strip():
        lines.pop()
    announced = sum(element.size for element in header.elements)
    if len(lines) != announced:
        counts = ", ".join(f"{element.size} x {element.name}" for element in header.elements)
        raise copy_again(
            f"{path}:{header.num_lines + len(lines)}: {counts} are announced, {len(lines)} lines follow the header; "
            "the file is cut short or its header is wrong"
        )
    values_by_element = {}
    start = 0
    for element in header.elements:
        rows = lines[start : start + element.size]
        numbers = range(header.num_lines + start + 1, header.num_lines + start + element.size + 1)
        values_by_element[element.name] = _parse_rows(path, rows, numbers, element)
        start += element.size
    return values_by_element


def _parse_rows(path: Path, rows: Sequence[str], numbers: range, element: _Element) -> _Values:
    """Parse the rows of one element: at once without lists, else one by one."""
    names = [item.name for item in element.properties]
    if rows and element.is_plain:
        table = parse_rows(rows, numbers, path=path, num_columns=len(names), is_finite=False)
        return _Values(dict(zip(names, table.T, strict=True)), {})
    scalars: dict[str, list[float]] = {item.name: [] for item in element.properties if not item.counter}
    lists: dict[str, list[np.ndarray]] = {item.name: [] for item in element.properties if item.counter}
    for number, row in zip(numbers, rows, strict=True):
        _parse_row(row.split(), element, scalars, lists, f"{path}:{number}")
    return _Values({name: np.array(values) for name, values in scalars.items()}, dict(lists))


def _parse_row(
    tokens: list[str],
    element: _Element,
    scalars: dict[str, list[float]],
    lists: dict[str, list[np.ndarray]],
    where: str,
) -> None:
    """Parse the numbers of one row. Raises DataError for a token that is not a number, or a wrong count."""
    index = 0
    try:
        values = [float(token) for token in tokens]
        for item in element.properties:
            length = 1
            if item.counter:
                length, index = int(tokens[index]), index + 1
            if length < 0 or index + length > len(values):
                raise IndexError
            if item.counter:
                lists[item.name].append(np.array(values[index : index + length]))
            else:
                scalars[item.name].append(values[index])
            index += length
        if index != len(values):
            raise IndexError
    except (ValueError, IndexError):
        listed = ", ".join(f"list {item.name}" if item.counter else item.name for item in element.properties)
        raise damaged(f"{where}: {' '.join(tokens)[:60]!r} is not a row of {listed}") from None


def _split_into_triangles(path: Path, polygons: np.ndarray | Sequence[np.ndarray], num_points: int) -> np.ndarray:
    """Split polygons of corners into triangles (F, 3) int64; fewer than three corners make no triangle.

    Raises DataError for a polygon without corners, and a corner that is not a vertex.
    """
    if isinstance(polygons, np.ndarray) and polygons.shape[1] == 3:
        corners = polygons
    else:
        empty = next((index for index, polygon in enumerate(polygons) if not len(polygon)), None)
        if empty is not None:
            raise copy_again(f"{path}: face {empty} has no corners; the file is damaged")
        fans = [(polygon[0], b, c) for polygon in polygons if len(polygon) > 2 for b, c in pairwise(polygon[1:])]
        corners = np.array(fans).reshape(-1, 3)
    invalid = np.argwhere(~((corners >= 0) & (corners < num_points) & (corners == np.floor(corners))))
    if len(invalid):
        index, corner = invalid[0]
        raise damaged(
            f"{path}: triangle {index} names vertex {corners[index, corner]:g}, there are {num_points} (0 to "
            f"{num_points - 1})"
        )
    return corners.astype(np.int64)


_PLY_TYPES = {"<f4": "float", "<f8": "double", "|u1": "uchar", "<i4": "int"}
_ROWS_AT_ONCE = 2**16


def write_ply(path: Path, *, points: np.ndarray, colors: np.ndarray, label: np.ndarray | None = None) -> None:
    """Write a cloud as a PLY file with the properties x y z red green blue and, if labels are given, label.

    `points` (N, 3) float32 or float64, written bit for bit; `colors` (N, 3) uint8; `label` (N,) integers, written with
    32 bits. The file is complete or absent; an older one of that name is replaced. Raises ValueError for arrays of
    another form, and OSError as the disk does.
    """
    _check_arrays(points, colors, label)
    columns = dict(zip(("x", "y", "z"), points.T, strict=True))
    columns |= dict(zip(("red", "green", "blue"), colors.T, strict=True))
    kinds = dict.fromkeys("xyz", f"<f{points.itemsize}") | dict.fromkeys(("red", "green", "blue"), "|u1")
    if label is not None:
        columns["label"], kinds["label"] = label, "<i4"
    properties = [f"property {_PLY_TYPES[kind]} {name}" for name, kind in kinds.items()]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}", *properties, "end_header", ""]
    with open_atomic(path) as file:
        file.write("\n".join(header).encode("ascii"))
        for start in range(0, len(points), _ROWS_AT_ONCE):
            rows = np.empty(len(points[start : start + _ROWS_AT_ONCE]), dtype=list(kinds.items()))
            for name, values in columns.items():
                rows[name] = values[start : start + _ROWS_AT_ONCE]
            file.write(rows.tobytes())


def _check_arrays(points: np.ndarray, colors: np.ndarray, label: np.ndarray | None) -> None:
    is_float = points.dtype.kind == "f" and points.itemsize in (4, 8)
    if not is_float or points.ndim != 2 or points.shape[1] != 3 or not len(points):
        raise ValueError(f"points: found {points.dtype} {points.shape}, expected float32 or float64 (N, 3), N >= 1")
    if colors.shape != points.shape or colors.dtype != np.uint8:
        raise ValueError(f"colors: found {colors.dtype} {colors.shape}, expected uint8 {points.shape}")
    if label is None:
        return
    if label.shape != points.shape[:1] or label.dtype.kind not in "iu":
        raise ValueError(f"label: found {label.dtype} {label.shape}, expected whole numbers {points.shape[:1]}")
    bounds = np.iinfo(np.int32)
    if label.min() < bounds.min or label.max() > bounds.max:
        raise ValueError(f"label: found {label.min()} to {label.max()}, a PLY file takes {bounds.min} to {bounds.max}")
