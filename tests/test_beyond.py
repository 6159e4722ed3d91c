"""What users ask for beside the mission: a row a thing, run in a small form, that turns red when the thing is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.beyond import collect_edits
from tests.limits import limited
from tests.mission.__main__ import BEYOND_PAGE, write_beyond
from tests.mission.rows import BEYOND, Check, Row, collect_checks, collect_rows
from tests.mission.trial import Tree, list_touched
from tests.processes import ROOT
from tests.tree_digest import order_by_digest

pytestmark = pytest.mark.usefixtures("unchecked")

LIMIT_S = 2400
"""Of a row, far more than any takes: one that hangs fails."""


def _as_case(row: Row, check: Check) -> object:
    return pytest.param(row, check, id=check.name, marks=[pytest.mark.long] * check.is_long)


@pytest.mark.parametrize(("row", "check"), [_as_case(row, check) for row, check in collect_checks(BEYOND)])
def test_a_user_can(row: Row, check: Check, tmp_path: Path) -> None:
    with limited(LIMIT_S if not check.is_long else 10 * LIMIT_S):
        check.function(tmp_path)


def test_every_id_has_one_row_and_one_edit() -> None:
    assert [row.id for row in collect_rows(BEYOND)] == list(BEYOND)
    assert list(collect_edits()) == list(BEYOND)


def test_edits_still_apply() -> None:
    for id, edit in collect_edits().items():
        text = (ROOT / "sightline" / edit.file).read_text(encoding="utf-8")
        assert text.count(edit.before) == 1, f"{id}: {edit.file} holds {edit.before!r} {text.count(edit.before)} times"
        assert edit.before != edit.after, id


def test_the_page_is_the_list() -> None:
    assert BEYOND_PAGE.read_text() == write_beyond(), "run python -m tests.mission"


NUM_DAILY = 2


def test_rows_notice_their_edits() -> None:
    """Of two rows a day: those whose file the last commit touched, else drawn by the digest; `make test-long`: all."""
    edits = collect_edits()
    touched, drawn = list_touched(), order_by_digest(edits)
    tree = Tree()
    try:
        for id in ([id for id in drawn if edits[id].file in touched] or drawn)[:NUM_DAILY]:
            verdict = tree.try_edit(id, edits[id])
            assert verdict.outcome == "red", f"{id} does not notice {edits[id]}: {verdict}"
    finally:
        tree.delete()
