"""Meshes in OBJ and STL files: vertices, and polygons as triangle fans around their first corner."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sightline.contract.errors import DataError
from sightline.store.files.column_names import COLOURS, POINTS
from sightline.store.files.input_files import assert_regular, read_file
from sightline.store.files.text_tables import parse_count, parse_rows, read_text, split_lines

_OBJ_COLUMNS = {3: POINTS, 4: (*POINTS, "w"), 6: (*POINTS, *COLOURS), 7: (*POINTS, "w", *COLOURS)}
"""Columns of a line `v` by their number."""
_OBJ_OTHERS = frozenset("vn vt vp g o s mg l p usemtl mtllib usemap maplib bevel c_interp d_interp lod".split())
"""Keywords of lines about neither vertices nor polygons."""
_STL_KEYWORDS = frozenset("solid facet outer vertex endloop endfacet endsolid".split())
_STL_TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
_STL_HEADER_BYTES = 84


class MeshColumns(NamedTuple):
    """Columns of the vertices by name, (V,) each, and triangles (F, 3) int64, None without polygons."""

    columns: dict[str, np.ndarray]
    faces: np.ndarray | None


def read_obj(path: Path) -> MeshColumns:
    """Read the vertices and polygons of an OBJ file; corners may lie outside of the vertices.

    Raises DataError with the line, also for lines of curves and surfaces. Source: Wavefront, "Object Files (.obj)".
    """
    assert_regular(path)
    vertices: list[str] = []
    numbers: list[int] = []
    fans: list[tuple[int, int, int]] = []
    for number, line in enumerate(split_lines(read_text(path)), start=1):
        keyword, *tokens = line.partition("#")[0].split() or ["o"]
        if keyword == "v":
            vertices.append(" ".join(tokens))
            numbers.append(number)
        elif keyword == "f":
            corners = [_parse_corner(token, len(vertices), f"{path}:{number}") for token in tokens]
            fans.extend((corners[0], b, c) for b, c in pairwise(corners[1:]))
        elif keyword not in _OBJ_OTHERS:
            raise DataError(
                f"{path}:{number}: {line.strip()[:40]!r} is not a line of vertices or polygons that is read"
            )
    width = len(vertices[0].split()) if vertices else 0
    if width not in _OBJ_COLUMNS:
        raise DataError(f"{path}: its vertices have {width} numbers, 3, 4, 6 or 7 are needed; the file is damaged")
    table = parse_rows(vertices, numbers, path=path, num_columns=width)
    faces = np.array(fans, dtype=np.int64) if fans else None
    return MeshColumns(dict(zip(_OBJ_COLUMNS[width], table.T, strict=True)), faces)


def _parse_corner(token: str, num_vertices: int, where: str) -> int:
    """Parse a corner `v`, `v/vt`, `v//vn` or `v/vt/vn`; numbers count from 1, or backwards from the last vertex."""
    text = token.partition("/")[0]
    index = parse_count(text.removeprefix("-"))
    if not index:
        raise DataError(f"{where}: {token[:40]!r} is not a corner of a polygon; the file is damaged")
    return num_vertices - index if text.startswith("-") else index - 1


def read_stl(path: Path) -> MeshColumns:
    """Read the triangles of a binary or text STL file; equal corners are one vertex.

    Raises DataError with the line or the number of bytes. Source: 3D Systems 1988, "StereoLithography Interface".
    """
    assert_regular(path)
    content = read_file(path)
    count = int.from_bytes(content[_STL_HEADER_BYTES - 4 : _STL_HEADER_BYTES], "little")
    expected = _STL_HEADER_BYTES + count * _STL_TRIANGLE.itemsize
    if len(content) == expected:  # the header of a binary file may begin with "solid", too
        corners = np.frombuffer(content, _STL_TRIANGLE, offset=_STL_HEADER_BYTES)["corners"].reshape(-1, 3)
    elif content[:5].lower() == b"solid":
        corners = _parse_stl_corners(path, split_lines(content.decode("latin-1")))
    else:
        raise DataError(
            f"{path}: has {len(content)} bytes, an STL file of {count} triangles has {expected}; it is cut short or in "
            "another format: copy or download it again"
        )
    vertices, faces = np.unique(corners, axis=0, return_inverse=True)
    return MeshColumns(dict(zip(POINTS, vertices.T, strict=True)), faces.reshape(-1, 3))


def _parse_stl_corners(path: Path, lines: list[str]) -> np.ndarray:
    """Parse the lines `vertex x y z` of a text file: (3 F, 3) float64."""
    rows = [(number, line.split()) for number, line in enumerate(lines, start=1) if line.strip()]
    wrong = next((number for number, tokens in rows if tokens[0].lower() not in _STL_KEYWORDS), None)
    corners = [(number, " ".join(tokens[1:])) for number, tokens in rows if tokens[0].lower() == "vertex"]
    if wrong is not None or len(corners) % 3 or rows[-1][1][0].lower() != "endsolid":
        raise DataError(
            f"{path}:{wrong or len(lines)}: {len(corners)} corners, and the file does not end with endsolid or has "
            "other lines; it is cut short or damaged: copy or download it again"
        )
    return parse_rows([text for _, text in corners], [number for number, _ in corners], path=path, num_columns=3)
