"""The checks of one row, which `tests.mission.trial` names; no test of the suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mission.rows import Check

pytestmark = pytest.mark.usefixtures("unchecked")


def test_a_user_can(check: Check, tmp_path: Path) -> None:
    check.function(tmp_path)
