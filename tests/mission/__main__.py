"""Writes docs/inside/mission.md, the page of what the project must do, from the rows of its tests."""

from __future__ import annotations

import sys

from tests.mission.rows import collect_rows
from tests.processes import ROOT

PAGE = ROOT / "docs" / "inside" / "mission.md"


def write_page() -> str:
    """Return the page: a table of numbers, things and commands."""
    return ""


if __name__ == "__main__":
    PAGE.write_text(write_page())
    sys.exit()
