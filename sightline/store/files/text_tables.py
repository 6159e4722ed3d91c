"""Tables of numbers in text files: a fast parser, and on a fault a slow one that names the line.

Text files of lines `name number number ...`: all names are read, numbers in blocks, to save memory.

Compiled parser of large tables of numbers in text; lines that it cannot parse are returned as row indices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch

from sightline.contract.errors import DataError
from sightline.ops.numba_kernels import can_use_numba, numba_kernel, run_parallel
from sightline.store.files.input_files import copy_again, damaged, read_file, unreadable


def read_text(path: Path) -> str:
    """Read the whole file as Latin-1, so that a stray byte is found as a token of its line."""
    return read_file(path).decode("latin-1")


def split_lines(text: str) -> list[str]:
    """Split text at the line ends of any system."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


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
        raise damaged(f"{path}: holds no rows, {num_columns} columns are needed")
    return parse_rows(lines, range(1, len(lines) + 1), path=path, num_columns=num_columns, delimiter=delimiter)


class TextRows(NamedTuple):
    """Rows of a text file (rows, columns) float64, the names of its columns, and the line number of the first row.

    `has_count` is True if the line above the rows announces their number.
    """

    table: np.ndarray
    names: tuple[str, ...] | None
    first_line: int
    has_count: bool


def read_rows(path: Path) -> TextRows:
    """Read all rows of a text file, which may contain NaN and infinity.

    Every row has the width of the first. Columns are separated by commas or blanks; rows may end with a comma. Names,
    in lower case, are read from the line directly above the rows, after `#` or `//` or without; None if there are none.
    Lines of `#` or `//` above them are comments. A single whole number above rows of several columns is their number.
    Raises DataError with path and line for a row of another width, an empty row, a token that is not a number, and for
    a wrong number of names or rows.
    """
    lines = _read_lines(path)
    start = next((index for index, line in enumerate(lines) if _is_row(line)), len(lines))
    if start == len(lines):
        first = next((number for number, line in enumerate(lines, start=1) if ";" in line), 0)
        for line in lines:
            _refuse_semicolons(line, f"{path}:{first}")
    for number, line in enumerate(lines[: max(start - 1, 0)], start=1):
        if line.strip() and not line.startswith(_COMMENTS):
            raise DataError(f"{path}:{number}: {line.strip()[:40]!r} is not a row of numbers; take the line out")
    head, head_line, announced = lines[start - 1] if start else "", start, None
    if (
        start < len(lines)
        and lines[start].strip().isdecimal()
        and (start + 1 == len(lines) or _is_row(lines[start + 1]))
    ):
        announced, start = lines[start].strip(), start + 1
    rows = lines[start:]
    if announced is not None and announced != str(len(rows)):
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
    numbers = range(start + 1, len(lines) + 1)
    table = parse_rows(rows, numbers, path=path, num_columns=width, delimiter=delimiter, is_finite=False)
    return TextRows(table, _parse_column_names(head, width, f"{path}:{head_line}"), start + 1, announced is not None)


_COMMENTS = ("#", "//")
"""Beginnings of comments: of NumPy, of CloudCompare."""


def _read_lines(path: Path) -> list[str]:
    """Read the lines of a text file without the empty ones at its end."""
    text = read_text(path)
    if text.startswith(("\xff\xfe", "\xfe\xff")):
        raise DataError(f"{path}: is UTF-16 text, two bytes a character; save it as UTF-8")
    lines = split_lines(text.removeprefix("\xef\xbb\xbf"))
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


BLOCK_LINES = 1000
"""Number of lines per block."""


class LabelLines:
    """Lines of a file, except empty ones at the end. Raises DataError with the line for other empty lines."""

    def __init__(self, path: Path, *, num_columns: int) -> None:
        self.path = path
        self.num_columns = num_columns
        self.names: list[str] = []
        self._starts: list[int] = []
        self._scan()

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

    def _scan(self) -> None:
        """Read the names, and the byte at which every block begins."""
        position, first_empty = 0, 0
        try:
            with self.path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    fields = line.split(None, 1)
                    if fields and first_empty:
                        raise DataError(
                            f"{self.path}:{first_empty}: is empty, a name and numbers are needed; mend the file"
                        )
                    if not fields:
                        first_empty = first_empty or number
                    else:
                        if len(self.names) % BLOCK_LINES == 0:
                            self._starts.append(position)
                        self.names.append(fields[0].decode("latin-1"))
                    position += len(line)
        except OSError as error:
            raise unreadable(self.path, error) from error
        if not self.names:
            raise damaged(f"{self.path}: holds no lines")


_NEWLINE, _RETURN, _BLANK, _TAB = 10, 13, 32, 9
_PLUS, _MINUS, _POINT = 43, 45, 46
_ZERO, _NINE, _TEN = np.uint64(48), np.uint64(9), np.uint64(10)
_MAX_DIGITS = 15
"""Maximum digits for which mantissa and power of ten are exact in float64, so one division rounds as `float`."""
_NEXT = np.uint64(1)
_SPACES = b" \t\r\n"
_BLOCK_BYTES = 2**19
"""Size of a block: text and numbers stay in the CPU caches between the steps."""
_PIECE_BYTES = 2**18
_POWERS = 10.0 ** np.arange(_MAX_DIGITS + 1)
_POWERS.flags.writeable = False


class NumberLines(NamedTuple):
    """Numbers of every line (rows, columns) float64, and the sorted indices of the rows that could not be parsed.

    These rows are NaN. Empty lines at the end are not rows.
    """

    table: np.ndarray
    unparsed_rows: np.ndarray


def read_line_blocks(file: BinaryIO) -> Iterator[bytes]:
    """Yield the content of a file in blocks of about half a megabyte, each of which ends with a non-empty line.

    So the lines of the blocks, as `parse_numbers` counts them, are those of the file. Raises OSError.
    """
    remainder = b""
    while block := file.read(_BLOCK_BYTES):
        end = _find_end_of_lines(block)
        if end:
            yield b"".join((remainder, memoryview(block)[:end]))
            remainder = block[end:]
        else:
            remainder += block
            end = _find_end_of_lines(remainder)
            if end:
                yield remainder[:end]
                remainder = remainder[end:]
    yield remainder


def _find_end_of_lines(text: bytes) -> int:
    """Return the end of the last complete non-empty line; 0 if there is none."""
    end = text.rfind(b"\n")
    while end > 0 and text[end - 1] in _SPACES:
        end -= 1
    return text.find(b"\n", end) + 1 if end > 0 else 0


def parse_numbers(content: bytes, *, num_columns: int) -> NumberLines:
    """Parse lines of `num_columns` numbers between blanks or tabs, bit-identical to `float`.

    Signs, digits and a decimal point are parsed; any other character in a line, or a number of more than 15 digits,
    makes the row an unparsed one. Source: Clinger 1990, the cases in which one rounding suffices.
    """
    if not can_use_numba(torch.empty(0, dtype=torch.float64)):
        return parse_numbers_reference(content, num_columns=num_columns)
    end = len(content)
    while end and content[end - 1] in _SPACES:
        end -= 1
    if not end:
        return NumberLines(np.empty((0, num_columns)), np.empty(0, dtype=np.int64))
    padded = content if content[end : end + 1] == b"\n" else content[:end] + b"\n"
    text = np.frombuffer(padded, dtype=np.uint8, count=end + 1)
    pieces = _split_pieces(content, end)
    counts = np.zeros(len(pieces) - 1, dtype=np.int64)
    run_parallel(_count, len(counts), text, pieces, counts)
    starts = np.concatenate(([0], np.cumsum(counts)))
    table, is_odd = np.empty((starts[-1], num_columns)), np.zeros(starts[-1], dtype=np.bool_)
    run_parallel(_scan, len(counts), text, pieces, starts, table, is_odd, _POWERS)
    table[is_odd] = np.nan
    return NumberLines(table, np.flatnonzero(is_odd))


def _split_pieces(content: bytes, end: int) -> np.ndarray:
    """Return the starts of pieces of whole lines, and the end of the last piece."""
    starts = [0]
    while (newline := content.find(b"\n", starts[-1] + _PIECE_BYTES, end)) >= 0:
        starts.append(newline + 1)
    return np.array([*starts, end + 1])


def parse_numbers_reference(content: bytes, *, num_columns: int) -> NumberLines:
    """Compute the reference of `parse_numbers`: token by token with `float`; numbers of any length are parsed."""
    lines = content.rstrip(b" \t\r\n").split(b"\n") if content.strip() else []
    rows = [_parse_line(line, num_columns) for line in lines]
    table = np.array(rows, dtype=np.float64).reshape(len(rows), num_columns)
    return NumberLines(table, np.flatnonzero(np.isnan(table).any(axis=1)))


def _parse_line(line: bytes, num_columns: int) -> list[float]:
    """Parse one line to its numbers; all NaN if it cannot be parsed."""
    tokens = line.replace(b"\r", b" ").split()
    if len(tokens) == num_columns and all(set(token) <= set(b"+-.0123456789") for token in tokens):
        try:
            return [float(token) for token in tokens]
        except ValueError:
            pass
    return [np.nan] * num_columns


@numba_kernel
def _count(first: int, last: int, text: np.ndarray, pieces: np.ndarray, counts: np.ndarray) -> None:
    """Count the lines of each piece."""
    for piece in range(first, last):
        count = 0
        for byte in text[pieces[piece] : pieces[piece + 1]]:
            count += byte == _NEWLINE
        counts[piece] = count


@numba_kernel
def _scan(
    first: int,
    last: int,
    text: np.ndarray,
    pieces: np.ndarray,
    starts: np.ndarray,
    table: np.ndarray,
    is_odd: np.ndarray,
    powers: np.ndarray,
) -> None:
    """Fill the rows of `table` for these pieces. `text` ends in a newline, so no loop checks for its end.

    Indices are unsigned, or every access would first check for a negative index, which takes half the time. Digits are
    unsigned too: then one comparison separates them from all other bytes.
    """
    position, num_columns = np.uint64(pieces[first]), np.uint64(table.shape[1])
    for row in range(starts[first], starts[last]):
        column = np.uint64(0)
        while True:
            byte = text[position]
            while byte in (_BLANK, _TAB, _RETURN):
                position += _NEXT
                byte = text[position]
            if byte == _NEWLINE:
                break
            is_negative = byte == _MINUS
            if is_negative or byte == _PLUS:
                position += _NEXT
                byte = text[position]
            begin, mantissa, num_decimals = position, np.uint64(0), np.uint64(0)
            digit = np.uint64(byte) - _ZERO  # bytes below "0" wrap to very large numbers
            while digit <= _NINE:
                mantissa = mantissa * _TEN + digit
                position += _NEXT
                byte = text[position]
                digit = np.uint64(byte) - _ZERO
            num_digits = position - begin
            if byte == _POINT:
                position += _NEXT
                begin = position
                byte = text[position]
                digit = np.uint64(byte) - _ZERO
                while digit <= _NINE:
                    mantissa = mantissa * _TEN + digit
                    position += _NEXT
                    byte = text[position]
                    digit = np.uint64(byte) - _ZERO
                num_decimals = position - begin
                num_digits += num_decimals
            is_ended = byte in (_BLANK, _NEWLINE, _TAB, _RETURN)
            if not is_ended or num_digits == 0 or num_digits > _MAX_DIGITS or column == num_columns:
                is_odd[row] = True
                while text[position] != _NEWLINE:
                    position += _NEXT
                break
            value = np.float64(np.int64(mantissa))
            if num_decimals:
                value = value / powers[num_decimals]
            table[row, column] = -value if is_negative else value
            column += _NEXT
            if byte == _BLANK:
                position += _NEXT
        if column < num_columns:
            is_odd[row] = True
        position += _NEXT
