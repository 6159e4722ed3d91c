"""What the project must do, whatever else changes: a row a thing that its users need, run in a small form."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.mission.__main__ import PAGE, write_page
from tests.mission.rows import IDS, PENDING, Check, Row, collect_checks, collect_rows
from tests.processes import ROOT
from tests.test_docs import parsed

pytestmark = pytest.mark.usefixtures("unchecked")


FAILURES = (Exception, pytest.fail.Exception)
"""The second is no `Exception`."""


def _as_case(row: Row, check: Check) -> object:
    pending = pytest.mark.xfail(strict=True, reason=f"{check.letter} is not there yet")
    marks = [pending] * check.is_pending + [pytest.mark.long] * check.is_long
    return pytest.param(row, check, id=check.name, marks=marks)


@pytest.mark.parametrize(("row", "check"), [_as_case(row, check) for row, check in collect_checks()])
def test_a_user_can(row: Row, check: Check, tmp_path: Path) -> None:
    try:
        check.function(tmp_path)
    except FAILURES as failure:
        pytest.fail(f"{row.id}: a user cannot {row.thing} ({row.command}): {type(failure).__name__}: {failure}")


def test_every_number_has_one_row() -> None:
    assert [row.id for row in collect_rows()] == list(IDS)


def test_nine_of_ten_rows_run_on_every_change() -> None:
    daily = {row.id for row, check in collect_checks() if not check.is_long}
    assert len(daily) >= 120
    assert daily == {row.id for row in collect_rows()}


def test_no_letter_is_pending_without_a_check() -> None:
    assert {check.letter for _, check in collect_checks() if check.letter} >= PENDING


def test_commands_of_the_page_exist() -> None:
    for row in (row for row in collect_rows() if not row.is_pending):
        for command in re.findall(r"`sightline ([^`]*)`", row.command):
            words = shlex.split(command)
            parsed(words)
            shipped = [word for word in words if word.startswith("configs/")]
            assert [word for word in shipped if not (ROOT / word).exists()] == [], row.id


def test_the_page_is_the_list() -> None:
    assert PAGE.read_text() == write_page(), "run python -m tests.mission"
