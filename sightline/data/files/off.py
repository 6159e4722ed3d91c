"""OFF triangle meshes in text, with the format errors of the public collections."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sightline.data.files.text_tables import parse_count, parse_rows, read_text
from sightline.errors import DataError

__all__ = ["Mesh", "announces_faces", "read_off"]


class Mesh(NamedTuple):
    """Vertices (V, 3) float64 in the file's own unit and frame, and triangles (F, 3) int64."""

    vertices: np.ndarray
    faces: np.ndarray


class _Lines(NamedTuple):
    """Non-empty lines of a file, and their line numbers from 1."""

    path: Path
    texts: list[str]
    numbers: list[int]

    def where(self, index: int) -> str:
        return f"{self.path}:{self.numbers[index]}"


def announces_faces(path: Path) -> bool:
    """Return True if the header of an OFF file announces faces, or cannot be read."""
    try:
        return _parse_header(_read_lines(path))[1] > 0
    except DataError:
        return True


def read_off(path: Path, *, needs_faces: bool = True) -> Mesh:
    """Read the mesh of an ASCII OFF file; polygons are split into triangle fans around their first corner.

    Counts glued to the magic word (`OFF490 518 0`), comments, blank lines and colours after a face are accepted. A file
    that announces no faces is a cloud, which is refused if it `needs_faces`.
    Raises DataError with path and line.
    Source: Princeton Shape Benchmark, "Object File Format"; Wu et al. 2015 (ModelNet, its glued headers).
    """
    lines = _read_lines(path)
    num_vertices, num_faces, start = _parse_header(lines)
    stop = start + num_vertices
    if len(lines.texts) < stop + num_faces:
        _refuse_short(lines, start, num_vertices, num_faces)
    vertices = parse_rows(lines.texts[start:stop], lines.numbers[start:stop], path=path, num_columns=3)
    if len(lines.texts) > stop + num_faces:
        raise DataError(
            f"{lines.where(stop + num_faces)}: {len(lines.texts) - stop - num_faces} lines more than the "
            f"{num_vertices} vertices and {num_faces} faces announced; the file or its header is damaged: copy or "
            "download it again"
        )
    if not num_faces and not needs_faces:
        return Mesh(vertices, np.empty((0, 3), dtype=np.int64))
    return Mesh(vertices, _parse_triangles(lines, stop, num_vertices))


def _read_lines(path: Path) -> _Lines:
    """Read the non-empty lines of a file, without comments."""
    texts = [line.partition("#")[0].strip() for line in read_text(path).split("\n")]
    numbers = [number for number, text in enumerate(texts, start=1) if text]
    if not numbers:
        raise DataError(f"{path}: is empty, an OFF mesh was expected; the file is damaged or in another format")
    return _Lines(path, [texts[number - 1] for number in numbers], numbers)


def _parse_header(lines: _Lines) -> tuple[int, int, int]:
    """Parse the header: the announced numbers of vertices and faces, and the index of the next line."""
    first = lines.texts[0]
    if not first.startswith("OFF"):
        raise DataError(f"{lines.where(0)}: starts with {first[:20]!r}, not with 'OFF'; only ASCII OFF meshes are read")
    is_glued = bool(first[3:].strip())
    index = 0 if is_glued else 1
    if index == len(lines.texts):
        raise DataError(
            f"{lines.where(0)}: ends before the numbers of vertices and faces; the file is damaged or in another format"
        )
    tokens = (first[3:] if is_glued else lines.texts[1]).split()
    counts = [parse_count(token) for token in tokens]
    if len(tokens) not in (2, 3) or counts[0] is None or counts[1] is None or None in counts:
        raise DataError(
            f"{lines.where(index)}: needs the numbers of vertices, faces and edges, found {' '.join(tokens)[:40]!r}; "
            "the file is damaged or in another format"
        )
    return counts[0], counts[1], index + 1


def _refuse_short(lines: _Lines, start: int, num_vertices: int, num_faces: int) -> None:
    """Raise DataError naming the lines that are missing."""
    num_remaining = len(lines.texts) - start
    if num_remaining >= num_vertices:  # a face among the vertices is the likelier fault, and gives a better message
        parse_rows(
            lines.texts[start : start + num_vertices],
            lines.numbers[start : start + num_vertices],
            path=lines.path,
            num_columns=3,
        )
    kind, num_found, announced = (
        ("vertices", num_remaining, num_vertices)
        if num_remaining < num_vertices
        else ("faces", num_remaining - num_vertices, num_faces)
    )
    raise DataError(
        f"{lines.path}: announces {announced} {kind}, the file ends after {num_found} (line {lines.numbers[-1]}); it "
        "is cut short: copy or download it again"
    )


def _parse_triangles(lines: _Lines, start: int, num_vertices: int) -> np.ndarray:
    """Parse the faces from line index `start` on, as triangles (F, 3) int64."""
    texts = lines.texts[start:]
    if not texts:
        raise DataError(f"{lines.path}: has no faces, so no surface; leave the file out")
    corners = _parse_plain_triangles(texts, num_vertices)
    if corners is not None:
        return corners
    fans: list[tuple[int, int, int]] = []
    for index, text in enumerate(texts):
        polygon = _parse_polygon(text, lines.where(start + index), num_vertices)
        fans.extend((polygon[0], b, c) for b, c in pairwise(polygon[1:]))
    return np.array(fans, dtype=np.int64).reshape(-1, 3)


def _parse_plain_triangles(texts: Sequence[str], num_vertices: int) -> np.ndarray | None:
    """Parse lines that are all a valid `3 i j k`, the usual case, at once; None for any other line."""
    try:
        table = np.loadtxt(texts, comments=None, ndmin=2, dtype=np.float64)
    except ValueError:
        return None
    if table.shape != (len(texts), 4) or not ((table >= 0) & (table < max(num_vertices, 4))).all():
        return None
    corners = table[:, 1:].astype(np.int64)
    is_plain = (table[:, 0] == 3).all() and (corners == table[:, 1:]).all() and (corners < num_vertices).all()
    return corners if is_plain else None


def _parse_polygon(text: str, where: str, num_vertices: int) -> list[int]:
    """Parse the corners of one face line, without the colours after them; fewer than three make no triangle."""
    tokens = text.split()
    num_corners = parse_count(tokens[0]) or 0
    if num_corners < 1:
        raise DataError(
            f"{where}: {tokens[0][:40]!r} is not a number of corners; the file is damaged or in another format"
        )
    corners = tokens[1 : 1 + num_corners]
    if len(corners) < num_corners:
        raise DataError(
            f"{where}: a face of {num_corners} corners names {len(corners)}; the file is damaged or in another format"
        )
    return [_parse_vertex(token, where, num_vertices) for token in corners]


def _parse_vertex(token: str, where: str, num_vertices: int) -> int:
    """Parse the index of a vertex. Raises DataError for any other token, and for an index out of range."""
    digits = token.removeprefix("-")
    if not digits.isdecimal():
        raise DataError(
            f"{where}: {token[:40]!r} is not the index of a vertex; the file is damaged or in another format"
        )
    index = parse_count(digits)
    if index is None or index >= num_vertices or (index and digits != token):
        raise DataError(
            f"{where}: a face names vertex {token[:40]}, there are {num_vertices} (0 to {num_vertices - 1}); the file "
            "is damaged or in another format"
        )
    return index
