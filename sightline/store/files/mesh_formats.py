"""Meshes in OFF, OBJ and STL files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from sightline.contract.errors import DataError
from sightline.store.files.column_names import COLOURS, POINTS
from sightline.store.files.input_files import copy_again, damaged, read_file
from sightline.store.files.mesh_elements import (
    Element,
    Mesh,
    Property,
    read_large_elements,
    read_text_elements,
    split_into_triangles,
)
from sightline.store.files.text_tables import parse_count, parse_rows, read_text, split_lines

_OBJ_COLUMNS = {3: POINTS, 4: (*POINTS, "w"), 6: (*POINTS, *COLOURS), 7: (*POINTS, "w", *COLOURS)}
"""Columns of a line `v` by their number."""
_OBJ_IGNORED = frozenset("vn vt vp g o s mg l p usemtl mtllib usemap maplib bevel c_interp d_interp lod".split())
"""Keywords of lines about neither vertices nor polygons."""
_STL_KEYWORDS = frozenset("solid facet outer vertex endloop endfacet endsolid".split())
_STL_TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
_STL_HEADER_BYTES = 84
_OFF_HEADER_BYTES = 2**12


def read_off(path: Path) -> Mesh:
    """Read the mesh of an ASCII OFF file.

    Counts glued to the magic word (`OFF490 518 0`), comments, blank lines and colours after a face are accepted.
    Raises DataError with path and line.
    Source: Princeton Shape Benchmark, "Object File Format"; Wu et al. 2015 (ModelNet, its glued headers).
    """
    content = read_file(path)
    if (mesh := _read_large_off(path, content)) is not None:
        return mesh
    texts = [line.partition("#")[0].strip() for line in split_lines(content.decode("latin-1"))]
    numbers = [number for number, text in enumerate(texts, start=1) if text]
    lines = [text for text in texts if text]
    if not lines:
        raise damaged(f"{path}: is empty, an OFF mesh was expected")
    if not lines[0].startswith("OFF"):
        raise DataError(
            f"{path}:{numbers[0]}: starts with {lines[0][:20]!r}, not with 'OFF'; only ASCII OFF meshes are read"
        )
    start = 1 if lines[0][3:].strip() or len(lines) == 1 else 2
    header = lines[0][3:] if start == 1 else lines[1]
    counts = [parse_count(token) for token in header.split()]
    if len(counts) not in (2, 3) or None in counts:
        raise damaged(
            f"{path}:{numbers[start - 1]}: needs the numbers of vertices, faces and edges, found {header[:40]!r}"
        )
    num_vertices, num_faces = counts[0] or 0, counts[1] or 0
    elements = _off_elements(num_vertices, num_faces)
    values = read_text_elements(path, elements, lines[start:], numbers[start:], has_more=True, is_finite=True)
    if not num_faces:
        return Mesh(values["vertex"].scalars, None)
    face_lines = numbers[start + num_vertices :]
    faces = split_into_triangles(
        values["face"].lists["corners"], num_vertices, lambda index: f"{path}:{face_lines[index]}"
    )
    return Mesh(values["vertex"].scalars, faces)


def _off_elements(num_vertices: int, num_faces: int) -> list[Element]:
    return [
        Element("vertex", num_vertices, [Property(axis, "f8") for axis in POINTS]),
        Element("face", num_faces, [Property("corners", "i8", "i8")]),
    ]


def _read_large_off(path: Path, content: bytes) -> Mesh | None:
    """Read a large OFF file of plain rows below a plain header; None for others, and for files of other faults."""
    words, start = list[str](), 0
    while start < _OFF_HEADER_BYTES and len(words) < 2 and (end := content.find(b"\n", start) + 1):
        line = content[start:end].partition(b"#")[0].decode("latin-1").strip()
        words += line.replace("OFF", "OFF ", 1).split(None, 1) if not words else [line] * bool(line)
        start = end
    counts = [parse_count(token) for token in words[1].split()] if words[:1] == ["OFF"] and len(words) == 2 else []
    if len(counts) not in (2, 3) or not counts[0] or not counts[1]:
        return None
    elements = _off_elements(counts[0], counts[1])
    values = read_large_elements(path, content, start, elements, has_more=True)
    if values is None:
        return None
    first = content.count(b"\n", 0, start) + counts[0] + 1
    faces = split_into_triangles(values["face"].lists["corners"], counts[0], lambda index: f"{path}:{first + index}")
    return Mesh(values["vertex"].scalars, faces)


def read_obj(path: Path) -> Mesh:
    """Read the vertices and polygons of an OBJ file.

    Raises DataError with the line, also for lines of curves and surfaces. Source: Wavefront, "Object Files (.obj)".
    """
    vertices: dict[int, str] = {}
    polygons: dict[int, list[int]] = {}
    for number, line in _join_continued(split_lines(read_text(path))):
        keyword, *tokens = line.partition("#")[0].split() or ["o"]
        if keyword == "v":
            vertices[number] = " ".join(tokens)
        elif keyword == "f":
            polygons[number] = [_parse_corner(token, len(vertices), f"{path}:{number}") for token in tokens]
        elif keyword not in _OBJ_IGNORED:
            raise DataError(
                f"{path}:{number}: {line.strip()[:40]!r} is not a line of vertices or polygons that is read"
            )
    width = len(next(iter(vertices.values()), "").split())
    if width not in _OBJ_COLUMNS:
        raise DataError(f"{path}: its vertices have {width} numbers, 3, 4, 6 or 7 are needed; the file is damaged")
    table = parse_rows([*vertices.values()], [*vertices], path=path, num_columns=width)
    columns = dict(zip(_OBJ_COLUMNS[width], table.T, strict=True))
    if not polygons:
        return Mesh(columns, None)
    lines = [*polygons]
    faces = split_into_triangles([*polygons.values()], len(vertices), lambda index: f"{path}:{lines[index]}")
    return Mesh(columns, faces)


def _join_continued(lines: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield each line with its number; one that ends in a backslash goes on in the next."""
    parts: list[str] = []
    for number, line in enumerate(lines, start=1):
        parts.append(line.removesuffix("\\"))
        if not line.endswith("\\") or number == len(lines):
            yield number - len(parts) + 1, " ".join(parts)
            parts = []


def _parse_corner(token: str, num_vertices: int, where: str) -> int:
    """Parse a corner `v`, `v/vt`, `v//vn` or `v/vt/vn`; numbers count from 1, or backwards from the last vertex."""
    text = token.partition("/")[0]
    index = parse_count(text.removeprefix("-"))
    if not index:
        raise DataError(f"{where}: {token[:40]!r} is not a corner of a polygon; the file is damaged")
    return num_vertices - index if text.startswith("-") else index - 1


def read_stl(path: Path) -> Mesh:
    """Read the triangles of a binary or text STL file; equal corners are one vertex.

    Raises DataError with the line or the number of bytes. Source: 3D Systems 1988, "StereoLithography Interface".
    """
    content = read_file(path)
    count = int.from_bytes(content[_STL_HEADER_BYTES - 4 : _STL_HEADER_BYTES], "little")
    expected = _STL_HEADER_BYTES + count * _STL_TRIANGLE.itemsize
    if len(content) == expected:  # the header of a binary file may begin with "solid", too
        corners = np.frombuffer(content, _STL_TRIANGLE, offset=_STL_HEADER_BYTES)["corners"].reshape(-1, 3)
    elif content[:5].lower() == b"solid":
        corners = _parse_stl_corners(path, split_lines(content.decode("latin-1")))
    else:
        raise copy_again(
            f"{path}: has {len(content)} bytes, an STL file of {count} triangles has {expected}; it is cut short or in "
            "another format"
        )
    vertices, faces = np.unique(corners, axis=0, return_inverse=True)
    return Mesh(dict(zip(POINTS, vertices.T, strict=True)), faces.reshape(-1, 3))


def _parse_stl_corners(path: Path, lines: list[str]) -> np.ndarray:
    """Parse the lines `vertex x y z` of a text file: (3 F, 3) float64."""
    rows = [(number, line.split()) for number, line in enumerate(lines, start=1) if line.strip()]
    wrong = next((number for number, tokens in rows if tokens[0].lower() not in _STL_KEYWORDS), None)
    corners = {number: " ".join(tokens[1:]) for number, tokens in rows if tokens[0].lower() == "vertex"}
    if wrong is not None or len(corners) % 3 or rows[-1][1][0].lower() != "endsolid":
        raise copy_again(
            f"{path}:{wrong or len(lines)}: {len(corners)} corners, and the file does not end with endsolid or has "
            "other lines; it is cut short or damaged"
        )
    return parse_rows([*corners.values()], [*corners], path=path, num_columns=3)
