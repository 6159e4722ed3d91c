"""Tables of plain numbers: bit for bit what `float` reads, compiled or not, and every other line handed back."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from sightline.data.files import text_tables
from sightline.data.files.text_tables import parse_numbers, parse_numbers_reference, read_line_blocks
from tests.cases import run_each


@run_each("ending", ["\n", "\r\n", ""])
@run_each("blank", [" ", "\t", "  "])
def test_numbers_are_those_of_float(ending: str, blank: str) -> None:
    generator = np.random.default_rng(0)
    texts = [
        [f"{value:.{places}f}" for value, places in zip(row, generator.integers(0, 9, 4), strict=True)]
        for row in generator.normal(0, 10.0 ** generator.integers(-3, 5), (500, 4)).tolist()
    ]
    texts += [
        ["+1", "-0", "-0.0", "007"],
        [".5", "5.", "-.5", "+5."],
        ["0", "0.00000000000001", "123456789012345", "1"],
    ]
    content = (ending or "\n").join(blank.join(row) for row in texts) + ending
    table, odd = parse_numbers(content.encode(), num_columns=4)
    expected = np.array([[float(token) for token in row] for row in texts])
    assert not len(odd)
    assert np.array_equal(table, expected)
    assert np.array_equal(np.signbit(table), np.signbit(expected))
    plain = parse_numbers_reference(content.encode(), num_columns=4)
    assert np.array_equal(plain.table, expected)


WRONG_WIDTH = [b"1 2", b"1 2 3 4", b"", b"  ", b"1,2,3", b"1\x002 3"]
NO_PLAIN_NUMBER = [
    b"nan 1 2",
    b"1e3 1 2",
    b"1 2 x",
    b"1 2 3x",
    b"1 2 \x103",
    b"- 1 2",
    b"1 . 2",
    b"1 2 1.2.3",
    b"1 --2 3",
]
STRANGE_ENDS = [b"\xff 1 2", b"1 2 1-2"]


@run_each("line", [*WRONG_WIDTH, *NO_PLAIN_NUMBER, *STRANGE_ENDS])
@run_each("place", [0, 1, 2])
def test_other_lines_are_handed_back(line: bytes, place: int) -> None:
    lines = [b"1 2 3", b"4 5 6.5", b"7 8 9"]
    lines.insert(place, line)
    for read in (parse_numbers, parse_numbers_reference):
        table, odd = read(b"\n".join(lines), num_columns=3)
        assert odd.tolist() == [place]
        assert np.isnan(table[place]).all()
        assert np.delete(table, place, axis=0).tolist() == [[1, 2, 3], [4, 5, 6.5], [7, 8, 9]]


def test_numbers_of_more_digits_are_odd_to_the_loop_alone() -> None:
    content = b"0.1234567890123456 1\n1 2\n"
    assert parse_numbers(content, num_columns=2).unparsed_rows.tolist() == [0]
    assert parse_numbers_reference(content, num_columns=2).table[0, 0] == 0.1234567890123456


@pytest.mark.parametrize("content", [b"", b"\n", b" \r\n\t\n"])
def test_nothing_is_no_rows(content: bytes) -> None:
    for read in (parse_numbers, parse_numbers_reference):
        table, odd = read(content, num_columns=3)
        assert table.shape == (0, 3)
        assert odd.shape == (0,)


def test_pieces_and_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    lines = [" ".join(f"{value:.3f}" for value in row) for row in generator.normal(size=(1000, 3))]
    lines[500] = "odd"
    content = "\n".join(lines).encode()
    whole = parse_numbers(content, num_columns=3)
    monkeypatch.setattr(text_tables, "_PIECE_BYTES", 100)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        cut = parse_numbers(content, num_columns=3)
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(whole.table, cut.table, equal_nan=True)
    assert whole.unparsed_rows.tolist() == cut.unparsed_rows.tolist() == [500]
    monkeypatch.setattr(text_tables, "can_use_numba", lambda *tensors: False)
    without_numba = parse_numbers(content, num_columns=3)
    assert np.array_equal(whole.table, without_numba.table, equal_nan=True)


@pytest.mark.parametrize(
    "content", [b"1 2\n3 4", b"\n\n1 2\n\n \n3 4\r\n\t\n5 6\n\n\n", b"odd", b"", b"\n \n", b"\n\n1 2"], ids=repr
)
def test_blocks_have_the_lines_of_the_whole(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = parse_numbers_reference(content, num_columns=2)
    for size in range(1, len(content) + 2):
        monkeypatch.setattr(text_tables, "_BLOCK_BYTES", size)
        blocks = list(read_line_blocks(io.BytesIO(content)))
        assert b"".join(blocks) == content
        for read in (parse_numbers, parse_numbers_reference):
            tables = [read(block, num_columns=2).table for block in blocks]
            assert np.array_equal(np.concatenate(tables), whole.table, equal_nan=True), size
