"""A run whose folder is moved, deleted or taken by another run ends in one line and leaves what is there as it is."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sightline.contract.errors import LostFolderError
from sightline.runs import checkpoint
from sightline.runs.run_directory import RunDirectory
from sightline.training import train_run
from sightline.training.session import TrainingSession
from tests.command import Outcome, run_here
from tests.engine.snapshots import snapshot_of
from tests.runs.broken_off import Bench, Forked, wait_for
from tests.runs.small import TINY

LOGS = ("log.tensorboard=true",)


def train(out: Path, *words: str) -> Outcome:
    return run_here("train", TINY, *LOGS, "--no-check", "--device", "cpu", "--out", out, *words)


def tree(folder: Path) -> dict[str, str]:
    """Every file, link and folder below, with what it holds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = os.readlink(path)
        else:
            content = path.read_bytes() if path.is_file() else b"a folder"
            found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


@pytest.fixture(scope="module")
def other_seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of another seed."""
    out = tmp_path_factory.mktemp("other") / "run"
    done = train(out, "seed=6")
    assert done.code == 0, done.err
    return out


class Disturbed:
    """A run into `out`, to whose folder something happens once, at a named moment."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.out, self.moved = folder / "X", folder / "X_old"
        self._patch = monkeypatch
        self._left = 1

    def at(self, moment: str, happens: Callable[[], None], *, step: int = 6) -> None:
        """By default in the second epoch; there are checkpoints of steps 4 and 8."""
        owner: Any
        owner, name = {
            "step": (TrainingSession, "_on_step_end"),
            "writing a checkpoint": (checkpoint, "_replace_checkpoint"),
            "final evaluation": (TrainingSession, "_finish"),
            "after the end": (train_run, "list_published"),
        }[moment]
        before = getattr(owner, name)

        def then(*arguments: Any, **options: Any) -> Any:
            is_due = moment != "step" or arguments[0].job.step == step
            if is_due and self._left:
                self._left = 0
                happens()
            return before(*arguments, **options)

        self._patch.setattr(owner, name, then)

    def error_of(self, *words: str) -> str:
        """The error line of the run, which must end with exit code 1."""
        ended = train(self.out, "seed=5", *words)
        assert ended.code == 1, ended.err
        (line,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
        assert ended.err.endswith(f"{line}\n")
        assert "Traceback" not in ended.err
        assert "observer-failed" not in ended.err
        return line


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disturbed:
    return Disturbed(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("moment", "kind"),
    [("step", "folder"), ("writing a checkpoint", "folder"), ("final evaluation", "folder"), ("step", "link")],
)
def test_a_finished_run_in_its_place_is_left_alone(moment: str, kind: str, run: Disturbed, other_seed: Path) -> None:
    def replace() -> None:
        run.out.rename(run.moved)
        if kind == "folder":
            shutil.copytree(other_seed, run.out, symlinks=True)
        else:
            run.out.symlink_to(other_seed)

    run.at(moment, replace)
    before = tree(other_seed)
    assert "is no longer the folder of this run" in run.error_of()
    assert tree(run.out) == before


@pytest.mark.parametrize(
    ("moment", "kind"),
    [
        ("step", "moved"),
        ("writing a checkpoint", "moved"),
        ("step", "deleted"),
        ("final evaluation", "deleted"),
        ("after the end", "deleted"),
    ],
)
def test_a_folder_that_is_gone_is_not_made_again(moment: str, kind: str, run: Disturbed) -> None:
    run.at(moment, lambda: run.out.rename(run.moved) if kind == "moved" else shutil.rmtree(run.out))
    assert f"{run.out}: was moved or deleted while the run wrote to it" in run.error_of()
    assert not run.out.exists()
    if kind == "moved" and moment == "step":
        (run.moved / ".lock").unlink()  # a dead process's is taken over, but this one lives on
        resumed = train(run.moved, "seed=5", "--resume", "auto")
        assert resumed.code == 0, resumed.err


def test_a_folder_that_comes_back_at_once_is_still_its_own(run: Disturbed) -> None:
    """Moved to another place and linked from the old one: the same folder."""

    def move() -> None:
        run.out.rename(run.moved)
        run.out.symlink_to(run.moved)

    run.at("step", move)
    done = train(run.out, "seed=5")
    assert done.code == 0, done.err
    assert (run.moved / "final.json").exists()


def test_a_removed_lock_ends_the_run_and_resume_goes_on(run: Disturbed) -> None:
    run.at("step", lambda: (run.out / ".lock").unlink())
    line = run.error_of()
    assert f"{run.out}/.lock: was removed while the run wrote to the folder" in line
    done = train(run.out, "seed=5", "--resume", "auto")
    assert done.code == 0, done.err


def test_a_lock_that_another_run_took_is_left_to_it(run: Disturbed) -> None:
    run.at("step", lambda: (run.out / ".lock").write_text('{"pid": 1, "host": "elsewhere"}'))
    assert f"{run.out}/.lock: was taken by process 1 on elsewhere; this run ends" in run.error_of()
    assert (run.out / ".lock").read_text() == '{"pid": 1, "host": "elsewhere"}'


def test_a_run_that_finished_while_this_one_was_built_is_left_alone(
    run: Disturbed, other_seed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both found the folder empty; the other one locked it first, and had ended when this one came to lock it."""
    before = train_run.create_run_folder

    def late(*arguments: Any) -> Path:
        shutil.copytree(other_seed, run.out, symlinks=True)
        return before(*arguments)

    monkeypatch.setattr(train_run, "create_run_folder", late)
    ended = train(run.out, "seed=5")
    assert ended.code == 2, ended.err
    assert f"error: {run.out}: another run wrote to this folder while this one was built" in ended.err
    assert tree(run.out) == tree(other_seed)


@pytest.mark.processes
def test_all_processes_end_with_the_first(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    out, go = tmp_path / "X", tmp_path / "go"
    held = {"HELD_AFTER": "8", "GO": str(go)}  # the first one, until the folder is moved
    started = Forked(bench.words("X", slow=True), tmp_path / "log", num_processes=2, environment=held)
    wait_for(lambda: (out / "checkpoints" / "last").exists(), otherwise=started.log.read_text)
    out.rename(tmp_path / "X_old")
    go.touch()
    code, text = started.wait()
    assert code == 1, text
    assert f"error: {out}: was moved or deleted while the run wrote to it" in text
    assert all(process.exitcode == 1 for process in started.processes)
    assert not out.exists()


# --- moved between any two calls of one write -------------------------------------------------------------------------


class _Mover:
    """Moves a folder right before the n-th of the process's calls that name something in it."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.left = 0
        sys.addaudithook(self._on)  # for good: there is no way to remove one

    def before(self, number: int, folder: Path) -> None:
        self.folder, self.left = folder, number

    def _on(self, event: str, arguments: tuple[Any, ...]) -> None:
        folder = self.folder
        if folder is None or not (event == "open" or event.startswith("os.")):
            return
        if any(isinstance(each, str | os.PathLike) and str(each).startswith(f"{folder}/") for each in arguments):
            self.left -= 1
            if self.left == 0:
                self.folder = None
                folder.rename(f"{folder}_moved")


MOVER = _Mover()


def save_twice(run: RunDirectory) -> None:
    for step in (1, 2):
        checkpoint.save(run.path, snapshot_of(step), keep_last=1, is_best=True, assert_own=run.assert_lock_held)


WRITES: dict[str, Callable[[RunDirectory], None]] = {
    "checkpoints": save_twice,
    "a picture": lambda run: run.write_bytes("predictions/of/one.png", b"1"),
    "a line": lambda run: run.append_line("metrics.jsonl", {"step": 1}),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=list(WRITES))
def test_a_folder_moved_at_any_moment_is_not_made_anew(tmp_path: Path, write: Callable[[RunDirectory], None]) -> None:
    for number in range(1, 400):
        path = tmp_path / str(number)
        run = RunDirectory(path, is_writer=True)
        with contextlib.suppress(LostFolderError), run.lock():
            MOVER.before(number, path)
            write(run)
        has_moved, MOVER.folder = MOVER.folder is None, None
        assert path.exists() == (not has_moved)
        if not has_moved:
            assert number > 3
            return
    raise AssertionError("it never came to an end")
