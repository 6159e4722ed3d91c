"""Compiled parser of large tables of numbers in text; lines that it cannot parse are returned as row indices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
import torch

from sightline.numba_kernels import can_use_numba, numba_kernel, run_parallel

__all__ = ["NumberLines", "parse_numbers", "parse_numbers_reference", "read_line_blocks"]

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
    """Reference of `parse_numbers`: token by token with `float`; numbers of any length are parsed."""
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
