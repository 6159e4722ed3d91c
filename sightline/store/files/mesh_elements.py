"""Elements of meshes: rows of numbers and of lists of numbers, in text or binary, and polygons as triangles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sightline.contract.errors import DataError
from sightline.store.files.column_names import is_whole
from sightline.store.files.input_files import copy_again, damaged
from sightline.store.files.text_tables import is_large, parse_rows


class Mesh(NamedTuple):
    """Values of the vertices, (V,) by name, in the file's dtype or, from text, float64; triangles (F, 3) int64 or None.

    Polygons are split into triangle fans around their first corner.
    """

    vertex: dict[str, np.ndarray]
    faces: np.ndarray | None


class Property(NamedTuple):
    """Property of an element: `kind` is a dtype without byte order, `counter` that of a list's length or empty."""

    name: str
    kind: str
    counter: str = ""


class Element(NamedTuple):
    """Kind of row of a file, such as the vertices, and the number of its rows."""

    name: str
    size: int
    properties: list[Property]

    @property
    def row_bytes(self) -> int:
        """Minimum bytes of a row: those of a row with empty lists."""
        return sum(np.dtype(item.counter or item.kind).itemsize for item in self.properties)


class Values(NamedTuple):
    """Values of an element: scalars (rows,) by name, and every list as an array (rows, length) or one array a row."""

    scalars: dict[str, np.ndarray]
    lists: dict[str, np.ndarray | Sequence[np.ndarray]]


_Take = Callable[[str, int], np.ndarray]
"""Function that returns the next numbers of a row, of a kind and so many."""


def _read_row(element: Element, take: _Take) -> list[np.ndarray]:
    """Read the values of every property of a row. Raises ValueError for a length with a fraction."""
    values = []
    for item in element.properties:
        length = 1
        if item.counter:
            (stated,) = take(item.counter, 1)
            if not 0 <= stated == int(stated):
                raise ValueError(f"a list has no {stated} numbers")
            length = int(stated)
        values.append(take(item.kind, length))
    return values


def _join_rows(element: Element, rows: Sequence[Sequence[np.ndarray]]) -> Values:
    scalars: dict[str, np.ndarray] = {}
    lists: dict[str, np.ndarray | Sequence[np.ndarray]] = {}
    for item, column in zip(element.properties, zip(*rows, strict=True) if rows else (), strict=bool(rows)):
        if item.counter:
            lists[item.name] = list(column)
        else:
            scalars[item.name] = np.concatenate(column)
    return Values(scalars, lists)


def read_binary_element(path: Path, content: bytes, start: int, element: Element, order: str) -> tuple[Values, int]:
    """Read the rows of an element from a byte on, in a byte order of NumPy, and return the byte behind them.

    Rows whose lists all have the lengths of the first row's (triangles) are read at once. Raises DataError with the
    byte if the file is truncated.
    """
    position = start

    def take(kind: str, count: int) -> np.ndarray:
        nonlocal position
        needed = count * np.dtype(kind).itemsize
        if needed > len(content) - position:
            raise copy_again(
                f"{path}: byte {position}: {element.name} needs {needed} bytes more, {len(content) - position} are "
                "left; the file is cut short or damaged"
            )
        position += needed
        return np.frombuffer(content, order + kind, count, position - needed)

    if not element.size:
        return Values({}, {}), start
    try:
        lengths = list(map(len, _read_row(element, take)))
        uniform = _read_uniform_rows(content, start, element, order, lengths)
        position = start
        return uniform or (_join_rows(element, [_read_row(element, take) for _ in range(element.size)]), position)
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise copy_again(f"{path}: byte {position}: {error}; the file is damaged") from error


def _read_uniform_rows(
    content: bytes, start: int, element: Element, order: str, lengths: Sequence[int]
) -> tuple[Values, int] | None:
    """Read rows whose lists have these lengths; None if one has another."""
    fields: list[tuple[str, str, tuple[int, ...]]] = []
    for item, length in zip(element.properties, lengths, strict=True):
        if item.counter:
            fields.append((f"number of {item.name}", order + item.counter, ()))
        fields.append((item.name, order + item.kind, (length,) if item.counter else ()))
    dtype = np.dtype(fields)
    stop = start + element.size * dtype.itemsize
    if stop > len(content):
        return None
    table = np.frombuffer(content, dtype, element.size, start)
    lists: dict[str, np.ndarray | Sequence[np.ndarray]]
    lists = {item.name: table[item.name] for item in element.properties if item.counter}
    if any((table[f"number of {name}"] != table[name].shape[1]).any() for name in lists):
        return None
    return Values({item.name: table[item.name] for item in element.properties if not item.counter}, lists), stop


def read_text_elements(
    path: Path,
    elements: Sequence[Element],
    lines: Sequence[str],
    numbers: Sequence[int],
    *,
    has_more: bool = False,
    is_finite: bool = False,
) -> dict[str, Values]:
    """Read elements from the lines of a file with these numbers; `has_more`: a row's lists may have numbers behind.

    Raises DataError with the line for a row in another form, and for other counts of lines than the elements have.
    """
    if len(lines) != sum(element.size for element in elements):
        counts = ", ".join(f"{element.size} x {element.name}" for element in elements)
        last = f":{numbers[-1]}" if numbers else ""
        raise copy_again(
            f"{path}{last}: {counts} are announced, {len(lines)} lines follow the header; the file is cut short or its "
            "header is wrong"
        )
    values_by_element, start = {}, 0
    for element in elements:
        rows = slice(start, start + element.size)
        if any(item.counter for item in element.properties):
            values = _parse_lists(path, element, lines[rows], numbers[rows], has_more)
        else:
            width = len(element.properties)
            table = np.empty((0, width))
            if element.size:
                table = parse_rows(lines[rows], numbers[rows], path=path, num_columns=width, is_finite=is_finite)
            values = Values({item.name: column for item, column in zip(element.properties, table.T, strict=True)}, {})
        values_by_element[element.name] = values
        start = rows.stop
    return values_by_element


def read_large_elements(
    path: Path, content: bytes, start: int, elements: Sequence[Element], *, has_more: bool = False
) -> dict[str, Values] | None:
    """Read elements from a byte of a large text file on as `read_text_elements` does, in much less time and memory.

    None for a small file, and for anything but rows of plain numbers whose lists all have the lengths of the first.
    """
    if not is_large(len(content) - start):
        return None
    from sightline.store.files.number_kernel import parse_next_rows  # imports torch

    stop = len(content)
    while stop > start and content[stop - 1] in b" \t\r\n":
        stop -= 1
    values_by_element, position = {}, start
    for element in elements:
        line = content[position : content.find(b"\n", position)].decode("latin-1")
        parsed = None
        if element.size and line.strip():
            width = len(line.split())
            parsed = parse_next_rows(content, position, stop, num_rows=element.size, num_columns=width)
        if element.size and parsed is None:
            return None
        values = Values({}, {})
        if parsed is not None:
            try:
                lengths = list(map(len, _parse_row(line, str(path), element, has_more)))
            except DataError:
                return None
            split, position = _split_columns(element, parsed[0], lengths), parsed[1]
            if split is None:
                return None
            values = split
        values_by_element[element.name] = values
    return values_by_element if position == stop else None


def _parse_lists(path: Path, element: Element, lines: Sequence[str], numbers: Sequence[int], has_more: bool) -> Values:
    """Parse the rows of an element with lists: at once if all have the lengths of the first row's, else one by one."""
    if not lines:
        return Values({}, {})
    lengths = [len(values) for values in _parse_row(lines[0], f"{path}:{numbers[0]}", element, has_more)]
    pairs = zip(lines, numbers, strict=True)
    return _parse_uniform_rows(path, element, lines, numbers, lengths) or _join_rows(
        element, [_parse_row(line, f"{path}:{number}", element, has_more) for line, number in pairs]
    )


def _parse_uniform_rows(
    path: Path, element: Element, lines: Sequence[str], numbers: Sequence[int], lengths: Sequence[int]
) -> Values | None:
    """Parse rows whose lists have these lengths; None if one has another, or is damaged."""
    try:
        table = parse_rows(lines, numbers, path=path, num_columns=len(lines[0].split()), is_finite=False)
    except DataError:
        return None
    return _split_columns(element, table, lengths)


def _split_columns(element: Element, table: np.ndarray, lengths: Sequence[int]) -> Values | None:
    """Split a table (rows, columns) into the properties of an element; None if a list has another length than stated.

    Columns behind those of the properties are left out.
    """
    values, column = Values({}, {}), 0
    for item, length in zip(element.properties, lengths, strict=True):
        if not item.counter:
            values.scalars[item.name] = table[:, column]
        elif (table[:, column] == length).all():
            column += 1
            values.lists[item.name] = table[:, column : column + length]
        else:
            return None
        column += length
    return values


def _parse_row(line: str, where: str, element: Element, has_more: bool) -> list[np.ndarray]:
    """Parse the values of every property of a row. Raises DataError for anything else."""
    position = 0
    try:
        numbers = np.array([float(token) for token in line.split()])

        def take(kind: str, count: int) -> np.ndarray:
            nonlocal position
            position += count
            if position > len(numbers):
                raise ValueError("the row is too short")
            return numbers[position - count : position]

        values = _read_row(element, take)
        if position < len(numbers) and not has_more:
            raise ValueError("the row is too long")
    except (ValueError, OverflowError):
        listed = ", ".join(f"list {item.name}" if item.counter else item.name for item in element.properties)
        raise damaged(f"{where}: {line.strip()[:60]!r} is not a row of {listed}") from None
    return values


def _are_indices(corners: np.ndarray, count: int) -> bool:
    """Return True if all corners (F, K) are whole numbers from 0 to count - 1."""
    return all(is_whole(column, 0, count - 1) for column in corners.T)


def split_into_triangles(
    polygons: np.ndarray | Sequence[np.ndarray | Sequence[int]], num_points: int, where: Callable[[int], str]
) -> np.ndarray:
    """Split polygons of corners into triangles (F, 3) int64; fewer than three corners make no triangle.

    Raises DataError, led by `where` of its index, for a polygon without corners, and with a corner that is no vertex.
    """
    if isinstance(polygons, np.ndarray) and polygons.shape[1] == 3 and _are_indices(polygons, num_points):
        return polygons.astype(np.int64)
    if isinstance(polygons, np.ndarray):
        lengths, corners = np.full(len(polygons), polygons.shape[1]), polygons.reshape(-1)
    else:
        lengths = np.array([len(polygon) for polygon in polygons])
        corners = np.concatenate([np.asarray(polygon) for polygon in polygons])
    if not lengths.all():
        raise copy_again(f"{where(int(lengths.argmin()))}: a face has no corners; the file is damaged")
    wrong = np.flatnonzero(~((corners >= 0) & (corners < num_points) & (corners == np.floor(corners))))
    if len(wrong):
        index = int(np.searchsorted(np.cumsum(lengths), wrong[0], side="right"))
        raise damaged(
            f"{where(index)}: a face names vertex {corners[wrong[0]]:.15g}, there are {num_points} (0 to "
            f"{num_points - 1})"
        )
    num_triangles = np.maximum(lengths - 2, 0)
    first = np.repeat(np.cumsum(lengths) - lengths, num_triangles)
    step = np.arange(len(first)) - np.repeat(np.cumsum(num_triangles) - num_triangles, num_triangles)
    triangles: np.ndarray = corners[np.stack([first, first + step + 1, first + step + 2], axis=1)].astype(np.int64)
    return triangles
