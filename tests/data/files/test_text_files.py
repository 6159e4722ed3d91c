"""Tables of numbers and YAML of one's own: the values that were written, and what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.contract.errors import DataError
from sightline.store.files import text_tables
from sightline.store.files.input_files import MAX_BYTES, MAX_NODES, parsed_yaml
from sightline.store.files.text_tables import parse_numbers, parse_numbers_reference, read_line_blocks
from tests.cases import run_each
from tests.long.mutations import ALIASES, MERGES


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
    monkeypatch.setattr(text_tables, "can_use_numba", lambda *tensors, **named: False)
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


# --- YAML of one's own files: plain values as others write them, and in one line what hangs, fills memory or is none -


HERE = Path("mine.yaml")


def read(text: str) -> object:
    return parsed_yaml(text.encode(), HERE, name="a label map")


def test_values_are_those_of_the_core_schema_and_keys_are_text() -> None:
    text = "a: {0: True, 1: FALSE, 10: ~, x: 'True'}\nb: [yes, 010, 1:30, 2001-01-01, 1e3, .5]\n? c\n: |\n  d\n"
    assert read(text) == {
        "a": {"0": True, "1": False, "10": None, "x": "True"},
        "b": ["yes", "010", "1:30", "2001-01-01", 1e3, 0.5],
        "c": "d\n",
    }
    assert read("\ufeff") is None
    assert read("a: &x [1]\nb: [*x, *x]") == {"a": [1], "b": [[1], [1]]}


def test_json_reads_as_json_does() -> None:
    document = {"names": ["\U0001f600", "a\u00e4", "x"], "1": {"2": [True, None, 1.5, -3, ""]}}
    for each in (json.dumps(document), json.dumps(document, ensure_ascii=False), json.dumps(document, indent=1)):
        assert read(each) == document


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"{MERGES}x: *m9", r"mine\.yaml:2: m1: merge keys \(<<\) are not read; write the entries out \(and 9 more\)"),
        (f"{ALIASES}x: *m9", rf"mine\.yaml:\d+: .*more than {MAX_NODES:,} values once anchors are expanded"),
        ("x: &s [*s]", "mine.yaml:1: x.0.*: an anchor that contains itself"),
        ("a: 1\nb: \0", r"mine\.yaml:2: holds the character U\+0000; remove it"),
        ('a: "\\ud800"', r"mine\.yaml:1: a: holds the character U\+D800"),
        ("a: 1\na: 2", "mine.yaml:2: a: 'a' is given twice, first on line 1"),
        ("0: 1\n'0': 2", "mine.yaml:2: 0: '0' is given twice"),
        ("1.5: 2", "mine.yaml:1: the key 1.5 is not text"),
        ("? [1]\n: 2", "mine.yaml:1: a key must be plain text"),
        (f"a: {'9' * 5000}", "mine.yaml:1: a: found 9{40}..., which does not fit into 64 bits"),
        ("a: 1e400", "mine.yaml:1: a: found 1e400, which is too large"),
        ("a: !!python/object:os.system {}", "mine.yaml:1: a: the tag '!!python/object:os.system' is not allowed"),
        ("a: !!set {b}", "mine.yaml:1: a: the tag '!!set' is not allowed"),
        ("a: 1\n---\nb: 2", "mine.yaml:2: not valid YAML"),
        ("[" * 50, "mine.yaml:1: is nested deeper than 40 levels; a label map this large is not one"),
        ("a: [1", "mine.yaml:1: not valid YAML"),
        ("x" * (MAX_BYTES + 1), r"mine\.yaml: has 2,000,001 bytes; a label map has at most 2,000,000"),
    ],
)
def test_what_is_not_plain_is_refused(text: str, told: str) -> None:
    with pytest.raises(DataError, match=told) as error:
        read(text)
    assert len(str(error.value)) < 300


def test_bytes_of_another_encoding_are_refused() -> None:
    with pytest.raises(DataError, match=r"mine\.yaml: is not UTF-8 text \(byte 3\); save it as UTF-8"):
        parsed_yaml(b"a: \xff", HERE, name="a label map")
