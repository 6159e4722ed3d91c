"""Every row, of the mission and beside it, turns red when its feature is broken in silence."""

from __future__ import annotations

from tests.beyond import collect_edits
from tests.mission.__main__ import try_edits
from tests.mission.mutants import MUTANTS


def test_every_row_notices_its_edit() -> None:
    verdicts = try_edits({**MUTANTS, **collect_edits()}, jobs=2)
    assert {id: verdict for id, verdict in verdicts.items() if verdict.outcome != "red"} == {}
