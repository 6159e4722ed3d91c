"""The notebooks of the docs run from their first cell to their last, each within a minute of processor time."""

from __future__ import annotations

import resource
import runpy
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "start" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MAX_BYTES, MAX_CPU_S = 200_000, 60.0

pytestmark = pytest.mark.long


def test_there_is_one_for_each_task() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["classify", "contrast", "detect", "lidar", "pose", "segment"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_runs_and_keeps_small_outputs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    stored = nbformat.read(path, as_version=4)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code), "stored without its outputs: run docs/start/notebooks/run.py"
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    assert path.stat().st_size < MAX_BYTES
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    runpy.run_path(str(FOLDER / "run.py"))["execute"](path, tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < MAX_CPU_S
