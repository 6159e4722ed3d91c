"""Trials of rows on a copy of the package in which one feature is broken in silence: which rows turn red, and why.

A row notices an edit if it fails by an assertion of `tests/mission` or `tests/beyond`, or since a command that must be
refused is not. An exception of the package, or an error that a command did not print before, is no silent break: such
an edit is refused.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 600.0
"""Of a trial: one that hangs is refused."""
_COPIED = ("sightline", "tests", "configs", "examples", "docs", "benchmarks", "tools")
_FILES = ("pyproject.toml", "Makefile", "constraints.txt", "README.md", "setup.py")
_PRELOADED = (
    "h5py",
    "numba",
    "PIL.Image",
    "pydantic",
    "rich.console",
    "scipy",
    "torch",
    "torch._inductor",
    "typer.main",
)
"""What rows import of others."""
_COMMANDS = ("tests/mission/small.py", "tests/command.py")
"""Files of helpers that run commands. Their assertions on exit codes are no assertions about a feature."""
_EFFECTS = ("find_fault", "step")
"""Helpers of these files that assert a feature: that a fault is found, that a step changes the weights."""


class Edit(NamedTuple):
    """One edit of a file below `sightline/`: a text that it holds once, and what stands there instead."""

    file: str
    before: str
    after: str

    def apply(self, tree: Path) -> str:
        """Edit the file in a tree; return its text from before. Raises ValueError unless the text stands there once."""
        path = tree / "sightline" / self.file
        text = path.read_text(encoding="utf-8")
        if text.count(self.before) != 1 or self.before == self.after:
            raise ValueError(f"{self.file} holds {text.count(self.before)} times, not once: {self.before!r}")
        path.write_text(text.replace(self.before, self.after), encoding="utf-8")
        return text


class Verdict(NamedTuple):
    """What a row made of an edit: `red` (noticed), `green` (not noticed) or `refused` (not silent), and how."""

    outcome: str
    how: str
    seconds: float


# --- in the process of a trial ----------------------------------------------------------------------------------------


class _Recorder:
    """Plugin of pytest that runs one row, and keeps the failure of each check and all commands with their errors."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.failures: list[dict[str, str]] = []
        self.commands: list[dict[str, Any]] = []
        self.num_run = 0

    def pytest_sessionstart(self) -> None:
        """Record what `tests.command` runs, before any module imports the function from there."""
        from tests import command

        run_here = command.run_here

        def recorded(*words: object, **named: Any) -> Any:
            done = run_here(*words, **named)
            errors = [line for line in done.err.splitlines() if line.startswith(("error:", "Traceback (most recent"))]
            is_error = done.code not in (0, 1) or bool(errors)
            self.commands.append({"words": " ".join(map(str, words))[:200], "code": done.code, "is_error": is_error})
            return done

        command.run_here = recorded

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run the daily checks of the row; no module of other rows is imported."""
        from tests.mission.rows import find_row

        checks = [check for check in find_row(self.id).checks if not check.is_pending and not check.is_long]
        metafunc.parametrize("check", checks, ids=[check.name for check in checks])

    def pytest_runtest_makereport(self, item: Any, call: Any) -> None:
        self.num_run += call.when == "call"
        if call.excinfo is None or call.excinfo.errisinstance(pytest.skip.Exception):
            return
        failure = call.excinfo.value
        self.failures.append({"check": item.name, "kind": _kind_of(failure), "how": _sentence(failure)})


def _frames(traceback: TracebackType | None) -> Iterator[tuple[str, str]]:
    while traceback is not None:
        code = traceback.tb_frame.f_code
        with contextlib.suppress(ValueError):
            yield Path(code.co_filename).resolve().relative_to(ROOT).as_posix(), code.co_name
        traceback = traceback.tb_next


def _kind_of(failure: BaseException) -> str:
    """Return `red` for an assertion about a feature, else `refused`."""
    frames = list(_frames(failure.__traceback__))
    if not isinstance(failure, AssertionError) or not frames:
        return "refused"
    file, function = frames[-1]
    if function == "refuse":
        return "red" if str(failure).startswith("not refused") else "refused"
    if function in _EFFECTS:
        return "red"
    return "red" if file.startswith(("tests/mission/", "tests/beyond/")) and file not in _COMMANDS else "refused"


def _sentence(failure: BaseException) -> str:
    frames = [f"{file}:{function}" for file, function in _frames(failure.__traceback__)]
    text = " ".join(str(failure).split())
    return f"{frames[-1] if frames else '?'}: {type(failure).__name__}: {text[-300:]}"


def run_row(id: str, file: str) -> None:
    """Run the checks of a row in this tree, and write what happened."""
    recorder = _Recorder(id)
    options = ("-q", "--no-header", "--tb=short", "-p", "no:cacheprovider", "--basetemp", f"{file}.tmp")
    pytest.main(["tests/mission/one_row.py", *options], plugins=[recorder])
    result = {"num_run": recorder.num_run, "failures": recorder.failures, "commands": recorder.commands}
    Path(file).write_text(json.dumps(result))


def serve() -> None:
    """Fork a process for each row that standard input names, and answer when it has ended: `python -m` this module.

    What is imported before is nobody's edit: torch and others, which take most of the time of a new interpreter.
    """
    for module in _PRELOADED:
        importlib.import_module(module)
    gc.freeze()
    assert not any(name.partition(".")[0] == "sightline" for name in sys.modules)
    for line in sys.stdin:
        id, file = json.loads(line)
        child = os.fork()
        if not child:
            _run_forked(id, file)
        is_over = _wait(child)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if not is_over:
            os.waitpid(child, 0)
        sys.stdout.write("\n" if is_over else f"hangs for {LIMIT_S:.0f} s\n")
        sys.stdout.flush()


def _run_forked(id: str, file: str) -> None:
    os.setsid()
    said = os.open(f"{file}.said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(said, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        run_row(id, file)
    except Exception:  # noqa: BLE001 - the asker reads it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _wait(child: int) -> bool:
    """Return True once a process has ended, and False after the time of a trial."""
    end_s = time.monotonic() + LIMIT_S
    while time.monotonic() < end_s:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.02)
    return False


# --- in the process that asks -----------------------------------------------------------------------------------------


class Tree:
    """Copy of the checkout in which edits are made, each for one trial; deleted at the end."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="sightline_trial_"))
        self.tree = self.folder / "tree"
        self.tree.mkdir()
        for name in _COPIED:  # with what Python and numba compiled, which belongs to files of the same time
            shutil.copytree(ROOT / name, self.tree / name, symlinks=True)
        for name in _FILES:
            shutil.copy2(ROOT / name, self.tree / name)
        self._clean: dict[str, dict[str, Any]] = {}
        self._server: subprocess.Popen[str] | None = None

    def delete(self) -> None:
        """Delete the copy, and end its server."""
        if self._server is not None:
            self._server.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)

    def try_edit(self, id: str, edit: Edit) -> Verdict:
        """Run the row on the tree with the edit, and without it where commands ended in errors."""
        start = time.monotonic()
        path = self.tree / "sightline" / edit.file
        stamp = path.stat()
        text = edit.apply(self.tree)
        try:
            found = self._run(id)
        finally:
            path.write_text(text, encoding="utf-8")
            os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        outcome, how = self._judge(id, found)
        return Verdict(outcome, how, time.monotonic() - start)

    def clean(self, id: str) -> dict[str, Any]:
        """Run the row on the tree as it is, once."""
        if id not in self._clean:
            self._clean[id] = self._run(id)
        return self._clean[id]

    def _judge(self, id: str, found: dict[str, Any]) -> tuple[str, str]:
        if not found.get("num_run"):
            return "refused", f"no check ran: {found.get('said', '')}"
        if not found["failures"]:
            return "green", f"{found['num_run']} checks passed"
        loud = [failure for failure in found["failures"] if failure["kind"] == "refused"]
        if loud:
            return "refused", loud[0]["how"]
        if any(command["is_error"] for command in found["commands"]):
            before = self.clean(id)["commands"]
            for place, command in enumerate(found["commands"]):
                if command["is_error"] and not (place < len(before) and before[place]["is_error"]):
                    return "refused", f"a new error of: {command['words']} (exit code {command['code']})"
        return "red", found["failures"][0]["how"]

    def _run(self, id: str) -> dict[str, Any]:
        file = self.folder / "found.json"
        said = Path(f"{file}.said")
        for each in (file, said):
            each.unlink(missing_ok=True)
        answer = self._ask(json.dumps([id, str(file)]))
        text = answer or (said.read_text(errors="replace") if said.exists() else "")
        result: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        return result | {"said": " ".join(text.split())[-400:]}

    def _ask(self, line: str) -> str:
        """Have the server of this tree run a row; return what it says of one that hangs."""
        if self._server is None:
            own = {"PYTHONPATH": str(self.tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
            kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
            words = [sys.executable, "-m", "tests.mission.trial"]
            pipe = subprocess.PIPE
            self._server = subprocess.Popen(words, cwd=self.tree, env=kept | own, stdin=pipe, stdout=pipe, text=True)
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(f"{line}\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        assert answer, "the server of trials ended"
        return answer.strip()


def list_touched() -> set[str]:
    """Return the files below `sightline/` that the last commit touched; none without a history."""
    words = ["git", "diff", "--name-only", "--relative=sightline", "HEAD~1"]
    try:
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return set()
    return set(done.stdout.split()) if done.returncode == 0 else set()


if __name__ == "__main__":
    serve()
