"""The tool that compares two commits: its rows name every set and layout, and what it calls a difference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sightline.contract import registry
from sightline.contract.members import DataMembers
from tests.published_layouts import MODELS
from tools import before_after
from tools.before_after_rows import LAYOUTS, SETS, rows
from tools.before_after_worker import _run, digests

SAME_CODE = {"modelnet10", "s3dis_one_room"}
"""Sets that are read by the code of another."""
YOUNGER = {"depth_folder"}
"""Sets that earlier commits lack."""


def test_rows_name_every_set_and_layout() -> None:
    sets = {name: registry.data.get_entry(name).builder for name in registry.data.names()}
    prepared = {
        name
        for name, builder in sets.items()
        if builder.__module__.startswith("sightline.") and DataMembers.prepare.get(builder) is not None
    }
    assert set(SETS) | SAME_CODE | YOUNGER == prepared
    assert set(LAYOUTS) == set(MODELS)
    names = [row.name for row in rows()]
    assert len(names) == len(set(names))
    assert {row.name.split("/")[0] for row in rows() if row.is_quick} >= {"check", "data", "layouts"}


def digested(folder: Path, value: Any) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    (folder / "a.json").write_text(json.dumps(value))
    return dict(digests(folder, ["*.json"], {str(folder): "@out"}))


@pytest.mark.parametrize(
    ("changed", "differing"),
    [
        ({"time_s": 2.0, "seconds": 9, "found": [{"time_s_total": 1}]}, []),
        ({"summary": "another"}, ["texts"]),
        ({"found": [{"action": "do"}]}, ["texts"]),
        ({"value": 0.1 + 2**-55}, ["a.json"]),
        ({"value": float("nan")}, ["a.json"]),
        ({"found": [{"code": "x"}]}, ["a.json"]),
        ({"summary": {"train": 1}}, ["a.json", "texts"]),
    ],
)
def test_numbers_prose_and_times_are_told_apart(tmp_path: Path, changed: dict[str, Any], differing: list[str]) -> None:
    value = {"time_s": 1.0, "summary": "one", "value": 0.1, "found": [{}]}
    one, other = digested(tmp_path, value), digested(tmp_path, {**value, **changed})
    assert [key for key in sorted(one.keys() | other.keys()) if one.get(key) != other.get(key)] == differing


def test_places_of_a_side_are_no_difference(tmp_path: Path) -> None:
    sides = [digested(tmp_path / side, {"run": str(tmp_path / side / "run")}) for side in ("before", "after")]
    assert sides[0] == sides[1] == {"a.json": '[{"run": "@out/run"}]'}


def test_a_file_that_is_not_there_is_seen(tmp_path: Path) -> None:
    assert dict(digests(tmp_path, ["run/*.slq"], {})) == {"run/*.slq": "no such file"}


def test_the_first_spelling_that_the_tree_knows_is_run() -> None:
    spellings = [("no-such-verb", "x"), ("list", "--no-such-option"), ("list", "searches")]
    assert _run(spellings, (0,), {}) is None
    told = _run(spellings[:1], (0,), {})
    assert told is not None
    assert told.startswith("`sightline no-such-verb x`: exit code 2: ")


def side(**changed: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "failed": None,
        "seconds": 1.0,
        "digests": {"a.json": '[{"x": [1, 2]}]', "texts": '["one"]', "b.bin": "00"},
    }
    return {"part/row": {**row, "digests": {**row["digests"], **changed.pop("digests", {})}, **changed}}


@pytest.mark.parametrize(
    ("changed", "code", "told"),
    [
        ({}, 0, "part/row: same (3 files"),
        ({"digests": {"a.json": '[{"x": [1, 3]}]'}}, 1, "DIFFERS in a.json at [0].x[1]: 2 -> 3 ("),
        ({"digests": {"b.bin": "01"}}, 1, "DIFFERS in b.bin ("),
        ({"digests": {"c": "00"}}, 1, "DIFFERS in c (after only) ("),
        ({"digests": {"texts": '["two"]'}}, 0, "same"),
        ({"failed": "exit code 2"}, 1, "FAILED after: exit code 2"),
    ],
)
def test_the_report_names_what_differs(
    capsys: pytest.CaptureFixture[str], changed: dict[str, Any], code: int, told: str
) -> None:
    assert before_after._report(side(), side(**changed), left_out=("texts",)) == code
    assert told in capsys.readouterr().out


def test_prose_counts_unless_it_is_left_out() -> None:
    assert before_after._report(side(), side(digests={"texts": '["two"]'}), left_out=()) == 1
