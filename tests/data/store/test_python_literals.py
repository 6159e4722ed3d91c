"""Lists in Python files are parsed, and never run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sightline.contract.errors import DataError
from sightline.store.prepared.python_literals import read_literals
from tests.cases import run_each


def test_only_plain_values_are_read_in_the_asked_order(tmp_path: Path) -> None:
    path = tmp_path / "lists.py"
    trap = f"open({str(tmp_path / 'was_run')!r}, 'w')\n"
    path.write_text(f"import nowhere\n{trap}B = sorted(A)\nA = 1\nC = ['x', 2]\nA = (3, -4.5)\nif C:\n    D = 1\n")
    assert list(read_literals(path, ("C", "A"), advice="").items()) == [("C", ["x", 2]), ("A", (3, -4.5))]
    assert not (tmp_path / "was_run").exists()
    with pytest.raises(DataError, match=r"lists\.py:3: B is not a plain list of values; get it$"):
        read_literals(path, ("A", "B"), advice="get it")
    with pytest.raises(DataError, match=r"lists\.py: assigns no D, E; get it$"):
        read_literals(path, ("A", "D", "E"), advice="get it")


@run_each(
    "content, message",
    [
        (b"A = [", "does not read as a Python file (SyntaxError: '[' was never closed"),
        (b"A = 1\0", "does not read as a Python file (SyntaxError: source code string cannot contain null bytes"),
        (b"\xff\xfe", "does not read as a Python file (SyntaxError: (unicode error)"),
        (b"A = " + 9000 * b"-" + b"1", "does not fit into memory, or the file is damaged"),
        (b"A = " + 300 * b"[", "does not read as a Python file (SyntaxError: too many nested parentheses"),
        (b"A = 1" + 100_000 * b"+1", "does not read as a Python file (RecursionError"),
        (b"#" * (2**20 + 1), "has 1,048,577 bytes, a list of names has at most 1,048,576; get it"),
    ],
)
def test_hostile_files_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes, message: str) -> None:
    path = tmp_path_factory.mktemp("literals") / "lists.py"
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(f"{path}: {message}")):
        read_literals(path, ("A",), advice="get it")
