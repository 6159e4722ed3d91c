"""Tables of numbers in text files: a fast parser, and on a fault a slow one that names the line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sightline.data.files.input_files import read_file
from sightline.errors import DataError

__all__ = ["parse_count", "parse_rows", "read_rows", "read_table", "read_text"]


def read_text(path: Path) -> str:
    """Read the whole file as Latin-1, so that a stray byte is found as a token of its line."""
    return read_file(path).decode("latin-1")


def parse_count(token: str) -> int | None:
    """Parse digits to an integer; None for anything else, and for more than 18 digits."""
    return int(token) if token.isascii() and token.isdecimal() and len(token) < 19 else None


def read_table(path: Path, *, num_columns: int, delimiter: str | None = None) -> np.ndarray:
    """Read all rows of a text file without header: (rows, num_columns) float64, finite.

    Raises DataError with path and line for a row of another width, an empty row, and a token that is not a finite
    number.
    """
    lines = _read_lines(path)
    if not lines:
        raise DataError(
            f"{path}: holds no rows, {num_columns} columns are needed; the file is damaged or in another format"
        )
    return parse_rows(lines, range(1, len(lines) + 1), path=path, num_columns=num_columns, delimiter=delimiter)


def read_rows(path: Path, *, announces_rows: bool = False) -> tuple[tuple[str, ...] | None, np.ndarray]:
    """Read all rows of a text file, (rows, columns) float64, finite, and the names of its columns.

    Every row has the width of the first. Columns are separated by commas or blanks. Names, in lower case, are read from
    the line directly above the rows, after `#` or without; None if there are none. Lines of `#` above them are
    comments. `announces_rows`: the first line may state the number of rows. Raises as `read_table`, and DataError with
    the line for a wrong number of names or rows.
    """
    lines = _read_lines(path)
    start = next((index for index, line in enumerate(lines) if _is_row(line)), len(lines))
    if start == len(lines):
        first = next((number for number, line in enumerate(lines, start=1) if ";" in line), 0)
        for line in lines:
            _refuse_semicolons(line, f"{path}:{first}")
    for number, line in enumerate(lines[: max(start - 1, 0)], start=1):
        if line.strip() and not line.startswith("#"):
            raise DataError(f"{path}:{number}: {line.strip()[:40]!r} is not a row of numbers; take the line out")
    head, announced = lines[start - 1] if start else "", None
    if announces_rows and start < len(lines) and lines[start].strip().isdecimal():
        announced, start = lines[start].strip(), start + 1
    rows = lines[start:]
    if announced is not None and announced != str(len(rows)):
        raise DataError(
            f"{path}:{start}: announces {announced[:40]} points, {len(rows)} rows follow; the file is cut short or "
            "its first line is wrong: copy or download it again"
        )
    if not rows:
        raise DataError(f"{path}: holds no rows of numbers; the file is damaged or in another format")
    delimiter = "," if "," in rows[0] else None
    width = len(rows[0].split(delimiter))
    table = parse_rows(rows, range(start + 1, len(lines) + 1), path=path, num_columns=width, delimiter=delimiter)
    return (None if announced else _parse_column_names(head, width, f"{path}:{start}")), table


def _read_lines(path: Path) -> list[str]:
    """Read the lines of a text file without the empty ones at its end."""
    lines = read_text(path).removeprefix("\xef\xbb\xbf").replace("\r\n", "\n").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


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
    text = line.strip().removeprefix("#").removeprefix("//").strip()
    names = tuple(name.strip().strip('"').lower() for name in (text.split(",") if "," in text else text.split()))
    if not names or (line.startswith("#") and len(names) != width):
        return None
    if len(names) != width or len(set(names)) < width:
        raise DataError(
            f"{where}: names {len(set(names))} columns ({', '.join(names)[:60]}), the rows have {width}; mend the line"
        )
    return names


def parse_rows(
    lines: Sequence[str], line_numbers: Sequence[int], *, path: Path, num_columns: int, delimiter: str | None = None
) -> np.ndarray:
    """Parse these lines of a file: (len(lines), num_columns) float64, finite. Raises as `read_table`."""
    # loadtxt skips empty lines and warns if nothing is left, so those are checked first.
    if lines and all(map(str.strip, lines)):
        try:
            table = np.loadtxt(lines, delimiter=delimiter, comments=None, ndmin=2, dtype=np.float64)
        except ValueError:
            table = np.empty((0, 0))
        if table.shape == (len(lines), num_columns) and np.isfinite(table).all():
            return table
    for number, line in zip(line_numbers, lines, strict=True):
        _refuse(line, f"{path}:{number}", num_columns, delimiter)
    raise DataError(
        f"{path}: does not read as {len(lines)} rows of {num_columns} numbers; the file is damaged or in another format"
    )


def _refuse(line: str, where: str, num_columns: int, delimiter: str | None) -> None:
    """Raise DataError for the first fault of a line, if there is one."""
    _refuse_semicolons(line, where)
    tokens = line.split(delimiter) if line.strip() else []
    if len(tokens) != num_columns:
        raise DataError(
            f"{where}: {len(tokens)} columns, {num_columns} are needed; found {line.strip()[:60]!r}; the file is "
            "damaged or in another format"
        )
    for token in tokens:
        try:
            value = float(token)
        except ValueError:
            raise DataError(
                f"{where}: {token.strip()[:40]!r} is not a number; the file is damaged or in another format"
            ) from None
        if not np.isfinite(value):
            raise DataError(
                f"{where}: {token.strip()[:40]} is not a finite number; mend the line or leave the file out"
            )
