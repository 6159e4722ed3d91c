"""Numbers of the authors' code: which files of `shared/golden` are read, wait or are not read, and what pages say.

Whether a test really opens a file is judged at the end of a whole run (tests/whole_run.py).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden_files import LONG, UNREAD, WAITING, list_golden
from tests.processes import ROOT
from tests.whole_run import judge_golden, list_opened


@pytest.mark.shared
def test_every_list_names_files_that_there_are(shared: Path) -> None:
    files = list_golden()
    assert files is not None
    assert [name for names in (UNREAD, WAITING, LONG) for name in names if name not in files] == []
    assert UNREAD.keys() | WAITING.keys() | LONG <= files
    assert len(UNREAD) + len(WAITING) + len(LONG) == len(UNREAD.keys() | WAITING.keys() | LONG)
    claim = (
        f"code computed {len(files)} files of numbers; tests compare {len(files) - len(UNREAD) - len(WAITING)} of them "
        f"with ours, {len(WAITING)} wait for their networks"
    )
    assert claim in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_page_states_the_reason_of_each() -> None:
    page = (ROOT / "docs" / "inside" / "tests.md").read_text(encoding="utf-8")
    assert [name for name, reason in UNREAD.items() if f"| `{name}` | {reason} |" not in page] == []
    for network in set(WAITING.values()):
        names = sorted(name for name, of in WAITING.items() if of == network)
        assert f"| {len(names)} of `{names[0].partition('/')[0]}` | {network} |" in page


@pytest.mark.shared
def test_a_file_counts_as_read_when_it_is_opened(shared: Path) -> None:
    """And not when its name stands in a test."""
    (shared / "golden" / "points" / "pt_nico.json").stat()
    before = list_opened()
    (shared / "golden" / "detect" / "nms.json").read_text(encoding="utf-8")
    assert list_opened() == before | {"detect/nms"}


def test_the_end_of_a_run_names_files_that_no_test_opened() -> None:
    files = {"a/read", "a/also", *UNREAD, *WAITING, *LONG}
    opened = {"a/read", "a/also"}
    assert judge_golden(opened, files, is_long=False) == []
    assert judge_golden({"a/read"}, files, is_long=False) == ["a/also: no test opened it"]
    known = next(iter(WAITING))
    (said,) = judge_golden({*opened, known}, files, is_long=False)
    assert said.startswith(f"{known}: a test opened it")
    assert judge_golden({*LONG, "a/read"}, files, is_long=True) == []
