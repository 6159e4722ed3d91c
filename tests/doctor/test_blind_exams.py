"""The runner of blind exams: what it finds in a script with a bug, and in the same script without."""

from __future__ import annotations

import pytest

from tests.blind_exams import FOLDER, run_form


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"the scripts are not at {FOLDER}; set SIGHTLINE_SHARED")
def test_a_script_is_run_with_and_without_its_bug() -> None:
    path = FOLDER / "first" / "36_new_head_not_in_optimizer.py"
    bug, healthy = (run_form("first", path, has_bug) for has_bug in (True, False))
    assert bug.findings[0].startswith("[no-gradient] 2 trainable parameter(s) in no group of the optimiser")
    assert healthy.findings == []
