"""Rows of what users ask for beside the mission, a module a subject, each with one silent edit a row (`MUTANTS`)."""

from __future__ import annotations

import importlib

from tests.mission.rows import BEYOND, collect_rows
from tests.mission.trial import Edit

__all__ = ["collect_edits"]


def collect_edits() -> dict[str, Edit]:
    """Return the edit of each row, from the modules that hold rows, in the order of the ids."""
    modules = dict.fromkeys(check.function.__module__ for row in collect_rows(BEYOND) for check in row.checks)
    edits: dict[str, Edit] = {}
    for module in modules:
        own: dict[str, Edit] = getattr(importlib.import_module(module), "MUTANTS", {})
        assert not edits.keys() & own.keys(), f"{module} has an edit of a row that has one: {edits.keys() & own.keys()}"
        edits |= own
    return {id: edits[id] for id in sorted(edits, key=lambda id: BEYOND.index(id))}
