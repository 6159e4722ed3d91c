"""Tables of numbers and YAML of one's own: the values that were written, and what is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from sightline.contract.errors import DataError
from sightline.store.files import text_tables
from sightline.store.files.cloud_files import read_cloud
from sightline.store.files.input_files import MAX_BYTES, MAX_NODES, parsed_yaml
from sightline.store.files.number_kernel import parse_plain_rows
from sightline.store.files.text_tables import LabelLines, parse_rows, read_table
from tests.cases import run_each
from tests.data.files.refusals import refused
from tests.long.mutations import ALIASES, MERGES, mutated


@run_each("blank", [" ", "\t", "  ", ","])
def test_numbers_are_those_of_float(blank: str) -> None:
    generator = np.random.default_rng(0)
    texts = [[f"{value:.9g}" for value in row] for row in generator.normal(0, 1e3, (50, 4)).tolist()]
    texts += [["+1", "-0", "-0.0", "007"], [".5", "5.", "-.5", "0.1234567890123456789"], ["1e3", "-2E-7", "0", "1"]]
    lines = [blank.join(row) for row in texts]
    table = parse_rows(lines, range(len(lines)), path=Path("a"), num_columns=4, delimiter="," if blank == "," else None)
    assert table.tobytes() == np.array([[float(token) for token in row] for row in texts]).tobytes()


def _draw_token(draw: random.Random) -> str:
    return draw.choice(
        (
            lambda: repr(round(draw.uniform(-1e5, 1e5), draw.randrange(9))),
            lambda: f"{draw.uniform(-1, 1) * 10 ** draw.randrange(-8, 8):.{draw.randrange(15)}e}",
            lambda: str(draw.randrange(-(2**53), 2**53)),
            lambda: f"{draw.uniform(-8, 8):.15f}",
            lambda: f"{draw.uniform(-1, 1) * 10 ** draw.randrange(-25, 25):.{draw.randrange(15, 19)}e}",
            lambda: repr(draw.uniform(-1e5, 1e5)),
            lambda: f"{draw.randrange(10**18)}e{draw.randrange(-40, 40)}",
            lambda: repr(10 ** draw.uniform(-4, 0)),
            lambda: draw.choice(
                ("-0.0", "+5.", ".125", "7E+21", "123e-20", "00012", "0" * 21, "0.0000000000000000000000")
            ),
            lambda: f"{10 ** draw.uniform(-3, 0):.{draw.randrange(6, 19)}f}{draw.choice(('', 'e5', '/'))}".rstrip("/"),
        )
    )()


@pytest.mark.parametrize("blank", [" ", "\t", ",", " , "])
def test_large_files_have_the_numbers_of_float(blank: str) -> None:
    """Bit by bit; longer numbers, those between two, and those beyond 10^66 are left to the other parser."""
    pytest.importorskip("numba")
    num_parsed = 0
    draw = random.Random(blank)
    for _ in range(500):
        texts = [[_draw_token(draw) for _ in range(3)] for _ in range(2)]
        content = (
            draw.choice(("\n", "\r\n")).join(blank.join(row) for row in texts) + draw.choice(("", "\n"))
        ).encode()
        table = parse_plain_rows(content, 0, num_columns=3, is_comma="," in blank)
        num_parsed += table is not None
        if table is not None:
            assert table.tobytes() == np.array([[float(token) for token in row] for row in texts]).tobytes()
    assert num_parsed > 450, "numbers of 19 digits are no exception"
    others = "nan|1e|1_0|0x1|-|.|1e99|123456789012345678901|4654855611801209.5|1 2|1;|\u00b2|1\n\n|".split("|")
    contents = [blank.join(("1", "2", token)).encode("latin-1") + b"\n1 2 3" for token in others]
    for content in contents:
        assert parse_plain_rows(content, 0, num_columns=3, is_comma="," in blank) is None


@pytest.mark.parametrize("num_mutations", [40, pytest.param(400, marks=pytest.mark.long)])
def test_large_files_are_read_or_refused_as_small_ones(
    num_mutations: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numba")
    rows = "".join(f"{number}.5 {-number} {number}e-3\r\n" for number in range(20))
    properties = "".join(f"property float {name}\n" for name in "xyz")
    faces = "".join(f"3 {number} {(number + 1) % 20} 0\r\n" for number in range(20))
    corners = "property list uchar int vertex_indices\n"
    ply = f"ply\nformat ascii 1.0\nelement vertex 20\n{properties}end_header\n{rows}"
    sound = {
        "a.txt": f"# a cloud\n// x y z\n{rows}",
        "a.xyz": f"20\n{rows}",
        "b.csv": rows.replace(" ", ","),
        "a.ply": ply,
        "mesh.ply": ply.replace("end_header", f"element face 20\n{corners}end_header") + faces,
        "mesh.off": f"OFF\n20 20 0\n{rows}{faces}",
        "glued.off": f"OFF20 20 0\n{rows}" + faces.replace("\r\n", " 255 0 0\r\n"),
        "quads.off": f"# made by hand\nOFF\n20 20 0\n{rows}" + "".join(f"4 {n} 1 2 3\n" for n in range(20)),
        "mixed.off": f"OFF\n20 2 0\n{rows}3 0 1 2\n4 0 1 2 3\n",
    }

    def read(path: Path) -> object:
        try:
            cloud = read_cloud(path, columns=["x", "y", "z"])
        except DataError as error:
            return str(error)
        return cloud.points.tobytes(), None if cloud.faces is None else cloud.faces.tobytes(), cloud.notes

    for name, text in sound.items():
        results: dict[int, list[object]] = {}
        for large_bytes in (0, 2**22):
            monkeypatch.setattr(text_tables, "_LARGE_BYTES", large_bytes)
            for number in range(num_mutations):
                changed = text.encode() if number == 0 else mutated(text.encode(), random.Random(f"{name} {number}"))
                (tmp_path / name).write_bytes(changed)
                results.setdefault(number, []).append(read(tmp_path / name))
        assert all(first == second for first, second in results.values())


# --- YAML of one's own ------------------------------------------------------------------------------------------------


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
        ("a: !!python/object:os.system {}", "mine.yaml:1: a: the tag '!!python/object:os.system' is not allowed"),
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


@run_each(
    "read, text, told",
    [
        (partial(read_table, num_columns=3), "\n \n", "a.txt: holds no rows, 3 columns are needed"),
        (partial(LabelLines, num_columns=2), "\n\n", "a.txt: holds no lines"),
        (partial(LabelLines, num_columns=2), "n0 1 2\n\nn1 1 2\n", "a.txt:2: is empty, a name and numbers are needed"),
    ],
)
def test_tables_without_rows_and_gaps_are_refused(
    tmp_path: Path, read: Callable[[Path], object], text: str, told: str
) -> None:
    (tmp_path / "a.txt").write_text(text)
    refused(tmp_path / "a.txt", told, read=read)


def test_bytes_of_another_encoding_are_refused() -> None:
    with pytest.raises(DataError, match=r"mine\.yaml: is not UTF-8 text \(byte 3\); save it as UTF-8"):
        parsed_yaml(b"a: \xff", HERE, name="a label map")
