"""Compiled parser of rows of plain decimal numbers, for large text files."""

from __future__ import annotations

import numpy as np
import torch

from sightline.ops.numba_kernels import can_use_numba, numba_kernel

_MAX_EXACT = 2**53
_MAX_POWER = 22
"""An integer up to 2^53, times or divided by a power of ten up to 10^22, is rounded once: the nearest float64.

Source: Clinger 1990, How to read floating point numbers accurately.
"""
_POWERS = 10.0 ** np.arange(_MAX_POWER + 1)
_TAB, _LINE_END, _RETURN, _BLANK, _PLUS, _COMMA, _MINUS, _POINT, _ZERO, _NINE = b"\t\n\r +,-.09"
_E, _SMALL_E = b"Ee"


def parse_plain_rows(content: bytes, start: int, *, num_columns: int, is_comma: bool) -> np.ndarray | None:
    """Parse the rows of numbers from a byte on, to the end of a file: (rows, num_columns) float64, each the nearest.

    None without numba, and for anything but plain decimal numbers of at most 15 digits or so in rows of equal width.
    """
    stop = len(content)
    while stop > start and content[stop - 1] in b" \t\r\n":
        stop -= 1
    num_rows = content.count(b"\n", start, stop) + 1
    if 2 * num_rows * num_columns > stop - start + 1:  # a number has a digit, and something behind it
        return None
    table = np.empty((num_rows, num_columns))
    if not can_use_numba(torch.from_numpy(table)):
        return None
    count = _parse(start, stop, np.frombuffer(content, np.uint8), is_comma, _POWERS, table)
    return table if count == num_rows else None


@numba_kernel
def _parse(first: int, last: int, content: np.ndarray, is_comma: bool, powers: np.ndarray, table: np.ndarray) -> int:
    """Parse the bytes `first` to `last` of `content` (bytes,) uint8 into the rows of `table` (rows, columns) float64.

    Columns are between commas, or between blanks and tabs. Returns the number of rows, or -1 at the first thing that
    is not a plain decimal number whose value is exact here, and for a row of another width; there are at most as many
    rows as the table has.
    """
    at, row, width = first, 0, table.shape[1]
    while at < last:
        if row == table.shape[0]:
            return -1
        for column in range(width):
            while at < last and (content[at] == _BLANK or content[at] == _TAB):
                at += 1
            if is_comma and column > 0:
                if at == last or content[at] != _COMMA:
                    return -1
                at += 1
                while at < last and (content[at] == _BLANK or content[at] == _TAB):
                    at += 1
            is_negative = at < last and content[at] == _MINUS
            if at < last and (is_negative or content[at] == _PLUS):
                at += 1
            mantissa, power, num_digits, is_fraction = 0, 0, 0, False
            while at < last:
                byte = content[at]
                if _ZERO <= byte <= _NINE:
                    mantissa = 10 * mantissa + (byte - _ZERO)
                    num_digits += 1
                    power -= is_fraction
                    if mantissa > _MAX_EXACT:
                        return -1
                elif byte == _POINT and not is_fraction:
                    is_fraction = True
                else:
                    break
                at += 1
            if num_digits == 0:
                return -1
            if at < last and (content[at] == _E or content[at] == _SMALL_E):
                at += 1
                is_small = at < last and content[at] == _MINUS
                if at < last and (is_small or content[at] == _PLUS):
                    at += 1
                stated, start = 0, at
                while at < last and _ZERO <= content[at] <= _NINE and at - start < 4:
                    stated = 10 * stated + (content[at] - _ZERO)
                    at += 1
                if at == start:
                    return -1
                power += -stated if is_small else stated
            if power < -_MAX_POWER or power > _MAX_POWER:
                return -1
            value = mantissa / powers[-power] if power < 0 else mantissa * powers[power]
            table[row, column] = -value if is_negative else value
            if at < last and column < width - 1 and not is_comma and content[at] != _BLANK and content[at] != _TAB:
                return -1
        while at < last and (content[at] == _BLANK or content[at] == _TAB):
            at += 1
        if at < last and content[at] == _RETURN:
            at += 1
        if at < last:
            if content[at] != _LINE_END:
                return -1
            at += 1
        row += 1
    return row
