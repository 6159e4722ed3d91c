"""PLY files: reader of text and binary of either byte order, and writer of coloured clouds.

Source: Turk 1994, "The PLY Polygon File Format".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sightline.contract.errors import DataError
from sightline.store.files.atomic_write import open_atomic
from sightline.store.files.input_files import copy_again, damaged, read_file
from sightline.store.files.mesh_elements import (
    Element,
    Mesh,
    Property,
    Values,
    read_binary_element,
    read_large_elements,
    read_text_elements,
    split_into_triangles,
)
from sightline.store.files.text_tables import parse_count, split_lines

_TYPES = {
    **dict(char="i1", uchar="u1", short="i2", ushort="u2", int="i4", uint="u4", float="f4", double="f8"),
    **dict(int8="i1", uint8="u1", int16="i2", uint16="u2", int32="i4", uint32="u4", float32="f4", float64="f8"),
}
_FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_CORNERS = ("vertex_indices", "vertex_index")
_MAX_HEADER_LINES = 1000
_CLASS_NAMES = b"comment class_names "
"""Beginning of the comment in which `write_ply` names classes: the rest is a list of texts in JSON."""
_MAX_NAMES_BYTES = 2**20


class _Header(NamedTuple):
    """Byte order of NumPy (empty for text), elements, and the size of the header."""

    order: str
    elements: dict[str, Element]
    num_bytes: int
    num_lines: int


def read_ply(path: Path) -> Mesh:
    """Read the vertices and faces of a PLY file; names are in lower case.

    Elements other than `vertex` and `face`, and lists other than a face's corners, are read and ignored.
    Raises DataError with file and line, or byte: for a header that claims more or less than the file contains, before
    anything of that size is allocated, and for anything else that the format does not allow.
    """
    content = read_file(path)
    header = _read_header(path, content)
    if header.order:
        values = _read_binary(path, content, header)
    elif (large := read_large_elements(path, content, header.num_bytes, [*header.elements.values()])) is not None:
        values = large
    else:
        lines = split_lines(content[header.num_bytes :].decode("latin-1"))
        numbers = range(header.num_lines + 1, header.num_lines + len(lines) + 1)
        values = read_text_elements(path, [*header.elements.values()], lines, numbers)
    lists = values["face"].lists if "face" in values else {}
    polygons = next((lists[name] for name in _CORNERS if name in lists), ())
    if not len(polygons):
        return Mesh(values["vertex"].scalars, None)
    faces = split_into_triangles(polygons, header.elements["vertex"].size, lambda index: f"{path}: face {index}")
    return Mesh(values["vertex"].scalars, faces)


def _read_header(path: Path, content: bytes) -> _Header:
    """Parse the header up to `end_header`. Raises DataError with the line."""
    lines: list[str] = []
    start = 0
    newline = b"\r" if content.startswith(b"ply\r") and not content.startswith(b"ply\r\n") else b"\n"
    while not lines or lines[-1] != "end_header":
        stop = content.find(newline, start)
        if not content.startswith(b"ply") or stop < 0 or len(lines) == _MAX_HEADER_LINES:
            start_text = content[:10].decode("latin-1")
            fault = "has no end_header" if lines else f"starts with {start_text!r}, not with 'ply'"
            raise copy_again(f"{path}:{len(lines) + 1}: {fault}; it is cut short or not a PLY file")
        lines.append(content[start:stop].decode("latin-1").strip())
        start = stop + 1
    match lines[1].split():
        case ["format", kind, "1.0"] if kind in _FORMATS:
            order = _FORMATS[kind]
        case _:
            raise damaged(f"{path}:2: {lines[1][:60]!r} is not a known format ({', '.join(_FORMATS)}, 1.0)")
    elements: dict[str, Element] = {}
    for number, line in enumerate(lines[2:-1], start=3):
        _add_header_line(elements, line, f"{path}:{number}")
    bare = next((name for name, element in elements.items() if not element.properties), None)
    if bare is not None:
        raise damaged(f"{path}: the header gives '{bare}' no properties")
    if "vertex" not in elements or not elements["vertex"].size:
        raise DataError(f"{path}: the header names no vertices; there is no cloud in it: leave the file out")
    return _Header(order, elements, start, len(lines))


def _add_header_line(elements: dict[str, Element], line: str, where: str) -> None:
    """Parse one line of the header into `elements`. Raises DataError for an unknown line."""
    match line.split():
        case ["comment" | "obj_info", *_]:
            return
        case ["element", name, size] if (count := parse_count(size)) is not None and name not in elements:
            elements[name] = Element(name, count, [])
            return
        case ["property", kind, name] if elements and kind in _TYPES:
            item = Property(name.lower(), _TYPES[kind])
        case ["property", "list", counter, kind, name] if elements and kind in _TYPES and counter in _TYPES:
            item = Property(name.lower(), _TYPES[kind], _TYPES[counter])
        case _:
            raise damaged(f"{where}: {line[:60]!r} is not a line of a PLY header")
    properties = [*elements.values()][-1].properties
    if item.counter.startswith("f"):
        raise damaged(f"{where}: {line[:60]!r} counts a list with fractions")
    if item.name in {other.name for other in properties}:
        raise damaged(f"{where}: {line[:60]!r} names '{item.name}' twice")
    properties.append(item)


def _read_binary(path: Path, content: bytes, header: _Header) -> dict[str, Values]:
    values, position = {}, header.num_bytes
    for element in header.elements.values():
        needed = element.size * element.row_bytes
        if needed > len(content) - position:
            raise copy_again(
                f"{path}: byte {position}: {element.size} x {element.name} need {needed} bytes, "
                f"{len(content) - position} are left; the file is cut short or its header is wrong"
            )
        values[element.name], position = read_binary_element(path, content, position, element, header.order)
    if position != len(content):
        raise copy_again(
            f"{path}: byte {position}: {len(content) - position} bytes more than the header announces; the file or "
            "its header is damaged"
        )
    return values


def read_class_names(path: Path) -> tuple[str, ...]:
    """Return the names of the classes whose numbers are the labels of a PLY file that `write_ply` wrote, or none."""
    with path.open("rb") as file:
        for _ in range(_MAX_HEADER_LINES):
            line = file.readline(_MAX_NAMES_BYTES)
            if line.startswith(_CLASS_NAMES):
                try:
                    names = json.loads(line.removeprefix(_CLASS_NAMES))
                except (ValueError, RecursionError):  # a comment of another program
                    return ()
                is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
                return tuple(names) if is_list else ()
            if not line or line.startswith(b"end_header"):
                break
    return ()


def write_ply(
    path: Path,
    *,
    points: np.ndarray,
    colors: np.ndarray,
    label: np.ndarray | None = None,
    class_names: Sequence[str] = (),
) -> None:
    """Write a cloud as a PLY file with the properties x y z red green blue and, if labels are given, label.

    `points` (N, 3) float32 or float64, written bit for bit; `colors` (N, 3) uint8; `label` (N,) integers, written with
    32 bits; `class_names` (C,) of labels 0 to C - 1, written as a comment that other programs pass over. The file is
    complete or absent; an older one of that name is replaced. Raises OSError as the disk does.
    """
    assert points.dtype.str[1:] in ("f4", "f8"), f"points are {points.dtype}"
    kind = "float" if points.itemsize == 4 else "double"
    kinds = {**dict.fromkeys("xyz", kind), **dict.fromkeys(("red", "green", "blue"), "uchar")}
    columns = [*points.T, *colors.T]
    if label is not None:
        kinds["label"] = "int"
        columns.append(label)
    rows = np.empty(len(points), [(name, f"<{_TYPES[kind]}") for name, kind in kinds.items()])
    for name, values in zip(kinds, columns, strict=True):
        rows[name] = values
    properties = [f"property {kind} {name}" for name, kind in kinds.items()]
    names = [f"{_CLASS_NAMES.decode()}{json.dumps(class_names)}"] if class_names else []
    vertex = f"element vertex {len(points)}"
    header = ["ply", "format binary_little_endian 1.0", *names, vertex, *properties, "end_header", ""]
    with open_atomic(path) as file:
        file.write("\n".join(header).encode("ascii"))
        file.write(rows.tobytes())
