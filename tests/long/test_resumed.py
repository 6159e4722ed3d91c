"""A hundred runs that are killed, 25 in each of 1 and 2 processes with 0 and 2 workers."""

from __future__ import annotations

import json
from pathlib import Path

from tests.long.kill_resume import main


def test_a_hundred_killed_runs_are_resumed_to_the_same_bits(tmp_path: Path) -> None:
    out = tmp_path / "kill_resume.json"
    code = main(["--kills-per-cell", "25", "--seed", "1", "--out", str(out), "--folder", str(tmp_path / "runs")])
    result = json.loads(out.read_text())
    assert [run for run in result["runs"] if run["differences"]] == []
    assert (code, result["num_runs"]) == (0, 100)
    assert result["num_kills"] >= 100
    assert result["slowest_end_s"] < 10
