"""Tables of labels as comma-separated text, row by row, with the names of their columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from sightline.contract.errors import DataError
from sightline.store.files.input_files import read_file


def read_header(file: Path) -> tuple[str, ...]:
    """Return the names of the columns of a table; none of an empty one. Raises DataError as `iterate_rows`."""
    return next((tuple(row) for _, row in _split_rows(file)), ())


def iterate_rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number of the line, and the values by column, of each row behind the header.

    Raises DataError with the line for anything but text in UTF-8, for stray quotes, and for a row of another length.
    """
    rows = _split_rows(file)
    _, header = next(rows, (0, []))
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(f"{file}:{line}: has {len(row)} values, the header {len(header)}; export the file again")
        yield line, dict(zip(header, row, strict=True))


def _split_rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield line and values of the rows that are not empty; a `#` before the first name, as of VIA 1, is left out."""
    try:
        text = read_file(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in rows:
            if row:
                yield rows.line_num, [row[0].lstrip("#"), *row[1:]] if rows.line_num == 1 else row
    except csv.Error as error:
        raise DataError(f"{file}:{rows.line_num}: does not read as a table ({error}); export it again") from None
