"""What the project must do, whatever else changes: a row a thing that its users need, run in a small form."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import sightline
from sightline.config import read_config
from sightline.contract.types import Field
from sightline.workbench.check.suite import all_rules
from tests.limits import limited
from tests.mission.__main__ import PAGE, write_page
from tests.mission.mutants import MUTANTS, UNBREAKABLE
from tests.mission.rows import IDS, PENDING, Check, Row, collect_checks, collect_rows, list_modules
from tests.mission.trial import Tree, list_touched
from tests.processes import ROOT
from tests.test_docs import parsed
from tests.tree_digest import order_by_digest

pytestmark = pytest.mark.usefixtures("unchecked")


FAILURES = (Exception, pytest.fail.Exception)
"""The second is no `Exception`."""


def _as_case(row: Row, check: Check) -> object:
    pending = pytest.mark.xfail(strict=True, reason=f"{check.letter} is not there yet")
    marks = [pending] * check.is_pending + [pytest.mark.long] * check.is_long
    return pytest.param(row, check, id=check.name, marks=marks)


LIMIT_S = 2400
"""Of a row, some two hundred times what the slowest takes on a quiet machine: one that hangs fails."""


@pytest.mark.parametrize(("row", "check"), [_as_case(row, check) for row, check in collect_checks()])
def test_a_user_can(row: Row, check: Check, tmp_path: Path) -> None:
    try:
        with limited(LIMIT_S if not check.is_long else 10 * LIMIT_S):
            check.function(tmp_path)
    except FAILURES as failure:
        pytest.fail(f"{row.id}: a user cannot {row.thing} ({row.command}): {type(failure).__name__}: {failure}")


def test_every_number_has_one_row() -> None:
    assert [row.id for row in collect_rows()] == list(IDS)


def test_a_row_alone_has_all_of_its_checks() -> None:
    """Whether `find_row` imports all of their modules: another process has not imported the others."""
    for row, check in collect_checks():
        assert check.function.__module__ in list_modules(row.id), check.name


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


def test_calls_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names in capitals stand for a small config and its part; what is left open by `...` has to be there."""
    monkeypatch.chdir(tmp_path)
    small = ["data.train_size=16", "data.test_size=8", "data.num_points=32", "train.steps=1", "train.batch_size=8"]
    config = read_config(ROOT / "configs/classify/synthetic_shapes_pointnet.yaml", [*small, "log.tensorboard=false"])
    given = {"sightline": sightline, "Field": Field, "CONFIG": config, "SPLIT": "train"}
    given |= {"boxes": torch.ones(2, 4), "others": torch.ones(3, 4)}
    calls = [text for row in collect_rows() for text in re.findall(r"`([\w.]+\([^`]*\))`", row.command)]
    assert len(calls) >= 5
    for text in calls:
        name, _, arguments = text.partition("(")
        called = eval(name, {}, given)
        assert callable(called), text
        if arguments != "...)":
            eval(text, {}, given)


def test_findings_of_the_page_are_codes() -> None:
    known = {rule.code for rule in all_rules()}
    named = [
        code
        for row in collect_rows()
        for words in re.findall(r"(?:findings?|note) ((?:`[a-z-]+`(?:, | or )?)+)", row.command)
        for code in re.findall(r"`([a-z-]+)`", words)
    ]
    assert len(named) >= 25
    assert [code for code in named if code not in known] == []


def test_the_page_is_the_list() -> None:
    assert PAGE.read_text() == write_page(), "run python -m tests.mission"


# --- edits that break a row in silence --------------------------------------------------------------------------------


def test_every_row_has_an_edit_or_a_reason() -> None:
    assert MUTANTS.keys() | UNBREAKABLE.keys() == set(IDS)
    assert not MUTANTS.keys() & UNBREAKABLE.keys()
    assert len(UNBREAKABLE) <= 15


def test_edits_still_apply() -> None:
    for id, edit in MUTANTS.items():
        text = (ROOT / "sightline" / edit.file).read_text(encoding="utf-8")
        assert text.count(edit.before) == 1, f"{id}: {edit.file} holds {edit.before!r} {text.count(edit.before)} times"
        assert edit.before != edit.after, id


NUM_DAILY = 8


def list_daily() -> list[str]:
    """Return the rows whose edited file the last commit touched, or else some drawn by the digest of the package."""
    touched = list_touched()
    drawn = order_by_digest(MUTANTS)
    return ([id for id in drawn if MUTANTS[id].file in touched] or drawn)[:NUM_DAILY]


@pytest.fixture(scope="module")
def tree() -> Iterator[Tree]:
    tree = Tree()
    try:
        yield tree
    finally:
        tree.delete()


@pytest.mark.parametrize("place", range(NUM_DAILY))
def test_rows_notice_their_edits(place: int, tree: Tree) -> None:
    """Of eight rows a day; `make test-long` tries all."""
    for id in list_daily()[place::NUM_DAILY]:
        assert_noticed(id, tree)


def assert_noticed(id: str, tree: Tree) -> None:
    verdict = tree.try_edit(id, MUTANTS[id])
    assert verdict.outcome == "red", f"{id} does not notice {MUTANTS[id]}: {verdict}"
