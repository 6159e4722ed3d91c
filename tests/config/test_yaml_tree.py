"""What text means: our short table of scalars, and no file that can harm the reader."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sightline.config.faults import ConfigFaults
from sightline.config.reader import read_config
from sightline.config.yaml_tree import MAX_NODES, read_value, read_yaml
from sightline.contract.errors import ConfigError
from tests.cases import run_each
from tests.limits import count_calls, limited
from tests.runs.small import TINY

EACH = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(text: str) -> object:
    faults = ConfigFaults()
    value = read_value(text, "test", "x", faults).plain()
    faults.raise_any()
    return value


@run_each(
    "text, expected",
    [
        ("true", True),
        ("false", False),
        ("null", None),
        ("", None),
        ("0", 0),
        ("-0", 0),
        ("+7", 7),
        ("9223372036854775807", 2**63 - 1),
        ("-9223372036854775808", -(2**63)),
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("-2.5e+1", -25.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("[1, 2.0, true]", [1, 2.0, True]),
        ("{a: 1, b: [x]}", {"a": 1, "b": ["x"]}),
    ],
)
def test_values(text: str, expected: object) -> None:
    value = read(text)
    assert value == expected
    assert type(value) is type(expected), "1 is not True, 1.0 is not 1"


@run_each(
    "text",
    [
        *("yes", "no", "on", "off", "y", "n", "True", "FALSE", "Null", "~"),
        *("010", "0x10", "0o10", "0b1", "1_000", "1:30", "190:20:30", "1,5", "1e", "e5", ".", "1.2.3", "--1"),
        *("2024-01-01", "2024-01-01T10:00:00Z", ".nan", ".inf", "-.inf", "nan", "inf", "Infinity", "=", "<<"),
        *("٣", "１２"),  # digits, but not ours
    ],
)
def test_everything_else_is_text(text: str) -> None:
    assert read(text) == text


@run_each("text", ['"False"', "'1e-3'", '"null"', "'010'", '""', '"5"'])
def test_what_is_quoted_is_text(text: str) -> None:
    assert read(text) == text[1:-1]


@given(st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False))
@EACH
def test_numbers_as_python_writes_them_come_back_with_every_bit(number: float) -> None:
    value = read(repr(number))
    assert value == number
    assert type(value) is type(number)


@pytest.mark.parametrize("text", ["9223372036854775808", "1e999", "-1e999", "9" * 5000, "1" + "0" * 400 + ".0"])
def test_numbers_beyond_64_bits_are_faults(text: str) -> None:
    with pytest.raises(ConfigError, match=r"does not fit into 64 bits|too large for a 64-bit float"):
        read(text)


def test_lines_count_from_one_and_point_at_the_key(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("# first\na: 1\nb:\n  c:\n    - 5\n    - {d: 6}\n")
    faults = ConfigFaults()
    tree = read_yaml(path, faults).value
    assert isinstance(tree, dict)
    found = tree["b"].value["c"].value[1].value["d"]  # type: ignore[index, union-attr]
    assert (found.where.line, found.where.path) == (6, "b.c.1.d")
    assert tree["b"].where.line == 3


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: two\r\n")
    assert read_yaml(path, ConfigFaults()).plain() == {"a": 1, "b": "two"}


def test_an_anchor_used_twice_is_two_values() -> None:
    assert read("{a: &x [1], b: *x}") == {"a": [1], "b": [1]}


def test_the_limit_of_values_is_exact() -> None:
    most = MAX_NODES - 1  # the list itself is a value too
    assert read("[" + ", ".join(["1"] * most) + "]") == [1] * most
    with pytest.raises(ConfigError, match="more than 10,000 values"):
        read("[" + ", ".join(["1"] * (most + 1)) + "]")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 60_000,
        "{a: " * 40_000,
        "- " * 60_000,
        "? " * 60_000,
        "&a " * 60_000,
        "!!a " * 40_000,
        "[" + "*a," * 50_000,
        '"' + "\\x41" * 40_000,
        "a: " + "- " * 50_000,
        "%A\n" * 50_000,
        "|\n" + " a\n" * 50_000,
        "'" * 150_000,
        "---\n" * 40_000,
        "a\n" * 80_000,
        "[a: b, " * 20_000,
        '"\\UFFFFFFFF"',
        "%YAML " + "1" * 5000 + ".1\n--- a",
        "!<%FF> a",
    ],
)
def test_nothing_takes_long(text: str, tmp_path: Path) -> None:
    """Forms that once were slow, deep or an exception of another kind somewhere in a parser."""
    path = tmp_path / "a.yaml"
    path.write_text(text[:199_000])

    def refuse() -> None:
        with pytest.raises(ConfigError):
            read_config(path)

    with limited():
        assert count_calls(refuse) < 50 * len(text) + 5000  # up to 17 a letter


MARKS = [*"\n\t[]{}'\"\\%#>@`!", "  ", ", ", "---", "...", "? ", "| "]
WORDS = ["a", "b: ", "- ", "&x ", "*x", "!!str ", "<<: ", "1e5", "0", "~", "null", "\x00", "\ud800", "\u2028", "é"]
KEYS_OF_OURS = [
    "name",
    "train: ",
    "model: ",
    "losses:",
    "optimizer: {name: sgd, lr: ",
    "base: .\n",
    "data.",
    "transforms: ",
]
PIECES = st.sampled_from([*MARKS, *WORDS, *KEYS_OF_OURS])


@given(st.lists(PIECES, max_size=40).map("".join) | st.text(max_size=80))
@EACH
def test_any_text_is_a_config_or_a_config_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError) as refused:
        read_config(path)
    assert all(fault.startswith((str(tmp_path), "default")) for fault in refused.value.faults)


@given(st.binary(max_size=200))
@EACH
def test_any_bytes_are_refused_in_words(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError):
        read_config(path)


@given(position=st.integers(0, 600), byte=st.integers(0, 255))
@EACH
def test_a_changed_byte_of_a_healthy_config_is_read_or_refused(tmp_path: Path, position: int, byte: int) -> None:
    data = bytearray(TINY.read_bytes())
    data[position % len(data)] = byte
    path = tmp_path / "a.yaml"
    path.write_bytes(bytes(data))
    try:
        read_config(path)
    except ConfigError as error:
        faults = error.faults
    else:
        faults = ()
    assert all(str(path) in fault or fault.startswith("default") for fault in faults)


@given(st.lists(PIECES, min_size=1, max_size=8).map("".join) | st.text(max_size=30))
@EACH
def test_any_override_is_read_or_refused(text: str) -> None:
    try:
        read_config(TINY, [text, f"model.dropout={text}", f"losses.{text}=1"])
    except ConfigError as error:
        text = str(error)
    assert text


SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
KEYS = st.text(min_size=1, max_size=20).filter(lambda key: key.isprintable() and key != "<<")
TREES = st.recursive(
    SCALARS | st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(TREES)
@EACH
def test_what_show_writes_is_what_the_reader_reads(tree: object) -> None:
    """Written on one line, any value of a config comes back: kind, bits and characters."""
    from sightline.config.yaml_writer import format_inline

    text = format_inline(tree)
    assert "\n" not in text
    back = read(text)
    assert back == tree
    assert repr(back) == repr(tree)
