"""Table of refusals: it has each of the source, and without some that are drawn a correct program fails as it says."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any

import pytest

from tests.doctor.cases import BY_ID
from tests.doctor.refusals import FACTORS, PATHS, STRONG, run_in_children, try_row
from tests.doctor.sites import install, list_sites, read_table

NUM_DRAWN = 3


def test_the_table_has_the_refusals_of_the_source() -> None:
    assert [*read_table(PATHS["refusals"])] == list_sites(), "run `python -m tests.doctor.refusals`"


def test_a_refusal_whose_removal_changes_nothing_has_a_reason() -> None:
    rows = read_table(PATHS["refusals"]).values()
    idle = [row["site"] for row in rows if row["changed"].startswith(("nothing", "refused")) and not row["reason"]]
    assert idle == []


def draw_rows() -> list[dict[str, str]]:
    """Draw refusals whose removal alarms or fails in a program, as the table's bytes choose."""
    rows = [row for row in read_table(PATHS["refusals"]).values() if row["changed"].startswith(STRONG)]
    rows = [row for row in rows if row["programs"].startswith(("module/", "oracle/"))]
    return sorted(rows, key=lambda row: hashlib.sha256(repr(row).encode()).digest())[:NUM_DRAWN]


@pytest.mark.parametrize("row", draw_rows(), ids=lambda row: row["site"].replace("/", "."))
def test_without_a_refusal_a_correct_program_fails_as_the_table_says(row: dict[str, str]) -> None:
    def measure() -> Any:
        install()
        return try_row(
            BY_ID[row["programs"].partition(", ")[0]], {*list_sites()} - {row["site"]}, (), FACTORS["refusals"]
        )

    (line,) = run_in_children([partial(measure)], 60.0)
    kinds = {kind for kind, _ in line["effects"][row["site"]]}
    assert row["changed"].partition(" ")[0] in kinds
