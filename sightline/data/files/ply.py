"""PLY files, ASCII and binary of either byte order: the numbers of the vertices, and the faces as triangles.

Source: Turk 1994, "The PLY Polygon File Format".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sightline.data.files.text_tables import parse_count, parse_rows, read_text
from sightline.errors import DataError

__all__ = ["Ply", "read_ply"]

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
    """Every scalar property of the vertices, (V,) float64 by name in small letters; triangles (F, 3) int64 or None."""

    vertex: dict[str, np.ndarray]
    faces: np.ndarray | None


class _Property(NamedTuple):
    """`kind` is a NumPy type without byte order; `counter` that of a list's length, empty for a scalar."""

    name: str
    kind: str
    counter: str = ""


class _Element(NamedTuple):
    name: str
    size: int
    properties: list[_Property]

    @property
    def is_plain(self) -> bool:
        return not any(each.counter for each in self.properties)

    @property
    def row_bytes(self) -> int:
        """The bytes of a row whose lists are all empty: no row has fewer."""
        return sum(np.dtype(each.counter or each.kind).itemsize for each in self.properties)


class _Header(NamedTuple):
    order: str
    elements: list[_Element]
    num_bytes: int
    num_lines: int


class _Values(NamedTuple):
    """An element as read: scalars (rows,) by name, and every list property as one array a row."""

    scalars: dict[str, np.ndarray]
    lists: Mapping[str, np.ndarray | Sequence[np.ndarray]]


def read_ply(path: Path) -> Ply:
    """The vertices and faces of a PLY file; polygons become fans of triangles around their first corner.

    Elements other than `vertex` and `face`, and lists other than a face's corners, are read and left out.
    Raises DataError with file and line, or byte: for a header that claims more or less than the file holds, before
    anything of that size is allocated, and for anything else that the format does not allow.
    """
    content = read_text(path)
    header = _read_header(path, content)
    if header.order:
        read = _read_binary(path, content.encode("latin-1"), header)
    else:
        read = _read_ascii(path, content[header.num_bytes :], header)
    polygons = read["face"].lists if "face" in read else {}
    corners = next((polygons[name] for name in _CORNERS if name in polygons), ())
    num_points = next(element.size for element in header.elements if element.name == "vertex")
    return Ply(read["vertex"].scalars, _fans(path, corners, num_points) if len(corners) else None)


def _read_header(path: Path, content: str) -> _Header:
    """Everything up to and with `end_header`. Raises DataError with the line."""
    lines: list[str] = []
    start = 0
    while not lines or lines[-1] != "end_header":
        stop = content.find("\n", start)
        if stop < 0 or len(lines) == _MAX_HEADER_LINES or (not lines and stop > 10):
            what = "has no end_header" if content.startswith("ply") else f"starts with {content[:10]!r}, not with 'ply'"
            raise DataError(f"{path}:{len(lines) + 1}: {what}; it is cut short or no PLY file: get it again")
        lines.append(content[start:stop].strip())
        start = stop + 1
    if lines[0] != "ply":
        raise DataError(f"{path}:1: starts with {lines[0][:10]!r}, not with 'ply'; get the file again")
    order = _byte_order(path, lines[1])
    elements: list[_Element] = []
    for number, line in enumerate(lines[2:-1], start=3):
        _add_header_line(elements, line, f"{path}:{number}")
    bare = next((element.name for element in elements if not element.properties), None)
    if bare is not None:
        raise DataError(f"{path}: the header gives '{bare}' no properties; get the file again")
    vertex = next((element for element in elements if element.name == "vertex"), None)
    if vertex is None or not vertex.size:
        raise DataError(f"{path}: the header names no vertices; there is no cloud in it: leave the file out")
    return _Header(order, elements, start, len(lines))


def _byte_order(path: Path, line: str) -> str:
    words = line.split()
    if len(words) != 3 or words[0] != "format" or words[1] not in _FORMATS or words[2] != "1.0":
        raise DataError(
            f"{path}:2: {line[:60]!r} is not a known format ({', '.join(_FORMATS)}, 1.0); get the file again"
        )
    return _FORMATS[words[1]]


def _add_header_line(elements: list[_Element], line: str, where: str) -> None:
    """Take one line of the header in. Raises DataError for one that says nothing known."""
    words = line.split()
    match words:
        case ["comment" | "obj_info", *_]:
            return
        case ["element", name, size] if (count := parse_count(size)) is not None and name not in {
            each.name for each in elements
        }:
            elements.append(_Element(name, count, []))
            return
        case ["property", kind, name] if elements and kind in _TYPES:
            added = _Property(name.lower(), _TYPES[kind])
        case ["property", "list", counter, kind, name] if elements and kind in _TYPES and counter in _TYPES:
            added = _Property(name.lower(), _TYPES[kind], _TYPES[counter])
        case _:
            raise DataError(f"{where}: {line[:60]!r} is not a line of a PLY header; get the file again")
    if added.counter.startswith("f") or added.name in {each.name for each in elements[-1].properties}:
        fault = "counts a list with fractions" if added.counter.startswith("f") else f"names '{added.name}' twice"
        raise DataError(f"{where}: {line[:60]!r} {fault}; get the file again")
    elements[-1].properties.append(added)


def _read_binary(path: Path, content: bytes, header: _Header) -> dict[str, _Values]:
    position = header.num_bytes
    read = {}
    for element in header.elements:
        needed = element.size * element.row_bytes
        if needed > len(content) - position:
            raise DataError(
                f"{path}: byte {position}: {element.size} x {element.name} need {needed} bytes, "
                f"{len(content) - position} are left; the file is cut short or its header is wrong: get it again"
            )
        if element.is_plain:
            values, position = _plain_rows(content, position, element, header.order)
        else:
            values, position = _uniform_rows(content, position, element, header.order) or _any_rows(
                path, content, position, element, header.order
            )
        read[element.name] = values
    if position != len(content):
        raise DataError(
            f"{path}: byte {position}: {len(content) - position} bytes more than the header announces; get the file "
            "again or mend its header"
        )
    return read


def _plain_rows(content: bytes, position: int, element: _Element, order: str) -> tuple[_Values, int]:
    """Rows without lists, all at once."""
    dtype = np.dtype([(each.name, order + each.kind) for each in element.properties])
    table = np.frombuffer(content, dtype=dtype, count=element.size, offset=position)
    scalars = {each.name: _as_float64(table[each.name]) for each in element.properties}
    return _Values(scalars, {}), position + element.size * dtype.itemsize


def _as_float64(values: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # a signalling NaN: it is refused as any other
        return values.astype(np.float64)


def _uniform_rows(content: bytes, position: int, element: _Element, order: str) -> tuple[_Values, int] | None:
    """Rows whose lists are as long as in the first row (triangles, as a rule), all at once; None if any is not."""
    if not element.size:
        return _no_rows(element), position
    lengths = _first_lengths(content, position, element, order)
    if lengths is None:
        return None
    fields: list[tuple[str, str] | tuple[str, str, tuple[int]]] = []
    for each in element.properties:
        if each.counter:
            fields.append((f"number of {each.name}", order + each.counter))
            fields.append((each.name, order + each.kind, (lengths[each.name],)))
        else:
            fields.append((each.name, order + each.kind))
    dtype = np.dtype(fields)
    stop = position + element.size * dtype.itemsize
    if stop > len(content):
        return None
    table = np.frombuffer(content, dtype=dtype, count=element.size, offset=position)
    if any((table[f"number of {name}"] != length).any() for name, length in lengths.items()):
        return None
    scalars = {each.name: _as_float64(table[each.name]) for each in element.properties if not each.counter}
    return _Values(scalars, {name: table[name] for name in lengths}), stop


def _first_lengths(content: bytes, position: int, element: _Element, order: str) -> dict[str, int] | None:
    """The lengths of the lists of the row that begins here, by name; None if the file ends in it."""
    lengths = {}
    for each in element.properties:
        length = 1
        if each.counter:
            count = np.dtype(order + each.counter)
            if position + count.itemsize > len(content):
                return None
            length = int(np.frombuffer(content, dtype=count, count=1, offset=position)[0])
            position += count.itemsize
            lengths[each.name] = length
        position += length * np.dtype(each.kind).itemsize
        if length < 0 or position > len(content):
            return None
    return lengths


def _no_rows(element: _Element) -> _Values:
    return _Values(
        {each.name: np.empty(0) for each in element.properties if not each.counter},
        {each.name: () for each in element.properties if each.counter},
    )


def _any_rows(path: Path, content: bytes, position: int, element: _Element, order: str) -> tuple[_Values, int]:
    """Rows with lists of any lengths, one by one. Raises DataError with the byte where the file ends too soon."""
    scalars = {each.name: np.empty(element.size) for each in element.properties if not each.counter}
    lists: dict[str, list[np.ndarray]] = {each.name: [] for each in element.properties if each.counter}
    for row in range(element.size):
        for each in element.properties:
            length = 1
            if each.counter:
                length = int(_take(path, content, position, order + each.counter, 1, f"{element.name} {row}")[0])
                position += np.dtype(each.counter).itemsize
            values = _take(path, content, position, order + each.kind, length, f"{element.name} {row}")
            position += values.nbytes
            if each.counter:
                lists[each.name].append(values)
            else:
                scalars[each.name][row] = values[0]
    return _Values(scalars, dict(lists)), position


def _take(path: Path, content: bytes, position: int, kind: str, count: int, what: str) -> np.ndarray:
    needed = count * np.dtype(kind).itemsize
    if not 0 <= needed <= len(content) - position:
        raise DataError(
            f"{path}: byte {position}: {what} needs {needed} bytes more, {len(content) - position} are left; the file "
            "is cut short or damaged: get it again"
        )
    return np.frombuffer(content, dtype=kind, count=count, offset=position)


def _read_ascii(path: Path, text: str, header: _Header) -> dict[str, _Values]:
    lines = text.replace("\r\n", "\n").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    announced = sum(element.size for element in header.elements)
    if len(lines) != announced:
        listed = ", ".join(f"{element.size} x {element.name}" for element in header.elements)
        raise DataError(
            f"{path}:{header.num_lines + len(lines)}: {listed} are announced, {len(lines)} lines follow the header; "
            "the file is cut short or its header is wrong: get it again"
        )
    read = {}
    start = 0
    for element in header.elements:
        rows = lines[start : start + element.size]
        numbers = range(header.num_lines + start + 1, header.num_lines + start + element.size + 1)
        read[element.name] = _ascii_rows(path, rows, numbers, element)
        start += element.size
    return read


def _ascii_rows(path: Path, rows: Sequence[str], numbers: range, element: _Element) -> _Values:
    """The rows of one element; at once where all lists are as long as in the first row, else one by one."""
    names = [each.name for each in element.properties]
    if not rows:
        return _no_rows(element)
    if element.is_plain:
        table = parse_rows(rows, numbers, path=path, num_columns=len(names))
        return _Values(dict(zip(names, table.T, strict=True)), {})
    scalars: dict[str, list[float]] = {each.name: [] for each in element.properties if not each.counter}
    lists: dict[str, list[np.ndarray]] = {each.name: [] for each in element.properties if each.counter}
    for number, row in zip(numbers, rows, strict=True):
        _ascii_row(row.split(), element, scalars, lists, f"{path}:{number}")
    return _Values({name: np.array(values) for name, values in scalars.items()}, dict(lists))


def _ascii_row(
    tokens: list[str],
    element: _Element,
    scalars: dict[str, list[float]],
    lists: dict[str, list[np.ndarray]],
    where: str,
) -> None:
    """Take the numbers of one row in. Raises DataError for a token that is no number, and for too few or too many."""
    place = 0
    try:
        values = [float(token) for token in tokens]
        for each in element.properties:
            length = 1
            if each.counter:
                length, place = int(tokens[place]), place + 1
            if length < 0 or place + length > len(values):
                raise IndexError
            if each.counter:
                lists[each.name].append(np.array(values[place : place + length]))
            else:
                scalars[each.name].append(values[place])
            place += length
        if place != len(values):
            raise IndexError
    except (ValueError, IndexError):
        listed = ", ".join(f"list {each.name}" if each.counter else each.name for each in element.properties)
        raise DataError(f"{where}: {' '.join(tokens)[:60]!r} is not a row of {listed}; get the file again") from None


def _fans(path: Path, polygons: np.ndarray | Sequence[np.ndarray], num_points: int) -> np.ndarray:
    """Triangles (F, 3) int64 of polygons given by their corners; fewer than three have no area and fan to none.

    Raises DataError for a polygon without corners, and a corner that is no vertex.
    """
    if isinstance(polygons, np.ndarray) and polygons.shape[1] == 3:
        corners = polygons
    else:
        bare = next((place for place, polygon in enumerate(polygons) if not len(polygon)), None)
        if bare is not None:
            raise DataError(f"{path}: face {bare} has no corners; the file is damaged: get it again")
        fans = [(each[0], b, c) for each in polygons if len(each) > 2 for b, c in pairwise(each[1:])]
        corners = np.array(fans).reshape(-1, 3)
    wrong = np.argwhere(~((corners >= 0) & (corners < num_points) & (corners == np.floor(corners))))
    if len(wrong):
        place, corner = wrong[0]
        raise DataError(
            f"{path}: triangle {place} names vertex {corners[place, corner]:g}, there are {num_points} "
            f"(0 to {num_points - 1}); get the file again"
        )
    return corners.astype(np.int64)
