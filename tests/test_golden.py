"""Numbers of the authors' code: the files of `shared/golden` that no test reads, and what the pages say of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.processes import ROOT

UNREAD = {
    "border_mask": "sightline has no mask of the borders between classes",
    "panoptic_eval": "sightline has no panoptic metric",
    "pt_nico": "sightline has no such network",
    "salsanext_adf": "sightline has no SalsaNext that states uncertainties",
}
"""Files that no test reads."""


@pytest.mark.shared
def test_every_file_of_numbers_is_read_by_a_test_or_stands_above(shared: Path) -> None:
    files = [path.stem for path in (shared / "golden").glob("*/*.json")]
    others = (path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__))
    words = {word for path in others for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))}
    assert {name for name in files if name not in words} == UNREAD.keys()
    claim = f"code computed {len(files)} files of numbers; tests compare {len(files) - len(UNREAD)} of them"
    assert claim in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_page_states_the_reason_of_each() -> None:
    page = (ROOT / "docs" / "inside" / "tests.md").read_text(encoding="utf-8")
    assert [name for name, reason in UNREAD.items() if f"| `{name}` | {reason} |" not in page] == []
