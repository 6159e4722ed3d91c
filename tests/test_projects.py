"""`sightline init` makes a project for each task, whose own tests pass as they are and which trains two steps."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sightline.contract import registry
from tests.command import succeed
from tests.processes import run_program

ROOT = Path(__file__).resolve().parents[1]
TASKS = ("centre", "classify", "contrast", "detect", "detect3d", "pose", "segment")
QUICK = ("classify",)
"""The project that every run of the tests makes; the others, with the same tests, take as long again."""


def test_there_is_a_project_for_each_task() -> None:
    folders = {path.name for path in (ROOT / "examples" / "projects").iterdir()}
    of_libraries = {"detect_set"}  # its networks and losses are those of transformers
    assert folders - {"_shared"} == set(registry.tasks.names()) - of_libraries == set(TASKS)


@pytest.mark.processes
@pytest.mark.parametrize(
    "task", [task if task in QUICK else pytest.param(task, marks=pytest.mark.long) for task in TASKS]
)
def test_the_tests_of_a_new_project_pass(task: str, tmp_path: Path) -> None:
    """They train two steps, evaluate, and run all checks, in a process of their own; long ones in a new one."""
    succeed("init", "river", "--task", task, "--to", tmp_path)
    folder = tmp_path / "river"
    assert "my_project" not in "".join(path.read_text() + path.name for path in folder.iterdir())
    words = ["pytest", "-q", "-p", "no:cacheprovider"]
    if task in QUICK:
        setup = (
            f"import os, runpy, sys; os.chdir({str(folder)!r}); sys.argv = {words}; sys.path[:0] = [{str(ROOT)!r}]; "
        )
        done = run_program(f"{setup}runpy.run_module('pytest', run_name='__main__')")
    else:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-m", *words]
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout or "5 passed" in done.stdout, done.stdout


def test_the_next_commands_can_be_pasted(tmp_path: Path) -> None:
    made = succeed("init", "river", "--to", tmp_path / "my work")
    assert shlex.split(made.err.partition("next: ")[2])[:3] == ["cd", str(tmp_path / "my work" / "river"), "&&"]
