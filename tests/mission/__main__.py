"""Writes docs/inside/mission.md, the page of what the project must do, from the rows of its tests."""

from __future__ import annotations

import sys

from tests.mission.rows import PENDING, collect_rows
from tests.processes import ROOT

__all__ = ["PAGE", "write_page"]

PAGE = ROOT / "docs" / "inside" / "mission.md"
_AREAS = (
    "Point clouds without labels",
    "Joints in volumes",
    "Compression",
    "Boxes of pedestrians",
    "Training by several processes, and scans",
)
_HEAD = """\
# What sightline must do

The project exists for these {count} things. Nothing of this list is removed: a command may change its form, and then
its row changes in the same commit. [tests/test_mission.py](../../tests/test_mission.py) runs each row in a small form,
on every change, and looks at its effect. `CONFIG` is a config, `RUN` the folder of a run. A row with ° has a part that
is not there yet: its test must fail until then.

This page is written from the rows of those tests (`tests/mission`) by `python -m tests.mission`.
"""


def write_page() -> str:
    """Return the page: tables of numbers, things and commands."""
    rows = collect_rows()
    text = [_HEAD.format(count=len(rows))]
    for number, area in enumerate(_AREAS):
        text.append(f"\n## {area}\n\n| id | a user must be able to | command |\n|---|---|---|\n")
        text += [
            f"| {row.id}{'°' if row.is_pending else ''} | {row.thing} | {row.command} |\n"
            for row in rows
            if row.id.startswith(f"S{number}.")
        ]
    return "".join(text)


if __name__ == "__main__":
    PAGE.write_text(write_page())
    sys.stderr.write(f"{PAGE.relative_to(ROOT)}: pending {' '.join(sorted(PENDING)) or 'nothing'}\n")
