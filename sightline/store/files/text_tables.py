"""Tables of numbers in text files: a fast parser, and on a fault a slow one that names the line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sightline.contract.errors import DataError
from sightline.store.files.input_files import copy_again, damaged, open_regular, read_file

_COMMENTS = ("#", "//")
"""Beginnings of comments: of NumPy, of CloudCompare."""
BLOCK_LINES = 1000
"""Number of lines per block of `LabelLines`."""
_LARGE_BYTES = 2**22
"""Size from which the start of a compiled parser pays."""
_HEAD_BYTES = 2**16
"""Bytes of a large file among which its first row is."""


def read_text(path: Path) -> str:
    """Read the whole file as Latin-1, so that a stray byte is found as a token of its line."""
    return read_file(path).decode("latin-1")


def split_lines(text: str) -> list[str]:
    """Split text at the line ends of any system, without the empty lines at its end."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def parse_count(token: str) -> int | None:
    """Parse digits to an integer; None for anything else, and for more than 18 digits."""
    return int(token) if token.isascii() and token.isdecimal() and len(token) < 19 else None


def read_table(path: Path, *, num_columns: int, delimiter: str | None = None) -> np.ndarray:
    """Read all rows of a text file without header: (rows, num_columns) float64, finite.

    Raises DataError with path and line for a row of another width, an empty row, and a token that is not a finite
    number.
    """
    content = _read_content(path)
    if (table := parse_large(content, 0, num_columns=num_columns, is_comma=delimiter == ",")) is not None:
        return table
    lines = split_lines(content.decode("latin-1"))
    if not lines:
        raise damaged(f"{path}: holds no rows, {num_columns} columns are needed")
    return parse_rows(lines, range(1, len(lines) + 1), path=path, num_columns=num_columns, delimiter=delimiter)


def parse_large(content: bytes, start: int, *, num_columns: int, is_comma: bool) -> np.ndarray | None:
    """Parse the rows of a large file from a byte on as `parse_rows` does, in much less time; None if it has to."""
    if not is_large(len(content)):
        return None
    from sightline.store.files.number_kernel import parse_plain_rows  # imports torch

    return parse_plain_rows(content, start, num_columns=num_columns, is_comma=is_comma)


def is_large(num_bytes: int) -> bool:
    """Return True for a text for which the compiled parser pays."""
    return num_bytes >= _LARGE_BYTES


class TextRows(NamedTuple):
    """Rows of a text file (rows, columns) float64, the names of its columns, and the line number of the first row.

    `num_counts` lines above rows announce their number: a file of several scans has one above each.
    """

    table: np.ndarray
    names: tuple[str, ...] | None
    first_line: int
    num_counts: int


def read_rows(path: Path) -> TextRows:
    """Read all rows of a text file, which may contain NaN and infinity.

    Every row has the width of the first. Columns are separated by commas or blanks; rows may end with a comma. Names,
    in lower case, are read from the line directly above the rows, after `#` or `//` or without; None if there are none.
    Lines of `#` or `//` above them are comments. A single whole number above rows of several columns is their number;
    after as many rows another number may announce the rows of another scan.
    Raises DataError with path and line for a row of another width, an empty row, a token that is not a number, and for
    a wrong number of names or rows.
    """
    content = _read_content(path)
    if (large := _read_large(path, content)) is not None:
        return large
    lines = split_lines(content.decode("latin-1"))
    start, announced = _find_first_row(path, lines)
    head_line = start - (announced is not None)
    head = lines[head_line - 1] if head_line else ""
    rows, numbers, num_counts = lines[start:], [*range(start + 1, len(lines) + 1)], int(announced is not None)
    if announced not in (None, str(len(rows))) and (scans := _find_scans(lines, start - 1)):
        numbers, num_counts = [index + 1 for scan in scans for index in scan], len(scans)
        rows = [lines[number - 1] for number in numbers]
    elif announced not in (None, str(len(rows))):
        raise copy_again(
            f"{path}:{start}: announces {announced[:40]} points, {len(rows)} rows follow; the file is cut short or "
            "its first line is wrong"
        )
    if not rows:
        raise damaged(f"{path}: holds no rows of numbers")
    delimiter = "," if "," in rows[0] else None
    if rows[0].rstrip().endswith(","):
        rows = [row.rstrip().removesuffix(",") for row in rows]
    width = len(rows[0].split(delimiter))
    table = parse_rows(rows, numbers, path=path, num_columns=width, delimiter=delimiter, is_finite=False)
    return TextRows(table, _parse_column_names(head, width, f"{path}:{head_line}"), start + 1, num_counts)


def _find_first_row(path: Path, lines: Sequence[str]) -> tuple[int, str | None]:
    """Return the index of the first row, and the number of rows that the line before it announces, if it does.

    Raises DataError for a line above that is no comment.
    """
    start = next((index for index, line in enumerate(lines) if _is_row(line)), len(lines))
    if start == len(lines):
        for number, line in enumerate(lines, start=1):
            _refuse_semicolons(line, f"{path}:{number}")
    for number, line in enumerate(lines[: max(start - 1, 0)], start=1):
        if line.strip() and not line.startswith(_COMMENTS):
            raise DataError(f"{path}:{number}: {line.strip()[:40]!r} is not a row of numbers; take the line out")
    if lines[start:] and lines[start].strip().isdecimal() and all(map(_is_row, lines[start + 1 : start + 2])):
        return start + 1, lines[start].strip()
    return start, None


def _read_large(path: Path, content: bytes) -> TextRows | None:
    """Read the rows of a large file, whose head is as `read_rows` describes; None if it is small, or not so plain."""
    head = content[:_HEAD_BYTES]
    lines = split_lines(head[: head.rfind(b"\n") + 1].decode("latin-1"))
    if not is_large(len(content)) or head.count(b"\r") != head.count(b"\r\n") or not any(map(_is_row, lines)):
        return None
    start, announced = _find_first_row(path, lines)
    at, row = 0, "".join(lines[start : start + 1])
    for _ in range(start):
        at = content.find(b"\n", at) + 1
    width = len(row.split("," if "," in row else None))
    table = parse_large(content, at, num_columns=width, is_comma="," in row) if width else None
    if table is None or announced not in (None, str(len(table))):
        return None
    head_line = start - (announced is not None)
    names = _parse_column_names(lines[head_line - 1] if head_line else "", width, f"{path}:{head_line}")
    return TextRows(table, names, start + 1, int(announced is not None))


def _find_scans(lines: Sequence[str], at: int) -> list[range]:
    """Return the lines of each scan of a file, whose counts begin with line `at`; none if they do not fit the lines."""
    scans = []
    while at < len(lines):
        count = parse_count(lines[at].strip())
        if not count or at + 1 + count > len(lines):
            return []
        scans.append(range(at + 1, at + 1 + count))
        at += 1 + count
    return scans


def _read_content(path: Path) -> bytes:
    """Read the bytes of a text file without its byte order mark. Raises DataError for UTF-16."""
    content = read_file(path)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}: is UTF-16 text, two bytes a character; save it as UTF-8")
    return content.removeprefix(b"\xef\xbb\xbf")


def _refuse_semicolons(line: str, where: str) -> None:
    """Raise DataError for numbers between semicolons, as spreadsheets of some countries write them."""
    tokens = [token.strip().replace(",", ".") for token in line.strip().rstrip(";").split(";")]
    if len(tokens) > 1 and all(_is_row(token) for token in tokens):
        raise DataError(
            f"{where}: {line.strip()[:40]!r} has semicolons between its numbers; put commas or blanks there, and "
            "points in decimal numbers"
        )


def _is_row(line: str) -> bool:
    """Return True if a line begins with a number, as rows do, and lines of names and comments do not."""
    tokens = line.replace(",", " ").split()
    try:
        return bool(tokens) and float(tokens[0]) is not None
    except ValueError:
        return False


def _parse_column_names(line: str, width: int, where: str) -> tuple[str, ...] | None:
    """Parse the names in a line above the rows; None if there are none. Raises DataError if they do not fit."""
    text = line.strip().removeprefix("#").removeprefix("//").strip().removesuffix(",")
    names = tuple(name.strip().strip('"').lower() for name in (text.split(",") if "," in text else text.split()))
    if not names or (line.startswith(_COMMENTS) and len(names) != width):
        return None
    if len(names) != width or len(set(names)) < width:
        raise DataError(
            f"{where}: names {len(set(names))} columns ({', '.join(names)[:60]}), the rows have {width}; mend the line"
        )
    return names


def parse_rows(
    lines: Sequence[str],
    line_numbers: Sequence[int],
    *,
    path: Path,
    num_columns: int,
    delimiter: str | None = None,
    is_finite: bool = True,
) -> np.ndarray:
    """Parse these lines of a file: (len(lines), num_columns) float64, finite if `is_finite`. Raises as `read_table`."""
    # loadtxt skips empty lines and warns if nothing is left, so those are checked first.
    if lines and all(map(str.strip, lines)):
        try:
            table = np.loadtxt(lines, delimiter=delimiter, comments=None, ndmin=2, dtype=np.float64)
        except ValueError:
            table = np.empty((0, 0))
        if table.shape == (len(lines), num_columns) and not (is_finite and not np.isfinite(table).all()):
            return table
    for number, line in zip(line_numbers, lines, strict=True):
        _refuse(line, f"{path}:{number}", num_columns, delimiter, is_finite=is_finite)
    raise damaged(f"{path}: does not read as {len(lines)} rows of {num_columns} numbers")


def _refuse(line: str, where: str, num_columns: int, delimiter: str | None, *, is_finite: bool) -> None:
    """Raise DataError for the first fault of a line, if there is one."""
    _refuse_semicolons(line, where)
    tokens = line.split(delimiter) if line.strip() else []
    if len(tokens) != num_columns:
        raise damaged(f"{where}: {len(tokens)} columns, {num_columns} are needed; found {line.strip()[:60]!r}")
    for token in tokens:
        try:
            value = float(token)
        except ValueError:
            raise damaged(f"{where}: {token.strip()[:40]!r} is not a number") from None
        if is_finite and not np.isfinite(value):
            raise DataError(
                f"{where}: {token.strip()[:40]} is not a finite number; mend the line or leave the file out"
            )


class LabelLines:
    """Lines `name number number ...` of a file: all names are read, numbers in blocks, to save memory.

    Empty lines at the end are left out. Raises DataError with the line for other empty lines.
    """

    def __init__(self, path: Path, *, num_columns: int) -> None:
        self.path, self.num_columns = path, num_columns
        self.names: list[str] = []
        self._starts: list[int] = []
        position, first_empty = 0, 0
        with open_regular(path) as file:
            for number, line in enumerate(file, start=1):
                fields = line.split(None, 1)
                if fields and first_empty:
                    raise DataError(f"{path}:{first_empty}: is empty, a name and numbers are needed; mend the file")
                if fields:
                    self._starts += [position] if len(self.names) % BLOCK_LINES == 0 else []
                    self.names.append(fields[0].decode("latin-1"))
                else:
                    first_empty = first_empty or number
                position += len(line)
        if not self.names:
            raise damaged(f"{path}: holds no lines")

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, first: int, count: int) -> np.ndarray:
        """Read the numbers (count, num_columns) float64 after the names; `first` is a multiple of `BLOCK_LINES`.

        Raises DataError with the line for another count of numbers, or a token that is not a number.
        """
        assert first % BLOCK_LINES == 0, f"blocks begin at multiples of {BLOCK_LINES}, not at {first}"
        with self.path.open("rb") as file:
            file.seek(self._starts[first // BLOCK_LINES])
            lines = [file.readline().decode("latin-1") for _ in range(count)]
        numbers = [line.partition(line.split(None, 1)[0])[2].strip() for line in lines]
        line_numbers = range(first + 1, first + count + 1)
        return parse_rows(numbers, line_numbers, path=self.path, num_columns=self.num_columns)
