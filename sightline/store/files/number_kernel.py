"""Compiled parser of rows of plain decimal numbers, for large text files."""

from __future__ import annotations

import numpy as np
import torch

from sightline.ops.numba_kernels import can_use_numba, inlined_kernel, numba_kernel

_MAX_EXACT = 2**53
_MAX_POWER = 22
"""An integer up to 2^53, times or divided by a power of ten up to 10^22, is rounded once: the nearest float64.

Source: Clinger 1990, How to read floating point numbers accurately.
"""
_MAX_STEPS = 3
"""Largest number of such powers by which longer numbers are scaled."""
_MAX_DIGITS = 19
"""Largest number of digits that 64 bits hold, whatever they are."""
_LOW_BITS = 2**11 - 1
"""Bits of 64 that a float64 of the others does not hold."""
_SPLITTER = 2.0**27 + 1
_ERROR = 2.0**-50
"""Bound of the relative error of a few roundings."""
_POWERS = 10.0 ** np.arange(_MAX_POWER + 1)
_TAB, _LINE_END, _RETURN, _BLANK, _PLUS, _COMMA, _MINUS, _POINT, _ZERO, _NINE = b"\t\n\r +,-.09"
_E, _SMALL_E = b"Ee"
_ONE, _EIGHT = np.uint64(1), np.uint64(8)
"""Steps of an index without a sign, for which no code is compiled that counts negative ones from the end."""


def parse_plain_rows(content: bytes, start: int, *, num_columns: int, is_comma: bool) -> np.ndarray | None:
    """Parse the rows of numbers from a byte on, to the end of a file: (rows, num_columns) float64, each the nearest.

    None without numba, and for anything but plain decimal numbers of at most 19 digits in rows of equal width.
    """
    stop = len(content)
    while stop > start and content[stop - 1] in b" \t\r\n":
        stop -= 1
    num_rows = content.count(b"\n", start, stop) + 1
    parsed = parse_next_rows(content, start, stop, num_rows=num_rows, num_columns=num_columns, is_comma=is_comma)
    return parsed[0] if parsed is not None and parsed[1] == stop else None


def parse_next_rows(
    content: bytes, start: int, stop: int, *, num_rows: int, num_columns: int, is_comma: bool = False
) -> tuple[np.ndarray, int] | None:
    """Parse so many rows of numbers between two bytes as `parse_plain_rows` does; return them and the byte behind."""
    if 2 * num_rows * num_columns > stop - start + 1:  # a number has a digit, and something behind it
        return None
    table = np.empty((num_rows, num_columns))
    if not can_use_numba(torch.from_numpy(table)):
        return None
    end = _parse(start, stop, np.frombuffer(content, np.uint8), is_comma, _POWERS, table)
    return (table, end) if end >= 0 else None


@inlined_kernel
def _multiply(first: float, second: float) -> tuple[float, float]:
    """Return a product and what its rounding left out. Source: Dekker 1971, A floating-point technique."""
    product = first * second
    scaled = _SPLITTER * first
    first_high = scaled - (scaled - first)
    scaled = _SPLITTER * second
    second_high = scaled - (scaled - second)
    first_low, second_low = first - first_high, second - second_high
    rest = first_high * second_high - product + first_high * second_low + first_low * second_high
    return product, rest + first_low * second_low


@inlined_kernel
def _scale(high: float, low: float, power: int, powers: np.ndarray) -> float:
    """Return the float64 nearest to (high + low) 10^power, which is computed in two; NaN where that is not certain.

    The quotient's remainder is exact, so only what is added to it has errors, whose bound is carried along.
    """
    error = 0.0
    total = high + low
    high, low = total, low - (total - high)
    while power != 0:
        factor = powers[min(abs(power), _MAX_POWER)]
        if power < 0:
            scaled = high / factor
            product, rest = _multiply(scaled, factor)
            low = (high - product - rest + low) / factor
            error = error / factor + abs(low) * _ERROR
            power += min(-power, _MAX_POWER)
        else:
            scaled, rest = _multiply(high, factor)
            low *= factor
            error = error * factor + (abs(low) + abs(rest)) * _ERROR
            low += rest
            power -= min(power, _MAX_POWER)
        high = scaled + low
        low -= high - scaled
        error += abs(low) * _ERROR
    is_certain = high + (low + error) == high and high + (low - error) == high
    return high if is_certain else np.nan


@inlined_kernel
def _load_eight(content: np.ndarray, at: np.uint64) -> np.uint64:
    """Return eight bytes as one number, the first in its lowest bits."""
    word = np.uint64(0)
    for index in range(8):
        word |= np.uint64(content[at + np.uint64(index)]) << np.uint64(8 * index)
    return word


@inlined_kernel
def _are_digits(word: np.uint64) -> bool:
    """Return True if all eight bytes are digits: their high half is 3, and is 3 still if 6 is added."""
    high, sixes, threes = np.uint64(0xF0F0F0F0F0F0F0F0), np.uint64(0x0606060606060606), np.uint64(0x3030303030303030)
    return word & high == threes and (word + sixes) & high == threes


@inlined_kernel
def _convert_digits(word: np.uint64) -> np.uint64:
    """Return the number of eight digits, which are added in pairs, in fours and in eights at once."""
    pairs = (word & np.uint64(0x0F0F0F0F0F0F0F0F)) * np.uint64(10 << 8 | 1) >> np.uint64(8)
    fours = (pairs & np.uint64(0x00FF00FF00FF00FF)) * np.uint64(100 << 16 | 1) >> np.uint64(16)
    return (fours & np.uint64(0x0000FFFF0000FFFF)) * np.uint64(10000 << 32 | 1) >> np.uint64(32)


@inlined_kernel
def _skip_blanks(content: np.ndarray, at: np.uint64, end: np.uint64) -> np.uint64:
    """Return the index of the first byte from `at` on that is no blank and no tab, or `end`."""
    while at < end and (content[at] == _BLANK or content[at] == _TAB):
        at += _ONE
    return at


@inlined_kernel
def _count_zeros(content: np.ndarray, at: np.uint64, end: np.uint64) -> int:
    """Return the number of zeros before the first other digit of a number, whose digits are between two indices."""
    num_zeros = 0
    while at < end and (content[at] == _ZERO or content[at] == _POINT):
        num_zeros += content[at] == _ZERO
        at += _ONE
    return num_zeros


@numba_kernel
def _parse(first: int, last: int, content: np.ndarray, is_comma: bool, powers: np.ndarray, table: np.ndarray) -> int:
    """Parse rows of the bytes from `first` on, before `last`, of `content` (bytes,) uint8 into `table` (rows, columns).

    Columns are between commas, or between blanks and tabs. Returns the byte behind the last row of the table, or -1 at
    the first thing that is not a plain decimal number whose nearest float64 is certain here, for a row of another
    width, and where there are fewer rows than the table has.
    """
    at, end = np.uint64(first), np.uint64(last)
    row, width = 0, table.shape[1]
    while row < table.shape[0]:
        if at >= end:
            return -1
        for column in range(width):
            at = _skip_blanks(content, at, end)
            if is_comma and column > 0:
                if at == end or content[at] != _COMMA:
                    return -1
                at += _ONE
                at = _skip_blanks(content, at, end)
            is_negative = at < end and content[at] == _MINUS
            if at < end and (is_negative or content[at] == _PLUS):
                at += _ONE
            mantissa, power, begin = np.uint64(0), 0, at
            while at < end and _ZERO <= content[at] <= _NINE:
                mantissa = np.uint64(10) * mantissa + np.uint64(content[at] - _ZERO)
                at += _ONE
            num_digits = np.int64(at - begin)
            if at < end and content[at] == _POINT:
                at += _ONE
                start = at
                while at + _EIGHT <= end:
                    word = _load_eight(content, at)
                    if not _are_digits(word):
                        break
                    mantissa = np.uint64(10**8) * mantissa + _convert_digits(word)
                    at += _EIGHT
                while at < end and _ZERO <= content[at] <= _NINE:
                    mantissa = np.uint64(10) * mantissa + np.uint64(content[at] - _ZERO)
                    at += _ONE
                power = -np.int64(at - start)  # type: ignore[assignment]  # of uint64 and int64 numba makes float64
                num_digits -= power
            if num_digits > _MAX_DIGITS:
                num_digits -= _count_zeros(content, begin, at)
                if num_digits > _MAX_DIGITS:
                    return -1
            elif num_digits == 0:
                return -1
            if at < end and (content[at] == _E or content[at] == _SMALL_E):
                at += _ONE
                is_small = at < end and content[at] == _MINUS
                if at < end and (is_small or content[at] == _PLUS):
                    at += _ONE
                stated, start = 0, at
                while at < end and _ZERO <= content[at] <= _NINE and np.int64(at - start) < 4:
                    stated = 10 * stated + (content[at] - _ZERO)
                    at += _ONE
                if at == start:
                    return -1
                power += -stated if is_small else stated
            if mantissa <= np.uint64(_MAX_EXACT) and -_MAX_POWER <= power <= _MAX_POWER:
                number = np.float64(mantissa)
                value = number / powers[-power] if power < 0 else number * powers[power]
            elif abs(power) > _MAX_STEPS * _MAX_POWER:
                return -1
            else:
                low = mantissa & np.uint64(_LOW_BITS)
                value = _scale(np.float64(mantissa - low), np.float64(low), power, powers)
                if np.isnan(value):
                    return -1
            table[row, column] = -value if is_negative else value
            if at < end and column < width - 1 and not is_comma and content[at] != _BLANK and content[at] != _TAB:
                return -1
        at = _skip_blanks(content, at, end)
        if at < end and content[at] == _RETURN:
            at += _ONE
        if at < end:
            if content[at] != _LINE_END:
                return -1
            at += _ONE
        row += 1
    return np.int64(at)  # type: ignore[return-value]
