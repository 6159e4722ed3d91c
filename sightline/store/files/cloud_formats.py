"""Formats of meshes and clouds: OFF, PCD and LAS.

OFF triangle meshes in text, with the format errors of the public collections.

PCD files of the Point Cloud Library: text, binary and compressed, read with `pypcd4`.

LiDAR point clouds in LAS and LAZ files, read with `laspy`.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from sightline.contract.errors import DataError, MissingExtraError, assert_installed
from sightline.store.files.array_files import READ_ERRORS, check_decompressed_size, summarise_error
from sightline.store.files.input_files import assert_regular, file_size
from sightline.store.files.text_tables import parse_count, parse_rows, read_text


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


_HEADER_LINES = 40
_HEADER_ENTRIES = 10
"""Maximum header lines; `pypcd4` takes further lines for points."""
_LINE_BYTES = 4096
_KINDS = ("ascii", "binary", "binary_compressed")
"""Values of DATA; `pypcd4` takes any other word for the last, and the next bytes for block sizes."""
_TEXT_BYTES = 2
"""Minimum bytes of a number in text: a digit and a blank."""


def read_pcd(path: Path, *, keeps_no_returns: bool = False) -> dict[str, np.ndarray]:
    """Read the fields of a file by name in lower case, (N,) float64 each; a field of several numbers as `name_0000`.

    Points without a return, whose x, y and z are all NaN by the format's definition, are dropped unless
    `keeps_no_returns`. Raises DataError for a damaged file or one shorter than its header states; MissingExtraError
    without `pypcd4`.
    """
    assert_regular(path)
    with path.open("rb") as file:
        num_points = _check_pcd_header(path, file)
    assert_installed("pypcd4", needed_by=f"{path}: reading .pcd files")
    from pypcd4 import PointCloud

    try:
        table = np.atleast_1d(PointCloud.from_path(path).pc_data)
    except MemoryError as error:
        raise DataError(f"{path}: does not fit into memory, or the file is damaged") from error
    except (*READ_ERRORS, LookupError, ArithmeticError, AssertionError) as error:
        raise DataError(
            f"{path}: does not read as PCD ({summarise_error(error)}); the file is damaged or in another format"
        ) from error
    if len(table) != num_points:
        raise DataError(
            f"{path}: promises {num_points} points and holds {len(table)}; the file is damaged or in another format"
        )
    names = [name for name in table.dtype.names or () if not name.startswith("_")]
    with np.errstate(invalid="ignore"):  # a signalling NaN is dropped or refused like any other NaN
        columns = {name.lower(): table[name].reshape(len(table)).astype(np.float64) for name in names}
    if keeps_no_returns or not {"x", "y", "z"} <= columns.keys():
        return columns
    is_return = ~np.all([np.isnan(columns[axis]) for axis in "xyz"], axis=0)
    return {name: values[is_return] for name, values in columns.items()}


def _check_pcd_header(path: Path, file: IO[bytes]) -> int:
    """Return the number of points. Raises DataError for a bad header, or points that cannot fit into the file."""
    entries: dict[str, list[str]] = {}
    num_entries = 0
    for _ in range(_HEADER_LINES):
        fields = file.readline(_LINE_BYTES).decode("latin-1").split()
        if fields and not fields[0].startswith("#"):
            entries[fields[0].upper()] = fields[1:]
            num_entries += 1
        if fields and fields[0].upper() == "DATA":
            break
    try:
        sizes = [int(token) for token in entries["SIZE"]]
        counts = [int(token) for token in entries.get("COUNT", ["1"] * len(sizes))]
        row_bytes = sum(size * count for size, count in zip(sizes, counts, strict=True))
        num_points, kind = int(entries["POINTS"][0]), entries["DATA"][0].lower()
        is_read = kind in _KINDS and num_entries <= _HEADER_ENTRIES
        minimum = min(*sizes, *counts, num_points + 1) if is_read else 0
    except (KeyError, IndexError, ValueError, TypeError):
        minimum = 0
    if minimum < 1:
        raise DataError(
            f"{path}: has no header of a PCD file (FIELDS, SIZE, POINTS, DATA); the file is damaged or in another "
            "format"
        )
    available = file_size(path) - file.tell()
    claimed = num_points * {"binary": row_bytes, "ascii": _TEXT_BYTES * sum(counts) - 1}.get(kind, 0)
    # The last line of text may end without a break; bytes after the binary points are an error.
    if claimed > available + 1 or (kind == "binary" and claimed != available):
        raise DataError(
            f"{path}: promises {num_points} points, at least {claimed} bytes, and {available} follow; it is cut short "
            "or its header is wrong: copy or download the file again"
        )
    if kind == "binary_compressed":
        stored, expanded = struct.unpack("<II", file.read(8).ljust(8, b"\0"))
        if available < 8 + stored or expanded != num_points * row_bytes:
            raise DataError(
                f"{path}: promises {num_points} points of {row_bytes} bytes, its compressed part states {stored} "
                f"bytes that become {expanded}, and {available} follow; the file is damaged or in another format"
            )
    check_decompressed_size(str(path), num_points * row_bytes, available)
    return num_points


_HEADER_BYTES = 227
_HEADER_BYTES_1_4 = 255
_VLR_BYTES = 54
_IS_COMPRESSED = 0x80


def read_las(path: Path) -> dict[str, np.ndarray]:
    """Read the columns of a file by name, (N,) float64 each: x, y, z in the file's unit, and every other dimension.

    Names are those of the specification in lower case, such as intensity, classification, return_number, gps_time, red;
    extra dimensions have their own names, `name_0000` and so on if they have several numbers per point.
    Raises DataError for a damaged file or one shorter than its header states; MissingExtraError without `laspy` or, for
    LAZ, without a decompressor. Source: LAS specification 1.4, table 3 (the header).
    """
    assert_regular(path)
    is_compressed = _check_header(path)
    assert_installed("laspy", needed_by=f"{path}: reading .las and .laz files")
    import laspy

    logging.getLogger("laspy").setLevel(logging.CRITICAL)  # it also logs the errors that it raises
    if is_compressed and not laspy.LazBackend.detect_available():
        raise MissingExtraError("lazrs", needed_by=f"{path}: reading .laz files")
    try:
        cloud = laspy.read(path)
        columns = {axis: np.asarray(getattr(cloud, axis), dtype=np.float64) for axis in "xyz"}
        for name in cloud.point_format.dimension_names:
            if name not in ("X", "Y", "Z"):
                columns |= _split_columns(name.lower(), np.asarray(cloud[name]))
    except MemoryError as error:
        raise DataError(f"{path}: does not fit into memory, or the file is damaged") from error
    except (
        *READ_ERRORS,
        LookupError,
        ArithmeticError,
        AssertionError,
        AttributeError,
        TypeError,
        RuntimeError,
    ) as error:
        raise DataError(
            f"{path}: does not read as LAS ({summarise_error(error)}); the file is damaged or in another format"
        ) from error
    except laspy.errors.LaspyException as error:
        raise DataError(
            f"{path}: does not read as LAS ({summarise_error(error)}); the file is damaged or in another format"
        ) from error
    return columns


def _split_columns(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """Split the values of a dimension into columns by name."""
    table = values.astype(np.float64)
    if table.ndim == 1:
        return {name: table}
    return {f"{name}_{index:04d}": column for index, column in enumerate(table.reshape(len(table), -1).T)}


def _check_header(path: Path) -> bool:
    """Return True if the points are compressed. Raises DataError for a bad header, or a file too short for it."""
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES_1_4)
    if len(head) < _HEADER_BYTES or head[:4] != b"LASF":
        raise DataError(
            f"{path}: does not begin with the header of a LAS file; the file is damaged or in another format"
        )
    start, num_records, kind, row_bytes, num_points = struct.unpack_from("<IIBHI", head, 96)
    if (head[24], head[25]) >= (1, 4) and len(head) == _HEADER_BYTES_1_4:
        num_points = max(num_points, *struct.unpack_from("<Q", head, 247))
    size, is_compressed = file_size(path), bool(kind & _IS_COMPRESSED)
    needed = start + (0 if is_compressed else num_points * row_bytes)
    if start < num_records * _VLR_BYTES or needed > size:
        raise DataError(
            f"{path}: its header promises {num_points} points of {row_bytes} bytes from byte {start} on, and "
            f"{num_records} records before; the file has {size} bytes; it is cut short or damaged: copy or download "
            "it again"
        )
    check_decompressed_size(str(path), num_points * row_bytes, size)
    return is_compressed
