"""Tables of numbers in text files: read fast, and on a fault slowly once more to name the line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sightline.errors import DataError

__all__ = ["numbers_of", "read_table", "read_text"]


def read_text(path: Path) -> str:
    """The whole file, any byte allowed (as Latin-1), so that a stray byte is found as a token of its line."""
    try:
        return path.read_bytes().decode("latin-1")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from error


def read_table(path: Path, *, num_columns: int, delimiter: str | None = None) -> np.ndarray:
    """All rows of a text file without header: (rows, num_columns) float64, finite.

    Raises DataError with path and line for a row of another width, an empty row, and a token that is no finite number.
    """
    lines = read_text(path).replace("\r\n", "\n").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise DataError(f"{path}: holds no rows, {num_columns} columns are needed; get the file again")
    return numbers_of(lines, range(1, len(lines) + 1), path=path, num_columns=num_columns, delimiter=delimiter)


def numbers_of(
    lines: Sequence[str], line_numbers: Sequence[int], *, path: Path, num_columns: int, delimiter: str | None = None
) -> np.ndarray:
    """The numbers of these lines of a file: (len(lines), num_columns) float64, finite. Raises as `read_table`."""
    # loadtxt skips empty lines and warns if nothing is left, so those are looked for first.
    if all(map(str.strip, lines)):
        try:
            table = np.loadtxt(lines, delimiter=delimiter, comments=None, ndmin=2, dtype=np.float64)
        except ValueError:
            table = np.empty((0, 0))
        if table.shape == (len(lines), num_columns) and np.isfinite(table).all():
            return table
    for number, line in zip(line_numbers, lines, strict=True):
        _refuse(line, f"{path}:{number}", num_columns, delimiter)
    raise DataError(f"{path}: does not read as {len(lines)} rows of {num_columns} numbers; get the file again")


def _refuse(line: str, where: str, num_columns: int, delimiter: str | None) -> None:
    tokens = line.split(delimiter) if line.strip() else []
    if len(tokens) != num_columns:
        raise DataError(
            f"{where}: {len(tokens)} columns, {num_columns} are needed; found {line.strip()[:60]!r}; get the file again"
        )
    for token in tokens:
        try:
            value = float(token)
        except ValueError:
            raise DataError(f"{where}: {token.strip()[:40]!r} is not a number; get the file again") from None
        if not np.isfinite(value):
            raise DataError(f"{where}: {token.strip()} is not a finite number; mend the line or leave the file out")
