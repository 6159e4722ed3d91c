"""Formats of meshes and clouds: OFF, PCD and LAS.

OFF triangle meshes in text, with the format errors of the public collections.

PCD files of the Point Cloud Library: text, binary and compressed, read with `pypcd4`.

LiDAR point clouds in LAS and LAZ files, read with `laspy`.
"""

from __future__ import annotations

import io
import logging
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sightline.contract.errors import DataError, MissingExtraError, assert_installed
from sightline.store.files.array_files import check_decompressed_size, convert_errors, summarise_error
from sightline.store.files.input_files import assert_regular, copy_again, damaged, file_size, read_file
from sightline.store.files.text_tables import parse_count, parse_rows, read_text, split_lines

if TYPE_CHECKING:
    import laspy


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
        raise copy_again(
            f"{lines.where(stop + num_faces)}: {len(lines.texts) - stop - num_faces} lines more than the "
            f"{num_vertices} vertices and {num_faces} faces announced; the file or its header is damaged"
        )
    if not num_faces and not needs_faces:
        return Mesh(vertices, np.empty((0, 3), dtype=np.int64))
    return Mesh(vertices, _parse_triangles(lines, stop, num_vertices))


def _read_lines(path: Path) -> _Lines:
    """Read the non-empty lines of a file, without comments."""
    texts = [line.partition("#")[0].strip() for line in split_lines(read_text(path))]
    numbers = [number for number, text in enumerate(texts, start=1) if text]
    if not numbers:
        raise damaged(f"{path}: is empty, an OFF mesh was expected")
    return _Lines(path, [texts[number - 1] for number in numbers], numbers)


def _parse_header(lines: _Lines) -> tuple[int, int, int]:
    """Parse the header: the announced numbers of vertices and faces, and the index of the next line."""
    first = lines.texts[0]
    if not first.startswith("OFF"):
        raise DataError(f"{lines.where(0)}: starts with {first[:20]!r}, not with 'OFF'; only ASCII OFF meshes are read")
    is_glued = bool(first[3:].strip())
    index = 0 if is_glued else 1
    if index == len(lines.texts):
        raise damaged(f"{lines.where(0)}: ends before the numbers of vertices and faces")
    tokens = (first[3:] if is_glued else lines.texts[1]).split()
    counts = [parse_count(token) for token in tokens]
    if len(tokens) not in (2, 3) or counts[0] is None or counts[1] is None or None in counts:
        raise damaged(
            f"{lines.where(index)}: needs the numbers of vertices, faces and edges, found {' '.join(tokens)[:40]!r}"
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
    raise copy_again(
        f"{lines.path}: announces {announced} {kind}, the file ends after {num_found} (line {lines.numbers[-1]}); it "
        "is cut short"
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
        raise damaged(f"{where}: {tokens[0][:40]!r} is not a number of corners")
    corners = tokens[1 : 1 + num_corners]
    if len(corners) < num_corners:
        raise damaged(f"{where}: a face of {num_corners} corners names {len(corners)}")
    return [_parse_vertex(token, where, num_vertices) for token in corners]


def _parse_vertex(token: str, where: str, num_vertices: int) -> int:
    """Parse the index of a vertex. Raises DataError for any other token, and for an index out of range."""
    digits = token.removeprefix("-")
    if not digits.isdecimal():
        raise damaged(f"{where}: {token[:40]!r} is not the index of a vertex")
    index = parse_count(digits)
    if index is None or index >= num_vertices or (index and digits != token):
        raise damaged(f"{where}: a face names vertex {token[:40]}, there are {num_vertices} (0 to {num_vertices - 1})")
    return index


_HEADER_LINES = 40
_HEADER_ENTRIES = 10
"""Maximum header lines; `pypcd4` takes further lines for points."""
_LINE_BYTES = 4096
_KINDS = ("ascii", "binary", "binary_compressed")
"""Values of DATA; `pypcd4` takes any other word for the last, and the next bytes for block sizes."""
_TEXT_BYTES = 2
"""Minimum bytes of a number in text: a digit and a blank."""


class PcdFields(NamedTuple):
    """Fields of a PCD file by name in lower case, (N,) each in the file's dtype, and the bytes behind the points."""

    named: dict[str, np.ndarray]
    num_extra_bytes: int


def read_pcd(path: Path) -> PcdFields:
    """Read the fields of a file; a field of several numbers as `name_0000`. Points without a return are included.

    Numbers of text may be separated by several blanks or tabs. Raises DataError for a damaged file or one shorter than
    its header states; MissingExtraError without `pypcd4`.
    """
    assert_regular(path)
    with path.open("rb") as file:
        header = _check_pcd_header(path, file)
    assert_installed("pypcd4", needed_by=f"{path}: reading .pcd files")
    from pypcd4 import PointCloud

    with convert_errors(path, "does not read as PCD"):
        content = read_file(path)
        if header.kind == "ascii":
            content = b"\n".join(b" ".join(line.split()) for line in content.splitlines())
        table = np.atleast_1d(PointCloud.from_fileobj(io.BufferedReader(io.BytesIO(content))).pc_data)
    if len(table) != header.num_points:
        raise damaged(f"{path}: promises {header.num_points} points and holds {len(table)}")
    names = [name for name in table.dtype.names or () if not name.startswith(("_", "#"))]
    return PcdFields({name.lower(): table[name] for name in names}, header.num_extra_bytes)


class _PcdHeader(NamedTuple):
    """Number of points, value of DATA, and the number of bytes of a binary file behind its points."""

    num_points: int
    kind: str
    num_extra_bytes: int


def _check_pcd_header(path: Path, file: IO[bytes]) -> _PcdHeader:
    """Parse the header. Raises DataError for a bad header, or points that cannot fit into the file."""
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
        minimum = min(*sizes, *counts, num_points + 1) if num_entries <= _HEADER_ENTRIES else 0
    except (KeyError, IndexError, ValueError, TypeError):
        minimum = 0
    if minimum < 1:
        raise damaged(f"{path}: has no header of a PCD file (FIELDS, SIZE, POINTS, DATA)")
    if kind not in _KINDS:
        raise DataError(
            f"{path}: its points are DATA {kind[:40]}, which is not read; save them as {' or '.join(_KINDS)}"
        )
    available = file_size(path) - file.tell()
    claimed = num_points * {"binary": row_bytes, "ascii": _TEXT_BYTES * sum(counts) - 1}.get(kind, 0)
    if claimed > available + (kind == "ascii"):  # the last line of text may end without a break
        raise DataError(
            f"{path}: promises {num_points} points, at least {claimed} bytes, and {available} follow; it is cut short "
            "or its header is wrong: copy or download the file again"
        )
    if kind == "binary_compressed":
        stored, expanded = struct.unpack("<II", file.read(8).ljust(8, b"\0"))
        if available < 8 + stored or expanded != num_points * row_bytes:
            raise damaged(
                f"{path}: promises {num_points} points of {row_bytes} bytes, its compressed part states {stored} "
                f"bytes that become {expanded}, and {available} follow"
            )
    check_decompressed_size(str(path), num_points * row_bytes, available)
    return _PcdHeader(num_points, kind, available - claimed if kind == "binary" else 0)


_HEADER_BYTES = 227
_HEADER_BYTES_1_4 = 255
_VLR_BYTES = 54
_LASZIP_RECORD = 22204
_MAX_CHUNK_BYTES = 2**30
"""Largest chunk in memory that a file of few points may state; a usual one has 50,000 points."""
_IS_COMPRESSED = 0x80


def read_las(path: Path) -> Mapping[str, np.ndarray]:
    """Read the columns of a file by name, (N,) each: x, y, z float64 in the file's unit, and every other dimension.

    Names are those of the specification in lower case, such as intensity, classification, return_number, gps_time, red;
    extra dimensions have their own names, `name_0000` and so on if they have several numbers per point. A dimension is
    converted from the records when it is looked up.
    Raises DataError for a damaged file or one shorter than its header states; MissingExtraError without `laspy` or, for
    LAZ, without a decompressor. Source: LAS specification 1.4, table 3 (the header).
    """
    assert_regular(path)
    is_compressed = _check_header(path)
    assert_installed("laspy", needed_by=f"{path}: reading .las and .laz files")
    import laspy

    if is_compressed and not laspy.LazBackend.detect_available():
        raise MissingExtraError("lazrs", needed_by=f"{path}: reading .laz files")
    with _convert_las_errors(path, silences_rust=is_compressed):
        return _LasColumns(path, laspy.read(path))


def las_names(path: Path) -> list[str]:
    """Return the names of the columns of a file from its header. Raises as `read_las`."""
    _check_header(path)
    assert_installed("laspy", needed_by=f"{path}: reading .las and .laz files")
    import laspy

    with _convert_las_errors(path), laspy.open(path) as file:
        return [*_find_places(file.header.point_format)]


def _find_places(point_format: laspy.PointFormat) -> dict[str, tuple[str, int | None]]:
    """Map the names of columns to dimensions, and to the index in one that has several numbers."""
    places: dict[str, tuple[str, int | None]] = {axis: (axis, None) for axis in "xyz"}
    for dimension in point_format.dimensions:
        name, size = dimension.name, dimension.num_elements
        if name not in ("X", "Y", "Z"):
            places |= {
                name.lower() if size == 1 else f"{name.lower()}_{index:04d}": (name, None if size == 1 else index)
                for index in range(size)
            }
    return places


class _LasColumns(Mapping[str, np.ndarray]):
    """Columns of the records of a LAS file, each converted when it is looked up."""

    def __init__(self, path: Path, cloud: laspy.LasData) -> None:
        self._path, self._cloud, self._places = path, cloud, _find_places(cloud.point_format)

    def __getitem__(self, name: str) -> np.ndarray:
        dimension, index = self._places[name]
        with _convert_las_errors(self._path):
            values = getattr(self._cloud, dimension) if dimension in "xyz" else self._cloud[dimension]
            return np.asarray(values) if index is None else np.asarray(values)[:, index]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


@contextmanager
def _convert_las_errors(path: Path, *, silences_rust: bool = False) -> Iterator[None]:
    """Context in which errors of `laspy` and its decompressor become DataError.

    A panic of the decompressor, which is written in Rust, is a BaseException, and Rust prints its trace to the standard
    error of the process, which `silences_rust` closes meanwhile.
    """
    import laspy

    logging.getLogger("laspy").setLevel(logging.CRITICAL)  # it also logs the errors that it raises
    fault, silence = "does not read as LAS", _silenced_stderr() if silences_rust else nullcontext()
    try:
        with convert_errors(path, fault, laspy.errors.LaspyException), silence:
            yield
    except BaseException as error:
        if type(error).__module__ != "pyo3_runtime":
            raise
        advice = "its decompressor stopped: write the file anew with LAStools or PDAL"
        raise DataError(f"{path}: {fault} ({summarise_error(error)}); {advice}") from error


@contextmanager
def _silenced_stderr() -> Iterator[None]:
    """Context in which what the process writes to file descriptor 2 is dropped."""
    with ExitStack() as stack:
        with suppress(OSError):  # the process may have no standard error
            kept = os.dup(2)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, 2)
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
        yield


def _check_header(path: Path) -> bool:
    """Return True if the points are compressed. Raises DataError for a bad header, or a file too short for it."""
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES_1_4)
    if len(head) < _HEADER_BYTES or head[:4] != b"LASF":
        raise damaged(f"{path}: does not begin with the header of a LAS file")
    start, num_records, kind, row_bytes, num_points = struct.unpack_from("<IIBHI", head, 96)
    if (head[24], head[25]) >= (1, 4) and len(head) == _HEADER_BYTES_1_4:
        num_points = max(num_points, *struct.unpack_from("<Q", head, 247))
    size, is_compressed = file_size(path), bool(kind & _IS_COMPRESSED)
    needed = start + (0 if is_compressed else num_points * row_bytes)
    if start < num_records * _VLR_BYTES or needed > size:
        raise copy_again(
            f"{path}: its header promises {num_points} points of {row_bytes} bytes from byte {start} on, and "
            f"{num_records} records before; the file has {size} bytes; it is cut short or damaged"
        )
    check_decompressed_size(str(path), num_points * row_bytes, size)
    if is_compressed:
        _check_chunks(path, head, num_points, row_bytes)
    return is_compressed


def _check_chunks(path: Path, head: bytes, num_points: int, row_bytes: int) -> None:
    """Raise DataError for a LAZ file whose chunks are more, or larger, than its points.

    The decompressor allocates what the file states, and ends the process if there is no such memory.
    Source: Isenburg 2013, LASzip; its record has the size of a chunk in points (2^32 - 1: it varies).
    """
    header_bytes, start, num_records = struct.unpack_from("<HII", head, 94)
    size, chunk_points = file_size(path), 0
    with path.open("rb") as file:
        (table,) = _unpack_at(file, start, "<q")
        if table == -1:
            (table,) = _unpack_at(file, size - 8, "<q")
        (num_chunks,) = _unpack_at(file, table + 4, "<I") if start < table <= size - 8 else (0,)
        at = header_bytes
        for _ in range(num_records):
            user, number, length = _unpack_at(file, at, "<2x16sHH")
            if (user.rstrip(b"\0"), number) == (b"laszip encoded", _LASZIP_RECORD):
                (chunk_points,) = _unpack_at(file, at + _VLR_BYTES + 12, "<I")
            at += _VLR_BYTES + length
    is_too_large = chunk_points != 2**32 - 1 and chunk_points * row_bytes > max(
        _MAX_CHUNK_BYTES, num_points * row_bytes
    )
    if num_chunks > num_points + 1 or is_too_large:
        raise copy_again(
            f"{path}: states {num_chunks} chunks of {chunk_points} points, and has {num_points} points; the file is "
            "damaged"
        )


def _unpack_at(file: IO[bytes], at: int, kinds: str) -> tuple[Any, ...]:
    """Unpack numbers at a byte of a file; beyond its end there are zeros."""
    file.seek(at)
    return struct.unpack(kinds, file.read(struct.calcsize(kinds)).ljust(struct.calcsize(kinds), b"\0"))
