"""Rows of what the project must do: an id, the thing, the user's command, and functions that see it happen.

Ids that begin with S are of the mission (`tests/mission`), those with B of what stands beside it (`tests/beyond`).
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "BEYOND",
    "IDS",
    "PENDING",
    "Check",
    "Row",
    "collect_checks",
    "collect_rows",
    "find_row",
    "list_modules",
    "part",
    "row",
]

IDS = tuple(f"S{area}.{number}" for area, size in enumerate((35, 32, 17, 36, 15)) for number in range(1, size + 1))
"""Numbers of all things: of point clouds without labels, of volumes and joints, of compression, of boxes, of scans."""

BEYOND = (*(f"B3.{number}" for number in range(1, 41)), *(f"B4.{number}" for number in range(1, 36)))
"""Ids of what stands beside the mission: 3D boxes."""

PENDING: frozenset[str] = frozenset("E")
"""Letters of features that are not there yet. A check of such a letter must fail: strike it when its feature lands."""

Function = Callable[[Path], None]
"""Runs the thing in a small form in an empty folder; raises AssertionError where its effect is missing."""


class Check(NamedTuple):
    """One test of a row; with a letter in `PENDING` it must fail."""

    id: str
    function: Function
    letter: str | None
    is_long: bool

    @property
    def name(self) -> str:
        return self.id + (f"-{self.letter}" if self.letter else "") + ("-long" if self.is_long else "")

    @property
    def is_pending(self) -> bool:
        return self.letter in PENDING


class Row(NamedTuple):
    """A thing that a user must be able to do, and how."""

    id: str
    thing: str
    command: str
    checks: list[Check]

    @property
    def is_pending(self) -> bool:
        """Whether a part of it is not there yet."""
        return any(check.is_pending for check in self.checks)


_MODULES = (
    *("cloud_sets", "pretraining", "probes", "networks"),
    *("volumes", "fitting", "kernels"),
    *("compressed",),
    *("labels", "boxes", "detectors", "detections", "pedestrians"),
    *("framework", "scans"),
)
"""Modules of the mission with rows."""
_BEYOND_FOLDER = Path(__file__).parents[1] / "beyond"
_ROWS: dict[str, Row] = {}


def row(id: str, thing: str, command: str, *, letter: str | None = None) -> Callable[[Function], Function]:
    """Make a function the first check of a row; `command` is what the page of the list prints, in Markdown."""

    def add(function: Function) -> Function:
        assert id not in _ROWS, f"{id} has two rows"
        _ROWS[id] = Row(id, thing, command, [Check(id, function, letter, is_long=False)])
        return function

    return add


def part(id: str, letter: str | None = None, *, is_long: bool = False) -> Callable[[Function], Function]:
    """Make a function a further check of a row: a part that came later, or one of the long suite."""

    def add(function: Function) -> Function:
        _ROWS[id].checks.append(Check(id, function, letter, is_long))
        return function

    return add


def collect_rows(ids: tuple[str, ...] = IDS) -> list[Row]:
    """Return all rows of the mission, or those of `BEYOND`, in the order of their ids; of an id that is none, last."""
    for module in _list_all(is_mission=ids == IDS):
        importlib.import_module(module)
    places = {id: place for place, id in enumerate(ids)}
    rows = [row for row in _ROWS.values() if row.id[0] == ids[0][0]]
    return sorted(rows, key=lambda row: places.get(row.id, len(ids)))


def list_modules(id: str) -> list[str]:
    """Return the modules that hold a row or a part of it, by their texts."""
    folder = Path(__file__).parents[2]
    texts = {
        name: (folder / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8")
        for name in _list_all(is_mission=id in IDS)
    }
    return [name for name, text in texts.items() if f'"{id}"' in text]


def _list_all(*, is_mission: bool) -> list[str]:
    """Return the modules of one of the two lists; those beside the mission are all files of their folder."""
    if is_mission:
        return [f"tests.mission.{name}" for name in _MODULES]
    return [f"tests.beyond.{path.stem}" for path in sorted(_BEYOND_FOLDER.glob("*.py")) if path.stem != "__init__"]


def find_row(id: str) -> Row:
    """Return one row; no module of others alone is imported."""
    for module in list_modules(id):
        importlib.import_module(module)
    return _ROWS[id]


def collect_checks(ids: tuple[str, ...] = IDS) -> Iterator[tuple[Row, Check]]:
    """Yield each check beside its row."""
    return itertools.chain.from_iterable(((row, check) for check in row.checks) for row in collect_rows(ids))
